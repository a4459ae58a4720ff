"""A retry is the same order: what an SDK sends again is drawn once, charged once and delivered."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import openai as sdk
import pytest
from django.conf import settings
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import BillingAccount, Hold, HoldState, LedgerEntry
from images.drawing.admit import Admitted, admit
from images.drawing.place import Place
from images.drawing.repeats import RETRIED_WITHIN, SPOOLED_WITHIN, Running, Sent
from images.drawing.request import GenerationRequest
from images.drawing.started import Started
from images.models import Generation, GenerationStatus, Image
from tests.api.checks import connect_raw, expect_books_agree, expect_error, expect_nothing_charged
from tests.api.test_edits import edit
from tests.api.test_streaming import events
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.gateway import gateway_of, in_flight
from tests.images.requests import make_request
from tests.server import Api, AppServer
from tests.test_disconnect import BODY, _request

GPT, PRICE = "openai/gpt-image-1", 190_000
COUNT = "x-stainless-retry-count"
RETRY = {COUNT: "1"}
KEY = {"Idempotency-Key": "order-4711"}


@pytest.fixture(autouse=True)
def _one_thread(settings: Settings) -> None:
    """Let one thread do all database work: a wait that held it would stop everything."""
    settings.DATABASE_THREADS = 1


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests beside the test's own."""
    with ThreadPoolExecutor(20) as threads:
        yield threads


@pytest.fixture
def gate(openai: OpenAIEmulator) -> Iterator[threading.Event]:
    """What holds every drawing back until it is set."""
    event = threading.Event()
    openai.always(Behaviour(gate=event))
    yield event
    event.set()


def let_in(app: AppServer, key: NewKey, asked: GenerationRequest, sent: Sent) -> Admitted:
    gateway = gateway_of(app)
    return admit(gateway, key.row, asked, sent, Place(gateway, sent.request_id))


def expect_waiting(
    app: AppServer, api: Api, organization: Organization, *waiting: Future[httpx.Response]
) -> None:
    """Check that these requests wait for the one that draws.

    A place is taken in the unit of database work that looks for something to join, and the one
    thread does the unit of GET after it.
    """
    while in_flight(app, organization) < 1 + len(waiting):
        assert api.get("models").status_code == 200
    assert api.get("models").status_code == 200
    assert not any(one.done() for one in waiting)


def expect_replay(answer: httpx.Response, first: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.json() == first.json()
    for name in ("x-request-id", "x-geekhub-cost-usd"):
        assert answer.headers[name] == first.headers[name]
    assert answer.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers


def test_an_impatient_sdk_is_charged_once_and_gets_its_picture(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator, gate: threading.Event
) -> None:
    """The first try and the first retry time out; the second retry gets the picture."""
    counts: list[str] = []

    def sending(request: httpx.Request) -> None:
        counts.append(request.headers[COUNT])
        if counts[-1] != "0":
            openai.wait_for_calls(1)
        if counts[-1] == "2":
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), 60)
            gate.set()

    http = sdk.DefaultHttpxClient(event_hooks={"request": [sending]})
    with sdk.OpenAI(
        api_key=live_key.secret, base_url=f"{app.origin}/v1", timeout=0.5, http_client=http
    ) as client:
        raw = client.images.with_raw_response.generate(model=GPT, prompt="a red kite", n=2)

    assert counts == ["0", "1", "2"]
    row = Generation.objects.get()
    assert raw.headers["x-request-id"] == row.request_id
    assert raw.headers["x-geekhub-cost-usd"] == "0.38"
    assert raw.headers["idempotent-replayed"] == "true"
    assert len(raw.parse().data or []) == 2
    assert len(openai.calls) == Hold.objects.count() == 1
    expect_books_agree(images=2, cost_micro=2 * PRICE)


@pytest.mark.parametrize("key", [{}, KEY], ids=["same body", "same key"])
def test_retries_wait_for_what_is_running_and_hold_nothing_meanwhile(
    app: AppServer,
    api: Api,
    acme: Organization,
    openai: OpenAIEmulator,
    pool: ThreadPoolExecutor,
    gate: threading.Event,
    key: dict[str, str],
) -> None:
    first = pool.submit(api.draw, headers=key)
    openai.wait_for_calls(1)
    retries = [pool.submit(api.draw, headers=key | {COUNT: str(n)}) for n in (1, 1, 2)]
    expect_waiting(app, api, acme, *retries)
    assert Generation.objects.count() == Hold.objects.count() == 1
    gate.set()

    for retry in retries:
        expect_replay(retry.result(60), first.result(60))
    app.drain()
    assert in_flight(app, acme) == 0
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=PRICE)


