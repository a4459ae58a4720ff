"""A request to /v1 as it comes from the server."""

import asyncio
import io
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.utils import timezone

from geekhub.lib.bodies import ClientGone, Incoming, Scope
from geekhub.lib.ids import new_request_id
from images.drawing.gateway import Gateway


class ApiRequest(ASGIRequest):
    """A Django request that knows its process, its public id, when it came, and what its log line
    will say.

    `receive` is where its body comes from, for a view that reads it itself; `digest` is what its
    API key is remembered by.
    """

    digest: bytes

    def __init__(self, scope: Scope, receive: Incoming, gateway: Gateway) -> None:
        super().__init__(scope, io.BytesIO())
        self.receive = receive
        self.gateway = gateway
        self.request_id = new_request_id()
        self.arrived = timezone.now()
        self.log: dict[str, Any] = {}

    def set_body(self, body: bytes) -> None:
        """Let the views find the body."""
        self._stream = io.BytesIO(body)
        # A chunked body comes without a length, and DRF would take it for an empty one.
        self.META["CONTENT_LENGTH"] = str(len(body))

    async def pause(self, seconds: float) -> None:
        """Wait after the body so many seconds; raises ClientGone as soon as the client leaves."""
        try:
            async with asyncio.timeout(seconds):
                # Nothing else comes any more.
                await self.receive()
        except TimeoutError:
            return
        raise ClientGone

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        # The body is UTF-8 JSON whatever the parameters say, and some cannot even be parsed.
        self.content_type = str(meta.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
        self.content_params = {}
        meta["CONTENT_TYPE"] = self.content_type
