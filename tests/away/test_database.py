"""Without its database every page says so, with 503 and in words; nothing hangs, nothing is half
done, and the log stays readable."""

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.cache import cache
from django.db import DatabaseError, OperationalError, connection, transaction
from django.http import HttpResponse
from django.test import Client
from pytest_django.fixtures import Settings

from accounts.models import ApiKey, AuditEvent, Invitation, Membership, Organization, User
from billing.models import BillingAccount, LedgerEntry, StripeEvent
from geekhub.lib.db import is_away
from geekhub.lib.outages import OutageFilter
from tests.api.service import ROOT
from tests.away import PROVING, Wire, ask, urls
from tests.away.conftest import People
from tests.billing.buyer import event
from tests.emulators.stripe import StripeEmulator
from tests.lib import dead_port
from tests.pages import owner_of
from tests.pages.visitor import Visitor
from tests.server import AppServer

pytestmark = pytest.mark.timeout(3600 if PROVING else 300)
on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only PostgreSQL has a server that can go away"
)
WORDS = {
    "en": "Our database can't be reached right now.",
    "es": "No podemos conectarnos a nuestra base de datos.",
}


@contextmanager
def refused() -> Iterator[None]:
    """Let no connection to the database be opened."""
    nowhere: dict[str, Any] = {"NAME": "/nowhere/db"}
    with elsewhere(nowhere if connection.vendor == "sqlite" else {"PORT": dead_port()}):
        yield


@contextmanager
def elsewhere(place: dict[str, Any]) -> Iterator[None]:
    """Look for the database in another place, on all threads that connect from now on."""
    found = connection.settings_dict
    before = {name: found[name] for name in place}
    connection.close()
    found.update(place)
    try:
        yield
    finally:
        connection.close()
        found.update(before)


def is_said(answer: HttpResponse, language: str) -> bool:
    """Return whether the page of an outage is the answer."""
    return (
        answer.status_code == 503
        and answer.get("Retry-After") == "5"
        and WORDS[language] in answer.content.decode()
        and f'<html lang="{language}">' in answer.content.decode()
    )


def test_every_page_says_that_the_database_is_away(acme: Organization, people: People) -> None:
    # Nothing is there, once for each of eleven lists.
    addresses = [path for path in urls(acme) if PROVING or "/1/" not in path]
    visitors = people.all() if PROVING else [people.owner]
    said, wrong = set(), {}
    with refused():
        for number, path in enumerate(addresses):
            language = ("en", "es")[number % 2]
            for client in visitors:
                client.defaults["HTTP_ACCEPT_LANGUAGE"] = language
                for method in ("GET", "POST"):
                    answer = ask(client, method, path)
                    if is_said(answer, language):
                        said.add((method, path))
                    elif answer.status_code >= 500:
                        wrong[method, path] = answer.status_code
    # That one has an answer of its own.
    assert {path for _, path in wrong} == {"/ready"}
    assert set(wrong.values()) == {503}
    assert {("GET", "/dashboard"), ("GET", "/staff/"), ("POST", "/login")} <= said
    assert ("POST", "/billing/webhooks/stripe") in said
    assert len(said) > len(addresses)
    assert people.owner.get("/dashboard").status_code == 200


def test_stripe_is_asked_to_repeat(
    client: Client, published: None, stripe_account: StripeEmulator
) -> None:
    client.raise_request_exception = False
    body, headers = stripe_account.webhooks.signed(event("some.thing", {"id": "x"}))
    sent = {"data": body, "content_type": "application/json", "headers": headers}
    with refused():
        assert client.post("/billing/webhooks/stripe", **sent).status_code == 503
    assert not StripeEvent.objects.exists()
    assert client.post("/billing/webhooks/stripe", **sent).status_code == 200


# --- Hanging --------------------------------------------------------------------------------------


