"""The service as an operator runs it: gunicorn in its own process group, on the test's data."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx
from django.db import connection

from tests.emulators.openai import OpenAIEmulator

ROOT = Path(__file__).resolve().parents[2]
# Bounds, not measures: beside other work a command takes a minute to load.
START_SECONDS = 180
STOP_SECONDS = 60


def database_url() -> str:
    """Return the address of the database that the running test uses."""
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{settings['NAME']}"
    user, password = (quote(str(settings[name]), safe="") for name in ("USER", "PASSWORD"))
    place = f"{settings['HOST']}:{settings['PORT']}"
    return f"postgres://{user}:{password}@{place}/{quote(str(settings['NAME']), safe='')}"


class Service:
    """gunicorn on a free port, drawing with the emulator, its files in `folder`."""

    def __init__(
        self,
        folder: Path,
        openai: OpenAIEmulator,
        *,
        before: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        """`before` are words of a command that runs the one behind them."""
        self._before = before
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "static").mkdir(parents=True, exist_ok=True)
        self._environment = {
            **os.environ,
            "DATABASE_URL": database_url(),
            "DATA_DIR": str(folder),
            "PORT": str(self.port),
            "BIND": f"127.0.0.1:{self.port}",
            "DEBUG": "true",
            "SECRET_KEY": "only-for-tests",
            "OPENAI_API_KEY": openai.key,
            "OPENAI_BASE_URL": openai.url,
            "PROVIDER_DOWNLOAD_HOSTS": openai.origin,
            "PYTHONWARNINGS": "default",
            **environment,
        }

    def start(self) -> Self:
        """Start, and return when it answers."""
        command = ["-m", "gunicorn", "-c", "gunicorn.conf.py", "geekhub.asgi:application"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._before, sys.executable, *command],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        transport = httpx.HTTPTransport()
        with httpx.Client(transport=transport, timeout=START_SECONDS) as client:
            self._until(lambda: _answers(client, self.origin), "start")
        return self

    @property
    def pid(self) -> int:
        """Return the process that all others of it come from."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End every process of it at once, as a power cut would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)

    def terminate(self) -> None:
        """Ask it to stop, and return once it accepts no more connections."""
        assert self._process is not None
        self._process.terminate()
        self._until(lambda: not _listens(self.port), "stop listening")

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        assert self._process is not None
        return self._process.wait(STOP_SECONDS)

    def manage(self, *arguments: str) -> str:
        """Run a management command beside it and return what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self) -> str:
        """Return what it has written to its log."""
        return self._log.read_text(errors="replace")

    def _until(self, happened: Callable[[], bool], what: str) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if happened():
                return
            if what == "start" and self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the server did not {what}:\n{self.log()[-3000:]}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def _answers(client: httpx.Client, origin: str) -> bool:
    try:
        return client.get(f"{origin}/health").status_code == 200
    except httpx.TransportError:
        return False


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS).close()
    except OSError:
        return False
    return True