def test_a_retry_of_what_has_finished_is_a_replay(api: Api, openai: OpenAIEmulator) -> None:
    first = api.draw(n=2)
    for count in ("1", "2", "7"):
        expect_replay(api.draw(n=2, size="auto", headers={COUNT: count}), first)
    assert len(openai.calls) == 1
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_a_retry_reaches_what_another_process_draws(
    serve: Callable[[], AppServer],
    live_key: NewKey,
    acme: Organization,
    openai: OpenAIEmulator,
    pool: ThreadPoolExecutor,
    gate: threading.Event,
) -> None:
    one, two = serve(), serve()
    here, there = Api(one.origin, live_key.secret), Api(two.origin, live_key.secret)
    first = pool.submit(here.draw)
    openai.wait_for_calls(1)
    retry = pool.submit(there.draw, headers=RETRY)
    while not in_flight(two, acme):
        there.get("models")
    there.get("models")
    assert not retry.done()
    gate.set()
    expect_replay(retry.result(60), first.result(60))
    here.http.close()
    there.http.close()
    assert len(openai.calls) == 1


def test_streams_and_edits_are_joined_too(
    app: AppServer,
    api: Api,
    acme: Organization,
    openai: OpenAIEmulator,
    pool: ThreadPoolExecutor,
    gate: threading.Event,
) -> None:
    kinds: list[Callable[..., httpx.Response]] = [
        lambda **more: api.draw(stream=True, **more),
        lambda **more: edit(api, **more),
        lambda **more: edit(api, stream="true", **more),
    ]
    for number, draw in enumerate(kinds, start=1):
        gate.clear()
        first = pool.submit(draw)
        openai.wait_for_calls(number)
        retry = pool.submit(draw, headers=RETRY)
        expect_waiting(app, api, acme, retry)
        gate.set()
        late = [retry.result(60), draw(headers=RETRY)]
        for answer in late:
            assert answer.headers["idempotent-replayed"] == "true"
            assert answer.headers["x-request-id"] == first.result().headers["x-request-id"]
            assert _digests(answer) == _digests(first.result())
    assert len(openai.calls) == Generation.objects.count() == 3
    expect_books_agree(images=3, cost_micro=3 * PRICE)


def _digests(answer: httpx.Response) -> list[str]:
    if answer.headers["content-type"] == "application/json":
        return [row["sha256"] for row in answer.json()["data"]]
    return [data["sha256"] for _, data in events(answer.text)]


def test_the_sandbox_is_the_same(sandbox: Api, api: Api, openai: OpenAIEmulator) -> None:
    first = sandbox.draw()
    expect_replay(sandbox.draw(headers=RETRY), first)
    # The live key has not sent it.
    assert api.draw(headers=RETRY).json()["id"] != first.json()["id"]
    assert Generation.objects.filter(sandbox=True).count() == len(openai.calls) == 1


def test_without_the_header_or_with_a_senseless_one_it_is_a_new_order(
    api: Api, openai: OpenAIEmulator
) -> None:
    headers = [{}, *({COUNT: text} for text in ("0", "", "-1", "1.0", "one", "12345", "1 "))]
    drawn = [api.draw(headers=each).json()["id"] for each in headers[:-1]]
    assert len(set(drawn)) == len(drawn) == len(openai.calls)
    expect_books_agree(images=len(drawn), cost_micro=len(drawn) * PRICE)


def test_another_order_is_not_joined(
    api: Api,
    connect: Callable[[str | None], Api],
    acme: Organization,
    globex: Organization,
    openai: OpenAIEmulator,
) -> None:
    """Another body, another key of the organization, another organization, or long ago."""
    first = api.draw().json()["id"]
    others = [
        api.draw(headers=RETRY, prompt="a blue kite"),
        api.draw(headers=RETRY, n=2),
        connect(KeyFactory(organization=acme).secret).draw(headers=RETRY),
        connect(KeyFactory(organization=globex).secret).draw(headers=RETRY),
        # An Idempotency-Key says that it is another one.
        api.draw(headers=RETRY | KEY),
    ]
    long_ago = timezone.now() - RETRIED_WITHIN
    Generation.objects.update(created_at=long_ago)
    others.append(api.draw(headers=RETRY))
    # What has an Idempotency-Key is repeated by that alone.
    others.append(api.draw(headers=KEY | {"Idempotency-Key": "another"}, prompt="a green kite"))
    others.append(api.draw(headers=RETRY, prompt="a green kite"))
    assert len({first, *(answer.json()["id"] for answer in others)}) == 9 == len(openai.calls)
    expect_books_agree(images=10, cost_micro=10 * PRICE)


