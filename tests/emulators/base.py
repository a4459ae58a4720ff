"""A real HTTP server on an ephemeral port that plays an image provider, well or badly.

What is shared by every provider lives here: the thread and its event loop, the record of what
arrived, the behaviours a test asks for, the pictures, and the ways a transport can fail. Each
provider module adds its own strictness, its answer shapes and its table of errors.

Rules that hold for all of them:

* The key and the request are checked before any behaviour applies, so an injected failure never
  hides a request the provider would have refused.
* Work is done, and billed, when a call is accepted; `delay` and `gate` hold back the answer. A
  client that gives up has therefore been charged, which is what the providers do.
* Nothing is unbounded: records, hosted files, held calls and "endless" bodies all have a limit.
"""

import asyncio
import base64
import contextlib
import functools
import io
import itertools
import json
import math
import random
import struct
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from email import message_from_bytes
from typing import Any, ClassVar, Literal, NamedTuple, Self

from aiohttp import web
from PIL import Image

INSIDE_URL = "http://169.254.169.254/latest/meta-data/"
HOLD_LIMIT = 600.0
# Long: a test that passes does not wait.
WAIT_SECONDS = 60.0
HUGE_LIMIT = 1 << 30
TINY_BYTES = 1024
MAX_REQUEST_BYTES = 256 << 20

PictureMode = Literal[
    "ok", "hang", "404", "redirect_inside", "inside", "html", "bomb", "huge", "half", "junk"
]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one generation call is answered; the default is a prompt, correct answer."""

    delay: float = 0
    error: str | None = None
    drop: Literal["before", "after"] | None = None
    cut: bool = False
    slow_body: float = 0
    content_type: str | None = None
    bad_base64: bool = False
    bad_json: bool = False
    fewer: int = 0
    refuse: int | None = None
    picture: PictureMode = "ok"
    retry_after: float | None = None
    gate: threading.Event | None = None
    polls: int | None = None
    step: Literal["submit", "status", "result"] | None = None
    urls_on: str | None = None

    def changed(self) -> set[str]:
        """The names of the knobs that differ from a good answer."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a multipart request."""

    filename: str
    content_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One generation call as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes = field(repr=False)
    form: dict[str, str | list[Upload]] | None = None
    query: dict[str, str] = field(default_factory=dict)


