"""httpx with aiohttp's connections underneath.

httpx's own pool scans every connection on each acquire and release, which costs several
milliseconds per call at a thousand calls in flight; aiohttp's does not. The errors are mapped
exactly, because a caller must know whether the request can have reached the server:
ConnectError and ConnectTimeout mean it has not, everything else that it may have.
"""

import ipaddress
import socket
from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self

import aiohttp
import aiohttp.abc
import aiohttp.payload
import httpx
from yarl import URL

USER_AGENT = "GeekHub/1.0"


class AddressRefused(OSError):
    """The host name resolves to an address that is not public."""


class PublicResolver(aiohttp.abc.AbstractResolver):
    """Resolves names, and refuses private, loopback, link-local and reserved addresses."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            if not is_public(result["host"]):
                raise AddressRefused(f"{host} resolves to an address that is not public")
        return results

    async def close(self) -> None:
        await self._resolver.close()


def is_public(address: str) -> bool:
    """Return whether an IP address literal is globally reachable."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_global and not ip.is_multicast


class Response(aiohttp.ClientResponse):
    """An answer whose connection is gone at once when it is left before its end.

    Closing alone waits until the request is sent, which may be never when nobody reads it.
    """

    def close(self) -> None:
        transport = None if self.connection is None else self.connection.transport
        super().close()
        if transport is not None:
            transport.abort()


class AiohttpTransport(httpx.AsyncBaseTransport):
    """An httpx transport on one aiohttp session; without cookies, redirects or proxies.

    The session is made on first use, inside the event loop that uses it. `keep_alive` is the
    seconds an idle connection is kept.
    """

    def __init__(
        self,
        *,
        resolver: aiohttp.abc.AbstractResolver | None = None,
        response_class: type[aiohttp.ClientResponse] = Response,
        keep_alive: float = 15,
    ) -> None:
        self._resolver = resolver
        self._response_class = response_class
        self._keep_alive = keep_alive
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # httpx's callers bound what is in flight; aiohttp's own limit would be 100.
                connector=aiohttp.TCPConnector(
                    limit=0, resolver=self._resolver, keepalive_timeout=self._keep_alive
                ),
                response_class=self._response_class,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions.get("timeout", {})
        # Host and Content-Length are httpx's own and must not be written twice; aiohttp chunks a
        # streamed body itself and refuses to be told.
        headers = [
            (name.decode(), value.decode())
            for name, value in request.headers.raw
            if name.lower() != b"transfer-encoding"
        ]
        body = request.stream if request.method not in ("GET", "HEAD") else None
        try:
            answer = await self._open().request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=headers,
                data=await request.aread() if isinstance(body, httpx.ByteStream) else body,
                allow_redirects=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            )
        except Exception as error:
            raise translate(error, request) from error
        return httpx.Response(
            answer.status,
            headers=[(name, value) for name, value in answer.raw_headers],
            stream=_Body(answer, request),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


class _Body(httpx.AsyncByteStream):
    """The answer's body; a connection left before the body's end is closed, not reused."""

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._answer = answer
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.content.iter_any():
                yield chunk
        except Exception as error:
            raise translate(error, self._request) from error

    async def aclose(self) -> None:
        if self._answer.content.at_eof():
            self._answer.release()
        else:
            self._answer.close()


def translate(error: Exception, request: httpx.Request) -> Exception:
    """Return httpx's exception for one of aiohttp's; anything else unchanged."""
    text = f"{type(error).__name__}: {error}"
    match error:
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout(text, request=request)
        case aiohttp.ServerTimeoutError() | TimeoutError():
            return httpx.ReadTimeout(text, request=request)
        case aiohttp.ClientConnectorError() | AddressRefused():
            return httpx.ConnectError(text, request=request)
        case aiohttp.InvalidURL():
            return httpx.UnsupportedProtocol(text, request=request)
        case aiohttp.ClientOSError():
            return httpx.WriteError(text, request=request)
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return httpx.RemoteProtocolError(text, request=request)
        case aiohttp.ClientError() | OSError():
            return httpx.ReadError(text, request=request)
        case _:
            return error


class BodyTooLarge(Exception):
    """The answer's body is over the size the caller allows."""


async def read_at_most(response: httpx.Response, limit: int) -> bytes:
    """Return the body of a streamed response; raises BodyTooLarge above `limit` bytes."""
    if int(response.headers.get("content-length") or 0) > limit:
        raise BodyTooLarge
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge
        chunks.append(chunk)
    return b"".join(chunks)


def client(
    *,
    base_url: str = "",
    headers: dict[str, str] | None = None,
    connect: float,
    read: float,
    resolver: aiohttp.abc.AbstractResolver | None = None,
) -> httpx.AsyncClient:
    """Return a client for one upstream, `connect` and `read` in seconds. Close it with aclose()."""
    return httpx.AsyncClient(
        base_url=base_url,
        headers={"User-Agent": USER_AGENT, **(headers or {})},
        timeout=httpx.Timeout(read, connect=connect),
        # One client serves every customer; what an upstream sets for one is not sent for another.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        transport=AiohttpTransport(resolver=resolver),
        follow_redirects=False,
        trust_env=False,
    )
