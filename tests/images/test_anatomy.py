"""Whether a picture is whole is known before it is decoded, and hostile ones cost nothing."""

import functools
import io
import resource
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from PIL import Image as Pillow

from images.pixels import anatomy
from images.pixels.pictures import NotAPicture, inspect, shown, shrink, transcode
from tests.emulators.base import make_picture
from tests.images.test_shown import with_exif


def encoded(fmt: str, **options: object) -> bytes:
    """Return a picture of 64x48."""
    out = io.BytesIO()
    image = Pillow.effect_noise((64, 48), 60).convert("RGB")
    image.save(out, fmt, **options)
    return out.getvalue()


WHOLE = {
    "png": encoded("PNG"),
    "jpeg": encoded("JPEG", quality=90),
    "progressive jpeg": encoded("JPEG", quality=90, progressive=True),
    "webp": encoded("WEBP"),
    "lossless webp": encoded("WEBP", lossless=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_picture_that_breaks_off_anywhere_is_none(name: str) -> None:
    whole = WHOLE[name]
    assert inspect(whole).width == 64
    for end in range(len(whole)):
        with pytest.raises(NotAPicture):
            inspect(whole[:end])


@pytest.mark.parametrize("name", WHOLE)
def test_bytes_behind_the_end_do_not_matter(name: str) -> None:
    for tail in (b"\0", b"\0" * 100, b"\xff\xd9", b"junk" * 9):
        assert inspect(WHOLE[name] + tail).height == 48
        assert transcode(inspect(WHOLE[name] + tail), "png", None).width == 64


def test_a_png_with_one_wrong_bit_is_none() -> None:
    """Each chunk that the pixels need has a checksum; a wrong one of a text is nobody's loss."""
    whole = WHOLE["png"]
    for at in range(len(whole)):
        broken = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        with pytest.raises(NotAPicture, match=r"damaged|breaks off|not a PNG"):
            inspect(broken)
    told = make_picture(64, 48, "png").replace(b"Comment\0", b"Komment\0")
    assert inspect(told).width == 64


def test_what_is_said_names_the_format_and_the_place() -> None:
    for name, said in (("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WebP")):
        half = WHOLE[name][: len(WHOLE[name]) // 2]
        with pytest.raises(NotAPicture, match=f"^a {said} that breaks off at byte {len(half)}$"):
            inspect(half)


# --- Hostile ones ------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def with_chunk(*chunks: bytes) -> bytes:
    """Return a good PNG with chunks before its pixels."""
    return WHOLE["png"][:33] + b"".join(chunks) + WHOLE["png"][33:]


@functools.cache
def many_entries(order: str = "<") -> bytes:
    """Return EXIF whose 60,000 entries all name the same megabyte."""
    first = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 7, 1_000_000, 8) for tag in range(1000, 61_000)
    )
    return first + struct.pack(f"{order}IH", 8, 60_000) + entries + bytes(400_000)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP of these chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return b"VP8X", struct.pack("<B3x", flags) + sides


FRAME = (b"VP8L", WHOLE["lossless webp"][20:])
ZIPPED = zlib.compress(bytes(200_000_000), 9)


def gif_like(frames: int) -> bytes:
    """Return an animated WebP."""
    out = io.BytesIO()
    images = [Pillow.new("RGB", (64, 48), (n % 256, n // 256, 0)) for n in range(frames)]
    images[0].save(out, "WEBP", save_all=True, append_images=images[1:], lossless=True)
    return out.getvalue()


def animated_png(frames: int) -> bytes:
    """Return an APNG."""
    out = io.BytesIO()
    images = [Pillow.new("RGB", (64, 48), (n, 0, 0)) for n in range(frames)]
    images[0].save(out, "PNG", save_all=True, append_images=images[1:])
    return out.getvalue()


JPEG = WHOLE["jpeg"]


def segments(code: int, body: bytes, times: int) -> bytes:
    """Return a JPEG with the same segment so many times."""
    one = bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body
    return JPEG[:2] + one * times + JPEG[2:]


# What is a picture for all that: it is drawn, and what is hostile is not looked at.
HARMLESS: dict[str, Callable[[], bytes]] = {
    "png text bomb": lambda: with_chunk(chunk(b"zTXt", b"Comment\0\0" + ZIPPED)),
    "png sixty text bombs": lambda: with_chunk(*[chunk(b"zTXt", b"C\0\0" + ZIPPED)] * 60),
    "png international text bomb": lambda: with_chunk(
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + ZIPPED)
    ),
    "png profile bomb": lambda: with_chunk(chunk(b"iCCP", b"sRGB\0\0" + ZIPPED)),
    "png profile that is none": lambda: with_chunk(chunk(b"iCCP", b"sRGB\0\0junk")),
    "png exif bomb": lambda: with_chunk(chunk(b"eXIf", many_entries())),
    "png exif that names itself": lambda: with_chunk(chunk(b"eXIf", b"II*\0\0\0\0\0")),
    "png exif of nothing": lambda: with_chunk(chunk(b"eXIf", b"")),
    "png nineteen megabytes of text": lambda: with_chunk(chunk(b"tEXt", b"a\0" + bytes(19 << 20))),
    "apng": lambda: animated_png(50),
    "jpeg exif bomb": lambda: segments(0xE1, b"Exif\0\0" + many_entries()[:65_000], 300),
    "jpeg profile of 300 parts": lambda: segments(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000), 300),
    "jpeg profile without its number": lambda: segments(0xE2, b"ICC_PROFILE\0\1", 1),
    "jpeg comments": lambda: segments(0xFE, b"x" * 65_000, 300),
    "jpeg mpo that lies": lambda: segments(0xE2, b"MPF\0II*\0" + bytes(60), 1),
    "webp exif bomb": lambda: riff(vp8x(64, 48, 8), FRAME, (b"EXIF", many_entries(">"))),
    "webp huge profile": lambda: riff(vp8x(64, 48, 32), (b"ICCP", bytes(15 << 20)), FRAME),
    "webp huge xmp": lambda: riff(vp8x(64, 48, 4), FRAME, (b"XMP ", bytes(15 << 20))),
    "webp flags of what is not there": lambda: riff(vp8x(64, 48, 0x2C), FRAME),
    "animated webp": lambda: gif_like(50),
}
# What is none, and why.
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "png of a gigapixel": (
        lambda: (
            WHOLE["png"][:8]
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
            + WHOLE["png"][33:]
        ),
        r"3600\.0 of 40 megapixels \(60000x60000\)",
    ),
    "jpeg of a gigapixel": (
        lambda: JPEG.replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65_500, 65_500)),
        "has too many pixels: .* of 40 megapixels",
    ),
    "webp of a gigapixel": (
        lambda: riff((b"VP8L", b"\x2f" + struct.pack("<I", (16_382 << 14) | 16_382) + bytes(20))),
        "has too many pixels: .* of 40 megapixels",
    ),
    "webp canvas of a gigapixel": (
        lambda: riff(vp8x(16_383, 16_383), FRAME),
        "damaged",
    ),
    "webp with a frame larger than its canvas": (lambda: riff(vp8x(8, 8), FRAME), "damaged"),
    "webp animation on a canvas of a gigapixel": (
        lambda: riff(vp8x(16_383, 16_383, 2), (b"ANIM", bytes(6)), (b"ANMF", bytes(40))),
        "has too many pixels: .* of 40 megapixels",
    ),
    "webp whose pixels break off": (lambda: riff((b"VP8 ", WHOLE["webp"][20:60])), "damaged"),
    "webp without a picture": (lambda: riff(vp8x(64, 48)), "damaged"),
    "png of nothing": (
        lambda: WHOLE["png"][:8] + chunk(b"IEND", b""),
        "damaged",
    ),
    "png without pixels": (lambda: WHOLE["png"][:33] + chunk(b"IEND", b""), "damaged"),
    "png of no width": (
        lambda: (
            WHOLE["png"][:8]
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 48, 8, 2, 0, 0, 0))
            + WHOLE["png"][33:]
        ),
        "damaged",
    ),
    "png with two headers": (lambda: with_chunk(WHOLE["png"][8:33]), "damaged"),
    "png palette without one": (
        lambda: (
            WHOLE["png"][:8]
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 3, 0, 0, 0))
            + WHOLE["png"][33:]
        ),
        "damaged",
    ),
    "png of thirty thousand chunks": (
        lambda: with_chunk(chunk(b"tEXt", b"") * 30_000),
        "more than 20000 parts",
    ),
    "jpeg of thirty thousand segments": (
        lambda: segments(0xFE, b"", 30_000),
        "more than 20000 parts",
    ),
    "jpeg of thirty thousand scans": (
        lambda: JPEG[:-2] + b"\xff\xda\0\2" * 30_000 + JPEG[-2:],
        "more than 20000 parts",
    ),
    "webp of thirty thousand chunks": (
        lambda: riff(FRAME, *[(b"ZZZZ", b"")] * 30_000),
        "more than 20000 parts",
    ),
    "jpeg with arithmetic coding": (
        lambda: JPEG.replace(b"\xff\xc0", b"\xff\xc9"),
        "neither baseline nor progressive",
    ),
    "jpeg with two frames": (
        lambda: segments(0xC0, b"\x08\0\x30\0\x40\1\1\x11\0", 1),
        "neither|damaged",
    ),
    "jpeg without pixels": (lambda: JPEG[:2] + b"\xff\xd9", "damaged"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_hostile_picture_is_drawn_for_its_pixels_alone(name: str) -> None:
    data = HARMLESS[name]()
    assert len(data) <= 20 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    picture = inspect(data)
    assert (picture.width, picture.height) == (64, 48)
    with Pillow.open(io.BytesIO(shrink(picture, 32))) as small:
        assert small.size == (32, 24)
    whole = transcode(picture, "png", None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (whole.width, whole.height) == (64, 48)
    assert len(whole.data) < 20_000
    # What came, once more at most, and the pixels.
    assert peak < 2 * len(data) + (4 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_cannot_be_is_refused_unseen(name: str) -> None:
    make, why = REFUSED[name]
    data = make()
    assert len(data) <= 20 << 20
    tracemalloc.start()
    with pytest.raises(NotAPicture, match=why):
        inspect(data)
    with pytest.raises(NotAPicture, match=why):
        shown(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_pixels_that_cannot_be_decoded_are_broken_for_everybody() -> None:
    junk = WHOLE["png"][:33] + chunk(b"IDAT", b"junk") + chunk(b"IEND", b"")
    short = WHOLE["png"][:33] + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    more = WHOLE["png"][:33] + chunk(b"IDAT", ZIPPED) + chunk(b"IEND", b"")
    for data in (junk, short):
        picture = inspect(data)
        for use in (lambda: transcode(picture, "webp", None), lambda: shrink(picture, 32)):  # noqa: B023
            with pytest.raises(NotAPicture, match="broken"):
                use()
    # More than the picture has place for is not inflated.
    assert transcode(inspect(more), "png", None).width == 64


def test_a_walk_is_cheap_beside_a_decoder() -> None:
    """In one run, of the same pictures, so that the machine does not matter."""
    out = io.BytesIO()
    Pillow.effect_noise((1024, 768), 60).convert("RGB").save(out, "PNG", compress_level=1)
    data = out.getvalue()

    def seconds(work: Callable[[], object]) -> float:
        began = time.process_time()
        for _ in range(5):
            work()
        return time.process_time() - began

    assert seconds(lambda: inspect(data)) < seconds(lambda: shown(data))


def test_only_so_many_entries_of_exif_are_read() -> None:
    for before, width in ((anatomy.MAX_ENTRIES - 1, 48), (anatomy.MAX_ENTRIES, 64)):
        entries = struct.pack("<HHIHxx", 1, 3, 1, 0) * before
        entries += struct.pack("<HHIHxx", anatomy.ORIENTATION, 3, 1, 6)
        exif = b"II*\0" + struct.pack("<IH", 8, before + 1) + entries
        assert inspect(with_chunk(chunk(b"eXIf", exif))).width == width


def test_the_first_orientation_counts_and_only_as_a_short() -> None:
    turned = with_exif(with_exif(JPEG, 1), 6)
    assert (inspect(turned).width, inspect(turned).height) == (48, 64)
    long = with_exif(JPEG, 6).replace(
        struct.pack("<HHI", 0x0112, anatomy.SHORT, 1), struct.pack("<HHI", 0x0112, 4, 1)
    )
    assert inspect(long).width == 64
