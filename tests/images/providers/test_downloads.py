"""Downloads: a URL that a provider gave us is input from outside."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from pytest_django.fixtures import Settings

from images.pixels import pictures
from images.providers.downloads import ATTEMPTS, DownloadRefused, Downloads
from tests.lib import dead_port, saying, serving, zipped

ALLOWED = ["imgen.x.ai", "*.fal.media", "localhost", "http://127.0.0.1:9000"]


def fetch(url: str, allowed: list[str] | None = None) -> bytes:
    async def main() -> bytes:
        downloads = Downloads(ALLOWED if allowed is None else allowed)
        try:
            return await downloads.get(url)
        finally:
            await downloads.aclose()

    return asyncio.run(main())


class Host:
    """A host of pictures that remembers which paths it was asked for."""

    def __init__(self, answer: Callable[[int], web.Response]) -> None:
        self.paths: list[str] = []
        self._answer = answer

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        self.paths.append(request.path)
        return self._answer(len(self.paths))


def fetch_from(handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> bytes:
    async def main() -> bytes:
        async with serving(handler) as origin:
            downloads = Downloads([origin])
            try:
                return await downloads.get(f"{origin}/files/a.png")
            finally:
                await downloads.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize(
    "url",
    [
        "http://imgen.x.ai/a.png",
        "ftp://imgen.x.ai/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "//imgen.x.ai/a.png",
        "imgen.x.ai/a.png",
        "",
        "https://",
        "https:///a.png",
        "https://evil.com/a.png",
        "https://imgen.x.ai.evil.com/a.png",
        "https://evil.imgen.x.ai/a.png",
        "https://imgen.x.ai./a.png",
        "https://evil.com/imgen.x.ai",
        "https://evil.com#imgen.x.ai",
        "https://evil.com?imgen.x.ai",
        # a wildcard is for subdomains, and for nothing else
        "https://fal.media/a.png",
        "https://evilfal.media/a.png",
        "https://fal.media.evil.com/a.png",
        "https://v3.fal.media.evil.com/a.png",
        # somebody in front of the host
        "https://user@imgen.x.ai/a.png",
        "https://user:password@imgen.x.ai/a.png",
        "https://:password@imgen.x.ai/a.png",
        "https://@imgen.x.ai/a.png",
        "https://imgen.x.ai@evil.com/a.png",
        "https://imgen.x.ai:443@evil.com/a.png",
        "https://evil.com\\@imgen.x.ai/a.png",
        # other ports
        "https://imgen.x.ai:80/a.png",
        "https://imgen.x.ai:8443/a.png",
        "https://imgen.x.ai:0/a.png",
        "https://imgen.x.ai:99999/a.png",
        "https://imgen.x.ai:x/a.png",
        # addresses
        "https://127.0.0.1/a.png",
        "https://169.254.169.254/latest/meta-data/",
        "https://8.8.8.8/a.png",
        "https://2130706433/a.png",
        "https://0x7f.1/a.png",
        "https://[::1]/a.png",
        "https://[::ffff:127.0.0.1]/a.png",
        "https://[::1",
        # an origin allows exactly itself
        "http://127.0.0.1/a.png",
        "http://127.0.0.1:9001/a.png",
        "https://127.0.0.1:9000/a.png",
        "http://user@127.0.0.1:9000/a.png",
        "http://127.0.0.1:9000@evil.com/a.png",
        "http://127.0.0.1:9000.evil.com/a.png",
        "http://localhost:9000/a.png",
    ],
)
def test_what_is_not_on_the_list_is_refused(url: str) -> None:
    with pytest.raises(DownloadRefused, match=r"is not on the list|not a URL"):
        fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://v3.fal.media/\x00",
        "https://v3.fal.media/a\x7fb",
        "https://v3.fal.media/" + "a" * 70_000,
        "https://a..fal.media/a.png",
        "https://.fal.media/a.png",
        "https://xn--.fal.media/a.png",
        "https://" + "a" * 64 + ".fal.media/a.png",
        "https://a\\b.fal.media/a.png",
        "https://℀.fal.media/a.png",
    ],
    ids=lambda url: ascii(url[:24]),
)
def test_what_no_client_can_read_is_refused_and_no_fault_of_ours(url: str) -> None:
    with pytest.raises(DownloadRefused, match="not a URL"):
        fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://imgen.x.ai/a.png?b=c#d",
        "https://IMGEN.X.AI/a.png",
        "HTTPS://imgen.x.ai:443/a.png",
        "https://v3.fal.media/a.png",
        "https://a.b.fal.media/a.png",
        "http://127.0.0.1:9000/a.png",
        "HTTP://127.0.0.1:9000/a.png",
    ],
)
def test_what_is_on_the_list_passes(url: str) -> None:
    async def main() -> bool:
        downloads = Downloads([*ALLOWED, "*.FAL.media", "http://127.0.0.1:9000/"])
        try:
            # Without a network this is as far as a public host goes.
            return downloads._client_for(url) is not None
        finally:
            await downloads.aclose()

    assert asyncio.run(main())


def test_an_empty_list_allows_nothing() -> None:
    for url in ("https://imgen.x.ai/a.png", "http://127.0.0.1:9000/a.png"):
        with pytest.raises(DownloadRefused, match="is not on the list"):
            fetch(url, allowed=[])


def test_a_listed_name_that_leads_inside_is_refused() -> None:
    with pytest.raises(DownloadRefused, match="ConnectError") as caught:
        fetch("https://localhost/a.png")
    chain, error = [], caught.value.__cause__
    while error is not None:
        chain.append(str(error))
        error = error.__cause__
    assert any("localhost resolves to an address that is not public" in text for text in chain)


def test_the_body_is_returned() -> None:
    host = Host(lambda number: web.Response(body=b"picture"))
    assert fetch_from(host) == b"picture"
    assert host.paths == ["/files/a.png"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    elsewhere = {"Location": "/inside"}
    host = Host(lambda number: web.Response(status=status, headers=elsewhere))
    with pytest.raises(DownloadRefused, match=f"HTTP {status}"):
        fetch_from(host)
    assert host.paths == ["/files/a.png"]


@pytest.mark.parametrize("status", [204, 206, 400, 401, 403, 404, 410, 429])
def test_what_would_not_change_is_not_asked_again(status: int) -> None:
    host = Host(lambda number: web.Response(status=status))
    with pytest.raises(DownloadRefused, match=f"HTTP {status}"):
        fetch_from(host)
    assert len(host.paths) == 1


def test_a_server_error_is_asked_again() -> None:
    host = Host(lambda number: web.Response(status=503 if number < ATTEMPTS else 200, body=b"x"))
    assert fetch_from(host) == b"x"
    assert len(host.paths) == ATTEMPTS


def test_a_server_error_that_stays_is_refused() -> None:
    host = Host(lambda number: web.Response(status=500))
    with pytest.raises(DownloadRefused, match="HTTP 500"):
        fetch_from(host)
    assert len(host.paths) == ATTEMPTS


def test_a_cut_body_is_asked_for_again_and_never_returned() -> None:
    async def main() -> None:
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
        async with saying(cut) as origin:
            downloads = Downloads([origin])
            try:
                with pytest.raises(DownloadRefused, match="RemoteProtocolError"):
                    await downloads.get(f"{origin}/a.png")
            finally:
                await downloads.aclose()

    asyncio.run(main())


def test_a_host_that_is_not_there_is_refused() -> None:
    origin = f"http://127.0.0.1:{dead_port()}"
    with pytest.raises(DownloadRefused, match="ConnectError"):
        fetch(f"{origin}/a.png", allowed=[origin])


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_a_body_has_at_most_the_size_of_a_picture(counted: bool, extra: int, fits: bool) -> None:
    size = pictures.MAX_BYTES + extra

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        headers: dict[str, Any] = {"Content-Length": str(size)} if counted else {}
        reply = web.StreamResponse(headers=headers)
        await reply.prepare(request)
        await reply.write(b"\0" * size)
        return reply

    if fits:
        assert len(fetch_from(answer)) == size
    else:
        with pytest.raises(DownloadRefused, match=f"over {pictures.MAX_BYTES} bytes"):
            fetch_from(answer)


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "[::1]"])
def test_a_listed_address_without_its_origin_is_refused(host: str) -> None:
    async def run() -> None:
        downloads = Downloads([host.strip("[]")])
        try:
            await downloads.get(f"https://{host}/a.png")
        finally:
            await downloads.aclose()

    with pytest.raises(DownloadRefused, match="is no name"):
        asyncio.run(run())


def test_fals_own_name_is_on_the_list_beside_its_subdomains(settings: Settings) -> None:
    assert {"fal.media", "*.fal.media"} <= set(settings.PROVIDER_DOWNLOAD_HOSTS)


@pytest.mark.parametrize(
    ("layers", "encodings"), [(1, "gzip"), (2, "gzip, gzip"), (2, "gzip, br"), (1, "deflate")]
)
def test_a_picture_that_unpacks_to_gigabytes_is_not_unpacked(layers: int, encodings: str) -> None:
    body = zipped(128 * 2**20, layers)

    def answer(count: int) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encodings})

    tracemalloc.start()
    try:
        with pytest.raises(DownloadRefused):
            fetch_from(Host(answer))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * pictures.MAX_BYTES
