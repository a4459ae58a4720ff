"""What all providers share: fan-out, retries, the circuit, and the errors of a call."""

import asyncio
import base64
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx
import pytest
from aiohttp import web

from geekhub.lib import http
from images.pixels.pictures import inspect
from images.providers import errors
from images.providers import http as base_http
from images.providers.base import (
    LONGEST_PAUSE,
    ImageRequest,
    Item,
    PartialImage,
    Provider,
    ProviderImage,
    Shortfall,
    split,
)
from images.providers.circuit import Circuit
from images.providers.downloads import Downloads
from images.providers.errors import ProviderError, refused, rejected, unavailable
from images.providers.http import ANSWER_BYTES_PER_PICTURE, Answer, HttpProvider, decode, picture
from tests.emulators.base import make_picture
from tests.images.providers import images, shortfalls
from tests.lib import dead_port, saying, serving, zipped

PICTURE = inspect(make_picture(8, 8, "png"))

type Script = Callable[[ImageRequest, int], AsyncIterator[Item]]


@dataclass(slots=True, kw_only=True)
class Scripted(Provider):
    """A provider that does what a test says, call by call."""

    name: ClassVar[str] = "scripted"
    script: Script
    calls: list[ImageRequest] = field(default_factory=list)

    async def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        self.calls.append(request)
        async for item in self.script(request, len(self.calls)):
            yield item


@dataclass(slots=True, kw_only=True)
class TwoAtOnce(Scripted):
    """The same, with at most two calls at once."""

    parallel: ClassVar[int] = 2


def request(*, seconds: float = 60, **fields: Any) -> ImageRequest:
    fields = {"model": "any/model", "upstream_id": "any", "prompt": "a red kite", **fields}
    return ImageRequest(deadline=asyncio.get_running_loop().time() + seconds, **fields)


def draw(provider: Provider, **fields: Any) -> list[Item]:
    async def main() -> list[Item]:
        return [item async for item in provider.generate(request(**fields))]

    return asyncio.run(main())


async def deliver(request: ImageRequest, number: int) -> AsyncIterator[Item]:
    for index in range(request.n):
        yield ProviderImage(PICTURE, index)


def failing(error: ProviderError, *, times: int = 1000) -> Script:
    """Fail the first calls with an error, then deliver."""

    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        if number <= times:
            raise error
        async for item in deliver(request, number):
            yield item

    return script


AGAIN = {"retryable": True, "retry_after": 0.0}


# --- Fan-out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "per_call", "parts"),
    [
        (1, 1, [(0, 1, 7)]),
        (1, 8, [(0, 1, 7)]),
        (8, 8, [(0, 8, 7)]),
        (3, 1, [(0, 1, 7), (1, 1, 8), (2, 1, 9)]),
        (8, 3, [(0, 3, 7), (3, 3, 10), (6, 2, 13)]),
        (8, 4, [(0, 4, 7), (4, 4, 11)]),
    ],
)
def test_a_request_is_split_into_calls_with_a_seed_each(
    n: int, per_call: int, parts: list[tuple[int, int, int]]
) -> None:
    whole = ImageRequest(
        model="m", upstream_id="u", prompt="p", deadline=9, n=n, per_call=per_call, seed=7
    )
    assert [(start, part.n, part.seed) for start, part in split(whole)] == parts
    assert {(part.model, part.prompt, part.deadline) for _, part in split(whole)} == {("m", "p", 9)}


def test_without_a_seed_no_call_has_one() -> None:
    whole = ImageRequest(model="m", upstream_id="u", prompt="p", deadline=9, n=3)
    assert [part.seed for _, part in split(whole)] == [None] * 3


def test_pictures_of_all_calls_are_numbered_through() -> None:
    provider = Scripted(script=deliver)
    items = draw(provider, n=8, per_call=3)
    assert sorted(item.index for item in images(items)) == list(range(8))
    assert len(provider.calls) == 3


def test_the_calls_of_a_request_run_at_the_same_time() -> None:
    everybody = asyncio.Barrier(8)

    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        await everybody.wait()
        yield ProviderImage(PICTURE)

    assert len(images(draw(Scripted(script=script), n=8))) == 8


def test_no_more_calls_run_at_once_than_the_provider_allows() -> None:
    running = peak = 0

    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        yield ProviderImage(PICTURE)

    assert len(images(draw(TwoAtOnce(script=script), n=8))) == 8
    assert peak == 2


