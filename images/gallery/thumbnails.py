"""Small views of pictures for lists, made when one is first asked for and then kept in a cache."""

import asyncio

from asgiref.sync import async_to_sync
from django.core.cache import caches

from images.drawing.gateway import Gateway, store_of
from images.pixels import pictures
from images.pixels.turns import Turns
from images.stores.contract import StorageUnavailable

EDGE = 384
KEPT_SECONDS = 7 * 24 * 3600
WAIT_SECONDS = 20.0
READ_SECONDS = 10.0


class Busy(Exception):
    """Too many are being made; ask again later."""


def thumbnail(gateway: Gateway | None, turns: Turns, name: str) -> bytes:
    """Return a stored picture as WebP, within EDGE by EDGE pixels.

    Give the process's gateway, if it has one, and the turns of whose picture it is. Raises
    FileNotFoundError, StorageError, NotAPicture, and Busy.
    """
    cache = caches["thumbnails"]
    if (kept := cache.get(name)) is not None:
        return bytes(kept)
    # Read in its turn, too: nothing that waits has a picture in memory.
    making = turns.begin(lambda: pictures.shrink(pictures.inspect(_read(gateway, name)), EDGE))
    try:
        made = making.result(WAIT_SECONDS)
    except TimeoutError as error:
        making.cancel()
        raise Busy from error
    cache.set(name, made, KEPT_SECONDS)
    return made


def _read(gateway: Gateway | None, name: str) -> bytes:
    """Return a stored picture; for a thread. Raises StorageUnavailable if it takes too long."""

    async def read() -> bytes:
        async with store_of(gateway) as store:
            try:
                return await asyncio.wait_for(store.aread(name), READ_SECONDS)
            except TimeoutError as error:
                raise StorageUnavailable(f"{name} was not read in {READ_SECONDS:g} s") from error

    if gateway is None:
        return async_to_sync(read)()
    return asyncio.run_coroutine_threadsafe(read(), gateway.loop).result()
