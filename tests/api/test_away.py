"""The database is away: 503 that SDKs repeat, on every endpoint, and later all is as before."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import InterfaceError, OperationalError, ProgrammingError, connection, connections

from accounts.keys import NewKey
from billing.models import LedgerEntry
from geekhub.lib import db
from images.models import Generation, Image
from tests.api.checks import expect_error, expect_nothing_happened
from tests.api.test_edits import edit
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.server import Api, AppServer

ENDPOINTS = [
    ("POST", "images/generations"),
    ("GET", "models"),
    ("HEAD", "models"),
    ("GET", "models/openai/gpt-image-1"),
    ("GET", "credits"),
    ("GET", "usage"),
    ("GET", "generation?id=req_000000000000000000000000"),
    ("DELETE", "images/req_000000000000000000000000"),
    ("DELETE", "images/req_000000000000000000000000/0"),
]


@contextmanager
def database_away() -> Iterator[None]:
    """Refuse new connections to the database; existing ones stay."""
    place = connections.settings["default"]
    kept = dict(place)
    if connection.vendor == "sqlite":
        place["NAME"] = "/nowhere/at/all.sqlite3"
    else:
        place |= {"HOST": "127.0.0.1", "PORT": "1"}
    try:
        yield
    finally:
        place |= kept


def test_every_endpoint_says_503_and_works_again_when_the_database_is_back(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    with database_away():
        for method, path in ENDPOINTS:
            with subtests.test(f"{method} {path}"):
                body = {"model": "openai/gpt-image-1", "prompt": "a red kite"}
                answer = api.http.request(method, path, json=body if method == "POST" else None)
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "2"
                assert answer.headers["x-should-retry"] == "true"
                if method != "HEAD":
                    expect_error(answer, "service_unavailable", says="Nothing was charged")
        with subtests.test("an edit"):
            expect_error(edit(api), "service_unavailable", says="Nothing was charged")
    expect_nothing_happened(openai)
    assert api.draw().status_code == 200
    assert api.get("models").status_code == 200


@pytest.mark.postgresql
@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server to lose")
@pytest.mark.parametrize("stream", [False, True])
def test_a_database_that_goes_while_a_picture_is_drawn_is_not_to_be_tried_again_blindly(
    api: Api, openai: OpenAIEmulator, app: AppServer, stream: bool
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    answers = []
    client = threading.Thread(target=lambda: answers.append(api.draw(stream=stream)))
    client.start()
    openai.wait_for_calls(1)
    with database_away():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        gate.set()
        client.join()
    (answer,) = answers
    error = expect_error(answer, "service_unavailable", says="shows the outcome")
    assert f"GET /v1/generation?id={error['request_id']}" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" in answer.headers
    assert Image.objects.count() == 0
    assert not LedgerEntry.objects.filter(kind="consumption").exists()
    assert Generation.objects.get().request_id == error["request_id"]


def raised(make: Callable[[], object]) -> Exception:
    """Return what a call raises."""
    with pytest.raises(Exception) as caught:
        make()
    return caught.value


def test_what_means_that_the_database_is_away(live_key: NewKey) -> None:
    def query() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM nothing_of_that_name")

    for error in (OperationalError("gone"), InterfaceError("closed")):
        assert db.is_away(error)
    for error in (ProgrammingError("x"), ValueError("x"), raised(query)):
        assert not db.is_away(error), error


@pytest.mark.skipif(connection.vendor != "sqlite", reason="sends what SQLite says")
def test_a_locked_sqlite_is_away(tmp_path: object) -> None:
    first, second = (sqlite3.connect(f"{tmp_path}/a", timeout=0) for _ in range(2))
    first.execute("BEGIN EXCLUSIVE")
    error = OperationalError()
    error.__cause__ = raised(lambda: second.execute("BEGIN EXCLUSIVE"))
    first.close(), second.close()
    assert db.is_away(error)
