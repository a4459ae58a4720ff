"""What a picture's bytes say of it, read without decoding a pixel, and whether they are whole.

A decoder is code for friends: it believes sizes, inflates comments, and reads directories that name
each other. So size, orientation and color profile are read here, within bounds, and a decoder is
given what the pixels need and nothing else.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

# A PNG of 20 MiB in chunks of 4 KiB has 5,120; each costs a microsecond here.
MAX_PARTS = 20_000
# Larger profiles are printers'; screens' have a few KB.
MAX_PROFILE_BYTES = 64 * 1024
# A camera's first directory has some twenty.
MAX_ENTRIES = 1000
ORIENTATION = 0x0112
SHORT = 3
# A marker is any byte behind 0xFF but stuffing, restarts, and fill bytes.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
PNG_CHANNELS = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


class NotAPicture(ValueError):
    """The bytes are not a PNG, JPEG or WebP, incomplete, or too large to decode safely.

    The message says what they are, as in: it is a PNG that breaks off at byte 500.
    """


class UnknownKind(NotAPicture):
    """By their first bytes they are none of the three."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A picture's description of itself.

    `width` and `height` are those of the pixels as they are stored, `orientation` is EXIF's: how
    they are turned to be shown. `alpha` says whether there is an alpha channel, `keyed` whether
    single colors or palette entries are transparent in its place. `depth` is bits per channel;
    `kept` are the ranges of bytes that a decoder needs.
    """

    kind: str
    width: int
    height: int
    orientation: int
    alpha: bool
    keyed: bool
    lossless: bool
    depth: int
    profile: bytes | None
    kept: Sequence[tuple[int, int]]

    @property
    def shown(self) -> tuple[int, int]:
        """Return width and height as a viewer sees them."""
        turned = self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)

    def essence(self, data: bytes) -> bytes:
        """Return the picture without anything but its pixels: no text, no profile, no EXIF."""
        whole = b"".join(data[start:end] for start, end in self.kept)
        if self.kind != "WEBP":
            return whole
        return b"RIFF" + struct.pack("<I", len(whole) + 4) + b"WEBP" + whole


def dissect(data: bytes) -> Anatomy:
    """Return what a PNG, JPEG or WebP says of itself.

    Walks all of it: a millisecond or two for each megabyte. Raises NotAPicture when it is none of
    the three or not whole. That the pixels can be decoded is not known before they are.
    """
    walk = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}[kind_of(data)]
    try:
        return walk(data)
    except (struct.error, IndexError):
        # A field reaches beyond the end.
        raise _cut("picture", len(data)) from None


def kind_of(data: bytes) -> str:
    """Return `PNG`, `JPEG` or `WEBP` by the first bytes alone; raises NotAPicture."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    raise UnknownKind("not a PNG, JPEG or WebP") if data else NotAPicture("empty")


def _cut(kind: str, at: int) -> NotAPicture:
    return NotAPicture(f"a {kind} that breaks off at byte {at}")


def _damaged(kind: str, at: int) -> NotAPicture:
    return NotAPicture(f"a {kind} that is damaged at byte {at}")


def _png(data: bytes) -> Anatomy:
    view, at = memoryview(data), 8
    width = height = depth = color = 0
    orientation, keyed, palette, profile = 1, False, False, None
    kept, drawn = [(0, 8)], False
    for _ in range(MAX_PARTS):
        if at + 12 > len(data):
            raise _cut("PNG", len(data))
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise _cut("PNG", len(data))
        # What may be left out may be broken, too.
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise _damaged("PNG", at)
        if (kind == b"IHDR") != (at == 8) or (kind == b"IHDR" and length != 13):
            raise _damaged("PNG", at)
        match kind:
            case b"IHDR":
                width, height, depth, color = struct.unpack_from(">IIBB", data, at + 8)
            case b"PLTE":
                palette = True
            case b"tRNS":
                keyed = keyed or (not drawn and color in (0, 2, 3))
            case b"IDAT":
                drawn = True
            case b"eXIf":
                orientation = _orientation(view[at + 8 : end - 4])
            case b"iCCP":
                profile = _inflated(bytes(view[at + 8 : end - 4]))
        if critical or (kind == b"tRNS" and not drawn):
            kept.append((at, end))
        if kind == b"IEND":
            break
        at = end
    else:
        raise NotAPicture(f"a PNG of more than {MAX_PARTS} parts")
    if not (width and height and drawn) or color not in PNG_CHANNELS or (color == 3) > palette:
        raise _damaged("PNG", at)
    return Anatomy(
        kind="PNG",
        width=width,
        height=height,
        orientation=orientation,
        alpha=color in (4, 6) or keyed,
        keyed=keyed,
        lossless=True,
        depth=depth,
        profile=profile,
        kept=kept,
    )


