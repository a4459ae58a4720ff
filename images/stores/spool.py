"""Pictures that wait on this host until the store is back.

With STORAGE_OUTAGE=spool an outage of the store costs a customer nothing: the picture is kept
here, its final URL is answered, the pages serve that path meanwhile, and the worker of this host
uploads it. A file here is the only record of that; there is no row to disagree with it.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from django.core.exceptions import SuspiciousFileOperation

from images.pixels import pictures
from images.stores.contract import ImageStore, NameTaken, StorageError, StorageUnavailable
from images.stores.local import LocalStorage

log = logging.getLogger(__name__)


class SpoolFull(StorageUnavailable):
    """The spool has reached its bound; the picture is not kept."""


class Spool:
    """A bounded folder of pictures under the names they will have in the store."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self.files = LocalStorage(location=folder)

    def size(self) -> int:
        """Return the bytes waiting."""
        return sum(found.st_size for _, found in self._found())

    def names(self) -> Iterator[str]:
        """Yield the names waiting, oldest first."""
        for path, _ in sorted(self._found(), key=lambda one: one[1].st_mtime):
            yield path.relative_to(self._folder).as_posix()

    async def put(self, name: str, data: bytes, content_type: str) -> None:
        """Keep a picture; raises SpoolFull."""
        if await self.files.in_thread(self.size) + len(data) > self._max_bytes:
            raise SpoolFull(f"the spool holds its {self._max_bytes} bytes")
        await self.files.asave(name, data, content_type)

    def has(self, name: str) -> bool:
        """Return whether a picture of this name waits; also for a name that none can have."""
        try:
            return self.files.exists(name)
        except (OSError, SuspiciousFileOperation):
            return False

    def _found(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, files in os.walk(self._folder):
            for file in files:
                path = Path(folder, file)
                try:
                    if not file.startswith("."):
                        yield path, path.stat()
                except FileNotFoundError:
                    continue  # uploaded, or deleted, meanwhile


@dataclass(frozen=True, slots=True)
class SpoolingStore:
    """A store whose outages are bridged by a spool; an ImageStore itself."""

    store: ImageStore
    spool: Spool

    async def asave(
        self, name: str, data: bytes, content_type: str, deadline: float | None = None
    ) -> str:
        """Keep `data` in the store or, while that is away, in the spool."""
        try:
            return await self.store.asave(name, data, content_type, deadline)
        except StorageUnavailable as error:
            log.error("%s waits in the spool: %s", name, error)
            await self.spool.put(name, data, content_type)
            return name

    async def aread(self, name: str) -> bytes:
        """Return the bytes from the spool or the store."""
        try:
            return await self.spool.files.aread(name)
        except FileNotFoundError:
            return await self.store.aread(name)

    async def adelete(self, name: str) -> None:
        """Delete from both."""
        await self.spool.files.adelete(name)
        await self.store.adelete(name)

    async def probe(self) -> None:
        """Return when a picture can be kept: the spool counts."""
        await self.spool.files.probe()

    async def aclose(self) -> None:
        """Close both."""
        await self.spool.files.aclose()
        await self.store.aclose()

    async def alink(self, name: str) -> str:
        """Return the final address, also of a picture that still waits."""
        return await self.store.alink(name)


async def upload(
    spool: Spool, store: ImageStore, is_deleted: Callable[[str], Awaitable[bool]]
) -> int:
    """Upload what waits, oldest first; return how many. Stops at the first that fails.

    Doing it twice, or on top of an upload whose answer was lost, changes nothing: a name is used
    by one picture only, so one that is taken is this one. `is_deleted` is asked of each name.
    """
    uploaded = 0
    for name in list(spool.names()):
        try:
            data = await spool.files.aread(name)
        except FileNotFoundError:
            continue
        try:
            await _put(store, name, data)
            # Asked afterwards: a deletion marks it first and removes the object then, which
            # may have been before it was there.
            if await is_deleted(name):
                await store.adelete(name)
        except StorageError as error:
            log.warning("the store is still away: %s", error)
            break
        await spool.files.adelete(name)
        uploaded += 1
    return uploaded


async def _put(store: ImageStore, name: str, data: bytes) -> None:
    try:
        await store.asave(name, data, pictures.mime_type(data))
    except NameTaken:
        log.info("%s was uploaded before", name)
