"""bin/setup in a copy of the checkout, with an interpreter that records its arguments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Stands for the machine's Python and for that of the environment it makes. Installing uv fails, as
# where no index can be reached by it; whatever pip is asked for is written down.
PYTHON = """#!/bin/bash
case "$*" in
    *_base_executable*) echo "$0" ;;
    *"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"-m pip --version") echo "pip $PIP_VERSION from nowhere" ;;
    *"-m pip install"*uv==*) echo "uv" >> "$LOG"; exit 1 ;;
    *"-m pip install"*requirements-dev.lock) cat requirements-dev.lock >> "$LOG" ;;
    *"-m pip install"*--require-hashes*) cat "${@: -1}" >> "$LOG"; [ -z "$OLD_PIP_FAILS" ] ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


def run(folder: Path, pip_version: str, **environment: str) -> tuple[list[str], str]:
    """Return the lines that pip was given, and what was said."""
    (folder / "bin").mkdir()
    shutil.copy(ROOT / "bin" / "setup", folder / "bin")
    (folder / "requirements-dev.lock").write_text("the lock\n")
    (folder / "path").mkdir()
    python = folder / "path" / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    log = folder / "log"
    done = subprocess.run(
        [folder / "bin" / "setup"],
        env={
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "LOG": str(log),
            "REAL_PYTHON": sys.executable,
            "PIP_VERSION": pip_version,
            "OLD_PIP_FAILS": "",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / ".venv" / ".setup-stamp").exists()
    return log.read_text().splitlines(), done.stderr


def pinned(name: str) -> str:
    lines = (ROOT / "bin" / "setup").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))


def test_where_uv_fails_pip_is_brought_up_to_date_first_by_its_hash(tmp_path: Path) -> None:
    asked, said = run(tmp_path, "23.2.1")
    pip = f"pip=={pinned('pip_version')} --hash={pinned('pip_hash')}"
    assert asked == ["uv", pip, "the lock"]
    assert "uv could not do it" in said


def test_a_pip_of_that_version_is_left_alone(tmp_path: Path) -> None:
    asked, _ = run(tmp_path, pinned("pip_version"))
    assert asked == ["uv", "the lock"]


def test_a_pip_that_cannot_be_updated_is_used_as_it_is(tmp_path: Path) -> None:
    asked, said = run(tmp_path, "23.2.1", OLD_PIP_FAILS="1")
    assert asked[-1] == "the lock"
    assert "could not update pip" in said
