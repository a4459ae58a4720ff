"""The real application on a real socket, in a thread of the test process."""

import asyncio
import socket
import threading
from types import TracebackType
from typing import Any, Self, cast

import httpx
import uvicorn

from geekhub.asgi import Application
from geekhub.server import Door
from images.drawing.gateway import Gateway

# A bound, not a measure: a busy machine starts slowly.
START_SECONDS = 60


class _Server(uvicorn.Server):
    """Stops as soon as requested; uvicorn's own looks ten times a second, and sleeps once more.

    That took as long as a test.
    """

    def stop(self) -> None:
        """Ask it to stop; from any thread."""
        self._loop.call_soon_threadsafe(self._told.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and be ready to be stopped."""
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        """Serve until stopped."""
        await self.on_tick(0)
        await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections that are idle, wait for the others, then end the application."""
        for listener in (*self.servers, *(sockets or [])):
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.002)
        await self.lifespan.shutdown()


class AppServer:
    """Serves a fresh Application on a free port; the settings are read when it starts."""

    def __init__(self, door: Door | None = None) -> None:
        self._application = Application()
        config = uvicorn.Config(
            self._application,
            lifespan="on",
            log_config=None,
            access_log=False,
            http=cast("type[asyncio.Protocol]", door or Door()),
            ws="none",
            # As gunicorn.conf.py: whom to believe is the service's own setting.
            proxy_headers=False,
        )
        self._server = _Server(config)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="app", daemon=True)

    @property
    def gateway(self) -> Gateway:
        """Return what the process of the application holds."""
        assert self._application.gateway is not None
        return self._application.gateway

    @property
    def connections(self) -> int:
        """Return how many connections are open."""
        return len(self._server.server_state.connections)

    def drain(self) -> None:
        """Wait until every request is finished, also those whose client has left."""
        gateway = self.gateway
        for task in list(gateway.running):
            waiting = asyncio.run_coroutine_threadsafe(
                gateway.drain(START_SECONDS), task.get_loop()
            )
            waiting.result(START_SECONDS)
            break

    def _run(self) -> None:
        self._socket.listen(2048)
        self._ready.set()
        self._server.run(sockets=[self._socket])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS)
        # The socket already queues; the first answer shows that the application is up.
        with httpx.Client(verify=False, timeout=START_SECONDS) as first:
            first.get(f"{self.origin}/health").raise_for_status()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self._server.stop()
        self._thread.join(START_SECONDS)
        self._socket.close()
        assert not self._thread.is_alive()


class Api:
    """A client of the public API with one key; answers are httpx responses."""

    def __init__(self, origin: str, key: str | None, *, timeout: float = 60) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.origin = origin
        # Without TLS nothing is verified; loading the certificates took longer than a request.
        self.http = httpx.Client(
            base_url=f"{origin}/v1/", headers=headers, timeout=timeout, verify=False
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Return the answer to GET /v1/{path}."""
        return self.http.get(path, **options)

    def draw(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """Return the answer to a generation request; model and prompt have defaults."""
        body = {"model": "openai/gpt-image-1", "prompt": "a red kite", **body}
        return self.http.post("images/generations", json=body, headers=headers)

    def post(self, content: bytes, content_type: str = "application/json") -> httpx.Response:
        """Return the answer to raw bytes sent to the generations endpoint."""
        return self.http.post(
            "images/generations", content=content, headers={"Content-Type": content_type}
        )
