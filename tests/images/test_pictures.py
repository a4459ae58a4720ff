"""Pictures: what they are is read from their bytes, and nothing else is let in."""

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from images.pixels import pictures
from images.pixels.pictures import NotAPicture, Picture, inspect, transcode
from tests.emulators.base import make_bomb, make_picture

MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def encoded(image: Pillow.Image, fmt: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def decoded(picture: Picture) -> Pillow.Image:
    image = Pillow.open(io.BytesIO(picture.data))
    image.load()
    return image


def header(width: int, height: int) -> bytes:
    """Return a PNG of one line whose header claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(("fmt", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_type_and_size_are_read_from_the_bytes(fmt: str, extension: str) -> None:
    data = make_picture(48, 32, fmt)
    picture = inspect(data)
    assert (picture.mime_type, picture.extension) == (MIME[fmt], extension)
    assert (picture.width, picture.height) == (48, 32)
    assert picture.data is data
    assert [name for name in MIME if picture.is_a(name)] == [fmt]


def test_a_jpeg_with_more_pictures_behind_the_first_is_a_jpeg() -> None:
    two = [Pillow.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    picture = inspect(encoded(two[0], "MPO", save_all=True, append_images=two[1:]))
    assert (picture.mime_type, picture.extension) == ("image/jpeg", "jpg")
    assert (picture.width, picture.height) == (8, 6)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"not a picture",
        b"<!doctype html><html><body>404</body></html>",
        make_picture(8, 8, "svg"),
        encoded(Pillow.new("P", (8, 8)), "GIF"),
        encoded(Pillow.new("RGB", (8, 8)), "BMP"),
        encoded(Pillow.new("RGB", (8, 8)), "TIFF"),
        encoded(Pillow.new("RGB", (8, 8)), "ICO"),
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        make_picture(8, 8, "png")[:20],
        make_picture(8, 8, "jpeg")[:20],
        make_picture(8, 8, "webp")[:20],
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\x04\0\0\0WEBP",
        b"GIF89a" + make_picture(8, 8, "png"),
    ],
    ids=[
        *("empty", "zero", "text", "html", "svg", "gif", "bmp", "tiff", "ico", "pdf", "eps"),
        *("cut png", "cut jpeg", "cut webp", "bare png", "bare jpeg", "bare webp", "png in gif"),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(NotAPicture):
        inspect(data)


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [(8000, 5000, True), (8001, 5000, False), (40_000_000, 1, True), (40_000_001, 1, False)],
)
def test_a_picture_has_at_most_forty_million_pixels(width: int, height: int, fits: bool) -> None:
    data = header(width, height)
    if fits:
        assert (inspect(data).width, inspect(data).height) == (width, height)
    else:
        with pytest.raises(NotAPicture, match="of 40 megapixels"):
            inspect(data)


def test_a_bomb_is_refused() -> None:
    bomb = make_bomb()
    assert len(bomb) < 100
    with pytest.raises(NotAPicture):
        inspect(bomb)


def test_a_picture_has_at_most_twenty_mebibytes() -> None:
    picture = make_picture(8, 8, "png")
    inspect(picture + b"\0" * (pictures.MAX_BYTES - len(picture)))
    with pytest.raises(NotAPicture, match="larger than"):
        inspect(picture + b"\0" * (pictures.MAX_BYTES - len(picture) + 1))


SAMPLES = [make_picture(16, 16, fmt) for fmt in MIME]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    at=st.integers(0, 400),
    junk=st.binary(max_size=12),
    cut=st.integers(0, 500),
)
def test_damaged_bytes_are_a_picture_or_refused(
    sample: bytes, at: int, junk: bytes, cut: int
) -> None:
    data = (sample[:at] + junk + sample[at + len(junk) :])[: max(0, len(sample) - cut)]
    try:
        picture = inspect(data)
        transcode(picture, "png", None)
    except NotAPicture:
        pass


# --- Transcoding ------------------------------------------------------------------------------


@pytest.mark.parametrize("before", list(MIME))
@pytest.mark.parametrize("after", list(MIME))
def test_a_picture_becomes_the_format_asked_for(before: str, after: str) -> None:
    picture = transcode(inspect(make_picture(96, 64, before)), after, None)
    assert picture.mime_type == MIME[after]
    assert (picture.width, picture.height) == (96, 64)
    pixel = decoded(picture).convert("RGB").getpixel((36, 24))
    assert isinstance(pixel, tuple)
    assert max(abs(is_ - was) for is_, was in zip(pixel, (240, 200, 60), strict=True)) < 12


def half_clear(mode: str) -> bytes:
    """Return a PNG that is black on the left and clear on the right."""
    if mode == "P":
        palette = Pillow.new("P", (16, 16), 0)
        palette.putpalette([255, 0, 0, 0, 0, 0])
        palette.paste(1, (0, 0, 8, 16))
        return encoded(palette, "PNG", transparency=0)
    clear = Pillow.new("RGBA", (16, 16), (255, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 8, 16))
    return encoded(clear.convert(mode), "PNG")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white_on_a_jpeg_and_stays_elsewhere(mode: str) -> None:
    picture = inspect(half_clear(mode))
    jpeg = decoded(transcode(picture, "jpeg", 95)).convert("L")
    left, right = jpeg.getpixel((3, 8)), jpeg.getpixel((12, 8))
    assert isinstance(left, int)
    assert isinstance(right, int)
    assert left < 10
    assert right > 245
    for fmt in ("png", "webp"):
        alpha = decoded(transcode(picture, fmt, None)).convert("RGBA").getchannel("A")
        assert (alpha.getpixel((3, 8)), alpha.getpixel((12, 8))) == (255, 0)


def test_compression_is_a_quality_from_0_to_100() -> None:
    noise = inspect(encoded(Pillow.effect_noise((64, 64), 80).convert("RGB"), "PNG"))
    for fmt in ("jpeg", "webp"):
        sizes = [len(transcode(noise, fmt, quality).data) for quality in (0, 50, 100)]
        assert sizes == sorted(set(sizes))
        assert transcode(noise, fmt, None).data == transcode(noise, fmt, 90).data
    assert transcode(noise, "png", 0).data == transcode(noise, "png", 100).data


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "CMYK"])
def test_every_kind_of_colour_can_be_transcoded(mode: str) -> None:
    picture = inspect(encoded(Pillow.new(mode, (8, 8)), "JPEG" if mode == "CMYK" else "PNG"))
    for fmt in MIME:
        assert transcode(picture, fmt, None).mime_type == MIME[fmt]


@pytest.mark.parametrize("after", list(MIME))
def test_broken_bytes_behind_a_good_header_are_refused(after: str) -> None:
    picture = inspect(header(64, 64))
    with pytest.raises(NotAPicture, match="broken"):
        transcode(picture, after, None)
