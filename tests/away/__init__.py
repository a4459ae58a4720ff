"""A dependency that is away is never a page of an error of ours: the instruments.

`Wire` lies between us and a server: it passes, refuses or swallows what is sent. `urls` are all
addresses of the URL map, the real things of an organization in them.
"""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from django.test import Client
from django.urls import get_resolver

from accounts.models import Organization
from tests.pages.test_walk import address, walk

# What is not ours to wait for: nothing here takes longer than its own limits, and a busy machine.
PATIENCE = 60
PROVING = "PROVE" in os.environ


class Wire:
    """A TCP relay to a server; every connection that is open shares its fate."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flows = threading.Event()
        self._flows.set()
        self._open = ExitStack()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._over = False
        threading.Thread(target=self._accept, daemon=True).start()

    def hang(self) -> None:
        """Take connections and bytes, and let nothing through."""
        self._flows.clear()

    def flow(self) -> None:
        """Let through what waits, and what comes."""
        self._flows.set()

    def cut(self) -> None:
        """Break every connection there is."""
        with self._lock:
            self._open.close()

    def _keep(self, one: socket.socket) -> bool:
        with self._lock:
            self._open.callback(_end, one)
            return not self._over

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=[near], daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._keep(near)
        self._flows.wait()
        try:
            far = socket.create_connection(self._target, timeout=PATIENCE)
        except OSError:
            _end(near)
            return
        if not self._keep(far):
            self.cut()
            return
        threading.Thread(target=self._pump, args=[far, near], daemon=True).start()
        self._pump(near, far)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        _end(source)
        _end(sink)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        _end(self._listener)
        self.cut()
        self._flows.set()


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def urls(acme: Organization) -> list[str]:
    """Return an address of every route but those of /v1, each once."""
    return sorted(set(_urls(acme)))


def _urls(acme: Organization) -> Iterator[str]:
    for route, _ in walk(get_resolver().url_patterns):
        if route.startswith(("v1/", "^v1/")):
            continue
        route = re.sub(r"\(\?P<\w+>accounts\|images\|billing\)", "billing", route)
        route = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"<\1>", route).replace("^", "").replace("$", "")
        if route.startswith("staff/accounts/organization/"):
            route = route.replace("<path:object_id>", str(acme.pk))
        elif route.startswith("staff/"):
            route = route.replace("<path:object_id>", "1")
        yield address(route, acme)


def ask(client: Client, method: str, path: str) -> Any:
    """Return the answer to GET or to an empty form, also where the application raised."""
    client.raise_request_exception = False
    send: Callable[..., Any] = client.get if method == "GET" else client.post
    return send(path)
