"""A request to /v1 as it comes from the server."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from django.core.handlers.asgi import ASGIRequest

from geekhub.lib.ids import new_request_id
from images.gateway import Gateway

type Scope = dict[str, Any]
type Receive = Callable[[], Awaitable[Mapping[str, Any]]]
type Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class BodyTooLarge(Exception):
    """The body is over the limit of `most` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most


class BodyTooSlow(Exception):
    """The body was not here in time."""


class ClientGone(Exception):
    """The client left before its body was here."""


class ApiRequest(ASGIRequest):
    """A Django request that knows its process, its public id, and what its log line will say.

    `receive` is where its body comes from, for a view that reads it itself; `drawing` is whether
    it was let in, so that a provider may have been paid for it.
    """

    def __init__(self, scope: Scope, receive: Receive, gateway: Gateway) -> None:
        super().__init__(scope, io.BytesIO())
        self.receive = receive
        self.gateway = gateway
        self.request_id = new_request_id()
        self.log: dict[str, Any] = {}
        self.drawing = False

    def set_body(self, body: bytes) -> None:
        """Let the views find the body."""
        self._stream = io.BytesIO(body)
        # A chunked body comes without a length, and DRF would take it for an empty one.
        self.META["CONTENT_LENGTH"] = str(len(body))

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        # The body is UTF-8 JSON whatever the parameters say, and some cannot even be parsed.
        self.content_type = str(meta.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
        self.content_params = {}
        meta["CONTENT_TYPE"] = self.content_type


async def read_body(request: ApiRequest, *, most: int, seconds: float) -> bytes:
    """Return the body; raises BodyTooLarge, BodyTooSlow after `seconds`, or ClientGone."""
    try:
        async with asyncio.timeout(seconds):
            return b"".join([chunk async for chunk in body_chunks(request, most=most)])
    except TimeoutError as error:
        raise BodyTooSlow from error


async def body_chunks(request: ApiRequest, *, most: int) -> AsyncIterator[bytes]:
    """Yield the body as it comes; raises BodyTooLarge above `most` bytes, and ClientGone."""
    headers = request.scope["headers"]
    declared = next((value for name, value in headers if name == b"content-length"), b"0")
    if not declared.isdigit() or int(declared) > most:
        raise BodyTooLarge(most)
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise BodyTooLarge(most)
        yield chunk
        more = message.get("more_body", False)