@pytest.fixture
def wire(transactional_db: None) -> Iterator[Wire]:
    """A wire to PostgreSQL, which every connection goes through from now on."""
    found = connection.settings_dict
    with Wire(found["HOST"], int(found["PORT"])) as relay:
        short = {**found["OPTIONS"], "connect_timeout": 2, "answer_within": 1.0}
        with elsewhere({"HOST": "127.0.0.1", "PORT": str(relay.port), "OPTIONS": short}):
            yield relay
            relay.cut()
            relay.flow()


@pytest.mark.postgresql
@on_postgresql
def test_a_database_that_hangs_holds_up_no_page(
    acme: Organization, globex: Organization, wire: Wire, serve: Callable[[], AppServer]
) -> None:
    """New connections get no answer, and neither does a statement in the middle of a page."""
    app = serve()
    owner = Visitor(app, owner_of(acme))
    connection.close()
    wire.hang()
    paths = ["/dashboard", "/login", "/staff/", "/invitations/x", "/ready", "/dashboard/billing"]
    with ThreadPoolExecutor(len(paths)) as pool:
        answers = list(pool.map(owner.get, paths))
    assert {answer.status_code for answer in answers} == {503}
    assert owner.get("/health").status_code == 200
    wire.flow()
    assert owner.get("/dashboard").status_code == 200
    with transaction.atomic():
        # The page waits for this row in the middle of its transaction.
        Organization.objects.select_for_update().get(pk=acme.pk)
        waited = owner.post("/dashboard/settings/members", email="new@acme.test", role="viewer")
    assert waited.status_code == 503
    assert WORDS["en"] in waited.text
    assert not Invitation.objects.exists()
    owner.http.close()


@pytest.mark.postgresql
@on_postgresql
def test_a_statement_without_an_answer_ends_its_connection(transactional_db: None) -> None:
    options = {**connection.settings_dict["OPTIONS"], "answer_within": 0.3}
    with elsewhere({"OPTIONS": options}):
        with pytest.raises(OperationalError, match=r"has not answered for 0.3 s") as caught:
            sleep(5)
        assert is_away(caught.value)
        assert connection.connection.closed
        connection.close()
        sleep(0)
    with elsewhere({"OPTIONS": {**options, "answer_within": 0}}):
        sleep(0.4)


@pytest.mark.parametrize(("value", "starts"), [("-1", False), ("0", True), ("2.5", True)])
def test_the_wait_is_not_negative(value: str, starts: bool, tmp_path: Path) -> None:
    environment = {"DATABASE_TIMEOUT_SECONDS": value, "DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import geekhub.settings"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) is starts
    assert ("DATABASE_TIMEOUT_SECONDS is 0 or more" in done.stderr) is not starts


def sleep(seconds: float) -> None:
    """Let the server sleep."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite is locked as a whole")
def test_a_database_that_stays_locked_is_away(acme: Organization, people: People) -> None:
    options = {**connection.settings_dict["OPTIONS"], "timeout": 0.1}
    with elsewhere({"OPTIONS": options}), closing(sqlite3.connect(database_file())) as other:
        other.execute("BEGIN EXCLUSIVE")
        new = {"email": "new@acme.test", "role": "viewer"}
        assert is_said(people.owner.post("/dashboard/settings/members", new), "en")
    assert not Invitation.objects.exists()


def database_file() -> str:
    """Return where SQLite keeps the database of this test."""
    return str(connection.settings_dict["NAME"])


# --- Breaking in the middle -----------------------------------------------------------------------


class Cut:
    """Ends the connection's backend after its statement of that number."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, execute: Callable[..., Any], *arguments: Any) -> Any:
        result = execute(*arguments)
        self.left -= 1
        if self.left == 0:
            with psycopg.connect(**place(), autocommit=True) as other:
                # Waits until it is gone.
                backend = connection.connection.info.backend_pid
                other.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])
        return result


def place() -> dict[str, Any]:
    """Return where the database of this test is, for a connection of one's own."""
    found = connection.settings_dict
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    return {"dbname": found["NAME"], **{name: found[key] for name, key in names.items()}}


