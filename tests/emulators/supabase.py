"""Supabase Storage behind its gateway, as it was observed in August 2026, defects included.

Facts it encodes:

* Nearly every error is HTTP 400; the status that is meant is a string in the body. Servers before
  23 July 2026 send no `code` (`codes = False`).
* The gateway makes a JWT of `apikey` when there is no Authorization or only `Bearer sb_...`.
* An upload refused after its body was attached (duplicate, row-level security, invalid key) is
  answered at once, with keep-alive, and the connection is dead from then on: the rest of the body
  is not read and no further request on it is answered. A body of up to 64 KiB is swallowed by the
  buffers in between, and the connection lives. This is why the HTTP is written by hand.
* Whether an object exists is looked at before the body is read, and the object is written after:
  of two uploads of one name at the same moment both may succeed.
* A body in chunks is not held to the bucket's size limit.
* The official clients upload as a multipart form: the part's own type counts, and `cacheControl`
  is a number of seconds. A form is read whole here, so that a refused one leaves its connection
  alive (UNSURE of large ones).
* The information on an object of a public bucket is for all, whatever key is sent; a list is not.
* A bulk delete answers 200 and an empty list when the key may not delete; HEAD says nothing.
* S3 is the few calls django-storages makes; who asks is checked by the key's id, not by signature.

Not played: uploads by TUS, image transformation.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate
from time import time
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit
from uuid import uuid4
from xml.sax.saxutils import escape

from tests.emulators.base import parse_multipart

PREFIX = "/storage/v1"
HOLD_LIMIT = 120.0
# Long: a test that passes does not wait.
WAIT_SECONDS = 60.0
PIECE = 1 << 16

_KEY = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]+")
_UPLOAD = re.compile(
    r"/object/(?!upload/sign/|sign/|list/|list-v2/|info/|copy$|move$|public/)[^/]+/.+"
)
_BUCKET = re.compile(r"[A-Za-z0-9_!.*'() &$@=;:+,?-]+")

# name: HTTP status, statusCode, error, message, code
_UNAUTHORIZED = (400, "403", "Unauthorized", "AccessDenied")
_DUPLICATE = "The resource already exists"
_RLS = "new row violates row-level security policy"
_HEADERS = "headers must have required property 'authorization'"
_EMPTY = "Body cannot be empty when content-type is set to 'application/json'"


def _error_row(status: int, meant: str, error: str, code: str, message: str) -> dict[str, Any]:
    fields = {"statusCode": meant, "error": error, "message": message, "code": code}
    return {"status": status, "fields": fields}


ROWS: dict[str, dict[str, Any]] = {
    name: _error_row(*row)
    for name, row in {
        "taken": (400, "409", "Duplicate", "KeyAlreadyExists", _DUPLICATE),
        "target_taken": (400, "409", "Duplicate", "ResourceAlreadyExists", _DUPLICATE),
        "bucket_taken": (400, "409", "Duplicate", "BucketAlreadyExists", _DUPLICATE),
        "no_bucket": (400, "404", "Bucket not found", "NoSuchBucket", "Bucket not found"),
        "no_object": (400, "404", "not_found", "NoSuchKey", "Object not found"),
        "no_authorization": (400, "400", "Error", "InvalidRequest", _HEADERS),
        "not_a_jwt": (*_UNAUTHORIZED, "Invalid Compact JWS"),
        "bad_signature": (*_UNAUTHORIZED, "signature verification failed"),
        "expired": (*_UNAUTHORIZED, '"exp" claim timestamp check failed'),
        "rls": (*_UNAUTHORIZED, _RLS),
        "access_denied": (*_UNAUTHORIZED, "Access denied"),
        "too_large": (
            *(400, "413", "Payload too large", "EntityTooLarge"),
            "The object exceeded the maximum allowed size",
        ),
        "bad_type": (
            *(400, "415", "invalid_mime_type", "InvalidMimeType"),
            "mime type {} is not supported",
        ),
        "bad_key": (400, "400", "InvalidKey", "InvalidKey", "Invalid key: {}"),
        "long_segment": (500, "500", "Internal", "InternalError", "Internal Server Error"),
        "bad_bucket": (400, "400", "Invalid Input", "InvalidBucketName", "Bucket name invalid"),
        "not_empty": (
            *(400, "409", "ResourceNotEmpty", "ResourceNotEmpty"),
            "The bucket you tried to delete is not empty",
        ),
        "bad_range": (416, "416", "invalid_range", "InvalidRange", "invalid range provided"),
        "bad_link": (400, "400", "InvalidJWT", "InvalidJWT", "signature verification failed"),
        "bad_expiry": (400, "400", "Error", "InvalidRequest", "body/expiresIn must be integer"),
        "bad_form": (400, "400", "Error", "InvalidRequest", "No file in the form"),
        "old_link": (400, "400", "InvalidJWT", "InvalidJWT", '"exp" claim timestamp check failed'),
        "empty_json": (400, "400", "FastifyError", "InvalidRequest", _EMPTY),
        "429": (429, "429", "too_many_connections", "SlowDown", "Too many connections"),
        "500": (500, "500", "Internal", "InternalError", "Internal Server Error"),
        "503": (503, "503", "DatabaseError", "DatabaseError", "the database is read-only"),
        "544": (544, "544", "DatabaseTimeout", "DatabaseTimeout", "the connection timed out"),
    }.items()
}
# Answers of something in front of the server.
PLAIN: dict[str, tuple[int, str, str]] = {
    "502_html": (502, "text/html", "<html><body><h1>502 Bad Gateway</h1></body></html>"),
    "429_text": (429, "text/plain", "API rate limit exceeded"),
    "413_html": (413, "text/html", "<html><body>Request Entity Too Large</body></html>"),
    "200_json": (200, "application/json", '{"message": "ok"}'),
    "200_html": (200, "text/html", "<html><body>This project is paused</body></html>"),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """What goes wrong with one call.

    `error` is a name of ROWS or PLAIN, answered in place of doing anything; `drop` closes the
    connection before the work or after it, unanswered; `gate` and `delay` (seconds) hold the call
    back before anything else.
    """

    error: str | None = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0
    gate: threading.Event | None = None

    def __post_init__(self) -> None:
        if self.error is not None and self.error not in ROWS and self.error not in PLAIN:
            raise ValueError(f"there is no error called {self.error!r}")


class Stored(NamedTuple):
    """One object as a test sees it."""

    data: bytes
    content_type: str
    cache_control: str


@dataclass(slots=True)
class _Object:
    id: str
    data: bytes = field(repr=False)
    content_type: str
    cache_control: str
    created: datetime
    modified: datetime
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"'


@dataclass(slots=True)
class _Bucket:
    public: bool = False
    limit: int | None = None
    types: list[str] | None = None
    objects: dict[str, _Object] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(slots=True)
class Request:
    """One request as it arrived.

    `path` is without /storage/v1, decoded; `connection` is the client's port; `status` is 0 until
    the request is answered.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    connection: int
    status: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    poison: bool = False
    close: bool = False


