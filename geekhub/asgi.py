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

from billing.stripe_catalog import check_mode  # noqa: E402
from images.api.handler import ApiHandler  # noqa: E402
from images.api.requests import Receive, Scope, Send  # noqa: E402
from images.gateway import Gateway, open_gateway  # noqa: E402


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
        path = scope["path"]
        if path == "/v1" or path.startswith("/v1/"):
            if self._api is None:
                raise RuntimeError("the server must run the ASGI lifespan")
            await self._api(scope, receive, send)
        else:
            # Django runs each page in a thread of its own, and leaves its connection open there.
            async with ThreadSensitiveContext():
                try:
                    receive, send = _undisturbed(receive, send)
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


def _undisturbed(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return the two such that a client who leaves is noticed once the answer has begun.

    Django would cancel a page in the middle of its thread's work, which leaves its connection to
    the database open and an error in the log. A page is short; a download is not.
    """
    asked, begun = False, asyncio.Event()

    async def hear() -> Mapping[str, Any]:
        nonlocal asked
        if asked:
            await begun.wait()
        message = await receive()
        asked = not message.get("more_body", False)
        return message

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
