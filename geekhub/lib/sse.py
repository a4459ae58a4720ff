"""Server-sent events as OpenAI's SDKs write and read them.

Each event is an `event:` line, one `data:` line of JSON and a blank line. Comments keep a
connection alive. Nothing else is safe: `id:`, `retry:` and events without data break the Python
SDK, and an event without its final blank line is lost.
"""

from collections.abc import AsyncIterator
from typing import Any

import orjson

KEEP_ALIVE = b": keep-alive\n\n"


class BadStream(Exception):
    """What came is no stream of events, or an event is over the limit."""


def frame(event: str, data: dict[str, Any]) -> bytes:
    """Return one event on the wire."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), orjson.dumps(data))


async def read(chunks: AsyncIterator[bytes], *, most: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON object of each event, at most `most` bytes each, until `[DONE]` or the end.

    Raises BadStream. An event that the end cuts off is dropped.
    """
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk.replace(b"\r\n", b"\n")
        while (end := buffer.find(b"\n\n")) >= 0:
            block, buffer = bytes(buffer[:end]), buffer[end + 2 :]
            data = b"\n".join(
                line[5:].removeprefix(b" ")
                for line in block.split(b"\n")
                if line.startswith(b"data:")
            )
            if data == b"[DONE]":
                return
            if data:
                yield _parsed(data)
        if len(buffer) > most:
            raise BadStream(f"an event over {most} bytes")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadStream("an event is no JSON") from error
    if not isinstance(value, dict):
        raise BadStream("an event is no JSON object")
    return value