class _Refusal(Exception):
    def __init__(self, row: str, detail: str = "", *, poison: bool = False) -> None:
        super().__init__(row)
        self.row, self.detail, self.poison = row, detail, poison


class _Gone(Exception):
    """The connection is over."""


class _File(NamedTuple):
    """What an upload brings."""

    data: bytes
    content_type: str
    cache_control: str = "no-cache"
    metadata: dict[str, Any] = {}


class _Body:
    """A request's body, read when it is asked for."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str]
    ) -> None:
        self._reader, self._writer = reader, writer
        self.length = int(headers["content-length"]) if "content-length" in headers else None
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._expects = headers.get("expect", "").lower() == "100-continue"
        self.done = not self._chunked and not self.length
        self.swallowed = not self._chunked and (self.length or 0) <= PIECE

    async def read(self) -> bytes:
        if self.done:
            return b""
        if self._expects:
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.done = True
        if not self._chunked:
            return await self._reader.readexactly(self.length or 0)
        parts = []
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        while (await self._reader.readline()).strip():
            pass  # trailers
        return b"".join(parts)


def _jwt(**claims: Any) -> str:
    """A token in three parts; only the parts' shape is real."""
    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*coded, hashlib.sha256(coded[1].encode()).hexdigest()]).replace("=", "")


