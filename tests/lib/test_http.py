"""The transport under httpx: exact errors, nothing kept between customers, connections reused."""

import asyncio
import functools
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from multidict import CIMultiDict

from geekhub.lib import http
from geekhub.lib.http import (
    AddressRefused,
    BodyTooLarge,
    PublicResolver,
    is_public,
    read_at_most,
    read_at_most_now,
)
from tests.lib import Handler, dead_port, saying, serving


def use[T](work: Callable[[httpx.AsyncClient], Awaitable[T]], **options: Any) -> T:
    """Run work with a client of ours."""

    async def main() -> T:
        async with http.client(**{"connect": 2, "read": 5, **options}) as client:
            return await work(client)

    return asyncio.run(main())


def fails(origin_of: Any, kind: type[httpx.HTTPError], **options: Any) -> httpx.HTTPError:
    """Send a POST to a server and return the error, which is exactly of this kind."""

    async def work(client: httpx.AsyncClient) -> httpx.HTTPError:
        async with origin_of() as origin:
            with pytest.raises(httpx.HTTPError) as caught:
                await client.post(f"{origin}/draw", content=b"{}")
        return caught.value

    error = use(work, **options)
    assert type(error) is kind
    assert error.request.method == "POST"
    return error


def test_a_request_arrives_as_it_was_sent_and_the_answer_as_it_was_given() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response(
            {
                "method": request.method,
                "path": request.raw_path,
                "headers": [[name.lower(), value] for name, value in request.headers.items()],
                "body": (await request.read()).decode(),
            },
            status=418,
            headers={"X-Request-Id": "up-1"},
        )

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        async with serving(answer) as origin:
            client.base_url = httpx.URL(f"{origin}/v1/")
            return await client.post("images/g%C3%A9n?a=1%202&b", json={"n": 1})

    reply = use(work, headers={"Authorization": "Bearer sk-1"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (418, "up-1")
    seen = reply.json()
    assert (seen["method"], seen["path"]) == ("POST", "/v1/images/g%C3%A9n?a=1%202&b")
    assert seen["body"] == '{"n":1}'
    headers = dict(seen["headers"])
    assert len(headers) == len(seen["headers"])
    assert headers["authorization"] == "Bearer sk-1"
    assert headers["user-agent"] == "GeekHub/1.0"
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == "7"


def test_a_refused_connection_is_a_connect_error() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.ConnectError):
            await client.post(f"http://127.0.0.1:{dead_port()}/", content=b"{}")

    use(work)


def test_an_unknown_host_is_a_connect_error() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://no-such-host.invalid/")

    use(work)


def test_a_server_that_does_not_answer_is_a_read_timeout() -> None:
    fails(lambda: saying(b"", hang=True), httpx.ReadTimeout, read=0.05)


def test_a_server_that_stops_in_the_middle_is_a_read_timeout() -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    fails(lambda: saying(half, hang=True), httpx.ReadTimeout, read=0.05)


def test_a_server_that_closes_before_it_answers_broke_the_protocol() -> None:
    # Not a ConnectError: the request may have been carried out.
    fails(lambda: saying(b""), httpx.RemoteProtocolError)


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
    ids=["counted", "chunked"],
)
def test_a_cut_body_is_an_error_and_not_a_shorter_body(cut: bytes) -> None:
    fails(lambda: saying(cut), httpx.RemoteProtocolError)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"220 smtp.example.com ESMTP\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
    ids=["another protocol", "status", "length", "endless header"],
)
def test_nonsense_is_one_of_httpx_errors(nonsense: bytes) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with saying(nonsense) as origin:
            with pytest.raises(httpx.TransportError) as caught:
                await client.post(f"{origin}/", content=b"{}")
        assert not isinstance(caught.value, httpx.ConnectError)

    use(work)


def test_what_an_upstream_sets_for_one_request_is_not_sent_with_the_next() -> None:
    cookies = []

    async def answer(request: web.BaseRequest) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        reply = web.Response()
        reply.set_cookie("session", "somebody")
        return reply

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(answer) as origin:
            for _ in range(2):
                await client.get(origin)

    use(work)
    assert cookies == [None, None]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    seen = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        async with serving(answer) as origin:
            return await client.get(f"{origin}/here")

    assert use(work).status_code == status
    assert seen == ["/here"]


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{dead_port()}")

    async def work(client: httpx.AsyncClient) -> int:
        async with serving(_ok) as origin:
            return (await client.get(origin)).status_code

    assert use(work) == 200


async def _ok(request: web.BaseRequest) -> web.Response:
    return web.Response(body=b"ok")


