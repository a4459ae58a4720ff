"""Server-sent events: what is written can be read, however it is cut on the way."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from geekhub.lib import sse
from geekhub.lib.sse import BadStream, Event

# One stream with everything a stream may have, in each of the three kinds of line ends.
LINES = (
    ": a comment",
    "event: first",
    'data: {"a":',
    'data:  "é",',
    'data:"b": 1}',
    "",
    ":",
    "",
    "",
    "event: without data",
    "",
    "id: 7",
    "retry: 3000",
    "data",
    'data: {"c": "kite 🪁"}',
    "unknown: field",
    "",
    'data: {"d": {}}',
    "event: last",
    "",
)
EVENTS = [
    Event("first", {"a": "é", "b": 1}),
    Event("", {"c": "kite 🪁"}),
    Event("last", {"d": {}}),
]
STREAMS = {
    name: end.join((*LINES, "")).encode()
    for name, end in {"LF": "\n", "CR": "\r", "CRLF": "\r\n"}.items()
}
STREAMS["BOM"] = b"\xef\xbb\xbf" + STREAMS["CRLF"].removeprefix(b": a comment\r\n")
STREAMS["all ends"] = b"".join(
    line.encode() + (b"\r\n", b"\n", b"\r\n", b"\r")[number % 4]
    for number, line in enumerate(LINES)
)
STREAMS["unfinished"] = STREAMS["CRLF"].removesuffix(b"\r\n")
STREAMS["unfinished line"] = STREAMS["LF"].removesuffix(b"\n\n")


def events(chunks: Sequence[bytes], *, most: int = 1000) -> list[Event]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def main() -> list[Event]:
        return [event async for event in sse.read(stream(), most=most)]

    return asyncio.run(main())


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_same_wherever_it_is_cut(name: str) -> None:
    """Whole, byte by byte, and cut at every position and at every two next to each other."""
    stream = STREAMS[name]

    async def main() -> None:
        for at in range(len(stream) + 1):
            for to in {at, min(at + 1, len(stream)), min(at + 2, len(stream))}:
                cut = [stream[:at], stream[at:to], stream[to:]]
                assert [one async for one in sse.read(chunks(cut), most=1000)] == EVENTS, (at, to)

    async def chunks(cut: Sequence[bytes]) -> AsyncIterator[bytes]:
        for one in cut:
            yield one

    assert events([stream]) == EVENTS
    assert events([stream[at : at + 1] for at in range(len(stream))]) == EVENTS
    asyncio.run(main())


def test_an_event_is_passed_on_when_its_blank_line_begins() -> None:
    """A picture is not held back until the next chunk shows that a CR had no LF."""

    async def main() -> None:
        more = asyncio.Event()

        async def stream() -> AsyncIterator[bytes]:
            yield b"data: {}\r\n\r"
            await more.wait()
            yield b"\ndata: {}\n\n"

        reading = sse.read(stream(), most=100)
        assert await anext(reading) == Event("", {})
        more.set()
        assert [one async for one in reading] == [Event("", {})]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"", []),
        (b"\n\r\n\r", []),
        (b'data: {"a": 1}\n\ndata: [DONE]\n\ndata: {"b": 2}\n\n', [{"a": 1}]),
        (b'data: {"a": 1}\n\ndata: [DONE]', [{"a": 1}]),
        # What the end cuts off is dropped, whole or half a line.
        (b'data: {"a": 1}\n\ndata: {"b":', [{"a": 1}]),
        (b'data: {"a": 1}\n\ndata: {"b":\n', [{"a": 1}]),
        (b'data: {"a": 1}\n\nevent: b', [{"a": 1}]),
        (b'data: {"a": "\\ud83d"}\n\n', [{"a": "\ud83d"}]),
        # Only the first line of a stream has a mark of the byte order.
        (b'\xef\xbb\xbfdata: {"a": 1}\n\n\xef\xbb\xbfdata: {"b": 2}\n\n', [{"a": 1}]),
    ],
)
def test_odd_streams(stream: bytes, found: list[dict[str, Any]]) -> None:
    assert [event.data for event in events([stream])] == found
    assert [event.data for event in events([bytes([one]) for one in stream])] == found


@pytest.mark.parametrize(
    "stream",
    [
        b"data: nonsense\n\n",
        b"data: []\n\n",
        b"data: 1\n\n",
        b'data: "text"\n\n',
        b"data: \xff\n\n",
        b"data: {}\ndata: {}\n\n",
        b"data: " + b"[" * 900 + b"\n\n",
        b"data: NaN\n\n",
    ],
)
def test_what_is_no_object_is_a_bad_stream(stream: bytes) -> None:
    with pytest.raises(BadStream):
        events([stream])


@pytest.mark.parametrize(
    ("stream", "fits"),
    [
        (b'data: {"a": 1}\n\n', True),
        (b'data: {"a":  1}\n\n', False),
        (b'data: {"a":\ndata:1}\n\n', True),
        (b'data: {"a":\ndata:      \ndata: 12}\n\n', False),
        (b": " + b"x" * 12 + b"\ndata: {}\n\n", True),
        (b": " + b"x" * 13 + b"\ndata: {}\n\n", False),
        (b"data:\n" * 9, True),
        (b"data:\n" * 16, False),
        (b"data: {}\n\n" * 100, True),
    ],
)
def test_lines_and_events_have_a_limit(stream: bytes, fits: bool) -> None:
    """A line of at most 14 bytes, and the data of an event as well."""
    for chunks in ([stream], [bytes([one]) for one in stream]):
        with nullcontext() if fits else pytest.raises(BadStream, match="over 14 bytes"):
            events(chunks, most=14)


def test_what_is_never_a_line_is_not_kept() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000

    async def main() -> None:
        async for _ in sse.read(endless(), most=10_000):
            pass

    with pytest.raises(BadStream, match="a line over 10000 bytes"):
        asyncio.run(main())


def test_what_is_written_is_read() -> None:
    frames = sse.frame("a.b", {"x": "é\n\r"}) + sse.KEEP_ALIVE + sse.frame("c", {})
    assert events([frames]) == [Event("a.b", {"x": "é\n\r"}), Event("c", {})]
