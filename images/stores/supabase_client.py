"""Calls to the REST interface of Supabase Storage: its credentials, retries, bounds and errors.

What is said of Supabase's answers was observed on Supabase Storage, August 2026.
"""

import asyncio
import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import File

from geekhub.lib import foreign, http
from geekhub.lib.http import BodyTooLarge, read_at_most, read_at_most_now
from images.stores.contract import NameTaken, StorageRefused, StorageUnavailable

_PIECE = 256 * 1024


class SupabaseClient:
    """Calls with and without an event loop, each tried again while that can help.

    See SupabaseStorage for the options. A call raises StorageUnavailable, StorageRefused,
    NameTaken or FileNotFoundError.
    """

    def __init__(
        self,
        *,
        url: str,
        key: str,
        connect_timeout: float,
        timeout: float,
        attempts: int,
        backoff: float,
        max_bytes: int,
    ) -> None:
        self._base = storage_address(url)
        self.seconds = timeout
        self._connect_seconds = connect_timeout
        self._attempts, self._backoff = attempts, backoff
        self._max_bytes = max_bytes
        self._timeout = httpx.Timeout(timeout, connect=connect_timeout)
        self._headers = {**http.OURS, **_credentials(key)}
        self._lock = threading.Lock()
        self._client: tuple[int, httpx.Client] | None = None
        self._aclients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            WeakKeyDictionary()
        )

    async def asend(
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
        pauses = _pauses(attempts or self._attempts, self._backoff)
        if deadline is None:
            deadline = now() + 2 * self.seconds
        while True:
            try:
                async with (
                    asyncio.timeout_at(min(now() + self.seconds, deadline)),
                    self._aclient().stream(
                        method,
                        self._base + path,
                        headers=headers,
                        json=json,
                        content=None if data is None else _pieces(data),
                    ) as response,
                ):
                    body = await read_at_most(response, self._max_bytes)
                if response.is_success:
                    return body
                raise _failure(response.status_code, body, path)
            except BodyTooLarge as error:
                raise _too_large(path, self._max_bytes) from error
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

    async def aclose(self) -> None:
        client = self._aclients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def send(
        self, method: str, path: str, *, seconds: float | None = None, **options: Any
    ) -> bytes:
        """See `_once`; for calls that may be done twice. After `seconds` there is no other try."""
        seconds = seconds or self.seconds
        end = time.monotonic() + seconds
        pauses = _pauses(self._attempts, self._backoff)
        while True:
            try:
                return self._once(method, path, seconds=seconds, **options)
            except StorageUnavailable:
                pause = next(pauses, None)
                if pause is None or time.monotonic() + pause >= end:
                    raise
            time.sleep(pause)

    def _once(
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
                self._base + path,
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
                        if into.tell() + len(chunk) > self._max_bytes:
                            raise BodyTooLarge
                        into.write(chunk)
                    return b""
                body = read_at_most_now(response, self._max_bytes)
        except BodyTooLarge as error:
            raise _too_large(path, self._max_bytes) from error
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

    def close(self) -> None:
        """Close the synchronous client's connections; the next call makes new ones."""
        with self._lock:
            if self._client is not None:
                self._client[1].close()
                self._client = None


class _UploadResponse(http.Response):
    """The answer to an upload; a refused one ends its connection at once.

    A server that refuses an upload answers at once, promises to keep the connection and never reads
    the rest of the body: the next request on that connection waits for ever. aiohttp returns it to
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


def storage_address(url: str) -> str:
    """Return the address of the storage server, which a project's address stands for too."""
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


def parsed(body: bytes) -> Any:
    """Return a good answer's JSON; anything else comes from something in front of the server."""
    try:
        return foreign.parse(body)
    except ValueError as error:
        raise StorageUnavailable("the store's answer is not JSON") from error


@contextlib.contextmanager
def making_sense() -> Iterator[None]:
    """Raise StorageUnavailable for what a good answer of an unexpected shape raises."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StorageUnavailable(f"the store's answer makes no sense: {error!r}"[:500]) from error
