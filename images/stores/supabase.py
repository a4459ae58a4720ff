"""Pictures in a bucket of Supabase Storage, over its REST interface.

What is said of Supabase's answers was observed on Supabase Storage, August 2026.
"""

import asyncio
import contextlib
import functools
import mimetypes
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile, File
from django.core.files.storage import Storage
from django.utils import timezone
from django.utils.deconstruct import deconstructible
from django.utils.encoding import filepath_to_uri

from geekhub.lib import foreign, http
from geekhub.lib.http import BodyTooLarge, read_at_most, read_at_most_now
from images.pixels import pictures
from images.stores.contract import (
    NAMES,
    NameTaken,
    StorageRefused,
    StorageUnavailable,
    ascii_name,
    check_name,
)

# A page waits for the links it shows.
LINK_SECONDS = 4.0


@deconstructible
class SupabaseStorage(Storage):
    """Pictures in a bucket of Supabase Storage, over its REST interface.

    Options (times in seconds, sizes in bytes):
    `url` is the project's address, with or without `/storage/v1`; `key` a secret key
    (`sb_secret_...`) or a legacy service_role JWT; `bucket` the bucket's name.
    `public_url` is the host in links, such as a CDN in front of the project; the default is `url`.
    `location` is a folder of the bucket under which every name lies.
    `expires_in` makes `url()` sign links for that long, for a private bucket.
    `timeout` bounds one attempt of an asynchronous call, and all of them twice as long; it bounds
    each read and write of a synchronous one, which is not tried again after so long. `attempts` and
    `backoff` say how often a call is tried, and the pause before the second.
    `max_bytes` is the largest upload, refused before it is sent.
    """

    def __init__(
        self,
        *,
        url: str,
        key: str,
        bucket: str,
        public_url: str = "",
        location: str = "",
        cache_control: str = "public, max-age=31536000, immutable",
        expires_in: int | None = None,
        connect_timeout: float = 5,
        timeout: float = 30,
        attempts: int = 4,
        backoff: float = 0.2,
        max_bytes: int = pictures.MAX_BYTES,
    ) -> None:
        self.bucket = bucket
        self.base = _base(url)
        self.public_base = _base(public_url or url)
        self.location = location.strip("/")
        self.cache_control = cache_control
        self.expires_in = expires_in
        self.max_bytes = max_bytes
        self.attempts = attempts
        self._backoff = backoff
        self._timeout = httpx.Timeout(timeout, connect=connect_timeout)
        self._seconds, self._connect_seconds = timeout, connect_timeout
        self._headers = {**http.OURS, **_credentials(key)}
        self._lock = threading.Lock()
        self._client: tuple[int, httpx.Client] | None = None
        self._aclients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            WeakKeyDictionary()
        )
        # A link is signed again when half its time is over, so that one handed out has the rest.
        self._sign_once = functools.lru_cache(4096)(
            lambda name, _half: self.sign(name, self.expires_in or 0)
        )

    # --- Names and addresses ----------------------------------------------------------------

    def get_valid_name(self, name: str) -> str:
        return ascii_name(name)

    def is_name_available(self, name: str, max_length: int | None = None) -> bool:
        """Look at the length only: the server refuses a name that is taken, at no extra call."""
        return not (max_length and len(name) > max_length)

    def url(self, name: str | None) -> str:
        """Return the public link, which needs no call; with `expires_in` one signed for it."""
        if not name:
            raise ValueError("a picture without a name has no URL")
        if self.expires_in is not None:
            return self._sign_once(name, time.monotonic() // (self.expires_in / 2))
        return f"{self.public_base}/object/public/{self._place(name)}"

    def sign(self, name: str, expires_in: int) -> str:
        """Return a link that works for `expires_in` seconds. Raises FileNotFoundError."""
        answer = self._json(
            "POST", f"/object/sign/{self._place(name)}", json={"expiresIn": expires_in}
        )
        return self.public_base + _signed(answer)

    def sign_many(self, names: Collection[str], expires_in: int) -> dict[str, str | None]:
        """Return a link for each name as `sign` does, in one call; None for a missing one."""
        keys = {self._key(name): name for name in names}
        answer = self._json(
            "POST",
            f"/object/sign/{self.bucket}",
            json={"expiresIn": expires_in, "paths": list(keys)},
            seconds=min(self._seconds, LINK_SECONDS),
        )
        # The address is relative to the storage server, not to the host.
        with _making_sense():
            return {
                keys[row["path"]]: row["signedURL"] and self.public_base + _signed(row)
                for row in answer
            }

    async def alink(self, name: str) -> str:
        """See ImageStore; a private bucket is asked for a signed address."""
        return (
            self.url(name) if self.expires_in is None else await self.asign(name, self.expires_in)
        )

    async def asign(self, name: str, expires_in: int) -> str:
        """See `sign`."""
        body = await self._asend(
            "POST", f"/object/sign/{self._place(name)}", json={"expiresIn": expires_in}
        )
        return self.public_base + _signed(_parsed(body))

    def _key(self, name: str) -> str:
        return check_name(f"{self.location}/{name}" if self.location else name)

    def _place(self, name: str) -> str:
        return f"{self.bucket}/{filepath_to_uri(self._key(name))}"

    # --- The request path -------------------------------------------------------------------

    async def asave(
        self, name: str, data: bytes, content_type: str, deadline: float | None = None
    ) -> str:
        """See ImageStore. A retry overwrites: the first attempt may have been kept, unanswered."""
        headers = self._upload_headers(name, len(data), content_type)
        body = await self._asend(
            "POST", f"/object/{self._place(name)}", headers=headers, data=data, deadline=deadline
        )
        _check_stored(body)
        return name

    async def aread(self, name: str) -> bytes:
        return await self._asend("GET", f"/object/authenticated/{self._place(name)}")

    async def adelete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._asend("DELETE", f"/object/{self._place(name)}")

    async def probe(self) -> None:
        """Ask for the bucket, once: the store answers, the key is good, the bucket is there."""
        await self._asend("GET", f"/bucket/{self.bucket}", attempts=1)

    async def aclose(self) -> None:
        client = self._aclients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _asend(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        json: Any = None,
        data: bytes | None = None,
        deadline: float | None = None,
        attempts: int | None = None,
    ) -> bytes:
        """Return the body of a good answer; try again while that can help and time is left."""
        now = asyncio.get_running_loop().time
        pauses = _pauses(attempts or self.attempts, self._backoff)
        if deadline is None:
            deadline = now() + 2 * self._seconds
        while True:
            try:
                async with (
                    asyncio.timeout_at(min(now() + self._seconds, deadline)),
                    self._aclient().stream(
                        method,
                        self.base + path,
                        headers=headers,
                        json=json,
                        content=None if data is None else _pieces(data),
                    ) as response,
                ):
                    body = await read_at_most(response, self.max_bytes)
                if response.is_success:
                    return body
                raise _failure(response.status_code, body, path)
            except BodyTooLarge as error:
                raise _too_large(path, self.max_bytes) from error
            except (httpx.HTTPError, TimeoutError) as error:
                failure = _unreachable(error, path)
            except StorageUnavailable as error:
                failure = error
            pause = next(pauses, None)
            if pause is None or now() + pause >= deadline:
                raise failure
            await asyncio.sleep(pause)
            if data is not None:
                headers = {**(headers or {}), "x-upsert": "true"}

    def _aclient(self) -> httpx.AsyncClient:
        """Return the client of this event loop; its connections can be used in no other."""
        loop = asyncio.get_running_loop()
        if loop not in self._aclients:
            self._aclients[loop] = httpx.AsyncClient(
                headers=self._headers,
                timeout=self._timeout,
                # The server ends an idle connection after 61 seconds.
                transport=http.AiohttpTransport(response_class=_UploadResponse, keep_alive=50),
                follow_redirects=False,
                trust_env=False,
            )
        return self._aclients[loop]

    # --- Django's storage interface ---------------------------------------------------------

    def _save(self, name: str, content: "File[Any]") -> str:
        """Keep `content`, under another name if this one is taken; never overwrites.

        The names Django gives are not unique, so a retry does not overwrite either: when the first
        attempt was kept but its answer was lost, the second takes another name.
        """
        content.seek(0)
        if isinstance(content.read(0), str):  # whose size is in letters
            content = ContentFile(content.read().encode(), content.name)
        kind = getattr(content, "content_type", None) or mimetypes.guess_type(name)[0]
        headers = self._upload_headers(name, content.size, kind or "application/octet-stream")
        for _ in range(NAMES):
            path = f"/object/{self._place(name)}"
            try:
                # A refused body that the sockets' buffers cannot swallow is never read, and this
                # client writes all of it before it reads the answer: it would wait for `timeout`.
                if content.size > _SWALLOWED and self.exists(name):
                    raise NameTaken(name)
                _check_stored(self._retried("POST", path, headers=headers, content=content))
            except NameTaken:
                taken = PurePosixPath(name)
                other = self.get_alternative_name(taken.stem, taken.suffix)
                name = str(taken.with_name(other))
            else:
                return name
        raise StorageUnavailable(f"no free name like {name}")

    def _open(self, name: str, mode: str = "rb") -> "File[bytes]":
        if mode != "rb":
            raise ValueError("a picture can be opened for reading only")
        file = tempfile.SpooledTemporaryFile(max_size=1024 * 1024)  # noqa: SIM115 - handed out
        try:
            self._retried("GET", f"/object/authenticated/{self._place(name)}", into=file)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return File(file, name)

    def delete(self, name: str) -> None:
        """Delete one object by the call that says so when the key may not."""
        if not name:
            raise ValueError("the name of the picture to delete is empty")
        with contextlib.suppress(FileNotFoundError):
            self._retried("DELETE", f"/object/{self._place(name)}")

    def exists(self, name: str) -> bool:
        """Return whether the object is there; only "no such object" is a no, all else raises.

        HEAD cannot tell a missing object from a bad key, so the object's information is asked for,
        by the route that looks at the key.
        """
        try:
            self._info(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        with _making_sense():
            return int(self._info(name)["size"])

    def get_created_time(self, name: str) -> datetime:
        with _making_sense():
            return _moment(self._info(name)["created_at"])

    def get_modified_time(self, name: str) -> datetime:
        with _making_sense():
            return _moment(self._info(name)["last_modified"])

    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        """Return the folders and files right under `path`; of a missing folder none."""
        parts = [part for part in (self.location, path.strip("/")) if part]
        prefix = check_name("/".join(parts)) + "/" if parts else ""
        folders: list[str] = []
        files: list[str] = []
        query = {"prefix": prefix, "limit": 1000, "with_delimiter": True}
        while True:
            page = self._json("POST", f"/object/list-v2/{self.bucket}", json=query)
            with _making_sense():
                folders += [row["name"].removeprefix(prefix).rstrip("/") for row in page["folders"]]
                files += [row["name"].removeprefix(prefix) for row in page["objects"]]
                if not page["hasNext"]:
                    return folders, files
                if page["nextCursor"] == query.get("cursor"):
                    raise ValueError("the list does not go on")
                query["cursor"] = page["nextCursor"]

    def ensure_bucket(self, *, size_limit: int, mime_types: Iterable[str]) -> list[str]:
        """Create the bucket, or return in what an existing one differs, as bucket_differences."""
        types = sorted(mime_types)
        try:
            return self.bucket_differences(size_limit=size_limit, mime_types=types)
        except StorageRefused as error:
            if error.status != 404:
                raise
        new = {"id": self.bucket, "name": self.bucket, **self._wanted(size_limit, types)}
        try:
            self._json("POST", "/bucket", json=new)
        except NameTaken:  # by another process at the same moment
            return self.bucket_differences(size_limit=size_limit, mime_types=types)
        return []

    def bucket_differences(self, *, size_limit: int, mime_types: Iterable[str]) -> list[str]:
        """Return in what the bucket differs from what it should be, one text each.

        `size_limit` is in bytes; `mime_types` are all that may be uploaded. With `expires_in` the
        bucket is to be private, otherwise public. Raises StorageRefused without a bucket.
        """
        found = self._json("GET", f"/bucket/{self.bucket}")
        with _making_sense():
            found["allowed_mime_types"] = sorted(found.get("allowed_mime_types") or [])
        wanted = self._wanted(size_limit, sorted(mime_types))
        return [
            f"{name} is {found.get(name)!r}, should be {value!r}"
            for name, value in wanted.items()
            if found.get(name) != value
        ]

    def _wanted(self, size_limit: int, mime_types: list[str]) -> dict[str, Any]:
        return {
            "public": self.expires_in is None,
            "file_size_limit": size_limit,
            "allowed_mime_types": mime_types,
        }

    def close(self) -> None:
        """Close the synchronous client's connections; the next call makes new ones."""
        with self._lock:
            if self._client is not None:
                self._client[1].close()
                self._client = None

    def _info(self, name: str) -> Any:
        # The shorter `/object/info/` answers for a public bucket whatever key is sent
        # (supabase/storage 4fa61fb, getObjectInfo.ts, allowInvalidJwt; read 28 November 2026).
        return self._json("GET", f"/object/info/authenticated/{self._place(name)}")

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return _parsed(self._retried(method, path, **options))

    def _retried(
        self, method: str, path: str, *, seconds: float | None = None, **options: Any
    ) -> bytes:
        """See `_send`; for calls that may be repeated. After `seconds` it is not tried again."""
        seconds = seconds or self._seconds
        end = time.monotonic() + seconds
        pauses = _pauses(self.attempts, self._backoff)
        while True:
            try:
                return self._send(method, path, seconds=seconds, **options)
            except StorageUnavailable:
                pause = next(pauses, None)
                if pause is None or time.monotonic() + pause >= end:
                    raise
            time.sleep(pause)

    def _send(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        headers: dict[str, str] | None = None,
        json: Any = None,
        content: "File[bytes] | None" = None,
        into: tempfile.SpooledTemporaryFile[bytes] | None = None,
    ) -> bytes:
        """Call once and return the body of a good answer, or put it `into` a file."""
        try:
            with self._sync_client().stream(
                method,
                self.base + path,
                # See _UploadResponse. To close it here would be too late: with the answer's last
                # byte it is back in the pool, and another thread may have it.
                headers=headers if content is None else {**(headers or {}), "Connection": "close"},
                timeout=httpx.Timeout(seconds, connect=min(seconds, self._connect_seconds)),
                json=json,
                # chunks() begins at the start each time. Without it, a File yields lines.
                content=None if content is None else content.chunks(),
            ) as response:
                if into is not None and response.is_success:
                    into.seek(0)
                    into.truncate()
                    for chunk in response.iter_bytes():
                        if into.tell() + len(chunk) > self.max_bytes:
                            raise BodyTooLarge
                        into.write(chunk)
                    return b""
                body = read_at_most_now(response, self.max_bytes)
        except BodyTooLarge as error:
            raise _too_large(path, self.max_bytes) from error
        except httpx.HTTPError as error:
            raise _unreachable(error, path) from error
        if response.is_success:
            return body
        raise _failure(response.status_code, body, path)

    def _sync_client(self) -> httpx.Client:
        """Return the client of this process; one made before a fork must not be shared."""
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = (
                    os.getpid(),
                    httpx.Client(
                        headers=self._headers,
                        timeout=self._timeout,
                        # The server ends an idle connection after 61 seconds.
                        transport=http.PlainTransport(
                            limits=httpx.Limits(max_connections=64, keepalive_expiry=50),
                            trust_env=False,
                        ),
                        follow_redirects=False,
                        trust_env=False,
                    ),
                )
            return self._client[1]

    def _upload_headers(self, name: str, size: int, content_type: str) -> dict[str, str]:
        if size > self.max_bytes:
            raise StorageRefused(
                f"{name} has {size} bytes, more than {self.max_bytes}",
                status=413,
                code="EntityTooLarge",
            )
        return {
            # Without a length the body goes out in chunks, past the bucket's size limit.
            "Content-Length": str(size),
            # Compared with the bucket's allowed types letter by letter, parameters included.
            "Content-Type": content_type.partition(";")[0].strip().lower(),
            # Kept and served word for word.
            "Cache-Control": self.cache_control,
            "x-upsert": "false",
        }


# More than this may not fit in the buffers of the two sockets (seen: 1.5 MB still does).
_SWALLOWED = 1024 * 1024
_PIECE = 256 * 1024
_LINK = re.compile(r"/[!-~]{1,8000}", re.ASCII)


class _UploadResponse(http.Response):
    """The answer to an upload; a refused one ends its connection at once.

    A server that refuses an upload answers at once, promises to keep the connection and never reads
    the rest of the body: the next request on that connection waits forever. aiohttp returns it to
    the pool when the answer is complete, before anybody has seen the status.
    """

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        transport = connection.transport
        await super().start(connection)
        if self.method == "POST" and self.status >= 300 and transport is not None:
            self.content.on_eof(transport.abort)
        return self


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    """Yield views of `data`, without a copy; between two of them other requests get their turn."""
    view = memoryview(data)
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]  # type: ignore[misc]


def _base(url: str) -> str:
    """Return the storage server's address; a project's address is accepted too."""
    return url.rstrip("/").removesuffix("/storage/v1") + "/storage/v1"


def _credentials(key: str) -> dict[str, str]:
    """Return the headers for a key: the gateway takes a new one as `apikey` only.

    Both headers for a legacy JWT, so that it works without the gateway as well.
    """
    key = key.strip()
    if not key or key.startswith("sb_publishable_"):
        raise ImproperlyConfigured("SUPABASE_KEY must be a secret or service_role key")
    if key.startswith("sb_"):
        return {"apikey": key}
    return {"apikey": key, "Authorization": f"Bearer {key}"}


def _pauses(attempts: int, first: float) -> Iterator[float]:
    """Yield the seconds before each further attempt: doubled each time, and never in step."""
    for attempt in range(attempts - 1):
        yield first * 2**attempt * random.uniform(0.5, 1)


def _unreachable(error: Exception, path: str) -> StorageUnavailable:
    return StorageUnavailable(f"{path}: {type(error).__name__}: {error}")


def _too_large(path: str, most: int) -> StorageRefused:
    return StorageRefused(f"{path}: larger than {most} bytes", status=413)


def _failure(status: int, body: bytes, path: str) -> Exception:
    """Return what an answer that is not a success means.

    The server answers nearly every error with HTTP 400 and puts the status it means into the body,
    as text; older servers leave `code` out. A gateway in front answers with HTML or plain text.
    """
    try:
        fields = foreign.parse(body)
        status = int(fields["statusCode"])
    except (ArithmeticError, LookupError, TypeError, ValueError):
        fields = {"message": body[:200].decode(errors="replace")}
    code = foreign.text(fields.get("code") or fields.get("error"), 100)
    said = foreign.text(fields.get("message"), 1000)
    message = f"{path}: {status} {code} {said}".rstrip()
    if status in (408, 429) or status >= 500:
        return StorageUnavailable(message)
    if status == 404 and code in ("NoSuchKey", "not_found"):
        return FileNotFoundError(message)
    if status == 409:
        return NameTaken(message)
    return StorageRefused(message, status=status, code=code)


def _parsed(body: bytes) -> Any:
    """Return a good answer's JSON; anything else comes from something in front of the server."""
    try:
        return foreign.parse(body)
    except ValueError as error:
        raise StorageUnavailable("the store's answer is not JSON") from error


@contextlib.contextmanager
def _making_sense() -> Iterator[None]:
    """Raise StorageUnavailable for what a good answer of an unexpected shape raises."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StorageUnavailable(f"the store's answer makes no sense: {error!r}"[:500]) from error


def _signed(answer: Any) -> str:
    """Return the path and query of a signed link."""
    with _making_sense():
        link = answer["signedURL"]
        if not _LINK.fullmatch(link):
            raise ValueError("no signed link")
        return str(link)


def _check_stored(body: bytes) -> None:
    answer = _parsed(body)
    if not isinstance(answer, dict) or "Key" not in answer:
        raise StorageUnavailable("the store did not confirm the upload")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if settings.USE_TZ else timezone.make_naive(moment)
