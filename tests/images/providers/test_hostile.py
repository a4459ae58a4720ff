"""Whatever a provider says is data: every value of every answer of every provider, replaced.

The answers are recorded from the emulators over sockets. They are played back inside the process:
there are some ten thousand, and the way over a socket is tested everywhere else.
"""

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from geekhub.lib.http import AiohttpTransport
from images.drawing.errors import ENDINGS
from images.providers import fal, google, openai, xai
from images.providers.base import Item, PartialImage, ProviderImage, Shortfall
from images.providers.downloads import Downloads
from images.providers.errors import MAX_DETAIL, ProviderError
from images.providers.http import MAX_WORDS, HttpProvider
from tests.emulators.base import Behaviour, Emulator
from tests.emulators.fal import FalEmulator
from tests.emulators.google import GoogleEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.xai import XaiEmulator
from tests.images.providers import call
from tests.images.providers.hostile import HEADER_VALUES, paths, variants

N = 2
ADAPTERS: dict[str, tuple[type[Emulator], Callable[[str], dict[str, str]]]] = {
    "openai": (OpenAIEmulator, openai.headers),
    "google": (GoogleEmulator, google.headers),
    "xai": (XaiEmulator, xai.headers),
    "fal": (FalEmulator, fal.headers),
}
# (provider, model, what else is asked, how it behaves): an answer of each shape.
GOOD: list[tuple[str, str, dict[str, Any], Behaviour]] = [
    ("openai", "gpt-image-1", {}, Behaviour()),
    ("openai", "gpt-image-1", {"n": 1, "partial_images": 1}, Behaviour()),
    (
        "openai",
        "gpt-image-1",
        {"n": 1, "partial_images": 1},
        Behaviour(error="stream_server_error"),
    ),
    ("openai", "dall-e-3", {"n": 1}, Behaviour()),
    ("google", "imagen-4.0-generate-001", {}, Behaviour(refuse=1)),
    ("google", "gemini-3-pro-image", {"n": 1}, Behaviour()),
    ("xai", "grok-imagine-image", {}, Behaviour(refuse=1)),
    ("fal", "fal-ai/flux-pro/v1.1", {}, Behaviour(refuse=1)),
]
MODELS = {
    "openai": "gpt-image-1",
    "google": "gemini-3-pro-image",
    "xai": "grok-imagine-image",
    "fal": "fal-ai/flux-pro/v1.1",
}


@dataclass(slots=True)
class Said:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def streamed(self) -> bool:
        return "event-stream" in self.headers.get("content-type", "")


@dataclass(slots=True)
class Recorder(httpx.AsyncBaseTransport):
    """Passes requests on and keeps the answers."""

    inner: AiohttpTransport = field(default_factory=AiohttpTransport)
    said: list[Said] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self.inner.handle_async_request(request)
        body = await answer.aread()
        headers = {name: value for name, value in answer.headers.items() if name != "date"}
        self.said.append(Said(answer.status_code, headers, body))
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass(slots=True)
class Player(httpx.AsyncBaseTransport):
    """Gives the answers one after another, and the last one from then on."""

    said: Sequence[Said]
    at: int = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        one = self.said[min(self.at, len(self.said) - 1)]
        self.at += 1
        headers = {name: value for name, value in one.headers.items() if name != "content-length"}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        return httpx.Response(one.status, headers=raw, content=one.body)


def adapter(name: str, transport: httpx.AsyncBaseTransport, emulator: Emulator) -> HttpProvider:
    headers = ADAPTERS[name][1](emulator.key)
    client = httpx.AsyncClient(base_url=emulator.url, headers=headers, transport=transport)
    downloads = Downloads([emulator.origin])
    if name == "fal":
        assert isinstance(emulator, FalEmulator)
        url = emulator.queue_url
        return fal.Fal(http=client, downloads=downloads, queue_url=url, poll_seconds=0.001)
    makers = {"openai": openai.OpenAI, "google": google.Google, "xai": xai.XAI}
    return makers[name](http=client, downloads=downloads)


@pytest.fixture(scope="module")
def emulators() -> Iterator[dict[str, Emulator]]:
    running = {name: made(tiny=True) for name, (made, _) in ADAPTERS.items()}
    for one in running.values():
        one.start()
    yield running
    for one in running.values():
        one.stop()


def record(name: str, emulator: Emulator, behaviour: Behaviour, **fields: Any) -> list[Said]:
    """Return what an emulator answers to one call of the adapter."""

    async def main() -> list[Said]:
        recorder = Recorder()
        provider = adapter(name, recorder, emulator)
        try:
            await call(provider, **fields)
        except ProviderError:
            pass
        finally:
            await provider.aclose()
            await provider.downloads.aclose()
        return recorder.said

    emulator.reset()
    emulator.always(behaviour)
    try:
        return asyncio.run(main())
    finally:
        emulator.always(Behaviour())


def mutations(said: list[Said], *, first: int = 0) -> Iterator[tuple[str, list[Said]]]:
    """Yield a conversation with one value of one of its answers replaced, and what was.

    A retry after that gets the true answer. Answers before the `first` are left alone.
    """
    for step, one in enumerate(said[first:], first):
        bodies = streams(one) if one.streamed else documents(one)
        for what, body in bodies:
            yield f"answer {step}: {what}", [*said[:step], replace(one, body=body), *said[step:]]


def documents(one: Said) -> Iterator[tuple[str, bytes]]:
    try:
        document = json.loads(one.body)
    except ValueError:
        return
    for path, value, changed in variants(document):
        yield f"{path} = {str(value)[:20]!r}", json.dumps(changed).encode()


