"""The connections of a server process: how many there are, and how long each may take over what.

uvicorn waits without end for the head of a request, for a client that reads nothing, and knows no
size of a head and no number of requests sent ahead; all four are bounded here. What its parser
cannot read is answered in the words of the API where it was meant for the API.
"""

import asyncio
import logging
import re
import resource
import time
from typing import Any, ClassVar, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn_worker import UvicornWorker

HEAD_SECONDS = 10.0
SEND_SECONDS = 60.0
# Far above what any client sends, and below what a thousand of them could fill a memory with.
HEAD_BYTES = 128 * 1024
# What comes is read in pieces: the one in which a head begins is not counted as part of it.
PIECE_BYTES = 8 * 1024
# What is still taken, and ignored, from a client that is refused: who closes a socket with unread
# data resets the connection, and the client never sees why.
IGNORED_BYTES = 1024 * 1024
# How many requests may wait on one connection until those before them are answered.
MOST_QUEUED = 100
MOST_CONNECTIONS = 10_000
WARNING_SECONDS = 60.0
# What an HTTP/1 client sends to switch to HTTP/2, or to WebSockets: we support neither.
UPGRADES = (b"upgrade", b"http2-settings")
REQUEST_LINE = re.compile(rb"\s*([!#-'*+.^_`|~\w-]{1,40}) +(\S{1,8000})(?: HTTP/1\.[01])?\r?\n")
# What is answered to what cannot be read: a code of the API, and a message.
NO_METHOD = "method_not_allowed", "There is no such method."
NO_HTTP = (
    "invalid_request_error",
    "This is not HTTP/1.1. Look at the URL, whose bytes beyond ASCII must be percent-encoded, at "
    "the headers, and at the length of the body.",
)
TOO_LARGE = (
    "request_too_large",
    f"The request line and the headers can have at most {HEAD_BYTES} bytes in total.",
)

log = logging.getLogger("uvicorn.error")


class Door:
    """What the connections of a process share; called by uvicorn, it makes one.

    `head_seconds` is how long a client may take to send the head of a request, `send_seconds` to
    read what fills its buffer, `most` how many connections there may be.
    """

    def __init__(
        self,
        *,
        head_seconds: float = HEAD_SECONDS,
        send_seconds: float = SEND_SECONDS,
        most: int | None = None,
    ) -> None:
        self.head_seconds = head_seconds
        self.send_seconds = send_seconds
        self.most = most or _room()
        # Those that have no request running; the one that has waited longest comes first.
        self.waiting: dict[Connection, None] = {}
        self._warned = -WARNING_SECONDS

    def __call__(self, **given: Any) -> "Connection":
        return Connection(self, **given)

    def make_room(self, connections: int) -> None:
        """Drop who has waited longest when there are too many."""
        if connections <= self.most:
            return
        if time.monotonic() >= self._warned + WARNING_SECONDS:
            self._warned = time.monotonic()
            log.warning("there are %s connections: the oldest idle ones are closed", connections)
        next(iter(self.waiting)).drop()


def _room() -> int:
    """Return how many connections there may be: most of the descriptors, not all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft < 0 else min(MOST_CONNECTIONS, soft * 3 // 4)


class Connection(HttpToolsProtocol):
    """One client's connection, which may take so long, and no longer, over each thing."""

    def __init__(self, door: Door, **given: Any) -> None:
        super().__init__(**given)
        self._door = door
        self._late: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._in_head = False
        # What came of the message that is being read, and how much of it was its body.
        self._came = self._body = 0
        # The request that is being answered; uvicorn's `cycle` is the one that came last.
        self._running: RequestResponseCycle | None = None
        # Whether something came after which all is ignored, and how many bytes of it may come.
        self._refused = False
        self._left = IGNORED_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        self._door.make_room(len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        self.resume_writing()
        if self._running is not None:
            # uvicorn lets `cycle` know: those that wait for their turn need not.
            self.cycle = self._running
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close at once."""
        self._go_on()
        self.transport.abort()

    def _is_answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        """Begin to wait for the head of a request, unless it is being waited for."""
        if self._late is None:
            self._late = self.loop.call_later(self._door.head_seconds, self.transport.close)
            self._door.waiting[self] = None

    def _go_on(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._door.waiting.pop(self, None)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            # uvicorn closes it after its keep-alive; until then it may have to make room.
            self._door.waiting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self._door.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    # --- What comes -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if not self._is_answering():
            self._wait()
        for start in range(0, len(data), PIECE_BYTES):
            if not self._refused:
                self._read(data[start : start + PIECE_BYTES])
        if self._refused:
            self._left -= len(data)
            if self._left < 0:
                self.transport.close()

    def _read(self, piece: bytes) -> None:
        self._came += len(piece)
        left = piece
        while left:
            try:
                self.parser.feed_data(left)
                left = b""
            except httptools.HttpParserUpgrade as upgrade:
                left = self._without_upgrade(left[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                unknown = isinstance(error, httptools.HttpParserInvalidMethodError)
                no_method = unknown and REQUEST_LINE.match(left)
                self._refuse(left, NO_METHOD if no_method else NO_HTTP)
                return
        # A body in chunks of one byte comes with five for each; trailers have no other limit.
        if self._came > HEAD_BYTES + 8 * self._body:
            self._refuse(piece, TOO_LARGE)

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Return the message, to be read again as if it had not asked for another protocol.

        The parser takes what follows such a head for that protocol's, and drops the body.
        """
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/"]
        head += [self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                words = [word.strip() for word in value.split(b",")]
                value = b", ".join(word for word in words if word.lower() not in UPGRADES)
            if name not in UPGRADES:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join([*head, b"\r\n", rest])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._came = self._body = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come when the headers have been read already, and are none of them.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("this is no proxy")
        if len(self.pipeline) >= MOST_QUEUED:
            raise ValueError("too many requests were sent ahead")
        if not self.parser.should_upgrade():
            self._go_on()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # --- What cannot be read ----------------------------------------------------------------------

    def _refuse(self, data: bytes, why: tuple[str, str]) -> None:
        """Answer an invalid request, or the requests before it, and close."""
        self._refused = True
        if self.pipeline and self.cycle.more_body:
            # It broke while it waited, and its turn never comes.
            self.pipeline.popleft()
            assert self._running is not None, "it waited for one"
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        if self._is_answering() and (self.cycle.response_started or not self.cycle.more_body):
            # The requests before it are in order, and their answers are waited for.
            self.cycle.keep_alive = False
            return
        # Only here: when gunicorn loads this file, Django is not set up yet.
        from images.api.handler import misread

        line = REQUEST_LINE.match(data)
        method, target = (part.decode("latin-1") for part in line.groups()) if line else ("", "")
        path = target or getattr(self, "url", b"").decode("latin-1")
        answer = misread(method, path, *why)
        head = [STATUS_LINE[answer.status_code]]
        for name, value in [*answer.items(), ("connection", "close")]:
            head.append(f"{name.lower()}: {value}\r\n".encode("latin-1"))
        self.transport.write(b"".join([*head, b"\r\n", answer.content]))
        if self._is_answering():
            # It was in the middle of its body: for the application, its client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # The client closes when it has read that, or is closed upon.
        self.transport.write_eof()
        self._wait()


class Worker(UvicornWorker):  # type: ignore[misc]
    """gunicorn's worker, with our door."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "auto", "http": Door(), "ws": "none"}