def test_a_retry_without_a_first_is_an_order_that_the_next_one_joins(
    api: Api, openai: OpenAIEmulator
) -> None:
    first = api.draw(headers=RETRY)
    expect_replay(api.draw(headers={COUNT: "2"}), first)
    assert len(openai.calls) == 1


def test_twenty_retries_at_once_without_a_first_are_one_order(
    serve: Callable[[], AppServer],
    live_key: NewKey,
    test_key: NewKey,
    openai: OpenAIEmulator,
    pool: ThreadPoolExecutor,
    settings: Settings,
) -> None:
    settings.DATABASE_THREADS = 8  # so that they do look at the same time
    origin = serve().origin
    for client in (Api(origin, live_key.secret), Api(origin, test_key.secret)):
        start = threading.Barrier(20)

        def draw(client: Api = client, start: threading.Barrier = start) -> httpx.Response:
            start.wait(60)
            return client.draw(headers=RETRY)

        answers = [one.result(60) for one in [pool.submit(draw) for _ in range(20)]]
        assert [answer.status_code for answer in answers] == [200] * 20
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        client.http.close()
    assert len(openai.calls) == 1
    assert [row.cost_micro for row in Generation.objects.filter(sandbox=False)] == [PRICE]
    assert Hold.objects.count() == LedgerEntry.objects.filter(kind="consumption").count() == 1


def test_a_retry_of_what_failed_begins_anew(api: Api, openai: OpenAIEmulator) -> None:
    drawn = api.draw()
    openai.queue(Behaviour(error="moderation_blocked"))
    expect_error(api.draw(), "content_policy_violation")
    # The newest is what is retried, not the older one that was delivered.
    again = api.draw(headers=RETRY)
    assert again.json()["id"] != drawn.json()["id"]
    assert "idempotent-replayed" not in again.headers
    assert len(openai.calls) == 3
    expect_books_agree(images=2, cost_micro=2 * PRICE)


@pytest.mark.parametrize("key", [{}, KEY], ids=["same body", "same key"])
def test_when_the_first_fails_one_of_those_that_waited_draws(
    app: AppServer,
    api: Api,
    acme: Organization,
    openai: OpenAIEmulator,
    pool: ThreadPoolExecutor,
    key: dict[str, str],
) -> None:
    gate = threading.Event()
    openai.queue(Behaviour(gate=gate, error="moderation_blocked"))
    try:
        first = pool.submit(api.draw, headers=key)
        openai.wait_for_calls(1)
        retries = [pool.submit(api.draw, headers=key | RETRY) for _ in range(3)]
        expect_waiting(app, api, acme, *retries)
    finally:
        gate.set()
    expect_error(first.result(60), "content_policy_violation")
    answers = [retry.result(60) for retry in retries]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len(openai.calls) == 2
    expect_books_agree(images=1, cost_micro=PRICE)