def streams(one: Said) -> Iterator[tuple[str, bytes]]:
    blocks = one.body.split(b"\n\n")[:-1]
    for number, block in enumerate(blocks):
        name, _, data = block.partition(b"\ndata: ")
        for path, value, changed in variants(json.loads(data)):
            frame = name + b"\ndata: " + json.dumps(changed).encode()
            body = b"\n\n".join([*blocks[:number], frame, *blocks[number + 1 :], b""])
            yield f"event {number} {path} = {str(value)[:20]!r}", body


async def play(name: str, emulator: Emulator, said: list[Said], fields: dict[str, Any]) -> None:
    """Give an adapter a conversation, and check that what it makes of it can be passed on."""
    provider = adapter(name, Player(said), emulator)
    items: list[Item] = []
    try:
        items = await call(provider, **fields)
    except ProviderError as error:
        check_error(error)
    finally:
        await provider.aclose()
        await provider.downloads.aclose()
    for item in items:
        check_item(item)
    count = sum(1 for item in items if isinstance(item, ProviderImage))
    assert count <= fields["n"]


def check_item(item: Item) -> None:
    match item:
        case ProviderImage(picture=picture, revised_prompt=words):
            assert picture.width * picture.height > 0
            assert words is None or (type(words) is str and 0 < len(words) <= MAX_WORDS)
            check_text(words or "")
        case PartialImage(index=index):
            assert type(index) is int
            assert 0 <= index < 10
        case Shortfall(error=error, count=count):
            assert 0 <= count <= N
            check_error(error)


def check_error(error: ProviderError) -> None:
    assert error.code in ENDINGS
    check_text(error.message)
    check_text(error.detail)
    assert len(error.message) < 300
    assert len(error.detail) <= MAX_DETAIL
    assert error.param is None or (error.param.isascii() and len(error.param) <= 64)
    assert error.retry_after is None or math.isfinite(error.retry_after)
    assert error.stage in ("prompt", "output", "provider", None)


def check_text(text: str) -> None:
    assert "\0" not in text
    text.encode()


def attack(
    name: str, emulator: Emulator, conversations: Iterator[tuple[str, list[Said]]], **fields: Any
) -> int:
    """Play every conversation, and return how many there were.

    A queue that never comes to an end is left at the deadline, which is near.
    """
    played = 0

    async def main() -> None:
        nonlocal played
        for what, said in conversations:
            try:
                await play(name, emulator, said, {"seconds": 0.05, **fields})
            except Exception as fault:
                fault.add_note(f"{name}, {what}")
                raise
            played += 1

    asyncio.run(main())
    return played


@pytest.mark.parametrize(
    ("name", "model", "fields", "behaviour"), GOOD, ids=[f"{one[1]} {one[2]}" for one in GOOD]
)
def test_every_value_of_a_good_answer(
    emulators: dict[str, Emulator],
    name: str,
    model: str,
    fields: dict[str, Any],
    behaviour: Behaviour,
) -> None:
    emulator = emulators[name]
    fields = {"upstream_id": model, "n": N, **fields}
    said = record(name, emulator, behaviour, **fields)

    assert attack(name, emulator, mutations(said), **fields) >= 90


def shape_of(one: Said) -> Any:
    """Return what an answer has in common with those that say the same of something else."""
    try:
        return one.status, tuple(paths(json.loads(one.body)))
    except ValueError:
        return one.status, None


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_value_of_every_error(emulators: dict[str, Emulator], name: str) -> None:
    emulator = emulators[name]
    fields = {"upstream_id": MODELS[name], "n": 1}
    seen: set[Any] = set()
    played = 0
    for error in sorted(emulator.ERRORS):
        said = record(name, emulator, Behaviour(error=error), **fields)
        shape = shape_of(said[-1])
        if shape in seen:
            continue
        seen.add(shape)
        played += attack(name, emulator, mutations(said, first=len(said) - 1), **fields)

    assert len(seen) >= 6
    assert played > 200


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_header(emulators: dict[str, Emulator], name: str) -> None:
    emulator = emulators[name]
    fields = {"upstream_id": MODELS[name], "n": 1}
    known = ["retry-after", "retry-after-ms", "x-should-retry", "content-type", "content-length"]
    known += ["x-fal-error-type", "x-fal-retryable", "x-fal-request-timeout-type", "x-new"]

    def conversations() -> Iterator[tuple[str, list[Said]]]:
        *before, last = good
        for status in (200, 400, 422, 429, 503):
            for header in known:
                for value in HEADER_VALUES:
                    bad = replace(last, status=status, headers=last.headers | {header: value})
                    yield f"{status} {header}: {value[:20]}", [*before, bad, last]

    good = record(name, emulator, Behaviour(), **fields)

    assert attack(name, emulator, conversations(), **fields) == 450


def test_a_body_that_is_no_json(emulators: dict[str, Emulator]) -> None:
    bodies = [b"", b"null", b"[" * 100_000, b"\xff\xfe", b"\x00", b'{"data": NaN}', b"1e400"]
    bodies += [b'"' + b"\\ud800" * 10 + b'"', b"9" * 5000, b'{"error": ' * 2000 + b"1"]
    for name, emulator in emulators.items():
        fields = {"upstream_id": MODELS[name], "n": 1}
        conversations = (
            (f"{status} {body[:20]!r}", [Said(status, {}, body)])
            for status in (200, 202, 204, 301, 400, 401, 404, 408, 418, 422, 429, 500, 599, 999)
            for body in bodies
        )
        assert attack(name, emulator, conversations, **fields) == 14 * len(bodies)
