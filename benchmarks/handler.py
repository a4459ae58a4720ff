"""What the handler of /v1 saves: CPU per GET /v1/models, beside Django's own handler with DRF.

    python -m benchmarks.handler

Both run in this process, in turns, on the database of the environment. The ordinary way is a plain
DRF view with the same classes and the same answer, behind the middleware of the pages. No server
and no network is measured. Prints one row of a table.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import django
import uvloop

ROUNDS, REQUESTS, WARM_UP = 20, 100, 50
PATH = "/v1/models"

type App = Callable[[Any, Any, Any], Awaitable[None]]


async def ask(app: App, key: str, **more: Any) -> bytes:
    """Return the body of the answer."""
    parts: list[bytes] = []
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not body:
            # The client stays.
            await asyncio.get_running_loop().create_future()
        return body.pop()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message
        parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "GET",
        "path": PATH,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "scheme": "http",
        **more,
    }
    await app(scope, receive, send)
    return b"".join(parts)


async def measure(key: str) -> None:
    """Print the row."""
    from django.core.asgi import get_asgi_application
    from django.test import override_settings
    from django.urls import path
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView

    from images.api import views
    from images.api.handler import ApiHandler
    from images.drawing import routing
    from images.drawing.gateway import gateway_of, open_gateway

    class Models(APIView):
        """The endpoint as an ordinary view of DRF."""

        def get(self, request: Request) -> Response:
            """Return the models."""
            gateway = gateway_of(request)
            assert gateway is not None
            rows = views.described(gateway, request.auth, routing.listing())
            return Response({"object": "list", "data": rows})

    urls = (path(PATH.lstrip("/"), Models.as_view()),)
    async with open_gateway() as gateway:
        lean, pages = ApiHandler(gateway), get_asgi_application()
        cpu: dict[str, list[float]] = {"lean": [], "ordinary": []}
        with override_settings(ROOT_URLCONF=urls):
            ways: dict[str, Callable[[], Awaitable[bytes]]] = {
                "lean": lambda: ask(lean, key),
                "ordinary": lambda: ask(pages, key, gateway=gateway),
            }
            assert await ways["lean"]() == await ways["ordinary"]()
            for _ in range(WARM_UP):
                for way in ways.values():
                    await way()
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    began = time.process_time()
                    for _ in range(REQUESTS):
                        await way()
                    cpu[name].append((time.process_time() - began) / REQUESTS * 1e6)
    median = {name: statistics.median(each) for name, each in cpu.items()}
    database = os.environ["DATABASE_URL"].partition(":")[0]
    print("| database | requests of each | lean, CPU µs | ordinary, CPU µs | ratio |")
    print(
        f"| {database} | {ROUNDS * REQUESTS} | {median['lean']:.0f} | {median['ordinary']:.0f} "
        f"| {median['ordinary'] / median['lean']:.2f} |"
    )


def main() -> None:
    """Make a database with a key, and measure."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DATABASE_URL", f"sqlite:///{folder}/db.sqlite3")
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "geekhub.settings",
            "SECRET_KEY": "benchmark",
            "DEBUG": "false",
            "ALLOWED_HOSTS": "localhost",
            "DATA_DIR": folder,
            "LOG_LEVEL": "WARNING",
        }

        def manage(*arguments: str) -> str:
            command = [sys.executable, "manage.py", *arguments]
            return subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.strip()

        manage("migrate", "-v0")
        manage("sync_catalog")
        organization = manage("create_organization", "Bench", "--owner", "bench@example.com")
        key = manage("create_api_key", organization, "bench")
        os.mkdir(os.path.join(folder, "static"))
        django.setup()
        uvloop.run(measure(key))


if __name__ == "__main__":
    main()
