"""What every store of pictures promises, and the errors it raises.

A store is a Django storage backend for `STORAGES["images"]` and has the asynchronous calls of
`ImageStore` for the request path. A name is `organization/request/index.extension`: unguessable,
never used twice, the same in every store.
"""

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Protocol

from django.core.exceptions import SuspiciousFileOperation

# What Supabase accepts in a key.
_ALLOWED = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]+")
_SEGMENT_BYTES = 255
# How often another name is tried when one is taken.
NAMES = 5


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
