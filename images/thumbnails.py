"""Small views of pictures for lists, made when one is first asked for and then kept in a cache."""

import asyncio
import threading

from asgiref.sync import async_to_sync
from django.core.cache import caches

from images import pictures
from images.gateway import Gateway, store_of
from images.storage import StorageUnavailable

EDGE = 384
KEPT_SECONDS = 7 * 24 * 3600
# Each has a whole picture in memory and keeps a core busy, beside the requests of the API.
AT_ONCE = 2
WAIT_SECONDS = 20.0
READ_SECONDS = 10.0

_places = threading.BoundedSemaphore(AT_ONCE)


class Busy(Exception):
    """Too many are being made; ask again later."""


def thumbnail(gateway: Gateway | None, name: str) -> bytes:
    """Return a stored picture as WebP, within EDGE by EDGE pixels.

    Give the process's gateway, if it has one. Raises FileNotFoundError, StorageError, NotAPicture,
    and Busy.
    """
    cache = caches["thumbnails"]
    if (kept := cache.get(name)) is not None:
        return bytes(kept)
    if not _places.acquire(timeout=WAIT_SECONDS):
        raise Busy
    try:
        made = pictures.shrink(pictures.inspect(_read(gateway, name)), EDGE)
    finally:
        _places.release()
    cache.set(name, made, KEPT_SECONDS)
    return made


def _read(gateway: Gateway | None, name: str) -> bytes:
    async def read() -> bytes:
        async with store_of(gateway) as store:
            try:
                return await asyncio.wait_for(store.aread(name), READ_SECONDS)
            except TimeoutError as error:
                raise StorageUnavailable(f"{name} was not read in {READ_SECONDS:g} s") from error

    return async_to_sync(read)()