def test_a_picture_is_passed_on_as_soon_as_it_is_there() -> None:
    async def main() -> None:
        second = asyncio.Event()

        async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
            if number == 2:
                await second.wait()
            yield ProviderImage(PICTURE)

        items = Scripted(script=script).generate(request(n=2))
        assert isinstance(await anext(items), ProviderImage)
        second.set()
        assert isinstance(await anext(items), ProviderImage)
        with pytest.raises(StopAsyncIteration):
            await anext(items)

    asyncio.run(main())


def test_whoever_stops_listening_ends_all_calls() -> None:
    async def main() -> None:
        ended = []

        async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
            try:
                if number > 1:
                    await asyncio.Event().wait()
                yield ProviderImage(PICTURE)
            finally:
                ended.append(number)

        provider = Scripted(script=script)
        items = provider.generate(request(n=4))
        await anext(items)
        await items.aclose()
        assert sorted(ended) == [1, 2, 3, 4]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert provider.circuit.state == "closed"

    asyncio.run(main())


# --- Shortfalls -------------------------------------------------------------------------------


def test_what_does_not_come_is_counted_and_explained() -> None:
    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        if number == 1:
            raise refused("prompt")
        yield ProviderImage(PICTURE, 0)
        if number == 2:
            raise unavailable(charged=True)
        yield ProviderImage(PICTURE, 1)
        yield Shortfall(refused("output", charged=True), 1)

    items = draw(Scripted(script=script), n=9, per_call=3)
    assert sorted(image.index for image in images(items)) == [3, 6, 7]
    told = sorted((one.error.code, one.error.stage, one.count) for one in shortfalls(items))  # type: ignore[type-var]
    assert [(code, count) for code, _, count in told] == [
        ("content_policy_violation", 1),
        ("content_policy_violation", 3),
        ("provider_unavailable", 2),
    ]


@pytest.mark.parametrize(
    "fault", [KeyError("x"), TypeError("unhashable type: 'list'"), RecursionError(), OSError(5)]
)
def test_whatever_a_call_raises_is_an_outage_that_may_cost_and_is_logged_once(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        if number == 1:
            raise fault
        yield ProviderImage(PICTURE)

    provider = Scripted(script=script)
    items = draw(provider, n=2)
    assert len(images(items)) == 1
    (shortfall,) = shortfalls(items)
    error = shortfall.error
    assert (error.code, error.charged, error.retryable) == ("provider_unavailable", True, False)
    assert error.detail.startswith(type(fault).__name__)
    assert len(provider.calls) == 2  # not repeated
    assert provider.circuit.failures == 1
    assert [one.exc_info is not None for one in caplog.records if one.levelname == "ERROR"] == [
        True
    ]


def test_a_fault_after_a_picture_keeps_the_picture() -> None:
    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        yield ProviderImage(PICTURE)
        raise KeyError("index")

    items = draw(Scripted(script=script), n=2, per_call=2)
    assert (len(images(items)), [one.count for one in shortfalls(items)]) == (1, [1])


def test_a_circuit_may_be_asked_by_other_threads_while_it_closes() -> None:
    circuit = Circuit()
    asked, found = 300_000, set()

    def ask() -> None:
        for _ in range(asked):
            found.add(circuit.state)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as other:
            asking = other.submit(ask)
            while not asking.done():
                circuit.failed("a", began=time.monotonic(), at_once=True)
                circuit.probing = True
                circuit.succeeded("a", began=time.monotonic())
            asking.result()
    finally:
        sys.setswitchinterval(before)
    assert found <= {"closed", "open"}


# --- Retries ----------------------------------------------------------------------------------


def test_a_call_that_may_be_repeated_is() -> None:
    provider = Scripted(script=failing(unavailable(**AGAIN), times=2))
    assert len(images(draw(provider))) == 1
    assert len(provider.calls) == 3
    assert (provider.circuit.state, provider.circuit.failures) == ("closed", 2)


@pytest.mark.parametrize("n", [1, 4, 8])
def test_a_request_puts_up_with_three_failures_over_all_its_calls(n: int) -> None:
    provider = Scripted(script=failing(unavailable(**AGAIN)))
    items = draw(provider, n=n)
    assert len(provider.calls) == 3
    assert images(items) == []
    assert sum(one.count for one in shortfalls(items)) == n
    assert {one.error.detail for one in shortfalls(items)} == {""}


def test_a_refusal_uses_up_no_patience() -> None:
    provider = Scripted(script=failing(refused("prompt"), times=5))
    items = draw(provider, n=8)
    assert len(provider.calls) == 8
    assert (len(images(items)), len(shortfalls(items))) == (3, 5)


@pytest.mark.parametrize(("seconds", "failures"), [(60.0, 0), (0.0, 1)])
def test_a_call_that_the_deadline_ends_is_a_failure_and_one_given_up_before_is_none(
    seconds: float, failures: int
) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
            started.set()
            await asyncio.Event().wait()
            yield ProviderImage(PICTURE)

        provider = Scripted(script=script)
        items = provider.generate(request(seconds=seconds))
        waiting = asyncio.create_task(anext(items))
        await started.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert provider.circuit.failures == failures

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        unavailable(retry_after=0),
        unavailable(retryable=True, charged=True, retry_after=0),
        refused("prompt"),
        rejected("size"),
        unavailable(retryable=True, retry_after=LONGEST_PAUSE + 1),
    ],
    ids=["not retryable", "charged", "refused", "rejected", "asked to wait too long"],
)
def test_what_cannot_help_or_may_cost_twice_is_not_repeated(error: ProviderError) -> None:
    provider = Scripted(script=failing(error))
    (shortfall,) = draw(provider, n=1)
    assert shortfall == Shortfall(error, 1)
    assert len(provider.calls) == 1


