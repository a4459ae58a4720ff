"""Which server processes of this host are gone, known the moment they die.

Each process locks a file named after itself. The kernel drops the lock however the process ends,
SIGKILL included, so a file that can be locked belongs to a process that is no more. Processes of
other hosts have no file here; for them the caller's lease decides.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".alive"


class Presence:
    """The lock of this process, held until `close()` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = uuid.uuid4()
        self._path = folder / f"{self.owner}{SUFFIX}"
        hidden = folder / f".{self.owner}"
        self._descriptor = os.open(hidden, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        # Visible only once locked: nobody can take a starting process for a dead one.
        hidden.rename(self._path)

    def close(self) -> None:
        """Give the lock up; for a process whose work is done."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def departed(folder: Path) -> Iterator[uuid.UUID]:
    """Yield the owners on this host whose process has ended without `close()`.

    The file is removed after the caller has come back for the next one, hence has settled
    what the owner left; a caller that dies in between finds it again.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            owner = uuid.UUID(path.stem)
        except ValueError:
            continue  # not one of ours
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            yield owner
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