@pytest.mark.parametrize("behind", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_who_leaves_while_waiting_begins_nothing(
    behind: bytes,
    app: AppServer,
    api: Api,
    acme: Organization,
    live_key: NewKey,
    openai: OpenAIEmulator,
    pool: ThreadPoolExecutor,
) -> None:
    gate = threading.Event()
    openai.queue(Behaviour(gate=gate, error="moderation_blocked"))
    try:
        first = pool.submit(api.draw)
        openai.wait_for_calls(1)
        with connect_raw(app.origin) as client:
            client.sendall(_request(live_key.secret, BODY, f"{COUNT}: 1") + behind)
            expect_waiting(app, api, acme, Future())
        while in_flight(app, acme) > 1:
            api.get("models")
    finally:
        gate.set()
    expect_error(first.result(60), "content_policy_violation")
    app.drain()
    assert len(openai.calls) == Generation.objects.count() == 1
    expect_nothing_charged()


def test_the_wait_ends_with_the_deadline(
    settings: Settings, serve: Callable[[], AppServer], live_key: NewKey, openai: OpenAIEmulator
) -> None:
    settings.REQUEST_DEADLINE_SECONDS = 1
    api = Api(serve().origin, live_key.secret)
    asked = GenerationRequest(models=(GPT,), listed=False, prompt="a red kite")
    row = make_request(live_key.row, timezone.now(), model=GPT, running=True)
    Generation.objects.filter(pk=row.pk).update(fingerprint=asked.fingerprint())
    answer = api.draw(headers=RETRY)
    api.http.close()
    expect_error(answer, "idempotency_key_in_use", says="still running")
    assert answer.headers["x-should-retry"] == "false"
    assert openai.calls == []
    assert Generation.objects.get().status == GenerationStatus.RUNNING


def test_only_what_may_repeat_something_asks_for_it(
    app: AppServer, live_key: NewKey, published: None
) -> None:
    """A first request costs no look at earlier ones."""
    selects = {}
    asking = {"first": Sent(), "first of an SDK": Sent(retry=0), "retry": Sent(retry=1)}
    for name, sent in asking.items():
        asked = GenerationRequest(models=(GPT,), listed=False, prompt=f"a {name} kite")
        with CaptureQueriesContext(connection) as asked_for:
            begun = let_in(app, live_key, asked, sent)
        assert isinstance(begun, Started)
        statements = [query["sql"] for query in asked_for]
        selects[name] = len(
            [one for one in statements if 'FROM "images_generation"' in one or "FOR NO KEY" in one]
        )
    # Once before the work of choosing a model, once more when nobody else can begin it.
    assert selects == {"first": 0, "first of an SDK": 0, "retry": 2}


def waiting_for_locks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(cursor.fetchone()[0])


@pytest.mark.postgresql
@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
def test_a_retry_joins_a_first_try_that_is_still_being_let_in(
    settings: Settings,
    serve: Callable[[], AppServer],
    live_key: NewKey,
    acme: Organization,
    openai: OpenAIEmulator,
    pool: ThreadPoolExecutor,
) -> None:
    settings.DATABASE_THREADS = 4
    api = Api(serve().origin, live_key.secret)
    with api.http, transaction.atomic():
        # Whatever has the account for a moment: a slow commit, a job, a page of the staff.
        BillingAccount.objects.select_for_update().get(organization=acme)
        tries: list[Future[httpx.Response]] = []
        for number in range(2):
            # Locks are given in the order they were asked for, so the first try is let in first.
            tries.append(pool.submit(api.draw, headers={COUNT: str(number)}))
            while waiting_for_locks() <= number:
                assert not any(one.done() for one in tries)
        # The lock goes with the transaction, and the answers come after it.
        transaction.on_commit(lambda: [one.result(60) for one in tries])
    first, second = (one.result(60) for one in tries)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=PRICE)


def test_a_first_try_that_its_retry_has_overtaken_joins_it(
    app: AppServer, live_key: NewKey, acme: Organization, published: None
) -> None:
    asked = GenerationRequest(models=(GPT,), listed=False, prompt="a kite")

    def begin(sent: Sent) -> object:
        return let_in(app, live_key, asked, sent)

    arrived = timezone.now() - timedelta(seconds=2)
    retry = begin(Sent(retry=1))
    assert isinstance(retry, Started)
    late = begin(Sent(retry=0, arrived=arrived))
    assert late == Running(retry.generation, asked)
    assert BillingAccount.objects.get(organization=acme).held_micro == PRICE
    assert Hold.objects.count() == Generation.objects.count() == 1
    # One that came after the retry is an order of its own, as is one that no SDK counts.
    assert isinstance(begin(Sent(retry=0)), Started)
    assert isinstance(begin(Sent(arrived=arrived)), Started)


# --- Deleted pictures -------------------------------------------------------------------------


