"""Pictures as bytes: what they are is read from the bytes, never from a name or a header.

Sizes are as shown: a photograph that was taken upright is upright, however its camera was held.
"""

import hashlib
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

from PIL import Image as Pillow
from PIL import ImageMath

from images.pixels.anatomy import Anatomy, dissect, kind_of
from images.pixels.anatomy import NotAPicture as NotAPicture
from images.pixels.anatomy import UnknownKind as UnknownKind

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000
# Ours is checked for all sizes alike, and no warning need be silenced in many threads at once.
Pillow.MAX_IMAGE_PIXELS = None
FORMATS = {
    "PNG": ("image/png", "png"),
    "JPEG": ("image/jpeg", "jpg"),
    "WEBP": ("image/webp", "webp"),
}
# How pixels are turned to be shown, by EXIF's orientation.
TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


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

    `alpha` says whether it has an alpha channel. It stays on disk while its request waits, and
    is read where and when it is needed.
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
        """Return the picture in a file; reads all of it. Raises NotAPicture.

        Providers differ in what they make of an orientation or of a transparent color, so a
        picture that has one is rewritten: upright, with an alpha channel. `sha256` stays that
        of the bytes that were sent.
        """
        file.flush()
        data = _Reader(file).readall()
        digest = hashlib.sha256(data).hexdigest()
        anatomy = _bounded(data)
        if anatomy.orientation != 1 or anatomy.keyed:
            data = _plain(data, anatomy)
            file.seek(0)
            file.truncate()
            file.write(data)
            file.flush()
        found = inspect(data)
        return cls(
            file=file,
            mime_type=found.mime_type,
            extension=found.extension,
            width=found.width,
            height=found.height,
            sha256=digest,
            alpha=anatomy.alpha,
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
    """Return the picture the bytes are; nothing is decoded. Raises NotAPicture."""
    anatomy = _bounded(data)
    mime_type, extension = FORMATS[anatomy.kind]
    return Picture(data, mime_type, extension, *anatomy.shown)


def mime_type(data: bytes) -> str:
    """Return what a picture that was inspected before is served as. Raises NotAPicture."""
    return FORMATS[kind_of(data)][0]


def _bounded(data: bytes) -> Anatomy:
    """Return what a picture says of itself; raises NotAPicture for one that is too large."""
    if len(data) > MAX_BYTES:
        raise NotAPicture(f"larger than {MAX_BYTES} bytes")
    anatomy = dissect(data)
    pixels = anatomy.width * anatomy.height
    if pixels > MAX_PIXELS:
        has, most = math.ceil(pixels / 100_000) / 10, MAX_PIXELS // 1_000_000
        size = "{}x{}".format(*anatomy.shown)
        raise TooManyPixels(f"has too many pixels: {has} of {most} megapixels ({size})")
    return anatomy


def transcode(picture: Picture, output_format: str, compression: int | None) -> Picture:
    """Return the picture as `png`, `jpeg` or `webp`; `compression` is a quality from 0 to 100.

    It is upright, whatever its EXIF said, which is dropped. Decodes and encodes: tens of
    milliseconds, not for the event loop. Raises NotAPicture when the bytes behind a good header
    are broken.
    """
    quality = (
        {} if output_format == "png" else {"quality": 90 if compression is None else compression}
    )
    with _whole():
        image = shown(picture.data)
        # JPEG has no transparency; what shows through is white, as on a page.
        drawn = _flattened(image) if output_format == "jpeg" else image
        return inspect(_encoded(drawn, output_format.upper(), **quality))


def shrink(picture: Picture, edge: int) -> bytes:
    """Return the picture as WebP, within a square of `edge` pixels; a smaller one keeps its size.

    As slow as transcode(), and raises the same.
    """
    with _whole():
        image = shown(picture.data, within=edge)
        image.thumbnail((edge, edge))
        return _encoded(image, "WEBP", quality=80)


def shown(data: bytes, *, within: int | None = None) -> Pillow.Image:
    """Return a picture's pixels as a browser shows them: upright, as RGB or RGBA.

    `within` is an edge it will be made smaller than, for decoders that are faster then. Its `info`
    has the color profile and nothing else. Raises NotAPicture.
    """
    anatomy = _bounded(data)
    essence = io.BytesIO(anatomy.essence(data))
    with _whole(), Pillow.open(essence, formats=(anatomy.kind,)) as image:
        if within is not None:
            image.draft(None, (2 * within, 2 * within))
        image.load()
        profile = anatomy.profile if image.mode in ("RGB", "RGBA", "P") else None
        plain = _colored(image, anatomy.depth)
    turn = TURNS.get(anatomy.orientation)
    upright = plain if turn is None else plain.transpose(turn)
    fits = profile is not None and profile[16:20] == b"RGB "
    upright.info = {"icc_profile": profile} if fits else {}
    return upright


@contextmanager
def _whole() -> Iterator[None]:
    """Raise NotAPicture for anything that a decoder raises: the bytes are from outside."""
    try:
        yield
    except NotAPicture:
        raise
    except Exception as error:
        raise NotAPicture("broken") from error


def _colored(image: Pillow.Image, depth: int) -> Pillow.Image:
    """Return the image as RGB, or as RGBA if anything of it may be transparent."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        # Pillow cuts these off at 255 where a viewer scales them.
        wide = image.convert("I")
        grey = wide.point(lambda value: value * (1 / 257)).convert("L")
        if key is None:
            return grey.convert("RGB")
        opaque = ImageMath.lambda_eval(lambda of: of["wide"] != key, wide=wide)
        whole = grey.convert("RGBA")
        whole.putalpha(opaque.point(lambda value: value * 255).convert("L"))
        return whole
    if not image.has_transparency_data:
        return image.convert("RGB")
    # A transparent color is given in the file's bit depth, and pixels are in eight.
    if isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif isinstance(key, int) and image.mode == "L" and depth < 8:
        image.info["transparency"] = key * 255 // (2**depth - 1)
    return image.convert("RGBA")


def _flattened(image: Pillow.Image) -> Pillow.Image:
    if image.mode == "RGB":
        return image
    ground = Pillow.new("RGBA", image.size, "white")
    flat = Pillow.alpha_composite(ground, image).convert("RGB")
    flat.info = image.info
    return flat


def _plain(data: bytes, anatomy: Anatomy) -> bytes:
    """Return a picture as it is shown, in its own format, with as little lost as there can be."""
    options: dict[str, Any] = {
        "PNG": {"compress_level": 3},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "method": 0} if anatomy.lossless else {"quality": 95},
    }[anatomy.kind]
    with _whole():
        return _encoded(shown(data), anatomy.kind, **options)


def _encoded(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, icc_profile=image.info.get("icc_profile"), **options)
    return out.getvalue()
