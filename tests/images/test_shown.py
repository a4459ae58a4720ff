"""Pixels are as shown: every orientation in every format, and all that can be transparent."""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image as Pillow
from PIL import ImageCms

from images.pixels.pictures import Upload, inspect, shrink, transcode

# EXIF 2.3, tag 0x0112: which side the first row is, which side the first column is.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
WIDTH, HEIGHT, BLOCK = 24, 16, 8
CORNERS = ((0, 0), (WIDTH - BLOCK, 0), (0, HEIGHT - BLOCK), (WIDTH - BLOCK, HEIGHT - BLOCK))
type Colour = tuple[int, int, int, int]
RED, GREEN, BLUE = (220, 30, 30, 255), (30, 180, 40, 255), (30, 40, 200, 255)
WHITE, BLACK, CLEAR = (255, 255, 255, 255), (0, 0, 0, 255), (0, 0, 0, 0)
DARK, LIGHT = (64, 64, 64, 255), (190, 190, 190, 255)
COLOURS, GREYS = (RED, GREEN, BLUE, WHITE), (BLACK, DARK, LIGHT, WHITE)
LOSSLESS = {"lossless": True, "exact": True}


def with_exif(data: bytes, orientation: int, order: str = "<") -> bytes:
    """Return the picture with an orientation where its format keeps one."""
    first = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}IHHHIHxx", 8, 1, 0x0112, 3, 1, orientation)
    exif = first + entry + bytes(4)
    match data[:4]:
        case b"\x89PNG":
            checked = b"eXIf" + exif
            chunk = struct.pack(">I", len(exif)) + checked + struct.pack(">I", zlib.crc32(checked))
            return data[:-12] + chunk + data[-12:]
        case b"RIFF":
            size = inspect(data)
            chunks = data[12:]
            if data[12:16] != b"VP8X":
                flags = 0x10 if Pillow.open(io.BytesIO(data)).mode == "RGBA" else 0
                sides = b"".join(
                    (side - 1).to_bytes(3, "little") for side in (size.width, size.height)
                )
                chunks = b"VP8X" + struct.pack("<IB3x", 10, flags) + sides + chunks
            chunks += b"EXIF" + struct.pack("<I", len(exif)) + exif
            return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
        case _:
            body = b"Exif\0\0" + exif
            return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def stored(shown: Pillow.Image, orientation: int) -> Pillow.Image:
    """Return the pixels as a camera stores them which held like this would show this picture."""
    row_side, column_side = SIDES[orientation]
    width, height = shown.size
    found = Pillow.new(shown.mode, (width, height) if orientation < 5 else (height, width))
    for column in range(found.width):
        for row in range(found.height):
            x, y = (column, row) if orientation < 5 else (row, column)
            x = width - 1 - x if "right" in (row_side, column_side) else x
            y = height - 1 - y if "bottom" in (row_side, column_side) else y
            pixel = shown.getpixel((x, y))
            assert pixel is not None
            found.putpixel((column, row), pixel)
    return found


def blocks(colours: tuple[Colour, ...]) -> Pillow.Image:
    """Return a picture with four corners; black between them."""
    image = Pillow.new("RGBA", (WIDTH, HEIGHT), BLACK)
    for corner, colour in zip(CORNERS, colours, strict=True):
        image.paste(colour, (*corner, corner[0] + BLOCK, corner[1] + BLOCK))
    return image


def as_mode(mode: str) -> Callable[[Pillow.Image], Pillow.Image]:
    return lambda image: image.convert(mode)


def keyed(mode: str, key: Any) -> Callable[[Pillow.Image], Pillow.Image]:
    """Return a function that makes one color of a picture stand for transparency."""

    def make(image: Pillow.Image) -> Pillow.Image:
        ground = Pillow.new("RGBA", image.size, (key, key, key, 255))
        ground.paste(image, mask=image.getchannel("A"))
        found = ground.convert("RGB").convert(mode)
        found.info["transparency"] = key if mode == "L" else (key, key, key)
        return found

    return make


