"""Pictures as one zip file, made while it is sent: one picture in memory at a time."""

import io
import logging
import zipfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import PurePosixPath

from django.utils.text import slugify

from geekhub.lib.tasks import to_its_end
from images.models import Image
from images.pixels.turns import Turns
from images.stores.contract import ImageStore, StorageError, StorageUnavailable

log = logging.getLogger(__name__)

MAX_PICTURES = 100
MAX_BYTES = 500 * 1024 * 1024


class TooLarge(Exception):
    """More pictures or bytes than one file can have."""


class _Outbox(io.RawIOBase):
    """What was written and not yet sent; it cannot go back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken


def check(images: Sequence[Image]) -> None:
    """Raise TooLarge for more than one file can have."""
    if len(images) > MAX_PICTURES or sum(image.bytes for image in images) > MAX_BYTES:
        raise TooLarge


async def zipped(store: ImageStore, turns: Turns, images: Sequence[Image]) -> AsyncGenerator[bytes]:
    """Yield the bytes of a zip file with the pictures, their generations loaded.

    One that cannot be read is left out and named in `missing.txt`, and so are all that follow when
    the store is away. Nothing is compressed: pictures are already.
    """
    outbox, missing, away = _Outbox(), [], False
    with zipfile.ZipFile(outbox, "w") as archive:
        for image in images:
            if away:
                missing.append(file_name(image))
                continue
            try:
                data = await store.aread(image.name)
            except (StorageError, FileNotFoundError) as error:
                away = isinstance(error, StorageUnavailable)
                log.warning("%s is not in a zip file: %s", image.name, error)
                missing.append(file_name(image))
                continue
            when = image.generation.created_at.timetuple()[:6]
            entry = zipfile.ZipInfo(file_name(image), when)
            # The checksum of a large picture takes its time.
            await to_its_end(turns.run(archive.writestr, entry, data))
            yield outbox.take()
        if missing:
            archive.writestr("missing.txt", "\n".join(missing) + "\n")
    yield outbox.take()


def file_name(image: Image) -> str:
    """Return a name with day, model and request, such as `2026-11-22_fal-x_req_…-0.png`."""
    row = image.generation
    model = slugify(row.model.replace("/", "-").replace(".", "-"))
    suffix = PurePosixPath(image.name).suffix
    return f"{row.created_at:%Y-%m-%d}_{model}_{image.reference}{suffix}"