def test_a_call_that_delivered_something_is_not_repeated() -> None:
    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        yield ProviderImage(PICTURE)
        raise unavailable(**AGAIN)

    provider = Scripted(script=script)
    items = draw(provider, n=3, per_call=3)
    assert (len(images(items)), [one.count for one in shortfalls(items)]) == (1, [2])
    assert len(provider.calls) == 1


def test_an_early_view_is_nothing_delivered() -> None:
    async def script(request: ImageRequest, number: int) -> AsyncIterator[Item]:
        yield PartialImage(PICTURE, 0)
        if number == 1:
            raise unavailable(**AGAIN)
        yield ProviderImage(PICTURE)

    provider = Scripted(script=script)
    assert len(images(draw(provider))) == 1
    assert len(provider.calls) == 2


@pytest.mark.parametrize(("retry_after", "least"), [(0.05, 0.05), (None, 0.25)])
def test_a_retry_waits_as_long_as_it_was_asked_to(retry_after: float | None, least: float) -> None:
    provider = Scripted(
        script=failing(unavailable(retryable=True, retry_after=retry_after), times=1)
    )
    began = time.monotonic()
    assert len(images(draw(provider))) == 1
    assert least <= time.monotonic() - began < least + 2


@pytest.mark.parametrize(("seconds", "calls"), [(0.3, 1), (0.0, 1), (20.0, 2)])
def test_a_retry_that_leaves_no_time_to_draw_is_not_made(seconds: float, calls: int) -> None:
    provider = Scripted(script=failing(unavailable(retryable=True, retry_after=0.2), times=1))
    draw(provider, seconds=seconds)
    assert len(provider.calls) == calls


# --- The circuit ------------------------------------------------------------------------------


class Time:
    """A clock that the test moves, and a circuit that reads it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.circuit = Circuit(clock=lambda: self.now)

    def play(self, calls: str) -> str:
        """Make calls one after another, and return the circuit's state.

        `a` to `z` are callers whose call succeeds, `A` to `Z` the same whose call fails. A call
        that is not let through must be written in brackets.
        """
        circuit, refused = self.circuit, False
        for letter in calls:
            if letter in "[]":
                refused = letter == "["
                continue
            caller, began = letter.lower(), self.now
            assert circuit.admit(caller) is not refused, (calls, letter)
            if refused:
                continue
            if letter.isupper():
                circuit.failed(caller, began=began, at_once=False)
            else:
                circuit.succeeded(caller, began=began)
        return circuit.state


@pytest.mark.parametrize(
    ("calls", "state"),
    [
        ("ABAB", "closed"),
        ("ABABA", "open"),
        # What succeeded before and between counts.
        ("aABABA", "open"),
        ("aaABABA", "closed"),
        ("aaABABABAB", "open"),
        ("aaaaABABABABABABABA", "closed"),
        ("aaaaABABABABABABABAB", "open"),
        # Half of the calls fail, however long.
        ("aB" * 50, "closed"),
        ("aBBB" * 20, "closed"),
        # What was long ago is forgotten.
        ("b" * 50 + "AB" * 8, "open"),
    ],
)
def test_the_circuit_opens_when_most_of_the_latest_calls_failed(calls: str, state: str) -> None:
    assert Time().play(calls) == state


def test_failures_of_another_minute_do_not_count() -> None:
    time = Time()
    assert time.play("ABAB") == "closed"
    time.now += Circuit.RECENT_SECONDS
    assert time.play("ABAB") == "closed"
    assert time.play("A") == "open"


def test_only_opening_is_news() -> None:
    circuit = Circuit()
    began = circuit.clock()
    told = [circuit.failed(who, began=began, at_once=False) for who in "ababab"]
    assert told == [False] * 4 + [True, False]


def test_one_callers_failures_close_nobody_elses_door() -> None:
    """Five timeouts of one customer's prompts, and everybody else is served as before."""
    time = Time()
    assert time.play("AAAAA") == "open"
    assert (time.circuit.is_open_for("a"), time.circuit.is_open_for("b")) == (True, False)
    assert time.play("[aaa]") == "open"
    # Another's call shows that it is not the provider.
    assert time.play("b") == "closed"
    assert time.play("AAAAA[a]b") == "closed"
    # Or that it is.
    assert time.play("AAAAAB[abc]") == "open"
    assert time.circuit.is_open_for("c")


