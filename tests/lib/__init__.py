"""What tests of outgoing calls share: small servers on the loopback address, good and bad."""

import asyncio
import functools
import gzip
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

type Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve HTTP on a free port with one handler for everything; yield the origin."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def saying(answer: bytes, *, hang: bool = False) -> AsyncIterator[str]:
    """Answer every connection's first request with these bytes, then close it, or hang."""
    open_ones: set[asyncio.StreamWriter] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if not hang:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in open_ones:
            writer.close()
        await server.wait_closed()


def dead_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def zipped(size: int, layers: int) -> bytes:
    """Return so many zeros in so many layers of gzip; a layer is a thousandth of the one inside."""
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(2**20)
    body = b"".join(packer.compress(piece) for _ in range(size // len(piece))) + packer.flush()
    return body if layers == 1 else gzip.compress(body)