def _inflated(chunk: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk (name, zero, method, zlib); None when it is too large."""
    _, _, packed = chunk.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None


def _jpeg(data: bytes) -> Anatomy:
    at, size, scan, exif = 2, None, None, None
    kept, pieces = [(0, 2)], {}
    for _ in range(MAX_PARTS):
        found = MARKER.search(data, at)
        if found is None:
            raise _cut("JPEG", len(data))
        start, at = found.span()
        code = data[start + 1]
        if code == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, at)
        body, at = at + 2, at + length
        if length < 2:
            raise _damaged("JPEG", start)
        if at > len(data):
            raise _cut("JPEG", len(data))
        match code:
            case 0xDA:
                scan = start if scan is None else scan
            case _ if scan is not None:
                pass  # what is between two scans belongs to the pixels
            case 0xC0 | 0xC1 | 0xC2 if size is None:
                height, width = struct.unpack_from(">HH", data, body + 1)
                size = (width, height)
            case 0xC4 | 0xCC:
                pass  # tables that share the range of the frames
            case _ if 0xC0 <= code <= 0xCF:
                raise NotAPicture("a JPEG that is neither baseline nor progressive")
            case 0xE1 if exif is None and data.startswith(b"Exif\0\0", body):
                exif = memoryview(data)[body + 6 : at]
            case 0xE2 if data.startswith(b"ICC_PROFILE\0", body):
                # A part of several has its number, and how many there are.
                pieces[data[body + 12]] = data[body + 14 : at]
        if scan is None and (code in (0xE0, 0xEE) or not (0xE0 <= code <= 0xEF or code == 0xFE)):
            kept.append((start, at))
    else:
        raise NotAPicture(f"a JPEG of more than {MAX_PARTS} parts")
    if size is None or scan is None or 0 in size:
        raise _damaged("JPEG", start)
    profile = b"".join(pieces[number] for number in sorted(pieces))
    return Anatomy(
        kind="JPEG",
        width=size[0],
        height=size[1],
        orientation=1 if exif is None else _orientation(exif),
        alpha=False,
        keyed=False,
        lossless=False,
        depth=8,
        profile=profile if 0 < len(profile) <= MAX_PROFILE_BYTES else None,
        kept=[*kept, (scan, at)],
    )


def _webp(data: bytes) -> Anatomy:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise _cut("WebP", len(data))
    at, canvas, frame, parts = 12, None, None, 0
    orientation, alpha, lossless, profile = 1, False, False, None
    kept: list[tuple[int, int]] = []
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body, stop = at + 8, at + 8 + length
        if stop > end:
            raise _cut("WebP", len(data))
        parts += 1
        if parts > MAX_PARTS:
            raise NotAPicture(f"a WebP of more than {MAX_PARTS} parts")
        needed = kind in (b"VP8X", b"ANIM", b"ALPH", b"VP8 ", b"VP8L", b"ANMF")
        match kind:
            case b"VP8X" if at == 12:
                alpha = bool(data[body] & 0x10)
                across, down = data[body + 4 : body + 7], data[body + 7 : body + 10]
                canvas = (_side(across), _side(down))
            case b"ALPH":
                alpha = True
            case b"VP8 " if frame is None:
                tag, sign, width, height = struct.unpack_from("<3s3sHH", data, body)
                first = int.from_bytes(tag, "little") >> 5
                if sign != b"\x9d\x01\x2a" or 10 + first > length:
                    raise _damaged("WebP", at)
                frame = (width & 0x3FFF, height & 0x3FFF)
            case b"VP8L" if frame is None:
                sign, bits = struct.unpack_from("<BI", data, body)
                if sign != 0x2F or length < 5:
                    raise _damaged("WebP", at)
                frame, lossless = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), True
                alpha = alpha or bool(bits >> 28 & 1)
            case b"ANMF" if frame is None and canvas is not None:
                # The first picture of several, which lies on the canvas; a decoder checks where.
                frame = canvas
            case b"EXIF":
                orientation = _orientation(memoryview(data)[body:stop])
            case b"ICCP" if length <= MAX_PROFILE_BYTES:
                profile = data[body:stop]
        at = stop + length % 2
        if needed:
            kept.append((stop - length - 8, min(at, end)))
    if frame is None or 0 in frame or canvas not in (None, frame):
        raise _damaged("WebP", min(at, len(data)))
    return Anatomy(
        kind="WEBP",
        width=frame[0],
        height=frame[1],
        orientation=orientation,
        alpha=alpha,
        keyed=False,
        lossless=lossless,
        depth=8,
        profile=profile,
        kept=kept,
    )


def _side(three: bytes) -> int:
    return int.from_bytes(three, "little") + 1


def _orientation(exif: memoryview) -> int:
    """Return EXIF's orientation, 1 to 8, as a browser reads it; 1 when there is none that is one.

    Only the first directory is looked at, and only its entries: their values may name any bytes,
    all of them again and again.
    """
    if bytes(exif[:6]) == b"Exif\0\0":
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for number in range(min(count, MAX_ENTRIES)):
            tag, kind, many, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * number)
            if tag == ORIENTATION:
                return value if (kind, many) == (SHORT, 1) and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
