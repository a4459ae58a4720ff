"""Server-sent events as OpenAI's SDKs write and read them.

Each event we write is an `event:` line, one `data:` line of JSON and a blank line. Comments keep a
connection alive. Nothing else is safe: `id:`, `retry:` and events without data break the Python
SDK, and an event without its final blank line is lost. What we read may be any stream that the
HTML standard allows (9.2, Server-sent events).
"""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from geekhub.lib import foreign

KEEP_ALIVE = b": keep-alive\n\n"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class BadStream(Exception):
    """The data is not a stream of events, or an event is over the limit."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty when the stream gave it none."""

    name: str
    data: dict[str, Any]


def frame(event: str, data: dict[str, Any]) -> bytes:
    """Return one event on the wire."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), orjson.dumps(data))


async def read(chunks: AsyncIterator[bytes], *, most: int) -> AsyncIterator[Event]:
    """Yield the JSON object of each event, at most `most` bytes each, until `[DONE]` or the end.

    Raises BadStream. Of an event without its final blank line what is whole counts; one that the
    end cuts off is dropped.
    """
    lines, event = _Lines(most), _Block(most)
    async for chunk in chunks:
        for line in lines.feed(chunk):
            if line:
                event.add(line)
            elif event.data:
                if event.is_done:
                    return
                yield event.parsed()
                event = _Block(most)
            else:
                event = _Block(most)
    event.add(lines.rest())
    try:
        last = event.parsed() if event.data and not event.is_done else None
    except BadStream:
        return
    if last is not None:
        yield last


class _Lines:
    """Cuts a stream into lines, wherever its chunks begin and end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._partial = bytearray()
        self._after_cr = False
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that are whole now, without their ends."""
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the other half of an end that has been seen
            self._after_cr = False
            if not chunk:
                return
        self._after_cr = chunk.endswith(b"\r")
        *whole, partial = _LINE_END.split(chunk)
        for end in whole:
            self._grow(end)
            yield self.rest()
        self._grow(partial)

    def rest(self) -> bytes:
        """Return what has come of the line that is not whole yet, and begin another."""
        line = bytes(self._partial)
        self._partial.clear()
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        return line

    def _grow(self, part: bytes) -> None:
        self._partial += part
        if len(self._partial) > self._most:
            raise BadStream(f"a line over {self._most} bytes")


class _Block:
    """The lines of one event."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._name = b""
        self.data: list[bytes] = []

    def add(self, line: bytes) -> None:
        """Take a line; comments and fields that mean nothing here are passed over."""
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value
        elif field == b"data":
            self._size += len(value) + 1
            if self._size > self._most + 1:
                raise BadStream(f"an event over {self._most} bytes")
            self.data.append(value)

    @property
    def is_done(self) -> bool:
        """Return whether this is OpenAI's mark of the end."""
        return self.data == [b"[DONE]"]

    def parsed(self) -> Event:
        """Return the event; raises BadStream if its data is not a JSON object."""
        try:
            value = foreign.parse(b"\n".join(self.data))
        except ValueError as error:
            raise BadStream("an event is no JSON") from error
        if not isinstance(value, dict):
            raise BadStream("an event is no JSON object")
        return Event(self._name.decode(errors="replace"), value)