@pytest.mark.parametrize("again", [KEY, RETRY], ids=["same key", "retry"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_deleted_is_said_to_be(
    api: Api, openai: OpenAIEmulator, again: dict[str, str], stream: bool
) -> None:
    first = api.draw(headers=again, n=3, stream=stream)
    name = first.headers["x-request-id"]
    api.http.delete(f"images/{name}/1")

    rest = api.draw(headers=again, n=3, stream=stream)
    assert rest.status_code == 200
    assert _digests(rest) == [_digests(first)[0], _digests(first)[2]]
    if stream:
        assert [data["deleted"] for _, data in events(rest.text)] == [[1], [1]]
    else:
        assert rest.json()["deleted"] == [1]
        assert "deleted" not in first.json()

    api.http.delete(f"images/{name}")
    nothing = api.draw(headers=again, n=3, stream=stream)
    if again == KEY:
        expect_error(nothing, "images_deleted", says=("deleted", "another Idempotency-Key"))
        assert nothing.headers["x-should-retry"] == "false"
        assert "idempotent-replayed" not in nothing.headers
        assert len(openai.calls) == Generation.objects.count() == 1
    else:
        # Only its body said what it repeats, and of that nothing is left: it is a new order.
        assert set(_digests(nothing)).isdisjoint(_digests(first))
        assert len(openai.calls) == Generation.objects.count() == 2
        charged = LedgerEntry.objects.filter(kind="consumption").values_list(
            "amount_micro", flat=True
        )
        assert sum(charged) == -6 * PRICE


def test_what_was_deleted_by_retention_is_said_to_be(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    api.draw(headers=KEY)
    Generation.objects.get().images.update(deleted_at=timezone.now() - timedelta(days=1))
    expect_error(api.draw(headers=KEY), "images_deleted")
    assert api.draw(headers={"Idempotency-Key": "another"}).status_code == 200
    assert len(openai.calls) == 2


ANSWERS: dict[str, dict[str, Any]] = {
    "b64_json": {"response_format": "b64_json"},
    "stream": {"stream": True},
}


def lose(*indexes: int) -> None:
    """Take pictures out of the store behind the application's back."""
    for image in Image.objects.filter(index__in=indexes):
        (settings.DATA_DIR / "images" / image.name).unlink(missing_ok=True)


def in_hold() -> int:
    """Return how much of the account is held."""
    assert not Hold.objects.filter(state=HoldState.HELD).exists()
    return BillingAccount.objects.get().held_micro


@pytest.mark.parametrize("again", [KEY, RETRY], ids=["same key", "retry"])
@pytest.mark.parametrize("kind", list(ANSWERS))
@pytest.mark.parametrize("edits", [False, True], ids=["generation", "edit"])
def test_what_the_store_has_lost_is_as_good_as_deleted(
    api: Api, openai: OpenAIEmulator, again: dict[str, str], kind: str, edits: bool
) -> None:
    asked = {"n": 3, **ANSWERS[kind]}

    def draw() -> httpx.Response:
        if edits:
            form = {name: str(value).lower() for name, value in asked.items()}
            return edit(api, headers=again, **form)
        return api.draw(headers=again, **asked)

    first = draw()
    api.http.delete(f"images/{first.headers['x-request-id']}/2")
    lose(0)

    rest = draw()
    assert rest.status_code == 200, rest.text
    assert rest.headers["idempotent-replayed"] == "true"
    assert _digests(rest) == [_digests(first)[1]]
    if kind == "stream":
        assert [data["deleted"] for _, data in events(rest.text)] == [[0, 2]]
    else:
        assert rest.json()["deleted"] == [0, 2]
        assert [row["b64_json"] for row in rest.json()["data"]] == [
            first.json()["data"][1]["b64_json"]
        ]

    lose(1)
    nothing = draw()
    expect_error(nothing, "images_deleted", says="another Idempotency-Key")
    assert nothing.headers["x-should-retry"] == "false"
    assert len(openai.calls) == Generation.objects.count() == Hold.objects.count() == 1
    assert in_hold() == 0
    consumed = LedgerEntry.objects.filter(kind="consumption")
    assert sum(one.amount_micro for one in consumed) == -Generation.objects.get().cost_micro
    assert sum(one.quantity for one in consumed) == 3


@pytest.mark.parametrize("kind", list(ANSWERS))
def test_what_may_wait_on_another_host_is_waited_for(
    settings: Settings, api: Api, openai: OpenAIEmulator, kind: str
) -> None:
    settings.STORAGE_OUTAGE = "spool"
    asked = {"n": 2, **ANSWERS[kind]}
    api.draw(headers=KEY, **asked)
    lose(1)

    answer = api.draw(headers=KEY, **asked)
    expect_error(answer, "service_unavailable", says="still being stored")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("2", "true")

    Generation.objects.update(created_at=timezone.now() - SPOOLED_WITHIN)
    rest = api.draw(headers=KEY, **asked)
    assert rest.status_code == 200, rest.text
    assert len(_digests(rest)) == 1
    assert len(openai.calls) == Hold.objects.count() == Generation.objects.count() == 1
    consumed = LedgerEntry.objects.filter(kind="consumption")
    assert (sum(one.quantity for one in consumed), in_hold()) == (2, 0)
