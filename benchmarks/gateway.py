"""A gateway in its own processes, in front of an emulated OpenAI in another one."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psutil

from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator

START_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway: its API, a live key with money, and its process tree."""

    origin: str
    key: str
    process: psutil.Process
    environment: dict[str, str]

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server and its workers have used so far."""
        tree = [self.process, *self.process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in tree)

    def memory_bytes(self) -> int:
        """Return the unique memory of the server and its workers."""
        tree = [self.process, *self.process.children(recursive=True)]
        return sum(one.memory_full_info().uss for one in tree)


def core_ms() -> float:
    """Return the CPU milliseconds of a fixed loop: how fast this machine's core is at the moment.

    A core of a machine that is shared is slower by the hour; figures compare only beside this one.
    """
    began, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number * number
    return (time.process_time() - began) * 1000


def _emulate(delay: float, pipe: Connection) -> None:
    with OpenAIEmulator(tiny=True, keep=10) as emulator:
        emulator.always(Behaviour(delay=delay))
        pipe.send((emulator.url, emulator.key))
        pipe.recv()


@contextmanager
def openai(delay: float) -> Iterator[tuple[str, str]]:
    """Yield base URL and key of an OpenAI that answers 1 KB pictures after `delay` seconds."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_emulate, args=(delay, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        process.join(10)


@contextmanager
def gateway(upstream: tuple[str, str], *, workers: int) -> Iterator[Gateway]:
    """Yield a gateway with `workers` processes on the database and Redis of the environment."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        reserved.close()
        environment = os.environ | {
            "SECRET_KEY": "benchmark",
            "DATA_DIR": folder,
            "PORT": str(port),
            "WEB_WORKERS": str(workers),
            "OPENAI_BASE_URL": upstream[0],
            "OPENAI_API_KEY": upstream[1],
            "RATE_LIMIT_RPM": "1000000",
            "MAX_IN_FLIGHT": "100000",
            "GUNICORN_CMD_ARGS": "--log-level warning",
        }

        def manage(*arguments: str) -> str:
            command = [sys.executable, "manage.py", *arguments]
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            return done.stdout.strip()

        manage("migrate", "-v0")
        manage("sync_catalog")
        organization = manage(
            "create_organization", "Bench", "--owner", "bench@example.com", "--credit", "1000000"
        )
        key = manage("create_api_key", organization, "bench")
        manage("collectstatic", "--noinput", "-v0")
        log = open(os.path.join(folder, "log"), "wb")  # noqa: SIM115 - it outlives this block
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                "gunicorn.conf.py",
                "geekhub.asgi:application",
            ],
            env=environment,
            stderr=log,
        )
        try:
            origin = f"http://127.0.0.1:{port}"
            _wait(origin)
            yield Gateway(origin, key, psutil.Process(server.pid), environment)
            report = json.loads(manage("usage", organization, "--json"))
            print(f"ledger: {report['total']['images']} images, held {report['held_usd']} USD")
        finally:
            server.terminate()
            server.wait()
            log.close()


def _wait(origin: str) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{origin}/ready", timeout=2).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