class SupabaseEmulator:
    """One project on one port. Use it as a context manager, or call `start` and `stop`."""

    S3_REGION = "local"
    S3_KEY_ID = "s3-key-id"
    S3_SECRET = "s3-secret"

    def __init__(self, *, bucket: str = "generated-images") -> None:
        self.bucket = bucket
        self.service_key = _jwt(role="service_role", exp=4_000_000_000)
        self.anon_key = _jwt(role="anon", exp=4_000_000_000)
        self.expired_key = _jwt(role="service_role", exp=1)
        self.secret_key = "sb_secret_" + "emulator" * 4
        self.publishable_key = "sb_publishable_" + "emulator" * 4
        self.url = ""
        self._port = 0
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.reset()

    # --- What a test asks for ---------------------------------------------------------------

    def start(self) -> Self:
        """Bind a port and serve until `stop`."""
        self._thread = threading.Thread(target=self._run, name="supabase-emulator", daemon=True)
        self._thread.start()
        if not self._started.wait(WAIT_SECONDS) or self._failure is not None:
            raise RuntimeError("the supabase emulator did not start") from self._failure
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
        """Forget every object, record and trouble; one empty public bucket is left."""
        with self._changed:
            self._buckets = {self.bucket: _Bucket(public=True)}
            self._requests: list[Request] = []
            self._uploads: list[Request] = []
            self._standing = Trouble()
            self._queued: deque[Trouble] = deque()
            # Every k-th upload is refused as a duplicate when this is set.
            self.refuse_every = 0
            # Whether error bodies have `code`, as since July 2026.
            self.codes = True
            # After how many seconds a dead connection's bytes are read again, and thrown away.
            self.reads_again = 0.2

    def queue(self, *troubles: Trouble) -> None:
        """Let the next calls go wrong like this, one trouble each."""
        with self._changed:
            self._queued.extend(troubles)

    def always(self, trouble: Trouble) -> None:
        """Let every call go wrong like this; `Trouble()` ends it."""
        with self._changed:
            self._standing = trouble

    def refuse_connections(self) -> None:
        """Close the port and every connection; `accept_connections` ends it."""
        self._do(self._close)

    def accept_connections(self) -> None:
        """Listen again, on the same port."""
        self._do(self._listen)

    def limit(self, *, size: int | None = None, types: list[str] | None = None) -> None:
        """Limit what the bucket takes: bytes of one object, and MIME types."""
        with self._changed:
            self._buckets[self.bucket].limit = size
            self._buckets[self.bucket].types = types

    def make_private(self) -> None:
        """Take the bucket's public links away."""
        with self._changed:
            self._buckets[self.bucket].public = False

    def drop_bucket(self) -> None:
        """Delete the bucket and all in it."""
        with self._changed:
            del self._buckets[self.bucket]

    @property
    def objects(self) -> dict[str, Stored]:
        """What is in the bucket, by key."""
        with self._changed:
            bucket = self._buckets.get(self.bucket, _Bucket())
            return {
                key: Stored(o.data, o.content_type, o.cache_control)
                for key, o in bucket.objects.items()
            }

    @property
    def requests(self) -> list[Request]:
        """Every request, in order of arrival."""
        with self._changed:
            return list(self._requests)

    @property
    def uploads(self) -> list[Request]:
        """Every request to upload, whatever became of it."""
        with self._changed:
            return list(self._uploads)

    @property
    def connections_open(self) -> int:
        """How many clients' connections the server has not seen the end of."""
        with self._changed:
            return len(self._writers)

    def wait_for_requests(self, count: int, timeout: float = WAIT_SECONDS) -> None:
        """Block until `count` requests have arrived since the last reset."""
        self._wait(lambda: len(self._requests) >= count, timeout)

    def wait_for_no_connection(self, timeout: float = WAIT_SECONDS) -> None:
        """Block until the last client's connection has ended."""
        self._wait(lambda: not self._writers, timeout)

    def _wait(self, done: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout):
                raise TimeoutError(f"{len(self._requests)} requests, {len(self._writers)} open")

    # --- The server -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as failure:
            self._failure = failure
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._listen()
        self._started.set()
        await self._stop.wait()
        await self._close()

    def _do(self, work: Callable[[], Any]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(WAIT_SECONDS)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._connection, "127.0.0.1", self._port, limit=PIECE, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._changed:
            self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (_Gone, ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would log it as an error
        finally:
            writer.transport.abort()
            with self._changed:
                self._writers.discard(writer)
                self._changed.notify_all()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; return whether the connection is kept."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = _Body(reader, writer, headers)
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query, True).items()}
        path = unquote(url.path.removeprefix(PREFIX))
        peer = writer.get_extra_info("peername")[1]
        request = Request(method, path, query, headers, peer)
        answer = await self._serve(request, url.path, body)
        request.status = answer.status
        if not body.done and (body.swallowed or not answer.poison):
            await body.read()
        self._write(writer, method, answer)
        await writer.drain()
        if answer.poison and not body.done:
            begun = time()
            while time() < begun + min(self.reads_again, HOLD_LIMIT):  # noqa: ASYNC110 - may change
                await asyncio.sleep(0.02)
            while await reader.read(PIECE):
                pass
            return False
        return not answer.close

    @staticmethod
    def _write(writer: asyncio.StreamWriter, method: str, answer: _Answer) -> None:
        headers = {
            "Date": formatdate(usegmt=True),
            "Connection": "close" if answer.close else "keep-alive",
            "Content-Length": str(len(answer.body)),
            **answer.headers,
        }
        if answer.status in (204, 304):
            del headers["Content-Length"]
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {answer.status} Status\r\n{head}\r\n".encode())
        if method != "HEAD":
            writer.write(answer.body)

    async def _serve(self, request: Request, raw_path: str, body: _Body) -> _Answer:
        upload = request.method in ("POST", "PUT") and bool(re.fullmatch(_UPLOAD, request.path))
        with self._changed:
            self._requests.append(request)
            if upload:
                self._uploads.append(request)
            number = len(self._uploads)
            trouble = self._queued.popleft() if self._queued else self._standing
            self._changed.notify_all()
        await self._hold(trouble)
        if trouble.drop == "before":
            await body.read()
            raise _Gone
        if trouble.error is not None:
            return self._error(trouble.error)
        try:
            if not raw_path.startswith(PREFIX + "/") or "%2f" in raw_path.lower():
                return _plain(404, "text/plain", "no Route matched with those values")
            if "//" in raw_path:
                return _plain(400, "text/html", "<html><body>Bad Request</body></html>")
            if request.path.startswith("/s3/"):
                answer = await self._s3(request, body)
            elif upload:
                refused = bool(self.refuse_every) and number % self.refuse_every == 0
                answer = await self._upload(request, body, refused=refused)
            else:
                answer = await self._rest(request, body)
        except _Refusal as refusal:
            answer = self._error(refusal.row, refusal.detail, poison=refusal.poison)
            if request.method == "HEAD":
                answer = _Answer(answer.status)
        if trouble.drop == "after":
            raise _Gone
        return answer

    @staticmethod
    async def _hold(trouble: Trouble) -> None:
        if trouble.gate is not None:
            async with asyncio.timeout(HOLD_LIMIT):
                while not trouble.gate.is_set():  # noqa: ASYNC110 - set in another thread
                    await asyncio.sleep(0.002)
        await asyncio.sleep(trouble.delay)

    def _error(self, name: str, detail: str = "", *, poison: bool = False) -> _Answer:
        if name in PLAIN:
            return _plain(*PLAIN[name])
        row = ROWS[name]
        fields = {**row["fields"], "message": row["fields"]["message"].format(detail)}
        if not self.codes:
            del fields["code"]
        return _reply(fields, status=row["status"], poison=poison, close=name == "empty_json")

    # --- Who asks ---------------------------------------------------------------------------

    def _role(self, headers: dict[str, str]) -> Literal["service", "anon"]:
        """What the gateway and the server make of the keys."""
        authorization, apikey = headers.get("authorization", ""), headers.get("apikey", "")
        if apikey.startswith("sb_secret_") and "mozilla" in headers.get("user-agent", "").lower():
            raise _Refusal("access_denied")
        if apikey and (not authorization or authorization.startswith("Bearer sb_")):
            known = {self.secret_key: self.service_key, self.publishable_key: self.anon_key}
            authorization = f"Bearer {known.get(apikey, apikey)}"
        if not authorization:
            raise _Refusal("no_authorization")
        token = authorization.removeprefix("Bearer ")
        if token in (self.service_key, self.anon_key):
            return "service" if token == self.service_key else "anon"
        if token == self.expired_key:
            raise _Refusal("expired")
        raise _Refusal("bad_signature" if token.count(".") == 2 else "not_a_jwt")

    def _found(self, bucket: str) -> _Bucket:
        if bucket not in self._buckets:
            raise _Refusal("no_bucket")
        return self._buckets[bucket]

    def _object(self, bucket: str, key: str) -> _Object:
        if key not in (objects := self._found(bucket).objects):
            raise _Refusal("no_object")
        return objects[key]

    # --- Uploads ----------------------------------------------------------------------------

    async def _upload(self, request: Request, body: _Body, *, refused: bool) -> _Answer:
        _, _, name, key = request.path.split("/", 3)
        role = self._role(request.headers)
        upsert = request.method == "PUT" or request.headers.get("x-upsert") == "true"
        kept = await self._take(request, body, name, key, role, upsert=upsert, refused=refused)
        return _reply({"Key": f"{name}/{key}", "Id": kept.id})

    async def _take(
        self,
        request: Request,
        body: _Body,
        name: str,
        key: str,
        role: str,
        *,
        upsert: bool,
        refused: bool = False,
    ) -> _Object:
        """Check an upload as the server does, in its order, and keep it."""
        headers = request.headers
        bucket = self._found(name)
        kind = headers.get("content-type", "application/octet-stream")
        file = None
        size = body.length or 0
        if kind.startswith("multipart/form-data"):
            file = _form(await body.read(), kind)
            kind, size = file.content_type, len(file.data)
        if bucket.types is not None and kind not in bucket.types:
            raise _Refusal("bad_type", kind)
        if bucket.limit is not None and size > bucket.limit:
            raise _Refusal("too_large")
        _check_key(key)
        if refused or (key in bucket.objects and not upsert):
            raise _Refusal("taken", poison=True)
        if role == "anon":
            raise _Refusal("rls", poison=True)
        if file is None:
            cache = headers.get("cache-control", "no-cache")
            coded = base64.b64decode(headers.get("x-metadata", "")) or b"{}"
            file = _File(await body.read(), kind, cache, json.loads(coded))
        if any(len(segment.encode()) > 255 for segment in key.split("/")):
            raise _Refusal("long_segment")
        return self._keep(bucket, key, file)

    def _keep(self, bucket: _Bucket, key: str, file: _File) -> _Object:
        now = datetime.now(UTC)
        with self._changed:
            old = bucket.objects.get(key)
            created = old.created if old else now
            name = old.id if old else str(uuid4())
            new = bucket.objects[key] = _Object(
                name,
                file.data,
                file.content_type,
                file.cache_control,
                created,
                now,
                file.metadata,
            )
        return new

    def _upload_link(self, request: Request, name: str, key: str, role: str) -> _Answer:
        """Leave to upload one object, for two hours, to anyone with the link."""
        bucket = self._found(name)
        _check_key(key)
        upsert = request.headers.get("x-upsert") == "true"
        if key in bucket.objects and not upsert:
            raise _Refusal("taken")
        if role == "anon":
            raise _Refusal("rls")
        token = _jwt(url=f"{name}/{key}", upsert=upsert, exp=int(time()) + 7200)
        url = f"/object/upload/sign/{name}/{quote(key)}?token={token}"
        return _reply({"url": url, "token": token})

    async def _upload_signed(self, request: Request, body: _Body, name: str, key: str) -> _Answer:
        claims = _claims(request.query.get("token", ""), f"{name}/{key}")
        upsert = bool(claims.get("upsert"))
        await self._take(request, body, name, key, "service", upsert=upsert)
        return _reply({"Key": f"{name}/{key}"})

    # --- All the rest -----------------------------------------------------------------------

    async def _rest(self, request: Request, body: _Body) -> _Answer:
        method, parts = request.method, request.path.split("/")[1:]
        match method, parts:
            case "GET", ["status"]:
                return _Answer()
            case "GET", ["version"]:
                return _plain(200, "text/plain", "emulator")
            case "GET" | "HEAD", ["object", "public", name, *rest]:
                if not self._found(name).public:
                    raise _Refusal("no_bucket")
                return _read(self._object(name, "/".join(rest)), request)
            case "GET", ["object", "sign", name, *rest]:
                return self._signed_read(name, "/".join(rest), request)
            case "GET", ["object", "info", "public", name, *rest] if self._found(name).public:
                return self._info(name, "/".join(rest))
            case "GET", ["object", "info", name, *rest] if self._is_public(name):
                return self._info(name, "/".join(rest))
            case "PUT", ["object", "upload", "sign", name, *rest]:
                return await self._upload_signed(request, body, name, "/".join(rest))
        role = self._role(request.headers)
        raw = await body.read()
        if not raw and request.headers.get("content-type") == "application/json":
            raise _Refusal("empty_json")
        fields = json.loads(raw) if raw else {}
        match method, parts:
            case _, ["bucket", *rest]:
                return self._bucket_call(method, rest, fields, role)
            case "GET", ["object", "info", "authenticated", name, *rest]:
                return self._info(name, "/".join(rest), role)
            case "GET", ["object", "info", name, *rest]:
                return self._info(name, "/".join(rest), role)
            case "POST", ["object", "upload", "sign", name, *rest]:
                return self._upload_link(request, name, "/".join(rest), role)
            case "POST", ["object", "list", name]:
                return _reply(self._list(name, fields) if role == "service" else [])
            case "POST", ["object", "list-v2", name]:
                return _reply(self._list_v2(name if role == "service" else "", fields))
            case "POST", ["object", "sign", name]:
                seconds = _seconds(fields)
                return _reply([self._sign_row(name, key, seconds) for key in fields["paths"]])
            case "POST", ["object", "sign", name, *rest]:
                key = "/".join(rest)
                self._object(name, key)
                return _reply({"signedURL": self._link(name, key, _seconds(fields))})
            case "POST", ["object", "move" | "copy" as verb]:
                return self._transfer(verb, fields)
            case "DELETE", ["object", name]:
                return _reply(self._delete_many(name, fields["prefixes"], role))
            case "DELETE", ["object", name, *rest]:
                return self._delete(name, "/".join(rest), role)
            case "GET" | "HEAD", ["object", "authenticated", name, *rest]:
                return _read(self._readable(name, "/".join(rest), role), request)
            case "GET" | "HEAD", ["object", name, *rest]:
                return _read(self._readable(name, "/".join(rest), role), request)
        message = f"Route {method}:{request.path} not found"
        unknown = {"message": message, "error": "Not Found", "statusCode": 404}
        return _reply(unknown, status=404)

    def _is_public(self, name: str) -> bool:
        return name in self._buckets and self._buckets[name].public

    def _readable(self, name: str, key: str, role: str) -> _Object:
        if role == "anon" and not self._found(name).public:
            raise _Refusal("no_object")
        return self._object(name, key)

    def _info(self, name: str, key: str, role: str = "service") -> _Answer:
        found = self._readable(name, key, role)
        return _reply(
            {
                "id": found.id,
                "name": key,
                "version": found.id,
                "bucket_id": name,
                "size": len(found.data),
                "content_type": found.content_type,
                "cache_control": found.cache_control,
                "etag": found.etag,
                "metadata": found.metadata,
                "last_modified": _iso(found.modified),
                "created_at": _iso(found.created),
            }
        )

    def _bucket_call(
        self, method: str, rest: list[str], fields: dict[str, Any], role: str
    ) -> _Answer:
        if method == "GET" and not rest:
            names = list(self._buckets) if role == "service" else []
            return _reply([{**self._describe(name), "type": "STANDARD"} for name in names])
        if role != "service":
            raise _Refusal("no_bucket" if method == "GET" else "rls")
        with self._changed:
            if method == "POST" and not rest:
                name = str(fields.get("id") or fields.get("name"))
                if not _BUCKET.fullmatch(name):
                    raise _Refusal("bad_bucket")
                if name in self._buckets:
                    raise _Refusal("bucket_taken")
                self._buckets[name] = bucket = _Bucket()
                self._change(bucket, fields)
                return _reply({"name": name})
            bucket = self._found(rest[0])
            if method == "GET":
                return _reply(self._describe(rest[0]))
            if method == "PUT":
                self._change(bucket, fields)
                return _reply({"message": "Successfully updated"})
            if method == "POST" and rest[1:] == ["empty"]:
                bucket.objects.clear()
                text = "Empty bucket has been queued. Completion may take up to an hour."
                return _reply({"message": text})
            if bucket.objects:
                raise _Refusal("not_empty")
            del self._buckets[rest[0]]
            return _reply({"message": "Successfully deleted"})

    @staticmethod
    def _change(bucket: _Bucket, fields: dict[str, Any]) -> None:
        bucket.public = bool(fields.get("public", bucket.public))
        size = fields.get("file_size_limit", bucket.limit)
        # "10MB" is ten million.
        bucket.limit = int(size[:-2]) * 1_000_000 if isinstance(size, str) else size
        bucket.types = fields.get("allowed_mime_types", bucket.types)

    def _describe(self, name: str) -> dict[str, Any]:
        bucket = self._buckets[name]
        return {
            "id": name,
            "name": name,
            "owner": "",
            "public": bucket.public,
            "file_size_limit": bucket.limit,
            "allowed_mime_types": bucket.types,
            "created_at": _iso(bucket.created),
            "updated_at": _iso(bucket.created),
        }

    def _list(self, name: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
        prefix = fields["prefix"].strip("/")
        prefix += "/" if prefix else ""
        rows: dict[str, dict[str, Any]] = {}
        for key, found in sorted(self._buckets.get(name, _Bucket()).objects.items()):
            if not key.startswith(prefix):
                continue
            first, slash, _ = key.removeprefix(prefix).partition("/")
            if fields.get("search", "") in first:
                rows[first] = _FOLDER | {"name": first} if slash else _row(first, found)
        order = fields.get("sortBy", {})
        listed = sorted(
            rows.values(),
            key=lambda row: (row[order.get("column", "name")] or "", row["name"]),
            reverse=order.get("order") == "desc",
        )
        offset = fields.get("offset", 0)
        return listed[offset : offset + fields.get("limit", 100)]

    def _list_v2(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        prefix, limit = fields.get("prefix", ""), fields.get("limit", 1000)
        after = base64.b64decode(fields.get("cursor") or "").decode()
        entries: dict[str, _Object | None] = {}
        for key, found in sorted(self._buckets.get(name, _Bucket()).objects.items()):
            if key.startswith(prefix):
                first, slash, _ = key.removeprefix(prefix).partition("/")
                if slash and fields.get("with_delimiter"):
                    entries[f"{prefix}{first}/"] = None
                else:
                    entries[key] = found
        names = [entry for entry in entries if entry > after]
        page = names[:limit]
        result: dict[str, Any] = {"hasNext": len(names) > limit, "folders": [], "objects": []}
        if result["hasNext"]:
            result["nextCursor"] = base64.b64encode(page[-1].encode()).decode()
            result["nextCursorKey"] = page[-1]
        for entry in page:
            found_or_folder = entries[entry]
            if found_or_folder is None:
                result["folders"].append({"name": entry, "key": entry})
            else:
                result["objects"].append(_row(entry, found_or_folder))
        return result

    def _delete(self, name: str, key: str, role: str) -> _Answer:
        self._object(name, key)
        if role != "service":
            raise _Refusal("access_denied")
        with self._changed:
            self._buckets[name].objects.pop(key, None)
        return _reply({"message": "Successfully deleted"})

    def _delete_many(self, name: str, keys: list[str], role: str) -> list[dict[str, Any]]:
        if name not in self._buckets or role != "service":
            return []
        with self._changed:
            objects = self._buckets[name].objects
            return [_row(key, objects.pop(key)) for key in keys if key in objects]

    def _transfer(self, verb: str, fields: dict[str, Any]) -> _Answer:
        name = fields["bucketId"]
        target = fields.get("destinationBucket", name)
        found, key = self._object(name, fields["sourceKey"]), fields["destinationKey"]
        with self._changed:
            if key in self._found(target).objects:
                raise _Refusal("target_taken")
            kept = _File(found.data, found.content_type, found.cache_control, found.metadata)
            new = self._keep(self._buckets[target], key, kept)
            if verb == "copy":
                return _reply({"Key": f"{target}/{key}", "Id": new.id})
            del self._buckets[name].objects[fields["sourceKey"]]
        return _reply({"message": "Successfully moved"})

    # --- Signed links -----------------------------------------------------------------------

    def _link(self, name: str, key: str, seconds: int) -> str:
        """The address of a signed link: relative to /storage/v1."""
        token = _jwt(url=f"{name}/{key}", exp=int(time()) + seconds)
        return f"/object/sign/{name}/{quote(key)}?token={token}"

    def _sign_row(self, name: str, key: str, seconds: int) -> dict[str, Any]:
        if name in self._buckets and key in self._buckets[name].objects:
            return {"error": None, "path": key, "signedURL": self._link(name, key, seconds)}
        error = "Either the object does not exist or you do not have access to it"
        return {"error": error, "path": key, "signedURL": None}

    def _signed_read(self, name: str, key: str, request: Request) -> _Answer:
        claims = _claims(request.query.get("token", ""), f"{name}/{key}")
        answer = _read(self._object(name, key), request)
        answer.headers["Expires"] = formatdate(claims["exp"], usegmt=True)
        answer.headers.pop("Cache-Control", None)
        return answer

    # --- S3 ---------------------------------------------------------------------------------

    async def _s3(self, request: Request, body: _Body) -> _Answer:
        name, _, key = request.path.removeprefix("/s3/").partition("/")
        raw = await body.read()
        credential = f"Credential={self.S3_KEY_ID}/"
        if credential not in request.headers.get("authorization", ""):
            return _s3_error(403, "AccessDenied", "Invalid Access Key")
        if name not in self._buckets:
            return _s3_error(404, "NoSuchBucket", "Bucket not found")
        bucket = self._buckets[name]
        if not key and request.method == "HEAD":
            return _Answer(headers={"x-amz-bucket-region": self.S3_REGION})
        if not key:
            return _s3_list(name, bucket, request.query)
        found = bucket.objects.get(key)
        match request.method:
            case "PUT":
                if "aws-chunked" in request.headers.get("content-encoding", ""):
                    raw = _unchunked(raw)
                headers = request.headers
                kind = headers.get("content-type", "application/octet-stream")
                cache = headers.get("cache-control", "no-cache")
                new = self._keep(bucket, key, _File(raw, kind, cache))
                return _Answer(headers={"ETag": new.etag})
            case "DELETE":
                with self._changed:
                    bucket.objects.pop(key, None)
                return _Answer(204)
            case "GET" | "HEAD" if found is not None:
                return _read(found, request)
        return _s3_error(404, "NoSuchKey", "Object not found")


def _claims(token: str, url: str) -> dict[str, Any]:
    """What a link's token grants, when it was made here, for that object, and still holds."""
    try:
        coded = token.split(".")[1]
        claims: dict[str, Any] = json.loads(
            base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
        )
    except (IndexError, ValueError):
        raise _Refusal("bad_link") from None
    if token != _jwt(**claims) or claims["url"] != url:
        raise _Refusal("bad_link")
    if claims["exp"] < time():
        raise _Refusal("old_link")
    return claims


def _seconds(fields: dict[str, Any]) -> int:
    """How long a link is to hold, as a number or as its text."""
    try:
        return int(fields["expiresIn"])
    except (KeyError, TypeError, ValueError):
        raise _Refusal("bad_expiry") from None


def _form(raw: bytes, kind: str) -> _File:
    """The one file of a form, under any name, and the fields beside it."""
    form = parse_multipart(raw, kind) or {}
    files = [one for value in form.values() if isinstance(value, list) for one in value]
    if len(files) != 1:
        raise _Refusal("bad_form")
    seconds, metadata = form.get("cacheControl"), form.get("metadata", "{}")
    return _File(
        files[0].data,
        files[0].content_type,
        f"max-age={seconds}" if seconds else "no-cache",
        json.loads(str(metadata)),
    )


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise _Refusal("bad_key", key, poison=True)
    if ".." in key.split("/") or "." in key.split("/"):
        raise _Refusal("bad_key", f"{key} contains dot path segment", poison=True)


def _reply(fields: Any, status: int = 200, *, poison: bool = False, close: bool = False) -> _Answer:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return _Answer(status, json.dumps(fields).encode(), kind, poison, close)


def _plain(status: int, kind: str, text: str) -> _Answer:
    return _Answer(status, text.encode(), {"Content-Type": kind})


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_FOLDER = dict.fromkeys(("id", "created_at", "updated_at", "last_accessed_at", "metadata"))


def _row(name: str, found: _Object) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": name,
        "created_at": _iso(found.created),
        "updated_at": _iso(found.modified),
        "last_accessed_at": _iso(found.modified),
        "metadata": {
            "eTag": found.etag,
            "size": len(found.data),
            "mimetype": found.content_type,
            "cacheControl": found.cache_control,
            "lastModified": _iso(found.modified),
            "contentLength": len(found.data),
            "httpStatusCode": 200,
        },
    }


def _read(found: _Object, request: Request) -> _Answer:
    """The bytes, or the part or the word that they are unchanged that was asked for."""
    headers = {
        "Content-Type": found.content_type,
        "ETag": found.etag,
        "Last-Modified": format_datetime(found.modified, usegmt=True),
        "Cache-Control": found.cache_control,
        "Accept-Ranges": "bytes",
        "X-Robots-Tag": "none",
    }
    if found.content_type == "text/html":
        headers["Content-Type"] = "text/plain"
    if "download" in request.query:
        name = request.query["download"]
        coded = f" filename={quote(name)}; filename*=UTF-8''{quote(name)};" if name else ""
        headers["Content-Disposition"] = f"attachment;{coded}"
    if "if-none-match" in request.headers:
        if request.headers["if-none-match"] == found.etag:
            return _Answer(304, headers=headers)
        headers["Cache-Control"] += ", stale-while-revalidate=30"
    data, size = found.data, len(found.data)
    if "range" in request.headers:
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers["range"])
        if wanted is None or not any(wanted.groups()):
            raise _Refusal("bad_range")
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= end:
            raise _Refusal("bad_range")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return _Answer(206, data[start:end], headers)
    return _Answer(200, data, headers)


