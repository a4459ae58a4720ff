"""httpx with aiohttp's connections underneath.

httpx's own pool scans every connection on each acquire and release, which costs several
milliseconds per call at a thousand calls in flight; aiohttp's does not. The errors are mapped
exactly, because a caller must know whether the request can have reached the server:
ConnectError and ConnectTimeout mean it has not, everything else that it may have.

Answers are asked for as they are. One gzip is understood all the same, and unpacked here piece by
piece, so that a limit holds for what comes out of it; any other encoding, and any chain of them, is
refused before a byte is read: httpx would undo every layer at once, a gigabyte out of a kilobyte.
"""

import asyncio
import ipaddress
import socket
import zlib
from collections.abc import AsyncIterator, Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self

import aiohttp
import aiohttp.abc
import aiohttp.payload
import httpx
from yarl import URL

USER_AGENT = "GeekHub/1.0"
# What every request of ours says; pictures, as bytes or as base64, gain little from packing.
OURS = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
# The most that is unpacked at once, in bytes.
PIECE = 256 * 1024

# What of IPv6 is handed out to networks (IANA's IPv6 Global Unicast Address Space, 2026-11-28).
_GLOBAL = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER_PUBLIC = (
    ipaddress.ip_network("2002::/16"),  # 6to4, withdrawn by RFC 7526: an IPv4 address inside
    ipaddress.ip_network("3fff::/20"),  # for documentation (RFC 9637)
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4's relays
)
# The half of an address by which ISATAP says that an IPv4 address follows.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


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
    """Return whether an IP address literal is globally reachable.

    An IPv4 address inside an IPv6 one is looked at where gateways to it exist (mapped, NAT64);
    every other way of writing one is refused, whatever is inside.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if ip.ipv4_mapped is not None or ip in _NAT64:
            ip = inner
        elif ip not in _GLOBAL or (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in one for one in _NEVER_PUBLIC)


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
        # streamed body itself and refuses an override.
        sent = [
            (name.decode(), value.decode())
            for name, value in request.headers.raw
            if name.lower() != b"transfer-encoding"
        ]
        body = request.stream if request.method not in ("GET", "HEAD") else None
        try:
            answer = await self._open().request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=sent,
                data=await request.aread() if isinstance(body, httpx.ByteStream) else body,
                allow_redirects=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            )
        except Exception as error:
            raise translate(error, request) from error
        headers = httpx.Headers([(name, value) for name, value in answer.raw_headers])
        try:
            packed = _take_packing(headers, request)
        except httpx.DecodingError:
            answer.close()
            raise
        return httpx.Response(
            answer.status,
            headers=headers,
            stream=_Body(answer, request, _Gunzip(request) if packed else None),
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

    def __init__(
        self, answer: aiohttp.ClientResponse, request: httpx.Request, gunzip: "_Gunzip | None"
    ) -> None:
        self._answer = answer
        self._request = request
        self._gunzip = gunzip

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.content.iter_any():
                if self._gunzip is None:
                    yield chunk
                    continue
                for piece in self._gunzip.feed(chunk):
                    yield piece
                    await asyncio.sleep(0)  # a chunk may be a thousand pieces
            if self._gunzip is not None:
                yield self._gunzip.end()
        except Exception as error:
            raise translate(error, self._request) from error

    async def aclose(self) -> None:
        if self._answer.content.at_eof():
            self._answer.release()
        else:
            self._answer.close()


class PlainTransport(httpx.HTTPTransport):
    """httpx's own transport for synchronous calls, with our view of encodings."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        assert isinstance(answer.stream, httpx.SyncByteStream)
        try:
            packed = _take_packing(answer.headers, request)
        except httpx.DecodingError:
            answer.close()
            raise
        if packed:
            answer.stream = _PackedBody(answer.stream, _Gunzip(request))
        return answer


class _PackedBody(httpx.SyncByteStream):
    """The body of a gzip, unpacked as it is read."""

    def __init__(self, stream: httpx.SyncByteStream, gunzip: "_Gunzip") -> None:
        self._stream = stream
        self._gunzip = gunzip

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield from self._gunzip.feed(chunk)
        yield self._gunzip.end()

    def close(self) -> None:
        self._stream.close()


def _take_packing(headers: httpx.Headers, request: httpx.Request) -> bool:
    """Return whether a body is one gzip, and leave the headers of what comes out of it.

    Raises DecodingError for every other encoding.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding not in ("gzip", "x-gzip"):
        raise httpx.DecodingError(f"content-encoding {encoding[:100]!r}", request=request)
    del headers["content-encoding"]
    headers.pop("content-length", None)
    return True


class _Gunzip:
    """Unpacks one gzip, at most PIECE bytes at a time; raises DecodingError when it is none."""

    def __init__(self, request: httpx.Request) -> None:
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._request = request
        self._empty = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk unpacks to."""
        while chunk:
            self._empty = False
            if self._inflater.eof:
                raise self._broken("something comes after the gzip")
            try:
                piece = self._inflater.decompress(chunk, PIECE)
            except zlib.error as error:
                raise self._broken(str(error)) from error
            chunk = self._inflater.unconsumed_tail or self._inflater.unused_data
            if piece:
                yield piece

    def end(self) -> bytes:
        """Return what is left at the end of the body, which may have been empty."""
        left = self._inflater.flush()
        if not (self._inflater.eof or self._empty):
            raise self._broken("the gzip is cut off")
        return left

    def _broken(self, why: str) -> httpx.DecodingError:
        return httpx.DecodingError(why, request=self._request)


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
    announced = response.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge
        chunks.append(chunk)
    return b"".join(chunks)


def read_at_most_now(response: httpx.Response, limit: int) -> bytes:
    """Do the same for a synchronous response."""
    chunks, size = [], 0
    for chunk in response.iter_bytes():
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
        headers={**OURS, **(headers or {})},
        timeout=httpx.Timeout(read, connect=connect),
        # One client serves every customer; what an upstream sets for one is not sent for another.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        transport=AiohttpTransport(resolver=resolver),
        follow_redirects=False,
        trust_env=False,
    )