def books() -> dict[str, int]:
    """Return how many rows of each kind there are."""
    kinds = (ApiKey, AuditEvent, BillingAccount, Invitation, LedgerEntry, Membership, Organization)
    return {kind.__name__: kind.objects.count() for kind in (*kinds, User)}


def each_break(send: Callable[[], Any]) -> Iterator[Any]:
    """Yield the answer to each try, the connection cut after another statement, until none is."""
    for after in range(1, 200):
        cut = Cut(after)
        connection.close()
        cache.clear()  # the limits on sign-ups
        with connection.execute_wrapper(cut):
            answer = send()
        connection.close()
        yield answer
        if cut.left > 0:
            return
    raise AssertionError("there is no end of statements")


FORMS: dict[str, dict[str, str]] = {
    "/dashboard/keys/new": {
        "once": "6f1f9a3e-3f5e-4a0e-9d53-3f4a8f3a7a10", "name": "ci", "kind": "live",
        "budget_period": "day",
    },
    "/dashboard/settings/members": {"email": "new@acme.test", "role": "viewer"},
    "/accounts/signup/": {
        "email": "nina@new.test", "password1": "correct horse 7", "organization": "New",
    },
}  # fmt: skip


@pytest.mark.postgresql
@on_postgresql
@pytest.mark.parametrize("path", FORMS)
def test_a_connection_that_breaks_in_the_middle_leaves_nothing_half_done(
    path: str, acme: Organization, people: People, settings: Settings
) -> None:
    settings.OPEN_FOR_SIGNUP = True
    browser = people.for_whom(path)
    before, states = books(), []
    for answer in each_break(lambda: browser.post(path, FORMS[path])):
        assert answer.status_code < 500 or is_said(answer, "en")
        states.append((answer.status_code, books()))
        if states[-1][1] != before:
            break
    # From the first statement on it is away, until once all of it is written.
    assert states[0][0] == 503
    assert {status for status, rows in states if rows == before} == {503}
    last = states[-1][1]
    assert last != before
    assert last == before | {name: before[name] + 1 for name in last if last[name] != before[name]}


@pytest.mark.postgresql
@pytest.mark.prove
@on_postgresql
@pytest.mark.skipif(not PROVING, reason="takes long; PROVE=1 runs it")
def test_every_page_at_every_statement(acme: Organization, people: People) -> None:
    for path in urls(acme):
        browser = people.for_whom(path)
        for method in ("GET", "POST"):
            for answer in each_break(partial(ask, browser, method, path)):
                status = answer.status_code
                assert status < 500 or is_said(answer, "en") or path == "/ready", (method, path)
            if "logout" in path:
                people.log_in_again()


# --- The log --------------------------------------------------------------------------------------


def test_an_outage_is_a_line_a_second(client: Client, published: None, caplog: Any) -> None:
    client.raise_request_exception = False
    with refused(), caplog.at_level(logging.ERROR):
        client.get("/invitations/x")
    (record,) = [one for one in caplog.records if one.exc_info]
    outages = OutageFilter()

    def written() -> Any:
        return outages.filter(record)

    line = written()
    assert line.getMessage().startswith("the database is away: ")
    assert "/invitations/x" in line.getMessage()
    assert line.exc_info is None
    assert "\n" not in line.getMessage()
    assert [written() for _ in range(50)] == [False] * 50
    # A fault of ours keeps its traceback.
    fault = logging.makeLogRecord({"msg": "x", "exc_info": (KeyError, KeyError("x"), None)})
    assert outages.filter(fault) is True


@pytest.mark.parametrize("statement", ["SELECT nothing", "SELECT 1 FROM nowhere", "SELEC"])
def test_a_mistake_in_a_statement_is_no_outage(statement: str, transactional_db: None) -> None:
    with pytest.raises(DatabaseError) as caught, connection.cursor() as cursor:
        cursor.execute(statement)
    assert not is_away(caught.value)
