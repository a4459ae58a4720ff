"""The body of a request as it comes from the server: bounded in bytes and time, unpacked once.

Nothing here is written to a disk, and nobody is believed about a length.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

type Scope = dict[str, Any]
type Receive = Callable[[], Awaitable[Mapping[str, Any]]]
type Send = Callable[[Mapping[str, Any]], Awaitable[None]]
type Headers = list[tuple[bytes, bytes]]

# How long a refused client may keep sending before its connection is closed.
LINGER_SECONDS = 5.0
# What a compressed body is unpacked by, so that a bomb fills no memory before it is counted.
STEP_BYTES = 64 * 1024


class BodyRefused(Exception):
    """The body is not taken. The message, one sentence, says what would be right."""


class BodyTooLarge(BodyRefused):
    """It has more bytes than are taken, as it came or unpacked."""

    def __init__(self, most: int) -> None:
        super().__init__(f"The body can have at most {most} bytes.")


class BodyTooSlow(BodyRefused):
    """It was not here in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The body took too long to arrive; it must arrive within {seconds:g} seconds."
        )


class UnknownEncoding(BodyRefused):
    """It is compressed by something other than a single gzip."""

    def __init__(self, encodings: list[str], right: str) -> None:
        named = ", ".join(encodings)[:100]
        super().__init__(f"Content-Encoding {named!r} is not supported. {right}")


class BrokenEncoding(BodyRefused):
    """It is not the gzip that it says it is."""

    def __init__(self) -> None:
        super().__init__("The body is not one whole gzip stream, as its Content-Encoding says.")


class ClientGone(Exception):
    """The client left before its body was here, or before anything was done for it."""


class Incoming:
    """A request's `receive`, which knows whether the whole body has come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers: Headers = scope["headers"]
        self._receive = receive
        self.encodings = [
            word
            for name, value in headers
            if name == b"content-encoding"
            for word in value.decode("latin-1").lower().replace(",", " ").split()
            if word != "identity"
        ]
        lengths = [value for name, value in headers if name == b"content-length"]
        self.declared = lengths[0] if lengths else b"0"
        chunked = any(name == b"transfer-encoding" for name, _ in headers)
        self.whole = not chunked and self.declared == b"0"

    async def __call__(self) -> Mapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.whole = True
        return message

    async def read(self, *, most: int, seconds: float) -> bytes:
        """Return the body; raises BodyRefused or ClientGone."""
        try:
            async with asyncio.timeout(seconds):
                return b"".join([chunk async for chunk in self.chunks(most=most)])
        except TimeoutError as error:
            raise BodyTooSlow(seconds) from error

    async def chunks(self, *, most: int) -> AsyncIterator[bytes]:
        """Yield the body as it comes, unpacked; raises BodyRefused above `most`, or ClientGone."""
        if not self.declared.isdigit() or int(self.declared) > most:
            raise BodyTooLarge(most)
        unpack = _unpacker(self.encodings)
        size = 0
        async for piece in self._pieces(most):
            # A whole megabyte of zeros is a thousand bytes: it is counted as it is unpacked.
            for part in unpack.all_of(piece) if unpack else (piece,):
                size += len(part)
                if size > most:
                    raise BodyTooLarge(most)
                yield part
        if unpack and unpack.taken and not unpack.complete:
            raise BrokenEncoding

    async def _pieces(self, most: int) -> AsyncIterator[bytes]:
        size, more = 0, True
        while more:
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > most:
                raise BodyTooLarge(most)
            yield piece
            more = message.get("more_body", False)

    async def answer(self, send: Send, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer; a client that still sends its request's body is cut off after it.

        Not at once: a connection that is closed on unread bytes is reset, and the answer lost.
        """
        sending = not self.whole
        closing = [(b"connection", b"close")] if sending else []
        start = {"type": "http.response.start", "status": status, "headers": headers + closing}
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": sending})
        if sending:
            try:
                async with asyncio.timeout(LINGER_SECONDS):
                    while not self.whole and (await self())["type"] != "http.disconnect":
                        pass
            except TimeoutError:
                pass
            await send({"type": "http.response.body"})


class _Gunzip:
    """Unpacks one gzip stream, a step at a time."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self.taken = 0

    @property
    def complete(self) -> bool:
        """Return whether the stream has come to its end."""
        return self._stream.eof

    def all_of(self, data: bytes) -> Iterable[bytes]:
        """Yield what the next bytes unpack to; raises BrokenEncoding."""
        self.taken += len(data)
        while data:
            if self._stream.eof:
                raise BrokenEncoding
            try:
                part = self._stream.decompress(data, STEP_BYTES)
            except zlib.error as error:
                raise BrokenEncoding from error
            data = self._stream.unconsumed_tail or self._stream.unused_data
            yield part


def _unpacker(encodings: list[str]) -> _Gunzip | None:
    match encodings:
        case []:
            return None
        case ["gzip" | "x-gzip"]:
            return _Gunzip()
        case _:
            right = "Send the body as it is, or compressed once with gzip."
            raise UnknownEncoding(encodings, right)
