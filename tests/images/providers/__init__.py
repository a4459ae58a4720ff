"""What the tests of the providers share: one call to an emulator, from a picture's request on."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import httpx
from aiohttp import web

from geekhub.lib import http
from images.providers.base import ImageRequest, Item, ProviderImage, Shortfall
from images.providers.downloads import Downloads
from images.providers.http import HttpProvider
from tests.emulators.base import Emulator, make_picture
from tests.lib import serving

# The smallest picture, as base64.
DOT = base64.b64encode(make_picture(1, 1, "png")).decode()

type Maker = Callable[[httpx.AsyncClient, Downloads], HttpProvider]


async def call(provider: HttpProvider, *, seconds: float = 20, **fields: Any) -> list[Item]:
    """Return what one call yields; `fields` are the request's."""
    deadline = asyncio.get_running_loop().time() + seconds
    fields = {"model": "any/model", "prompt": "a red kite", "per_call": 10, **fields}
    return [item async for item in provider.call(ImageRequest(deadline=deadline, **fields))]


def draw(make: Maker, emulator: Emulator, headers: dict[str, str], **fields: Any) -> list[Item]:
    """Return what one call to an emulator yields, over a connection of its own."""

    async def run() -> list[Item]:
        downloads = Downloads([emulator.origin])
        client = http.client(base_url=emulator.url, headers=headers, connect=2, read=10)
        provider = make(client, downloads)
        try:
            return await call(provider, **fields)
        finally:
            await provider.aclose()
            await downloads.aclose()

    return asyncio.run(run())


def exchange(make: Maker, answer: web.StreamResponse, **fields: Any) -> list[Item]:
    """Return what a provider yields when its upstream gives this answer to everything."""

    async def run() -> list[Item]:
        async def reply(request: web.BaseRequest) -> web.StreamResponse:
            return answer

        async with serving(reply) as origin:
            downloads = Downloads([origin])
            provider = make(http.client(base_url=origin, connect=2, read=10), downloads)
            try:
                return await call(provider, **fields)
            finally:
                await provider.aclose()
                await downloads.aclose()

    return asyncio.run(run())


def images(items: list[Item]) -> list[ProviderImage]:
    """Return the finished pictures among the items."""
    return [item for item in items if isinstance(item, ProviderImage)]


def shortfalls(items: list[Item]) -> list[Shortfall]:
    """Return what says that pictures will not come."""
    return [item for item in items if isinstance(item, Shortfall)]


def sizes(items: list[Item]) -> list[str]:
    """Return the pixel sizes of the pictures, read from their bytes."""
    return [f"{item.picture.width}x{item.picture.height}" for item in images(items)]