def test_calls_from_before_it_opened_say_nothing() -> None:
    time = Time()
    before = time.now
    time.now += 1
    assert time.play("ABABA") == "open"
    opened_at = time.circuit.opened_at
    time.circuit.succeeded("b", began=before)
    time.now += 0.5
    time.circuit.failed("b", began=before, at_once=False)
    time.circuit.failed("b", began=before, at_once=True)
    assert (time.circuit.state, time.circuit.opened_at, time.circuit.pause) == (
        "open",
        opened_at,
        1,
    )


def test_it_looks_again_soon_and_then_less_and_less_often() -> None:
    time = Time()
    assert time.play("ABABA") == "open"
    for pause in (1, 2, 4, 8, 16, 30, 30):
        assert time.circuit.pause == pause
        time.now += pause - 0.1
        assert time.play("[a]") == "open"
        time.now += 0.1
        assert time.circuit.state == "half-open"
        assert time.play("A[b]") == "open"
    time.now += 30
    assert time.play("a") == "closed"
    # All is forgotten: it takes as much to open it again, and it begins with a second.
    assert time.play("ABAB") == "closed"
    assert time.play("A") == "open"
    assert time.circuit.pause == 1


def test_a_fault_of_our_account_opens_it_at_once_for_everybody_and_longest() -> None:
    time = Time()
    assert time.circuit.failed("a", began=time.now, at_once=True) is True
    assert time.play("[ab]") == "open"
    assert time.circuit.pause == Circuit.LONGEST


def test_after_the_pause_one_call_is_let_through_and_its_outcome_decides() -> None:
    def probing() -> Time:
        time = Time()
        time.play("ABABA")
        time.now += 1
        assert [time.circuit.admit(who) for who in "aab"] == [True, False, False]
        assert time.circuit.state == "open"
        return time

    good, bad, silent, late = probing(), probing(), probing(), probing()
    good.circuit.succeeded("a", began=good.now)
    assert (good.circuit.state, good.circuit.failures) == ("closed", 0)
    bad.circuit.failed("a", began=bad.now, at_once=False)
    assert bad.play("[ab]") == "open"
    silent.circuit.abandoned(began=silent.now)
    assert (silent.circuit.state, silent.circuit.admit("b")) == ("half-open", True)
    # Another call that ends meanwhile, from before, is not the one that was let through.
    late.circuit.abandoned(began=late.now - 2)
    assert late.play("[ab]") == "open"


def test_an_open_circuit_calls_nobody() -> None:
    provider = Scripted(script=deliver)
    provider.circuit.failed("", began=provider.circuit.clock(), at_once=True)
    (shortfall,) = draw(provider, n=4, per_call=4)
    assert isinstance(shortfall, Shortfall)
    assert (shortfall.count, shortfall.error.code) == (4, "provider_unavailable")
    assert (shortfall.error.charged, shortfall.error.retryable) == (False, False)
    assert provider.calls == []


def test_an_outage_opens_the_circuit_and_a_refusal_does_not() -> None:
    down = Scripted(script=failing(unavailable()), circuit=Time().circuit)
    for _ in range(7):
        draw(down)
    assert len(down.calls) == 5
    assert down.circuit.state == "open"
    strict = Scripted(script=failing(refused("prompt")))
    for _ in range(7):
        draw(strict)
    assert (len(strict.calls), strict.circuit.state) == (7, "closed")


