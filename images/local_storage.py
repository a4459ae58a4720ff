"""What every store of pictures shares, and the one that is a folder of this machine.

A store is a Django storage backend for `STORAGES["images"]` and has the asynchronous calls of
`ImageStore` for the request path. A name is `organization/request/index.extension`: unguessable,
never used twice, the same in every store.
"""

import asyncio
import contextlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any, Protocol
from uuid import uuid4

from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage
from django.core.signing import BadSignature, TimestampSigner

from geekhub.lib.threads import OwnThreads

# What Supabase accepts in a key.
_ALLOWED = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]+")
_SEGMENT_BYTES = 255
# How often another name is tried when one is taken.
NAMES = 5
_SALT = "private pictures"


class StorageError(Exception):
    """The store did not do what was asked."""


class StorageUnavailable(StorageError):
    """The store could not be reached, is overloaded or broken; the same call may succeed later."""


class StorageRefused(StorageError):
    """The store understood the call and will not do it, however often it is asked.

    `status` is the HTTP status the store means and `code` its own word for the reason.
    """

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class NameTaken(StorageRefused):
    """An object of this name exists already; nothing was written."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} exists already", status=409, code="KeyAlreadyExists")


class ImageStore(Protocol):
    """What the request path needs of a store. All raise StorageError when the store fails."""

    async def asave(
        self, name: str, data: bytes, content_type: str, deadline: float | None = None
    ) -> str:
        """Keep `data` under `name` and return the name; raises NameTaken, never overwrites.

        `deadline` is the event loop's time after which StorageUnavailable is raised.
        """

    async def aread(self, name: str) -> bytes:
        """Return the bytes kept under `name`. Raises FileNotFoundError."""

    async def adelete(self, name: str) -> None:
        """Delete `name`; a missing one is fine."""

    async def probe(self) -> None:
        """Return when the store can be used, raise StorageError when it cannot."""

    async def aclose(self) -> None:
        """Give back threads and connections; the next call makes new ones."""

    async def alink(self, name: str) -> str:
        """Return the address to hand out; of a private picture one that expires."""


def check_name(name: str) -> str:
    """Return `name` if every store can keep it. Raises SuspiciousFileOperation.

    No segment starts with a dot: `..` would climb, and the local store's unfinished files do.
    """
    if not _ALLOWED.fullmatch(name):
        raise SuspiciousFileOperation(f"{name!r} has characters the store does not allow")
    for segment in name.split("/"):
        if not segment or segment.startswith(".") or len(segment) > _SEGMENT_BYTES:
            raise SuspiciousFileOperation(f"{name!r} has a segment the store does not allow")
    return name


def ascii_name(name: str) -> str:
    """Return a file name of ASCII letters, digits, dots, dashes and underscores like `name`.

    Django's own keeps the letters of every alphabet, which Supabase refuses.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    path = PurePosixPath("_" + re.sub(r"[^\w.-]", "", plain.strip().replace(" ", "_")))
    return (path.stem[1:].strip(".") or "file") + path.suffix


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