def palette(image: Pillow.Image) -> Pillow.Image:
    """Return the picture with a palette whose entry 1 is clear, red behind it."""
    entries = [BLACK, CLEAR, *COLOURS]
    found = Pillow.new("P", image.size)
    found.putpalette([side for r, g, b, a in entries for side in ((r, g, b) if a else (255, 0, 0))])
    for x in range(image.width):
        for y in range(image.height):
            pixel = image.getpixel((x, y))
            assert isinstance(pixel, tuple)
            found.putpixel((x, y), entries.index(pixel))
    if any(pixel[3] == 0 for pixel in image.get_flattened_data()):
        found.info["transparency"] = b"\xff\0"
    return found


def sixteen(image: Pillow.Image) -> Pillow.Image:
    """Return the picture in grey, with sixteen bits; what is clear has a grey of its own."""
    found = Pillow.new("I;16", image.size)
    for x in range(image.width):
        for y in range(image.height):
            pixel = image.getpixel((x, y))
            assert isinstance(pixel, tuple)
            found.putpixel((x, y), pixel[0] * 257 if pixel[3] else 12_345)
            if not pixel[3]:
                found.info["transparency"] = 12_345
    return found


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of file; `near` is how far a pixel may be off."""

    name: str
    kind: str
    make: Callable[[Pillow.Image], Pillow.Image]
    colours: tuple[Colour, ...]
    near: int = 0
    options: tuple[tuple[str, Any], ...] = ()

    def file(self, orientation: int) -> bytes:
        """Return a file whose pixels are turned for this orientation, which it has."""
        image = self.make(stored(blocks(self.colours), orientation))
        out = io.BytesIO()
        image.save(out, self.kind, **dict(self.options))
        return with_exif(out.getvalue(), orientation, "<>"[orientation % 2])


CLEARS = (RED, CLEAR, BLUE, WHITE)
CLEAR_GREYS = (DARK, CLEAR, LIGHT, WHITE)
CASES = [
    Case("png 1", "PNG", as_mode("1"), (WHITE, BLACK, WHITE, BLACK)),
    Case("png L", "PNG", as_mode("L"), GREYS),
    Case("png L, keyed", "PNG", keyed("L", 10), CLEAR_GREYS),
    Case("png LA", "PNG", as_mode("LA"), CLEAR_GREYS),
    Case("png I;16", "PNG", sixteen, GREYS),
    Case("png I;16, keyed", "PNG", sixteen, CLEAR_GREYS),
    Case("png P", "PNG", palette, COLOURS),
    Case("png P, keyed", "PNG", palette, CLEARS),
    Case("png RGB", "PNG", as_mode("RGB"), COLOURS),
    Case("png RGB, keyed", "PNG", keyed("RGB", 10), CLEARS),
    Case("png RGBA", "PNG", as_mode("RGBA"), CLEARS),
    Case("jpeg L", "JPEG", as_mode("L"), GREYS, 3, (("quality", 100),)),
    Case("jpeg RGB", "JPEG", as_mode("RGB"), COLOURS, 6, (("quality", 100), ("subsampling", 0))),
    Case("jpeg CMYK", "JPEG", as_mode("CMYK"), COLOURS, 8, (("quality", 100),)),
    Case("webp lossless", "WEBP", as_mode("RGB"), COLOURS, 0, tuple(LOSSLESS.items())),
    Case("webp lossless RGBA", "WEBP", as_mode("RGBA"), CLEARS, 0, tuple(LOSSLESS.items())),
    Case("webp lossy RGBA", "WEBP", as_mode("RGBA"), CLEARS, 12, (("quality", 100),)),
]  # fmt: skip


def expect_corners(data: bytes, colours: tuple[Colour, ...], near: int) -> None:
    """Check an upright picture, which no longer has an orientation: its size and its corners."""
    with Pillow.open(io.BytesIO(data)) as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == (WIDTH, HEIGHT)
        pixels = image.convert("RGBA")
    for (left, top), expected in zip(CORNERS, colours, strict=True):
        # The middle of the block: a lossy format runs its edges together.
        pixel = pixels.getpixel((left + BLOCK // 2, top + BLOCK // 2))
        assert isinstance(pixel, tuple)
        if expected[3] == 0:
            assert pixel[3] == 0
            continue
        assert pixel[3] == 255
        off = max(abs(is_ - want) for is_, want in zip(pixel, expected, strict=True))
        assert off <= near, (pixel, expected)


def on_white(colours: tuple[Colour, ...]) -> tuple[Colour, ...]:
    return tuple(colour if colour[3] else WHITE for colour in colours)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_of_file_is_read_compared_drawn_and_kept_as_it_is_shown(
    case: Case, subtests: pytest.Subtests
) -> None:
    clear = CLEAR in case.colours
    for orientation in SIDES:
        with subtests.test(orientation=orientation):
            data = case.file(orientation)
            picture = inspect(data)
            assert picture.data is data
            assert (picture.width, picture.height) == (WIDTH, HEIGHT)
            expect_corners(transcode(picture, "png", None).data, case.colours, case.near)
            lossy = case.near + 12
            expect_corners(transcode(picture, "jpeg", 100).data, on_white(case.colours), lossy)
            expect_corners(transcode(picture, "webp", 100).data, case.colours, lossy + 8)
            expect_corners(shrink(picture, WIDTH), case.colours, lossy + 40)
            with tempfile.TemporaryFile() as file:
                file.write(data)
                upload = Upload.of(file)
                assert (upload.width, upload.height) == (WIDTH, HEIGHT)
                assert upload.alpha == (clear and case.kind != "JPEG")
                assert upload.mime_type == picture.mime_type
                untouched = orientation == 1 and "keyed" not in case.name
                assert (upload.read() == data) == untouched
                if not untouched:
                    near = case.near * 2 + 4 * (case.near > 0)
                    expect_corners(upload.read(), case.colours, near)
                if "keyed" in case.name:
                    assert Pillow.open(io.BytesIO(upload.read())).mode == "RGBA"


@pytest.mark.parametrize("orientation", [0, 9, 6 << 8])
def test_an_orientation_that_is_none_is_none(orientation: int) -> None:
    for case in (CASES[8], CASES[12], CASES[14]):
        image = case.make(blocks(case.colours))
        out = io.BytesIO()
        image.save(out, case.kind, **dict(case.options))
        picture = inspect(with_exif(out.getvalue(), orientation))
        assert (picture.width, picture.height) == (WIDTH, HEIGHT)


def test_a_profile_is_kept_where_it_fits_the_pixels_and_dropped_where_it_does_not() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    huge = profile + bytes(100_000)
    for kind in ("PNG", "JPEG", "WEBP"):
        for mode, sent, kept in (
            ("RGB", profile, profile),
            ("RGB", huge, None),
            ("RGB", b"x" * 200, None),
            ("L", profile, None),
            ("CMYK", profile, None),
        ):
            if (mode, kind) == ("CMYK", "PNG") or (mode != "RGB" and kind == "WEBP"):
                continue
            out = io.BytesIO()
            Pillow.new(mode, (8, 8)).save(out, kind, icc_profile=sent)
            picture = inspect(out.getvalue())
            for after in ("png", "jpeg", "webp"):
                made = Pillow.open(io.BytesIO(transcode(picture, after, None).data))
                assert made.info.get("icc_profile") == kept, (kind, mode, after)


def test_transparent_colours_are_told_in_the_bits_of_the_file() -> None:
    """Two bits of grey, and sixteen of colour, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    def file(depth: int, colour: int, key: bytes, line: bytes) -> bytes:
        size = struct.pack(">IIBBBBB", 4, 1, depth, colour, 0, 0, 0)
        pixels = chunk(b"IDAT", zlib.compress(b"\0" + line))
        parts = chunk(b"IHDR", size) + chunk(b"tRNS", key) + pixels + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    grey = file(2, 0, b"\0\2", bytes([0b00_01_10_11]))
    colours = [(0x10AA, 0, 0), (0x20AA, 0, 0), (0x30AA, 0, 0), (0x40AA, 0, 0)]
    deep = file(
        16,
        2,
        struct.pack(">3H", 0x30AA, 0, 0),
        b"".join(struct.pack(">3H", *colour) for colour in colours),
    )
    for data, expected in (
        (grey, [(0, 0, 0, 255), (85, 85, 85, 255), 0, (255, 255, 255, 255)]),
        (deep, [(0x10, 0, 0, 255), (0x20, 0, 0, 255), 0, (0x40, 0, 0, 255)]),
    ):
        image = Pillow.open(io.BytesIO(transcode(inspect(data), "png", None).data))
        for x, colour in enumerate(expected):
            pixel = image.convert("RGBA").getpixel((x, 0))
            assert isinstance(pixel, tuple)
            assert pixel == colour if colour else pixel[3] == 0