def test_a_fault_of_our_account_stops_the_other_calls_of_the_request() -> None:
    provider = TwoAtOnce(script=failing(unavailable(account=True, detail="bad key")))
    items = draw(provider, n=8)
    assert sum(one.count for one in shortfalls(items)) == 8
    assert len(provider.calls) <= 2
    assert provider.circuit.state == "open"


# --- One call over HTTP -----------------------------------------------------------------------


class Posting(HttpProvider):
    """A provider whose only call posts."""

    name = "posting"

    async def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        yield PartialImage(PICTURE, 0)


def post(origin_of: Any, *, read: float = 5, images: int = 1) -> Answer:
    async def main() -> Answer:
        async with origin_of() as origin:
            client = http.client(base_url=origin, connect=2, read=read)
            downloads = Downloads([])
            provider = Posting(http=client, downloads=downloads)
            try:
                return await provider.post("/draw", {"n": 1}, images=images, headers={"X-A": "b"})
            finally:
                await provider.aclose()
                await downloads.aclose()

    return asyncio.run(main())


async def _echo(request: web.BaseRequest) -> web.Response:
    headers = {"X-Type": request.headers["Content-Type"], "X-Ours": request.headers["X-A"]}
    return web.Response(body=await request.read(), status=402, headers=headers)


async def _big(request: web.BaseRequest) -> web.StreamResponse:
    reply = web.StreamResponse()
    await reply.prepare(request)
    for _ in range(ANSWER_BYTES_PER_PICTURE // 2**20 + 1):
        await reply.write(b" " * 2**20)
    return reply


def test_the_whole_answer_is_returned_whatever_its_status() -> None:
    answer = post(lambda: serving(_echo))
    assert (answer.status, answer.json()) == (402, {"n": 1})
    assert answer.headers["x-type"] == "application/json"
    assert answer.headers["x-ours"] == "b"


@pytest.mark.parametrize(
    ("origin_of", "read"),
    [
        (lambda: saying(b""), 5),
        (lambda: saying(b"", hang=True), 0.05),
        (lambda: saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), 5),
        (lambda: serving(_big), 5),
    ],
    ids=["closed", "silent", "cut", "too large"],
)
def test_an_answer_that_does_not_arrive_whole_may_have_been_charged(
    origin_of: Any, read: float
) -> None:
    with pytest.raises(ProviderError) as caught:
        post(origin_of, read=read)
    assert caught.value.code == "provider_unavailable"
    assert (caught.value.charged, caught.value.retryable) == (True, False)


@pytest.mark.parametrize(("layers", "encodings"), [(1, "gzip"), (2, "gzip, gzip"), (1, "br")])
def test_an_answer_that_unpacks_to_gigabytes_may_have_been_charged(
    layers: int, encodings: str
) -> None:
    body = zipped(128 * 2**20, layers)

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encodings})

    with pytest.raises(ProviderError) as caught:
        post(lambda: serving(answer))
    assert caught.value.code == "provider_unavailable"
    assert (caught.value.charged, caught.value.retryable) == (True, False)


def test_the_limit_grows_with_the_pictures_asked_for() -> None:
    assert len(post(lambda: serving(_big), images=2).body) > ANSWER_BYTES_PER_PICTURE


def test_a_request_that_was_never_sent_is_safe_to_repeat() -> None:
    class Nowhere:
        async def __aenter__(self) -> str:
            return f"http://127.0.0.1:{dead_port()}"

        async def __aexit__(self, *_: object) -> None:
            pass

    with pytest.raises(ProviderError) as caught:
        post(Nowhere)
    assert (caught.value.charged, caught.value.retryable) == (False, True)


@pytest.mark.parametrize(
    ("kind", "unsent"),
    [
        (httpx.ConnectError, True),
        (httpx.ConnectTimeout, True),
        (httpx.ReadTimeout, False),
        (httpx.ReadError, False),
        (httpx.WriteError, False),
        (httpx.RemoteProtocolError, False),
        (httpx.PoolTimeout, False),
        (httpx.DecodingError, False),
    ],
)
def test_a_lost_call_is_charged_unless_it_was_never_sent(
    kind: type[httpx.HTTPError], unsent: bool
) -> None:
    error = errors.lost(kind("why"))
    assert (error.code, error.retryable, error.charged) == (
        "provider_unavailable",
        unsent,
        not unsent,
    )
    assert error.detail == f"{kind.__name__}: why"


