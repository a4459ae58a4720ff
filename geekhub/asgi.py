"""The server's entry point: /v1 on its own lean handler, every page on Django's.

One synchronous middleware around a request that waits for a provider would cost a thread for all
of that wait; so the public API has none, and the pages keep theirs.
"""

import asyncio
import gc
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "geekhub.settings")
django.setup(set_prefix=False)

from asgiref.sync import ThreadSensitiveContext, sync_to_async  # noqa: E402
from django.conf import settings  # noqa: E402 - the settings must be there first
from django.core.asgi import get_asgi_application  # noqa: E402
from django.db import connections  # noqa: E402

from billing.stripe.catalog import check_mode  # noqa: E402
from geekhub.lib import bodies  # noqa: E402
from geekhub.lib.bodies import Incoming, Receive, Scope, Send  # noqa: E402
from images.api.handler import ApiHandler, is_meant  # noqa: E402
from images.drawing.gateway import Gateway, open_gateway  # noqa: E402

# Far more than the largest form of the pages; Stripe's events have a limit of their own.
PAGE_BODY_BYTES = 1024 * 1024
PAGE_BODY_SECONDS = 30.0


class Application:
    """An ASGI application with a lifespan; it holds what one process shares."""

    def __init__(self) -> None:
        self._pages = get_asgi_application()
        self.gateway: Gateway | None = None
        self._api: ApiHandler | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        scope["headers"] = _lowered(scope["headers"])
        if is_meant(scope["path"]):
            if self._api is None:
                raise RuntimeError("the server must run the ASGI lifespan")
            await self._api(scope, receive, send)
        else:
            await self._page(scope, Incoming(scope, receive), send)

    async def _page(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        try:
            if incoming.encodings:
                raise bodies.UnknownEncoding(incoming.encodings, "Send the body as it is.")
            body = await incoming.read(most=PAGE_BODY_BYTES, seconds=PAGE_BODY_SECONDS)
        except bodies.ClientGone:
            return
        except bodies.BodyRefused as error:
            await _refuse(incoming, send, error)
            return
        # Django runs each page in a thread of its own, and leaves its connection open there.
        async with ThreadSensitiveContext():
            try:
                receive, send = _undisturbed(body, incoming, send)
                await self._pages({**scope, "gateway": self.gateway}, receive, send)
            finally:
                await sync_to_async(connections.close_all)()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            await receive()
            try:
                await sync_to_async(_check_mode)()
                self.gateway = await stack.enter_async_context(open_gateway())
                self._api = ApiHandler(self.gateway)
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
            # What is loaded now lives as long as the process; requests need no look at it, and
            # none every 700 objects.
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 20, 20)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            # Requests whose client has left are known to nobody but us.
            await self.gateway.drain(settings.REQUEST_DEADLINE_SECONDS + 10)
        self.gateway = self._api = None
        await send({"type": "lifespan.shutdown.complete"})


def _lowered(headers: bodies.Headers) -> bodies.Headers:
    """Return the headers with the media type in lower case: it has no case, and Django's parser of
    forms compares it. What follows, a boundary for instance, has one.
    """
    return [
        (name, _lower_type(value) if name == b"content-type" else value) for name, value in headers
    ]


def _lower_type(value: bytes) -> bytes:
    media_type, semicolon, parameters = value.partition(b";")
    return media_type.lower() + semicolon + parameters


async def _refuse(incoming: Incoming, send: Send, error: bodies.BodyRefused) -> None:
    match error:
        case bodies.BodyTooLarge():
            status = 413
        case bodies.BodyTooSlow():
            status = 408
        case _:
            status = 415
    text = f"{error}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await incoming.answer(send, status, headers, text)


def _undisturbed(body: bytes, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return the two such that the body is there, and that a client who leaves is noticed once the
    answer has begun.

    Django would cancel a page in the middle of its thread's work, which leaves its connection to
    the database open and an error in the log. A page is short; a download is not.
    """
    asked, begun = False, asyncio.Event()

    async def hear() -> Mapping[str, Any]:
        nonlocal asked
        if asked:
            await begun.wait()
            return await receive()
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def tell(message: Mapping[str, Any]) -> None:
        begun.set()
        await send(message)

    return hear, tell


def _check_mode() -> None:
    try:
        check_mode()
    finally:
        connections.close_all()


application = Application()