def _s3_error(status: int, code: str, message: str) -> _Answer:
    text = f"<Code>{code}</Code><Message>{message}</Message>"
    return _s3_xml(f"<Error {_XMLNS}><Resource/>{text}</Error>", status)


_XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def _s3_xml(text: str, status: int = 200) -> _Answer:
    return _plain(status, "application/xml", f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def _s3_list(name: str, bucket: _Bucket, query: dict[str, str]) -> _Answer:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    folders, rows = set(), []
    for key, found in sorted(bucket.objects.items()):
        if not key.startswith(prefix):
            continue
        head, cut, _ = key.removeprefix(prefix).partition(delimiter or "\0")
        if cut:
            folders.add(prefix + head + cut)
            continue
        rows.append(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(found.data)}</Size>"
            f"<LastModified>{_iso(found.modified)}</LastModified>"
            f"<ETag>{escape(found.etag)}</ETag></Contents>"
        )
    rows += [
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        for folder in sorted(folders)
    ]
    count = f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>false</IsTruncated>"
    about = f"<Name>{name}</Name><Prefix>{escape(prefix)}</Prefix>{count}"
    return _s3_xml(f"<ListBucketResult {_XMLNS}>{about}{''.join(rows)}</ListBucketResult>")


def _unchunked(raw: bytes) -> bytes:
    """The body inside aws-chunked framing; signatures and trailers are left out."""
    parts: list[bytes] = []
    while True:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(raw[:size])
        raw = raw[size + 2 :]
