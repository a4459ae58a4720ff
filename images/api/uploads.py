"""A multipart body: stored while it arrives, taken apart in a thread, gone with its request.

Everything is kept in files without a name, which the system removes when they are closed or when
the process ends, however it ends.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from tempfile import TemporaryFile
from typing import IO, Any, cast

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadhandler import FileUploadHandler
from django.http.multipartparser import MultiPartParser, MultiPartParserError
from django.utils.http import parse_header_parameters

from geekhub.lib.bodies import BodyTooSlow
from images.api import parsers, serializers
from images.api.errors import ApiError
from images.api.requests import ApiRequest
from images.api.serializers import invalid
from images.catalog import fields
from images.catalog.model import MAX_INPUTS
from images.drawing.request import GenerationRequest
from images.pixels import pictures
from images.pixels.pictures import NotAPicture, TooManyPixels, UnknownKind, Upload
from images.pixels.turns import Turns

# Three pictures of the largest size or many common ones; more is a mistake or an attack.
MAX_BODY_BYTES = 64 * 1024 * 1024
# All of it over a line of about 10 Mbit/s.
BODY_SECONDS = 60.0
# Arriving bytes are gathered up to this before they are written.
WRITE_BYTES = 1024 * 1024
# A list may come as one part of JSON or as repeated parts; SDKs put brackets behind the name.
LISTS = ("model", "tags", "routing[candidates]")
# The brackets of a list: `tags[]`, `tags[0]`. Parts count in the order they come in.
ITEM = re.compile(r"\[[0-9]{0,3}\]$")
# A field of an object, as SDKs send `routing` when they are given one.
FIELD = re.compile(r"(routing)\[([^\[\]]{1,100})\]")
TWICE = "appears twice; send it once."
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?")


async def receive(request: ApiRequest, turns: Turns, keep: ExitStack) -> GenerationRequest:
    """Read, check and return the edit that the body asks for; `keep` closes its files.

    The body is taken apart in the caller's `turns`. Raises ApiError, BodyRefused or ClientGone.
    """
    if request.content_type != "multipart/form-data":
        raise ApiError(
            "unsupported_media_type",
            f"Unsupported media type {str(request.content_type)[:100]!r}. Send the body as a form "
            "with files: Content-Type: multipart/form-data.",
        )
    # What ApiRequest keeps of the header lacks the boundary.
    headers = dict(request.scope["headers"])
    content_type = headers[b"content-type"].decode("latin-1")
    with _unnamed() as body:
        await _store(request, body)
        return await turns.run(_read, body, content_type, keep)


def _unnamed() -> IO[bytes]:
    return TemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR)


async def _store(request: ApiRequest, body: IO[bytes]) -> None:
    """Write the body to a file as it arrives."""
    waiting = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.receive.chunks(most=MAX_BODY_BYTES):
                waiting += chunk
                if len(waiting) >= WRITE_BYTES:
                    await request.gateway.writing.run(body.write, bytes(waiting))
                    waiting.clear()
    except TimeoutError as error:
        raise BodyTooSlow(BODY_SECONDS) from error
    await request.gateway.writing.run(body.write, bytes(waiting))


def _read(body: IO[bytes], content_type: str, keep: ExitStack) -> GenerationRequest:
    """Take a stored body apart and check it, text before pictures."""
    files = _Files(keep)
    texts = _parse(body, content_type, files)
    request = serializers.parse(_typed(texts), serializers.EditSerializer)
    images, mask = _inputs(files)
    return replace(request, images=images, mask=mask)


class _Files(FileUploadHandler):
    """Keeps the files of a form, in the order of arrival, and refuses what may not be one."""

    def __init__(self, keep: ExitStack) -> None:
        super().__init__()
        self._keep = keep
        self._field = ""
        self.found: dict[str, list[IO[bytes]]] = {"image": [], "mask": []}

    def new_file(self, field_name: str, *args: Any, **kwargs: Any) -> None:
        super().new_file(field_name, *args, **kwargs)
        self._field = _name(field_name)
        if self._field not in serializers.FILES:
            body = serializers.EditSerializer()
            if field_name in body.fields:
                raise invalid(field_name, "must be text, not a file.")
            raise invalid(field_name[:100], body.unknown(field_name))
        others = self.found[self._field]
        if self._field == "mask" and others:
            raise invalid("mask", TWICE)
        if len(others) == MAX_INPUTS:
            raise invalid("image", f"must be 1 to {MAX_INPUTS} files; you sent more.")
        others.append(self._keep.enter_context(_unnamed()))

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if start + len(raw_data) > pictures.MAX_BYTES:
            most = f"{self._field} can have at most {pictures.MAX_BYTES} bytes."
            raise ApiError("request_too_large", most, self._field)
        self.found[self._field][-1].write(raw_data)

    def file_complete(self, file_size: int) -> None:
        """Nothing is handed on: the file is kept already."""


class _Parser(MultiPartParser):
    """Django's parser, without its interest in the names of files."""

    def sanitize_file_name(self, file_name: str) -> str:
        return "upload"