def _counting(ports: set[int]) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    async def answer(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.Response(body=b"x" * 100_000)

    return answer


def test_a_connection_is_used_again() -> None:
    ports: set[int] = set()

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(_counting(ports)) as origin:
            for _ in range(5):
                assert len((await client.post(origin, content=b"{}")).content) == 100_000

    use(work)
    assert len(ports) == 1


def test_a_connection_left_before_the_end_of_the_body_is_not_used_again() -> None:
    ports: set[int] = set()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await _counting(ports)(request)
        reply = web.StreamResponse()
        await reply.prepare(request)
        await reply.write(b"x")
        if request.path == "/endless":
            await asyncio.Event().wait()
        return reply

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(answer) as origin:
            async with client.stream("GET", f"{origin}/endless") as reply:
                assert reply.status_code == 200
            assert (await client.get(f"{origin}/short")).content == b"x"

    use(work)
    assert len(ports) == 2


def test_as_many_connections_as_calls() -> None:
    everybody = asyncio.Barrier(120)

    async def answer(request: web.BaseRequest) -> web.Response:
        await everybody.wait()
        return web.Response(body=b"ok")

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        async with serving(answer) as origin:
            return await asyncio.gather(*(client.get(origin) for _ in range(120)))

    assert {reply.status_code for reply in use(work)} == {200}


def encoded(body: bytes, *encodings: str) -> Handler:
    """Answer with a body and say how it is encoded, one header each; nothing else is asked for."""

    async def answer(request: web.BaseRequest) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        headers = CIMultiDict(("Content-Encoding", one) for one in encodings)
        return web.Response(body=body, headers=headers)

    return answer


@functools.cache
def zipped(size: int, layers: int) -> bytes:
    """Return so many zeros in so many layers of gzip; a layer is a thousandth of the one inside."""
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(2**20)
    body = b"".join(packer.compress(piece) for _ in range(size // len(piece))) + packer.flush()
    return body if layers == 1 else gzip.compress(body)


def fetch(answer: Handler, *, limit: int = 2**20, sync: bool = False) -> bytes:
    """Return the body of an answer, read with a limit."""

    async def work(client: httpx.AsyncClient) -> bytes:
        async with serving(answer) as origin:
            if sync:
                return await asyncio.to_thread(read, origin)
            async with client.stream("GET", origin) as reply:
                return await read_at_most(reply, limit)

    def read(origin: str) -> bytes:
        with (
            httpx.Client(headers=http.OURS, transport=http.PlainTransport()) as client,
            client.stream("GET", origin) as reply,
        ):
            return read_at_most_now(reply, limit)

    return use(work)


TEXT = b'{"a": 1}' * 100_000


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(
    ("encodings", "body"),
    [
        ([], TEXT),
        (["identity"], TEXT),
        (["gzip"], gzip.compress(TEXT)),
        (["X-GZip"], gzip.compress(TEXT)),
        (["gzip"], gzip.compress(TEXT, 0)),
    ],
)
def test_an_answer_may_be_one_gzip(encodings: list[str], body: bytes, sync: bool) -> None:
    assert fetch(encoded(body, *encodings), sync=sync) == TEXT


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(
    "encodings",
    [
        ["gzip, gzip"],
        ["gzip", "gzip"],
        ["gzip,identity"],
        ["gzip,"],
        [",gzip"],
        ["deflate"],
        ["br"],
        ["zstd"],
        ["x" * 5000],
        ["gzip, " * 100 + "gzip"],
    ],
)
def test_any_other_encoding_is_refused_before_a_byte_is_read(
    encodings: list[str], sync: bool
) -> None:
    with pytest.raises(httpx.DecodingError, match="content-encoding"):
        fetch(encoded(zipped(2**20, 2), *encodings), sync=sync)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b"plain",
        b"\x1f",
        gzip.compress(TEXT)[:-1],
        gzip.compress(TEXT)[:500],
        gzip.compress(b"a") * 2,
        gzip.compress(b"a") + b"?",
        zlib.compress(TEXT),
    ],
)
def test_what_is_no_gzip_is_an_error_and_not_a_shorter_body(body: bytes, sync: bool) -> None:
    with pytest.raises(httpx.DecodingError):
        fetch(encoded(body, "gzip"), sync=sync)


@pytest.mark.parametrize("sync", [False, True])
def test_an_empty_body_is_empty_however_it_is_encoded(sync: bool) -> None:
    assert fetch(encoded(b"", "gzip"), sync=sync) == b""


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(
    ("layers", "encodings", "error"),
    [
        (1, ["gzip"], BodyTooLarge),
        (2, ["gzip"], None),
        (2, ["gzip, gzip"], httpx.DecodingError),
        (2, ["gzip", "gzip"], httpx.DecodingError),
    ],
)
def test_what_unpacks_to_much_is_never_unpacked(
    layers: int, encodings: list[str], error: type[Exception] | None, sync: bool
) -> None:
    body = zipped(64 * 2**20, layers)
    tracemalloc.start()
    try:
        with pytest.raises(error) if error else nullcontext():
            fetch(encoded(body, *encodings), sync=sync)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The limit of a megabyte, a few copies of it, and the server of the test.
    assert peak < 8 * 2**20


def test_a_client_that_reads_all_at_once_undoes_no_layers_either() -> None:
    """Not even what forgets the limit is unpacked twice."""

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(encoded(zipped(2**20, 2), "gzip, gzip")) as origin:
            with pytest.raises(httpx.DecodingError):
                await client.get(origin)
            # The connection is gone with it, and the next one works.
        async with serving(encoded(b"next")) as origin:
            assert (await client.get(origin)).content == b"next"

    use(work)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(("size", "fits"), [(0, True), (1000, True), (1001, False)])
def test_a_body_is_read_up_to_a_limit(counted: bool, size: int, fits: bool) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Length": str(size)} if counted else {})
        await reply.prepare(request)
        await reply.write(b"x" * size)
        return reply

    async def work(client: httpx.AsyncClient) -> bytes | None:
        async with serving(answer) as origin, client.stream("GET", origin) as reply:
            try:
                return await read_at_most(reply, 1000)
            except BodyTooLarge:
                return None

    assert use(work) == (b"x" * size if fits else None)


def test_a_body_that_says_it_is_too_large_is_not_waited_for() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        announced = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"
        async with saying(announced, hang=True) as origin, client.stream("GET", origin) as reply:
            with pytest.raises(BodyTooLarge):
                await read_at_most(reply, 1000)

    use(work, read=30)


def test_a_small_body_that_unpacks_to_a_large_one_is_too_large() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(
            body=gzip.compress(b"\0" * 100_000), headers={"Content-Encoding": "gzip"}
        )

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(answer) as origin, client.stream("GET", origin) as reply:
            with pytest.raises(BodyTooLarge):
                await read_at_most(reply, 1000)

    use(work)


def test_a_streamed_body_is_sent() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await request.read())

    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async def work(client: httpx.AsyncClient) -> bytes:
        async with serving(answer) as origin:
            return (await client.put(origin, content=parts())).content

    assert use(work) == b"one two"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (aiohttp.ConnectionTimeoutError(), httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError(), httpx.ReadTimeout),
        (TimeoutError(), httpx.ReadTimeout),
        (AddressRefused("inside"), httpx.ConnectError),
        (aiohttp.InvalidURL("x"), httpx.UnsupportedProtocol),
        (aiohttp.ClientOSError(32, "broken pipe"), httpx.WriteError),
        (aiohttp.ClientPayloadError(), httpx.RemoteProtocolError),
        (aiohttp.ServerDisconnectedError(), httpx.RemoteProtocolError),
        (aiohttp.ClientError(), httpx.ReadError),
        (OSError(), httpx.ReadError),
        (ConnectionResetError(), httpx.ReadError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_each_error_has_its_counterpart(error: Exception, kind: type[Exception]) -> None:
    request = httpx.Request("GET", "http://127.0.0.1/")
    assert type(http.translate(error, request)) is kind


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = KeyError("ours")
    assert http.translate(error, httpx.Request("GET", "http://127.0.0.1/")) is error


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("2a00:1450:4001:830::200e", True),
        ("64:ff9b::8.8.8.8", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        # An IPv4 address inside, in each way there is to write one: NAT64 and its local kind,
        # 6to4, Teredo, IPv4-compatible, translated, ISATAP.
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::127.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b:1::a9fe:a9fe", False),
        ("64:ff9b:1::8.8.8.8", False),
        ("64:ff9b:1:ffff::1", False),
        ("2002:7f00:1::1", False),
        ("2002:a9fe:a9fe::", False),
        ("2002:808:808::1", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
        ("::127.0.0.1", False),
        ("::8.8.8.8", False),
        ("::ffff:0:127.0.0.1", False),
        ("::ffff:0:8.8.8.8", False),
        ("2606:4700::5efe:10.0.0.1", False),
        ("2606:4700::200:5efe:10.0.0.1", False),
        ("fe80::5efe:8.8.8.8", False),
        # Never handed out, or not to the public.
        ("fec0::1", False),
        ("100::1", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("4000::1", False),
        ("ff0e::1", False),
        ("192.88.99.1", False),
        ("192.0.2.1", False),
        ("203.0.113.1", False),
        ("::ffff:192.88.99.1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_name_that_leads_inside_is_refused_before_anything_is_sent() -> None:
    seen = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        return web.Response()

    async def main() -> None:
        resolver = PublicResolver()
        with pytest.raises(AddressRefused, match="localhost resolves to an address"):
            await resolver.resolve("localhost", 443)
        async with (
            serving(answer) as origin,
            http.client(connect=2, read=2, resolver=resolver) as client,
        ):
            port = origin.rpartition(":")[2]
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://localhost:{port}/")

    asyncio.run(main())
    assert seen == []
