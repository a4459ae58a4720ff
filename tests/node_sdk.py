"""The official clients for Node, installed into tests/node when a test first asks for one."""

import fcntl
import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "node"
INSTALL_SECONDS = 180


def node_clients() -> Path | None:
    """Return the folder to run `node` in, or None; `why_no_node()` then says why."""
    return FOLDER if _problem() is None else None


def why_no_node() -> str:
    """Return why `node_clients()` is None, for pytest.skip; empty when it is not."""
    return _problem() or ""


@cache
def _problem() -> str | None:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} not found"
    locked = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = FOLDER / "node_modules" / ".installed-from"
    with (FOLDER / ".install-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the suite may be at it
        if stamp.exists() and stamp.read_text() == locked:
            return None
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(
                command,
                cwd=FOLDER,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"npm could not install the official clients in {INSTALL_SECONDS} seconds"
        if done.returncode:
            last = ((done.stderr or done.stdout).strip() or "no message").splitlines()[-1]
            return f"npm could not install the official clients: {last}"
        stamp.write_text(locked)
        return None
