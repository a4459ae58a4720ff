"""The official Python clients, each set in a folder of its own, and a way to call any client.

The project's own environment holds one version of a package; here are the newest of each, and the
older majors that are still met. A set is installed when a test first asks for it, from its lock.
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import pytest

from tests import node_sdk

FOLDER = Path(__file__).resolve().parent
INSTALLED = FOLDER / ".installed"
INSTALL_SECONDS = 180


# The older majors are installed by `make prove`, and run wherever they are.
OLDER = ("first", "second")


def missing(name: str) -> bool:
    """Whether this set would have to be installed first."""
    return _stamp(name) != _wanted(name)


@cache
def why_not(name: str) -> str:
    """Install the set unless it is there; why it cannot be had, for pytest.skip, or nothing.

    `node` is the one set for Node.
    """
    if name == "node":
        return node_sdk.why_no_node()
    if name in OLDER and missing(name) and "PROVE" not in os.environ:
        return "installs older majors of the official clients; PROVE=1 runs it"
    INSTALLED.mkdir(exist_ok=True)
    with (INSTALLED / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the suite may be at it
        if not missing(name):
            return ""
        target = INSTALLED / name
        shutil.rmtree(target, ignore_errors=True)
        try:
            problem = _install(name, target)
        except subprocess.TimeoutExpired:
            problem = f"{INSTALL_SECONDS} seconds were not enough"
        if problem:
            return f"could not install the official clients ({name}): {problem}"
        (target / ".installed-from").write_text(_wanted(name))
        return ""


def _install(name: str, target: Path) -> str:
    """Install with uv, or with pip where uv cannot be had or finds no index; what went wrong."""
    options = ["--target", str(target), "--require-hashes", "-r", str(FOLDER / f"{name}.lock")]
    last = ""
    for program in (["uv", "pip", "install", "--python", sys.executable], ["pip", "install"]):
        done = subprocess.run(
            [sys.executable, "-m", *program, "-q", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
        if not done.returncode:
            return ""
        last = ((done.stderr or done.stdout).strip() or "no message").splitlines()[-1]
    return last


def _wanted(name: str) -> str:
    lock = hashlib.sha256((FOLDER / f"{name}.lock").read_bytes()).hexdigest()
    return f"{lock} {platform.python_version()} {platform.machine()}"


def _stamp(name: str) -> str:
    stamp = INSTALLED / name / ".installed-from"
    return stamp.read_text() if stamp.exists() else ""


class Raised(Exception):
    """What the client threw: the name of its class, and what it says of itself."""

    def __init__(self, name: str, **fields: Any) -> None:
        super().__init__(f"{name}: {fields}")
        self.name, self.fields = name, fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None


class Client:
    """A process with one official client, which makes the calls of a module of ours.

    Call it with a function's name and arguments; bytes may be among them. What the function
    returned comes back as JSON has it, with bytes in base64; what it threw is a `Raised`.
    """

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.node = command[0] == "node"
        # No more of the environment: its settings would change what a client does.
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=own | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    @classmethod
    def of(cls, name: str, calls: str, environment: Mapping[str, str]) -> Self:
        """A client of a set with a module of calls; installs the set, or skips the test."""
        if reason := why_not(name):
            pytest.skip(reason)
        if name == "node":
            return cls(["node", "drive.mjs", calls], node_sdk.FOLDER, environment)
        own = {"PYTHONPATH": str(INSTALLED / name), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-S", "drive.py", f"calls_{calls}"]
        return cls(command, FOLDER, {**own, **environment})

    def __call__(self, call: str, /, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            asked = {"call": call, "arguments": arguments}
            self._process.stdin.write(json.dumps(asked, default=_coded) + "\n")
            self._process.stdin.flush()
        try:
            line = self._process.stdout.readline()
        except BaseException:
            self._process.kill()  # or the next call would read this one's answer
            raise
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the client ended:\n{self._errors.read()}")
        answer = json.loads(line)
        if "raised" in answer:
            raise Raised(answer.pop("raised"), **answer)
        return answer["returned"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def _coded(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    raise TypeError(type(value))