class ErrorRow(NamedTuple):
    """One row of a provider's table of errors."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any] | str


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a JSON or text body, or server-sent events when `events` is not empty."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[tuple[str, dict[str, Any]]] = ()


class Fault(Exception):
    """A request the provider refuses on its own account."""

    def __init__(self, row: ErrorRow) -> None:
        super().__init__(row.status)
        self.answer = Answer(row.status, row.body, row.headers)


def ratio_size(ratio: str, edge: int, step: int) -> tuple[int, int]:
    """The size of about `edge` squared pixels with that ratio, both edges multiples of `step`."""
    wide, high = (float(part) for part in ratio.split(":"))
    shape = math.sqrt(wide / high)
    width, height = (max(step, round(e / step) * step) for e in (edge * shape, edge / shape))
    return width, height


def text_tokens(prompt: str) -> int:
    """The emulators' tokeniser: one token for every four characters begun."""
    return -(-len(prompt) // 4)


_MARKS = itertools.count(1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.lru_cache(maxsize=256)
def _canvas(width: int, height: int, fmt: str, mode: str, black: bool, frames: int) -> bytes:
    colour = (0, 0, 0) if black else (70, 130, 180)
    image = Image.new(mode, (width, height), colour + ((0,) if mode == "RGBA" else ()))
    if not black:
        image.paste((240, 200, 60), (width // 4, height // 4, width // 2, height // 2))
    options: dict[str, Any] = {"lossless": True, "method": 0} if fmt == "webp" else {}
    if frames > 1:
        # Each differs in one pixel, or they would be one.
        rest = [image.copy() for _ in range(1, frames)]
        for number, frame in enumerate(rest):
            frame.putpixel((number, 0), (255,) * len(mode))
        options = {"save_all": True, "append_images": rest, "duration": 200}
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def make_picture(
    width: int,
    height: int,
    fmt: str,
    *,
    black: bool = False,
    alpha: bool = False,
    pad: int = 0,
    frames: int = 1,
) -> bytes:
    """A real picture, unlike every other one this process made (the difference is metadata)."""
    mark = f"picture {next(_MARKS)}".encode().ljust(pad, b".")
    if fmt == "svg":
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
            f'<!--{mark.decode()}--><rect width="100%" height="100%" fill="steelblue"/></svg>'
        ).encode()
    mode = "RGBA" if alpha and fmt != "jpeg" else "RGB"
    body = _canvas(width, height, fmt, mode, black, frames)
    if fmt == "gif":
        # The comment goes before the trailer.
        return body[:-1] + b"\x21\xfe" + bytes([len(mark[:255])]) + mark[:255] + b"\x00;"
    if fmt == "png":
        return body[:-12] + _chunk(b"tEXt", b"Comment\0" + mark) + body[-12:]
    if fmt == "jpeg":
        return body[:2] + b"\xff\xfe" + struct.pack(">H", len(mark) + 2) + mark + body[2:]
    mark += b"." * (len(mark) % 2)
    extra = b"MARK" + struct.pack("<I", len(mark)) + mark
    return b"RIFF" + struct.pack("<I", len(body) - 8 + len(extra)) + body[8:] + extra


def make_bomb(side: int = 60_000, data: bytes = zlib.compress(b"\0")) -> bytes:
    """A PNG of under 100 bytes whose header claims 60000x60000 pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _spoiled(data: bytes, mode: PictureMode) -> bytes:
    """What a provider sends in the place of a good picture."""
    match mode:
        case "bomb":
            return make_bomb()
        case "html":
            return b"<html><body>Sorry</body></html>"
        case "half":
            return data[: len(data) // 2]
        case "junk":
            return make_bomb(64, b"no pixels")
        case _:
            return data


def parse_multipart(raw: bytes, content_type: str) -> dict[str, str | list[Upload]] | None:
    """The fields of a multipart body: text as `str`, files as a list of `Upload` per name."""
    boundary = message_from_bytes(f"Content-Type: {content_type}\n\n".encode()).get_boundary()
    if boundary is None:
        return None
    form: dict[str, str | list[Upload]] = {}
    for part in raw.split(b"--" + boundary.encode())[1:-1]:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        data = data.removesuffix(b"\r\n")
        headers = message_from_bytes(head + b"\r\n\r\n")
        name = str(headers.get_param("name", "", "content-disposition"))
        filename = headers.get_filename()
        if filename is None:
            form[name] = data.decode()
            continue
        files = form.setdefault(name, [])
        if isinstance(files, list):
            files.append(Upload(filename, headers.get_content_type(), data))
    return form


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes = field(repr=False)
    content_type: str
    mode: PictureMode


class Emulator:
    """One provider on one port. Use it as a context manager, or call `start` and `stop`."""

    NAME: ClassVar[str] = "emulator"
    BASE_PATH: ClassVar[str] = ""
    ERRORS: ClassVar[dict[str, ErrorRow]] = {}
    BARE_ERRORS: ClassVar[frozenset[str]] = frozenset()
    BILLED_ERRORS: ClassVar[frozenset[str]] = frozenset()
    KNOBS: ClassVar[frozenset[str]] = frozenset(f.name for f in fields(Behaviour)) - {
        "polls",
        "step",
        "urls_on",
    }
    PICTURES: ClassVar[frozenset[str]] = frozenset(
        {"ok", "hang", "404", "redirect_inside", "inside", "html", "bomb", "huge", "half", "junk"}
    )

    def __init__(self, *, key: str = "", tiny: bool = False, keep: int = 20_000) -> None:
        self.key = key or f"{self.NAME}-test-key"
        self.tiny = tiny
        self.origin = ""
        self._keep = keep
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._gates: dict[int, asyncio.Event] = {}
        self._epoch = 0
        self.reset()

    @property
    def url(self) -> str:
        """The base URL in the form of a client's setting."""
        return self.origin + self.BASE_PATH

    def start(self) -> Self:
        """Bind a port and serve until `stop`."""
        self._thread = threading.Thread(target=self._run, name=f"{self.NAME}-emulator", daemon=True)
        self._thread.start()
        if not self._started.wait(WAIT_SECONDS) or self._failure is not None:
            raise RuntimeError(f"the {self.NAME} emulator did not start") from self._failure
        return self

    def stop(self) -> None:
        """Close the port and every connection, also those that hang on purpose."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(WAIT_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reset(self) -> None:
        """Forget every record and behaviour."""
        with self._changed:
            self._epoch += 1
            self._arrived = 0
            self._in_flight = 0
            self._peak = 0
            self._billed = 0
            self._calls: deque[Call] = deque(maxlen=self._keep)
            self._downloads: deque[str] = deque(maxlen=self._keep)
            self._leaks: deque[str] = deque(maxlen=self._keep)
            self._pictures: deque[bytes] = deque(maxlen=self._keep)
            self._files: OrderedDict[str, _File] = OrderedDict()
            self._standing = Behaviour()
            self._queued: deque[Behaviour] = deque()
            self._chance: tuple[int, float, tuple[Behaviour, ...]] = (0, 0.0, ())

    @property
    def calls(self) -> list[Call]:
        """Every generation call, in order of arrival."""
        with self._changed:
            return list(self._calls)

    @property
    def downloads(self) -> list[str]:
        """The paths of the picture downloads."""
        with self._changed:
            return list(self._downloads)

    @property
    def leaks(self) -> list[str]:
        """The paths of picture downloads that carried credentials they must not carry."""
        with self._changed:
            return list(self._leaks)

    @property
    def pictures(self) -> list[bytes]:
        """Every picture made, delivered or not."""
        with self._changed:
            return list(self._pictures)

    @property
    def billed(self) -> int:
        """How many pictures or billed refusals the provider would put on the invoice."""
        with self._changed:
            return self._billed

    @property
    def peak(self) -> int:
        """The largest number of generation calls that were open at the same time."""
        with self._changed:
            return self._peak

    def always(self, behaviour: Behaviour) -> None:
        """Answer every call like this, unless a one-off or a random behaviour comes first."""
        self._approve(behaviour)
        with self._changed:
            self._standing = behaviour

    def queue(self, *behaviours: Behaviour) -> None:
        """Answer the next calls like this, one behaviour each, in order of arrival."""
        for behaviour in behaviours:
            self._approve(behaviour)
        with self._changed:
            self._queued.extend(behaviours)

    def random(self, seed: int, rate: float, behaviours: Iterable[Behaviour]) -> None:
        """Give `rate` of the calls one of `behaviours`, the same ones for the same seed."""
        chosen = tuple(behaviours)
        if not 0 <= rate <= 1 or not chosen:
            raise ValueError("random needs a rate between 0 and 1 and at least one behaviour")
        for behaviour in chosen:
            self._approve(behaviour)
        with self._changed:
            self._chance = (seed, rate, chosen)

    def wait_for_calls(self, count: int, timeout: float = WAIT_SECONDS) -> None:
        """Block until `count` generation calls have arrived since the last reset."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._arrived >= count, timeout):
                raise TimeoutError(f"{self._arrived} of {count} calls after {timeout} s")

    def _approve(self, behaviour: Behaviour) -> None:
        changed = behaviour.changed()
        if behaviour.error is not None and behaviour.error not in self.ERRORS:
            raise ValueError(f"{self.NAME} has no error called {behaviour.error!r}")
        if extra := changed - self.KNOBS:
            raise ValueError(f"{self.NAME} cannot do {sorted(extra)}")
        if behaviour.picture not in self.PICTURES:
            raise ValueError(f"{self.NAME} cannot serve a picture as {behaviour.picture!r}")
        if "retry_after" in changed and behaviour.error is None:
            raise ValueError("retry_after belongs to an error")
        held = {"delay", "gate", "polls", "step", "urls_on"}
        if behaviour.drop and changed - held - {"drop"}:
            raise ValueError("a dropped call has no answer to change")
        content = {"fewer", "refuse", "picture", "bad_base64"}
        if behaviour.error and changed & content:
            raise ValueError("an error carries no pictures to change")
        if min(behaviour.delay, behaviour.slow_body, behaviour.fewer, behaviour.refuse or 0) < 0:
            raise ValueError("a knob is negative")

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as failure:  # handed to the thread that waits in start
            self._failure = failure
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_get("/files/{name}", self._download)
        self._routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _routes(self, app: web.Application) -> None:
        raise NotImplementedError

    def _check(self, call: Call) -> Any:
        """Raise `Fault` for a bad key or request; otherwise say what is to be made."""
        raise NotImplementedError

    def _work(self, plan: Any, behaviour: Behaviour) -> Answer:
        """Make the pictures, bill them, and build the provider's answer."""
        raise NotImplementedError

    def _headers(self) -> dict[str, str]:
        """The headers the provider puts on every answer of its own."""
        return {}

    def _with_retry(self, row: ErrorRow, seconds: float) -> ErrorRow:
        return row._replace(headers={**row.headers, "retry-after": f"{seconds:g}"})

    def _fail(self, plan: Any, behaviour: Behaviour) -> Answer:
        """The answer of an injected error row; `plan` matters where a refusal is priced."""
        name = str(behaviour.error)
        row = self.ERRORS[name]
        if behaviour.retry_after is not None:
            row = self._with_retry(row, behaviour.retry_after)
        if name in self.BILLED_ERRORS:
            self._bill(1)
        return Answer(row.status, row.body, row.headers)

    async def _read(self, request: web.Request) -> Call:
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        form, body = None, None
        if request.content_type == "multipart/form-data":
            form = parse_multipart(raw, headers["content-type"])
        else:
            with contextlib.suppress(ValueError):
                body = json.loads(raw)
        return Call(request.method, request.path, headers, body, raw, form, dict(request.query))

    def _arrive(self, call: Call) -> Behaviour:
        with self._changed:
            self._calls.append(call)
            number = self._arrived
            self._arrived += 1
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            behaviour = self._standing
            if self._queued:
                behaviour = self._queued.popleft()
            elif self._chance[2]:
                seed, rate, choices = self._chance
                dice = random.Random(f"{seed}:{number}")
                if dice.random() < rate:
                    behaviour = dice.choice(choices)
            self._changed.notify_all()
        return behaviour

    async def _generation(self, request: web.Request) -> web.StreamResponse:
        call = await self._read(request)
        epoch = self._epoch
        behaviour = self._arrive(call)
        try:
            return await self._serve(request, call, behaviour)
        finally:
            with self._changed:
                self._in_flight -= epoch == self._epoch

    async def _serve(
        self, request: web.Request, call: Call, behaviour: Behaviour
    ) -> web.StreamResponse:
        try:
            plan = self._check(call)
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        if behaviour.drop == "before":
            await self._hold(behaviour)
            return self._hang_up(request)
        answer = (self._fail if behaviour.error else self._work)(plan, behaviour)
        await self._hold(behaviour)
        if behaviour.drop == "after":
            return self._hang_up(request)
        return await self._send(request, answer, behaviour)

    async def _hold(self, behaviour: Behaviour) -> None:
        """Wait for the gate, then for the delay."""
        if behaviour.gate is not None:
            opened = self._gates.get(id(behaviour.gate))
            if opened is None:
                opened = self._gates[id(behaviour.gate)] = asyncio.Event()
                watcher = threading.Thread(
                    target=self._watch, args=(behaviour.gate, opened), daemon=True
                )
                watcher.start()
            await opened.wait()
        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)

    def _watch(self, gate: threading.Event, opened: asyncio.Event) -> None:
        gate.wait(HOLD_LIMIT)

        def release() -> None:
            opened.set()
            self._gates.pop(id(gate), None)

        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(release)

    @staticmethod
    def _hang_up(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.close()
        return web.Response()

    async def _send(
        self, request: web.Request, answer: Answer, behaviour: Behaviour
    ) -> web.StreamResponse:
        bare = behaviour.error in self.BARE_ERRORS
        headers = {**({} if bare else self._headers()), **answer.headers}
        pieces = self._pieces(answer, behaviour)
        kind = "text/html" if isinstance(answer.body, str) else "application/json"
        if answer.events:
            kind = "text/event-stream"
            headers |= {"Cache-Control": "no-cache"}
        headers["Content-Type"] = behaviour.content_type or headers.get("Content-Type", kind)
        if not (answer.events or behaviour.cut or behaviour.slow_body):
            return web.Response(status=answer.status, headers=headers, body=b"".join(pieces))
        response = web.StreamResponse(status=answer.status, headers=headers)
        if not answer.events:
            response.content_length = sum(len(piece) for piece in pieces)
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            for piece in pieces[: len(pieces) // 2] if behaviour.cut else pieces:
                await asyncio.sleep(behaviour.slow_body / len(pieces))
                await response.write(piece)
            if not behaviour.cut:
                await response.write_eof()
        if behaviour.cut:
            self._hang_up(request)
        return response

    @staticmethod
    def _pieces(answer: Answer, behaviour: Behaviour) -> list[bytes]:
        """The body in the parts it is written in: one per event, or twenty."""
        if answer.events:
            # An event without a name has no line for it.
            heads = [f"event: {name}\n" if name else "" for name, _ in answer.events]
            frames = [
                f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
                for head, (_, data) in zip(heads, answer.events, strict=True)
            ]
            if behaviour.bad_json:
                frames[-1] = f'{heads[-1]}data: {{"type":\n\n'.encode()
            return frames
        body = answer.body
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        if behaviour.bad_json:
            raw = raw[: max(1, len(raw) * 2 // 3)]
        step = max(1, -(-len(raw) // 20))
        return [raw[start : start + step] for start in range(0, len(raw), step)] or [b""]

    def _bill(self, count: int) -> None:
        with self._changed:
            self._billed += count

    def _draw(
        self,
        width: int,
        height: int,
        fmt: str,
        *,
        black: bool = False,
        alpha: bool = False,
        frames: int = 1,
    ) -> bytes:
        """A picture that is not billed, such as a preview."""
        if not self.tiny:
            return make_picture(width, height, fmt, black=black, alpha=alpha, frames=frames)
        bare = len(make_picture(32, 32, fmt, black=black, alpha=alpha))
        return make_picture(
            32, 32, fmt, black=black, alpha=alpha, pad=max(0, TINY_BYTES - bare + 16)
        )

    def _make(
        self,
        width: int,
        height: int,
        fmt: str,
        *,
        black: bool = False,
        alpha: bool = False,
        frames: int = 1,
    ) -> bytes:
        """Make one picture, and put it on the bill."""
        data = self._draw(width, height, fmt, black=black, alpha=alpha, frames=frames)
        with self._changed:
            self._pictures.append(data)
            self._billed += 1
        return data

    @staticmethod
    def _inline(data: bytes, behaviour: Behaviour) -> str:
        """The picture as base64, or what a broken provider sends in its place."""
        if behaviour.bad_base64:
            return "%%% this is not base64 %%%"
        return base64.b64encode(_spoiled(data, behaviour.picture)).decode()

    def _host(self, data: bytes, fmt: str, behaviour: Behaviour) -> str:
        """Put the picture behind a public URL of this server."""
        if behaviour.picture == "inside":
            return f"{INSIDE_URL}picture-{next(_MARKS)}.{fmt}"
        name = f"{next(_MARKS):08d}.{fmt}"
        kind = "image/svg+xml" if fmt == "svg" else f"image/{fmt}"
        with self._changed:
            self._files[name] = _File(data, kind, behaviour.picture)
            while len(self._files) > self._keep:
                self._files.popitem(last=False)
        return f"{self.origin}/files/{name}"

    async def _download(self, request: web.Request) -> web.StreamResponse:
        with self._changed:
            self._downloads.append(request.path)
            if {"authorization", "x-goog-api-key"} & {name.lower() for name in request.headers}:
                self._leaks.append(request.path)
            file = self._files.get(request.match_info["name"])
            self._changed.notify_all()
        mode = file.mode if file is not None else "404"
        if file is None or mode == "404":
            return web.Response(status=404, text="Not Found")
        if mode == "hang":
            await asyncio.sleep(HOLD_LIMIT)
            return self._hang_up(request)
        if mode == "redirect_inside":
            return web.Response(status=302, headers={"Location": INSIDE_URL})
        if mode == "html":
            return web.Response(text="<html><body>Sorry</body></html>", content_type="text/html")
        if mode == "huge":
            return await self._pour(request, file)
        data = _spoiled(file.data, mode)
        return web.Response(body=data, content_type=file.content_type)

    @staticmethod
    async def _pour(request: web.Request, file: _File) -> web.StreamResponse:
        """A body that starts like the picture and continues until the reader gives up."""
        response = web.StreamResponse(headers={"Content-Type": file.content_type})
        sent = len(file.data)
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            await response.write(file.data)
            while sent < HUGE_LIMIT:
                await response.write(bytes(1 << 16))
                sent += 1 << 16
        return response
