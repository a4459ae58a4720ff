"""Keys that open nothing: cheap for us, soon a 429, and no hindrance to who sits beside them."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from pytest_django.fixtures import Settings

from accounts import keys
from accounts.keys import NewKey
from accounts.models import Organization
from images.policies import bad_keys
from images.policies.bad_keys import BadKeys, TooManyBadKeys
from tests.api.checks import expect_error, expect_nothing_happened, send_raw
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.server import Api, AppServer

MALFORMED = "ghub_sk_live_short"


def unknown(number: int) -> str:
    """Return a key that has the right shape and opens nothing."""
    return f"ghub_sk_live_{number:032}"


@pytest.fixture
def http(app: AppServer) -> Iterator[httpx.Client]:
    """A client of the application, without a key."""
    with httpx.Client(base_url=f"{app.origin}/v1", timeout=60) as client:
        yield client


def ask(http: httpx.Client, secret: str, address: str = "") -> httpx.Response:
    """Return the answer to GET /v1/models, behind a proxy that saw the address."""
    headers = {"Authorization": f"Bearer {secret}"}
    if address:
        headers["X-Forwarded-For"] = address
    return http.get("models", headers=headers)


@pytest.fixture
def busy(app: AppServer) -> Iterator[None]:
    """Let every thread for the database be busy: what needs one is not answered."""
    gateway = app.gateway
    gate = threading.Event()
    for _ in range(100):
        asyncio.run_coroutine_threadsafe(gateway.db.run(gate.wait), gateway.loop)
    yield
    gate.set()


def test_what_cannot_be_a_key_needs_no_database(http: httpx.Client, busy: None) -> None:
    for secret in (MALFORMED, "sk-proj-x", unknown(1) + "x", unknown(1)[:-1], "x" * 9000):
        expect_error(ask(http, secret), "invalid_api_key")
    answer = http.get("credits")
    expect_error(answer, "missing_api_key")


def test_a_key_that_was_not_there_a_moment_ago_needs_none_either(
    http: httpx.Client, request: pytest.FixtureRequest
) -> None:
    expect_error(ask(http, unknown(1)), "invalid_api_key")
    request.getfixturevalue("busy")
    for _ in range(3):
        expect_error(ask(http, unknown(1)), "invalid_api_key")


def test_the_sixty_first_in_a_minute_is_429_and_a_good_key_opens_all_the_same(
    http: httpx.Client,
    acme: Organization,
    live_key: NewKey,
    settings: Settings,
    openai: OpenAIEmulator,
) -> None:
    settings.TRUSTED_PROXIES = 1
    revoked = KeyFactory(organization=acme)
    keys.revoke(revoked.row)
    bad = [MALFORMED, unknown(1), revoked.secret]
    codes = ["invalid_api_key", "invalid_api_key", "key_revoked"]
    for number in range(60):
        expect_error(ask(http, bad[number % 3], "192.0.2.1"), codes[number % 3])
    for secret in (*bad, unknown(2)):
        answer = ask(http, secret, "192.0.2.1")
        error = expect_error(answer, "rate_limit_exceeded", says="from 192.0.2.1. Send a valid key")
        seconds = int(answer.headers["retry-after"])
        assert 1 <= seconds <= 60
        assert f"wait {seconds} s" in error["message"]
        assert answer.headers["retry-after-ms"] == str(seconds * 1000)
        # The same key will not be a good one then.
        assert answer.headers["x-should-retry"] == "false"
    # Never seen here before, and from the same office.
    assert ask(http, live_key.secret, "192.0.2.1").status_code == 200
    assert ask(http, live_key.secret, "192.0.2.1").status_code == 200
    expect_error(ask(http, MALFORMED, "192.0.2.2"), "invalid_api_key")
    expect_nothing_happened(openai)


def test_what_is_not_counted(http: httpx.Client, live_key: NewKey) -> None:
    for _ in range(bad_keys.PER_MINUTE + 5):
        expect_error(http.get("models"), "missing_api_key")
        assert ask(http, live_key.secret).status_code == 200
    expect_error(ask(http, MALFORMED), "invalid_api_key")


def test_behind_a_flood_of_new_keys_a_good_one_comes_through(
    http: httpx.Client, live_key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bad_keys, "PER_MINUTE", 3)
    answers: list[httpx.Response] = []

    def flood(first: int) -> None:
        answers.extend(ask(http, unknown(number)) for number in range(first, first + 20))

    threads = [threading.Thread(target=flood, args=(number * 100,)) for number in range(6)]
    for thread in threads:
        thread.start()
    good = [ask(http, live_key.secret) for _ in range(10)]
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in good] == [200] * 10
    assert sorted({answer.status_code for answer in answers}) == [401, 429]
    assert sum(answer.status_code == 401 for answer in answers) == 3


# --- What is remembered -------------------------------------------------------------------------


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def count(known: BadKeys, times: int, address: str = "192.0.2.1") -> int:
    """Count so many bad keys; return how many were too many."""
    refused = 0
    for _ in range(times):
        try:
            known.count(address)
        except TooManyBadKeys as error:
            refused += 0 < error.retry_after <= 60
    return refused


def test_a_minute_later_all_is_forgotten() -> None:
    clock = Clock()
    known = BadKeys(clock)
    known.note_unknown(b"x")
    assert known.is_unknown(b"x")
    assert not known.is_unknown(b"y")
    assert count(known, 61) == 1
    clock.now += 59.9
    assert known.is_unknown(b"x")
    assert count(known, 1) == 1
    clock.now += 0.2
    assert not known.is_unknown(b"x")
    assert count(known, 60) == 0
    assert count(known, 1) == 1


def test_an_ipv6_host_cannot_choose_another_address() -> None:
    known = BadKeys(Clock())
    assert count(known, 60, "2001:db8:1:1::1") == 0
    assert count(known, 1, "2001:db8:1:1:ffff::2") == 1
    assert count(known, 1, "2001:db8:1:2::1") == 0
    assert count(known, 1, "") == 0


def test_no_more_is_remembered_than_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_keys, "REMEMBERED", 3)
    known = BadKeys(Clock())
    for number in range(5):
        known.note_unknown(bytes([number]))
        known.note_good(bytes([number]))
        known.count(f"192.0.2.{number}")
    assert [known.is_unknown(bytes([number])) for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert len(known._good) == len(known._counts) == 3


def test_who_queues_is_one_at_a_time_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_keys, "QUEUE", 2)

    async def main() -> None:
        known = BadKeys(Clock())
        count(known, 61)
        known.note_good(b"good")
        inside: list[str] = []
        leave = asyncio.Event()

        async def come(name: str) -> None:
            async with known.turn(name.encode(), "192.0.2.1") as queued:
                assert queued
                inside.append(name)
                await leave.wait()

        first, second = (asyncio.create_task(come(name)) for name in ("a", "b"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert inside == ["a"]
        with pytest.raises(TooManyBadKeys):
            await come("c")
        for secret, address in (("good", "192.0.2.1"), ("d", "192.0.2.2")):
            async with known.turn(secret.encode(), address) as queued:
                assert not queued
        leave.set()
        await asyncio.gather(first, second)
        assert inside == ["a", "b"]
        await come("c")

    asyncio.run(main())


# --- Logs -------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[Callable[[], str]]:
    """Return all that is logged, in the words that the service writes."""
    written: list[str] = []
    (usual,) = (one for one in logging.getLogger().handlers if one.get_name() == "stderr")

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler = Kept()
    handler.setFormatter(usual.formatter)
    logging.getLogger().addHandler(handler)
    yield lambda: "\n".join(written)
    logging.getLogger().removeHandler(handler)


def test_a_key_in_the_wrong_place_is_in_no_log_line_and_no_answer(
    api: Api, app: AppServer, live_key: NewKey, test_key: NewKey, lines: Callable[[], str]
) -> None:
    for secret in (live_key.secret, test_key.secret):
        quoted = secret.replace("_", "%5f")
        paths = [
            *(f"/v1/{secret}", f"/v1/models/{secret}", f"/v1/models/openai/{secret}", f"/{secret}"),
            *(f"/v1/models?key={secret}", f"/v1/generation?id={secret}", f"/v1/usage?{secret}=1"),
            *(f"/v1/images/{secret}", f"/v1/models/{quoted}", f"/v1/{quoted}", f"/login?{secret}"),
            *(f"/dashboard/keys/{secret}", f"/models/{secret}", f"//v1/models/{secret}"),
        ]
        for path in paths:
            for method in ("GET", "POST", "DELETE"):
                answer = api.http.request(method, app.origin + path)
                if answer.headers.get("content-type") == "application/json":
                    assert secret not in answer.text, path
        for target in (f"/v1/{secret}\xff", f"/v1/{secret}"):
            request = f"FOO {target} HTTP/1.1\r\nHost: x\r\n\r\n"
            assert secret not in send_raw(app.origin, request.encode("latin-1")).text
        api.draw(model=secret)
        api.draw(prompt=secret, **{secret: 1})
        api.draw(headers={"Idempotency-Key": secret})
        logging.getLogger("anything").error("a key: %s", secret, exc_info=ValueError(secret))
    written = lines()
    for key in (live_key, test_key):
        assert key.secret not in written
        assert f"/v1/{key.row.prefix}…" in written or f"/v1/{key.row.prefix}\\u2026" in written
        assert key.row.prefix in written
