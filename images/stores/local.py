"""Pictures in a folder of this machine."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from django.core.files.base import File
from django.core.files.storage import FileSystemStorage
from django.core.signing import BadSignature, TimestampSigner

from geekhub.lib.threads import OwnThreads
from images.stores.contract import NAMES, NameTaken, StorageUnavailable, ascii_name, check_name

_SALT = "private pictures"


class LocalStorage(FileSystemStorage):
    """Pictures in a folder; a file appears under its name when it is complete, or not at all.

    Options: `location` is the folder, `base_url` what its files are served under; `expires_in`
    makes `url()` sign addresses for that many seconds, for private pictures.
    """

    THREADS = 4

    def __init__(self, *args: Any, expires_in: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.expires_in = expires_in
        self._threads = OwnThreads(self.THREADS, "images")

    def url(self, name: str | None) -> str:
        address = super().url(name)
        if name is None or self.expires_in is None:
            return address
        return f"{address}?token={TimestampSigner(salt=_SALT).sign(name).removeprefix(f'{name}:')}"

    def is_signed(self, name: str, token: str) -> bool:
        """Return whether the token of an address is ours, for this name, and not expired."""
        try:
            TimestampSigner(salt=_SALT).unsign(f"{name}:{token}", max_age=self.expires_in)
        except BadSignature:
            return False
        return True

    def path(self, name: str) -> str:
        return super().path(check_name(name) if name else name)

    def get_valid_name(self, name: str) -> str:
        return ascii_name(name)

    def _save(self, name: str, content: "File[Any]") -> str:
        for _ in range(NAMES):
            try:
                self._place(name, content.chunks())
            except NameTaken:
                name = self.get_available_name(name)
            else:
                return name
        raise StorageUnavailable(f"no free name like {name}")

    def _place(self, name: str, chunks: Iterable[bytes | str]) -> None:
        """Write a file beside its final name, then link it there, which never overwrites."""
        final = self.path(name)
        folder = os.path.dirname(final)
        for _ in range(100):
            unfinished = os.path.join(folder, f".{uuid4().hex}")
            try:
                os.makedirs(folder, exist_ok=True)
                file = open(unfinished, "xb")  # noqa: SIM115 - closed below
                break
            except (FileNotFoundError, FileExistsError):
                continue  # a delete took the empty folder away, during makedirs or after it
        else:
            raise StorageUnavailable(f"the folder of {name} keeps going away")
        try:
            with file:
                for chunk in chunks:
                    file.write(chunk.encode() if isinstance(chunk, str) else chunk)
                file.flush()
                # Without it a power cut may leave an empty file under the final name.
                os.fsync(file.fileno())
            if self.file_permissions_mode is not None:
                os.chmod(unfinished, self.file_permissions_mode)
            try:
                os.link(unfinished, final)
            except FileExistsError as error:
                raise NameTaken(name) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unfinished)

    def delete(self, name: str) -> None:
        super().delete(name)
        # The folders of a request and of an organization go with their last picture.
        folder = os.path.dirname(self.path(name))
        with contextlib.suppress(OSError):
            while folder.startswith(os.path.join(self.location, "")):
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        """Return the folders and files of `path`; of a missing one none, as object stores do."""
        try:
            folders, files = super().listdir(path.strip("/"))
        except FileNotFoundError:
            return [], []
        return sorted(folders), sorted(file for file in files if not file.startswith("."))

    async def asave(
        self, name: str, data: bytes, content_type: str, deadline: float | None = None
    ) -> str:
        """See ImageStore; a cancelled or late save may still be completed by its thread."""
        self.path(name)
        await self.in_thread(self._place, name, (data,), deadline=deadline)
        return name

    async def aread(self, name: str) -> bytes:
        return await self.in_thread(_read, self.path(name))

    async def adelete(self, name: str) -> None:
        await self.in_thread(self.delete, name)

    async def alink(self, name: str) -> str:
        return self.url(name)

    async def probe(self) -> None:
        def writable() -> None:
            os.makedirs(self.location, exist_ok=True)
            if not os.access(self.location, os.W_OK | os.X_OK):
                raise StorageUnavailable(f"{self.location} cannot be written")

        await self.in_thread(writable)

    async def aclose(self) -> None:
        self._threads.close()

    async def in_thread[T](
        self, call: Callable[..., T], *args: Any, deadline: float | None = None
    ) -> T:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._threads.run(call, *args)
        except FileNotFoundError:
            raise
        except OSError as error:  # TimeoutError is one
            raise StorageUnavailable(f"{type(error).__name__}: {error}") from error


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