def _parse(body: IO[bytes], content_type: str, files: _Files) -> dict[str, list[str]]:
    """Return the text parts and give the files to the handler; raises ApiError."""
    size = body.tell()
    body.seek(0)
    meta = {"CONTENT_TYPE": content_type, "CONTENT_LENGTH": size}
    try:
        # Latin-1 keeps every byte; UTF-8 would replace what is none without a word.
        texts, _ = _Parser(meta, cast(Any, body), [files], encoding="latin-1").parse()
    except (MultiPartParserError, ValueError) as error:
        raise ApiError(
            "invalid_request_error", f"The body is not valid multipart/form-data: {error}."
        ) from error
    except RequestDataTooBig as error:
        most = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        raise ApiError(
            "request_too_large",
            f"The text fields can have at most {most} bytes in total. A part without a filename "
            "is text: give one to every file.",
        ) from error
    # Django takes a body that breaks off for one that ends there.
    _, options = parse_header_parameters(content_type)
    last = f"--{options['boundary']}--".encode()
    body.seek(max(0, size - len(last) - 1024))
    if last not in body.read():
        raise ApiError(
            "invalid_request_error",
            f"The body ends before its last boundary, {last.decode()[:100]}.",
        )
    for name in texts:
        if (field := _name(name)) in serializers.FILES:
            raise invalid(
                field,
                "must be a file: give its part a filename, as in Content-Disposition: form-data; "
                f'name="{field}"; filename="{field}.png".',
            )
    return {name: [_utf8(name, one) for one in values] for name, values in texts.lists()}


def _name(sent: str) -> str:
    """Return the name of a field without the brackets that say it is a list, if it may be one."""
    bare = ITEM.sub("", sent)
    return bare if bare in LISTS or bare == "image" else sent


def _utf8(name: str, text: str) -> str:
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(name[:100], f"is not valid UTF-8 at byte {error.start}.") from error


def _typed(texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the text parts as the values that JSON would have; what is none stays text."""
    known = serializers.EditSerializer().fields
    gathered: dict[str, list[str]] = {}
    styles: dict[str, str] = {}
    for sent, values in texts.items():
        name = _name(sent)
        # `tags[0]` and `tags[1]` are one list; `tags` and `tags[]` are two.
        style = ITEM.sub("[]", sent) if name in LISTS else sent
        if styles.setdefault(name, style) != style or (len(values) > 1 and name not in LISTS):
            raise invalid(name[:100], TWICE)
        gathered.setdefault(name, []).extend(values)
    data: dict[str, Any] = {}
    for name, values in gathered.items():
        if name in LISTS:
            value = _several(name, values, bare=styles[name] == "model")
        else:
            value = READERS.get(type(known.get(name)), _as_it_is)(name, values[0])
        if inner := FIELD.fullmatch(name):
            name, value = inner[1], {inner[2]: value}
            if name in gathered:
                raise invalid(name, "appears twice, as JSON and with brackets; send only one.")
            value = {**data.get(name, {}), **value}
        data[name] = value
    return data


def _several(name: str, values: list[str], *, bare: bool) -> Any:
    """Return a list that came as parts, or as JSON in one part; `bare` is one text for itself."""
    if len(values) > 1:
        return values
    if values[0].startswith("["):
        return _json(name, values[0])
    return values[0] if bare else values


def _json(name: str, text: str) -> Any:
    try:
        return parsers.loads(text)
    except ValueError as error:
        raise invalid(name, f"is {error}.") from error


def _integer(name: str, text: str) -> Any:
    return int(text) if INTEGER.fullmatch(text) else text


def _number(name: str, text: str) -> Any:
    return float(text) if NUMBER.fullmatch(text) else text


def _boolean(name: str, text: str) -> Any:
    return {"true": True, "false": False}.get(text, text)


def _as_it_is(name: str, text: str) -> Any:
    return text


READERS: Mapping[type, Callable[[str, str], Any]] = {
    fields.Integer: _integer,
    fields.Usd: _number,
    fields.Boolean: _boolean,
    fields.Routing: _json,
}


def _inputs(files: _Files) -> tuple[tuple[Upload, ...], Upload | None]:
    """Return the pictures and the mask; raises ApiError naming the first that is none."""
    if not files.found["image"]:
        raise invalid("image", f"is required: 1 to {MAX_INPUTS} files.")
    images = tuple(_upload("image", *one) for one in enumerate(files.found["image"], 1))
    masks = [_upload("mask", *one) for one in enumerate(files.found["mask"], 1)]
    if not masks:
        return images, None
    mask, first = masks[0], images[0]
    if mask.mime_type != "image/png" or not mask.alpha:
        raise invalid("mask", "must be a PNG with an alpha channel.")
    if (mask.width, mask.height) != (first.width, first.height):
        raise invalid(
            "mask",
            f"must have the first image's size, {first.width}x{first.height}; "
            f"it has {mask.width}x{mask.height}.",
        )
    return images, mask


def _upload(name: str, number: int, file: IO[bytes]) -> Upload:
    try:
        return Upload.of(file)
    except TooManyPixels as error:
        raise invalid(name, f"file {number} {error}.") from error
    except UnknownKind as error:
        kinds = f"must be a PNG, JPEG or WebP; file {number} is none of them."
        raise invalid(name, kinds) from error
    except NotAPicture as error:
        raise invalid(name, f"file {number} is {error}.") from error
