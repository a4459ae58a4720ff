"""Pictures as bytes: what they are is read from the bytes, never from a name or a header."""

import hashlib
import io
import math
import os
from dataclasses import dataclass
from typing import IO, Any, Protocol

from PIL import Image as Pillow

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000
# Ours is checked for all sizes alike, and no warning need be silenced in many threads at once.
Pillow.MAX_IMAGE_PIXELS = None
FORMATS = {
    "PNG": ("image/png", "png"),
    "JPEG": ("image/jpeg", "jpg"),
    "WEBP": ("image/webp", "webp"),
}


class NotAPicture(ValueError):
    """The bytes are no PNG, JPEG or WebP, or too large to be decoded safely."""


class TooManyPixels(NotAPicture):
    """The picture is one, and too large; the text says of how many megapixels."""


class Described(Protocol):
    """What is stored of a picture beside its bytes."""

    mime_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The bytes of a picture and what they say of themselves; sizes in pixels."""

    data: bytes
    mime_type: str
    extension: str
    width: int
    height: int

    @classmethod
    def of(cls, row: "Described", data: bytes) -> "Picture":
        """Return the picture whose description was stored apart from its bytes."""
        extension = dict(FORMATS.values())[row.mime_type]
        return cls(data, row.mime_type, extension, row.width, row.height)

    def is_a(self, output_format: str) -> bool:
        """Return whether the picture is a `png`, `jpeg` or `webp`."""
        return self.mime_type == f"image/{output_format}"


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that was sent to us, in an open file that nobody else writes; sizes in pixels.

    It stays on disk while its request waits, and is read where and when it is needed.
    """

    file: IO[bytes]
    mime_type: str
    extension: str
    width: int
    height: int
    sha256: str
    alpha: bool

    @classmethod
    def of(cls, file: IO[bytes]) -> "Upload":
        """Return the picture in a file; reads all of it. Raises NotAPicture."""
        file.flush()
        data = _Reader(file).readall()
        found = inspect(data)
        with Pillow.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            alpha = image.mode in ("RGBA", "LA")
        return cls(
            file=file,
            mime_type=found.mime_type,
            extension=found.extension,
            width=found.width,
            height=found.height,
            sha256=hashlib.sha256(data).hexdigest(),
            alpha=alpha,
        )

    def read(self) -> bytes:
        """Return the bytes; not for the event loop."""
        return self.reader().readall()

    def reader(self) -> "_Reader":
        """Return a file to read from the start, however many others read it at the same time."""
        return _Reader(self.file)


class _Reader(io.RawIOBase):
    """Reads a file with a position of its own; fails once somebody has closed the file."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def readinto(self, buffer: Any) -> int:
        # Asked each time: a closed file's number may already be another's.
        data = os.pread(self._file.fileno(), len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def inspect(data: bytes) -> Picture:
    """Return the picture the bytes are; only the header is decoded. Raises NotAPicture."""
    if len(data) > MAX_BYTES:
        raise NotAPicture(f"larger than {MAX_BYTES} bytes")
    try:
        with Pillow.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            # MPO is a JPEG with more pictures behind the first.
            kind = "JPEG" if image.format == "MPO" else image.format
            width, height = image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise NotAPicture("not a PNG, JPEG or WebP") from error
    if width * height > MAX_PIXELS:
        has, most = math.ceil(width * height / 100_000) / 10, MAX_PIXELS // 1_000_000
        raise TooManyPixels(f"has too many pixels: {has} of {most} megapixels ({width}x{height})")
    if kind is None:
        raise NotAPicture("not a PNG, JPEG or WebP")
    mime_type, extension = FORMATS[kind]
    return Picture(data, mime_type, extension, width, height)


def transcode(picture: Picture, output_format: str, compression: int | None) -> Picture:
    """Return the picture as `png`, `jpeg` or `webp`; `compression` is a quality from 0 to 100.

    Decodes and encodes: tens of milliseconds, not for the event loop. Raises NotAPicture when the
    bytes behind a good header are broken.
    """
    quality = (
        {} if output_format == "png" else {"quality": 90 if compression is None else compression}
    )
    out = io.BytesIO()
    try:
        with Pillow.open(io.BytesIO(picture.data), formats=tuple(FORMATS)) as image:
            # JPEG has no transparency; what shows through is white, as on a page. PNG has no CMYK.
            plain = output_format == "jpeg" or image.mode == "CMYK"
            opaque = _flattened(image) if plain else image
            opaque.save(out, output_format.upper(), **quality)
    except (OSError, ValueError, SyntaxError) as error:
        raise NotAPicture("broken") from error
    return inspect(out.getvalue())


def shrink(picture: Picture, edge: int) -> bytes:
    """Return the picture as WebP, within a square of `edge` pixels; a smaller one keeps its size.

    As slow as transcode(), and raises the same.
    """
    out = io.BytesIO()
    try:
        with Pillow.open(io.BytesIO(picture.data), formats=tuple(FORMATS)) as image:
            whole = image if image.mode in ("RGB", "RGBA") else image.convert("RGBA")
            whole.thumbnail((edge, edge))
            whole.save(out, "WEBP", quality=80)
    except (OSError, ValueError, SyntaxError) as error:
        raise NotAPicture("broken") from error
    return out.getvalue()


def _flattened(image: Pillow.Image) -> Pillow.Image:
    if image.mode not in ("RGBA", "LA", "P", "PA"):
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Pillow.new("RGBA", layer.size, "white")
    return Pillow.alpha_composite(ground, layer).convert("RGB")