def test_a_callers_failures_are_the_callers() -> None:
    down = Scripted(script=failing(unavailable(), times=5))
    for _ in range(6):
        draw(down, caller="acme")
    assert (down.circuit.state, down.circuit.blamed, len(down.calls)) == ("open", "acme", 5)
    assert len(images(draw(down, caller="umbrella"))) == 1
    assert down.circuit.state == "closed"


# --- Small parts ------------------------------------------------------------------------------


def test_bytes_are_a_picture_or_an_error_that_may_cost() -> None:
    image = picture(PICTURE.data, index=2, revised_prompt="")
    assert (image.picture, image.index, image.revised_prompt) == (PICTURE, 2, None)
    with pytest.raises(ProviderError) as caught:
        picture(b"<html>")
    assert (caught.value.code, caught.value.charged) == ("provider_unavailable", True)


@pytest.mark.parametrize("text", [None, 7, "", "not base64!", "YQ", "YQ==\n", "ä"])
def test_a_text_is_base64_or_an_error_that_may_cost(text: object) -> None:
    assert decode(base64.b64encode(b"bytes").decode()) == b"bytes"
    if text == "":
        assert decode(text) == b""
        return
    with pytest.raises(ProviderError) as caught:
        decode(text)
    assert (caught.value.code, caught.value.charged) == ("provider_unavailable", True)


@pytest.mark.parametrize(
    ("headers", "text", "seconds"),
    [
        ({}, "", None),
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "0.5"}, "", 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, "", 0.25),
        ({"retry-after": "-3"}, "", 0.0),
        ({"retry-after": "nan"}, "", None),
        ({"retry-after": "inf"}, "", None),
        ({"retry-after": "-inf"}, "", None),
        ({"retry-after": "1e400"}, "", None),
        ({"retry-after": "1" + "0" * 30}, "", 1e30),
        ({"retry-after-ms": "nan", "retry-after": "7"}, "", 7.0),
        ({}, "try again in " + "9" * 400 + "s", None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", None),
        ({"retry-after": "soon"}, "try again in 2s", 2.0),
        ({}, "Please try again in 1.5s.", 1.5),
        ({}, "Please try again in 20ms.", 0.02),
        ({}, "Please try again in 12 s", 12.0),
        ({}, "Please try again in 6m0s.", None),
        ({}, "Please try again in ..s", None),
        ({}, "Please try again in 1.2.3s", None),
        ({}, "try again later", None),
    ],
)
def test_how_long_an_upstream_asks_us_to_wait(
    headers: dict[str, str], text: str, seconds: float | None
) -> None:
    assert base_http.retry_after(headers, text) == seconds


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a kite, in red", "a kite, in red"),
        ("a\0b", "ab"),
        ("half \ud83d", "half "),
        ("\udc00\0", None),
        ("", None),
        ("x" * 40_000, "x" * 32_000),
        (None, None),
        (True, None),
        (0, None),
        (1e308, None),
        (["a"], None),
        ({"a": 1}, None),
    ],
)
def test_words_of_a_provider_are_kept_only_as_text_that_may_be_kept(
    value: object, kept: str | None
) -> None:
    assert picture(PICTURE.data, revised_prompt=value).revised_prompt == kept


@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("size", "size"),
        ("image[0].url", "image[0].url"),
        ("", None),
        (None, None),
        (["size"], None),
        (10**30, None),
        ("a\0b", None),
        ("two words", None),
        ("x" * 65, None),
        ("größe", None),
    ],
)
def test_a_field_that_a_provider_names_is_shown_only_if_it_can_be_one(
    param: object, named: str | None
) -> None:
    error = rejected(param)
    assert error.param == named
    assert error.message == (
        f"The provider does not accept this value of {named!r}."
        if named
        else "The provider does not accept this request."
    )


def test_what_an_operator_reads_is_cut_and_printable() -> None:
    assert unavailable(detail="a\0b\ud800" + "x" * 9999).detail == "ab" + "x" * 996


def test_an_answer_that_is_no_json_is_none() -> None:
    assert Answer(200, {}, b'{"a": 1}').json() == {"a": 1}
    assert Answer(200, {}, b"<html>").json() is None
    assert Answer(200, {}, b"\xff").json() is None
    assert Answer(200, {}, b'{"a": NaN}').json() is None
    assert Answer(200, {}, b"[" * 100_000).json() is None
    # Half an emoji, as JavaScript writes it when it has cut a text.
    assert Answer(200, {}, b'{"a": "\\ud83d"}').json() == {"a": "\ud83d"}
