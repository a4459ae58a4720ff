"""Whether a process is alive, according to the kernel and not to a clock."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geekhub.lib.liveness import Presence, departed

LIVE = """
import sys
from pathlib import Path
from geekhub.lib.liveness import Presence
print(Presence(Path(sys.argv[1])).owner, flush=True)
sys.stdin.read()
"""


@contextmanager
def living(folder: Path) -> Iterator[tuple[uuid.UUID, "subprocess.Popen[str]"]]:
    """Start a process that is present in the folder; yield its owner and the process."""
    command = [sys.executable, "-c", LIVE, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as process:
        assert process.stdout is not None
        try:
            yield uuid.UUID(process.stdout.readline().strip()), process
        finally:
            process.kill()


def test_a_killed_process_has_departed_and_a_living_one_has_not(tmp_path: Path) -> None:
    with living(tmp_path) as (killed, process), living(tmp_path) as (alive, _):
        assert list(departed(tmp_path)) == []
        process.kill()
        process.wait()
        assert list(departed(tmp_path)) == [killed]
        # Settled: it is not reported again.
        assert list(departed(tmp_path)) == []
        assert [path.stem for path in tmp_path.iterdir()] == [str(alive)]


def test_a_process_that_just_ends_has_departed_too(tmp_path: Path) -> None:
    with living(tmp_path) as (owner, process):
        process.communicate()
        assert process.returncode == 0
        assert list(departed(tmp_path)) == [owner]


def test_who_dies_while_settling_leaves_it_to_the_next(tmp_path: Path) -> None:
    with living(tmp_path) as (owner, process):
        process.kill()
        process.wait()
        first = departed(tmp_path)
        assert next(first) == owner
        first.close()
        assert list(departed(tmp_path)) == [owner]


def test_two_that_settle_at_once_are_not_given_the_same_process(tmp_path: Path) -> None:
    with living(tmp_path) as (owner, process):
        process.kill()
        process.wait()
        first = departed(tmp_path)
        assert next(first) == owner
        assert list(departed(tmp_path)) == []
        assert list(first) == []
        assert list(tmp_path.iterdir()) == []


def held_open(folder: Path) -> list[str]:
    """Return what this process holds open in the folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # it was closed meanwhile, like the one that lists them
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def test_closing_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "run"
    presence = Presence(folder)
    assert [path.name for path in folder.iterdir()] == [f"{presence.owner}.alive"]
    there = Path("/proc/self/fd").exists()  # nowhere but on Linux
    assert not there or held_open(folder)
    assert list(departed(folder)) == []
    presence.close()
    assert list(folder.iterdir()) == []
    assert list(departed(folder)) == []
    assert not there or held_open(folder) == []


def test_every_presence_is_another_owner(tmp_path: Path) -> None:
    one, two = Presence(tmp_path), Presence(tmp_path)
    assert one.owner != two.owner
    one.close()
    assert list(departed(tmp_path)) == []
    two.close()


def test_a_folder_that_is_not_there_has_nobody(tmp_path: Path) -> None:
    assert list(departed(tmp_path / "none")) == []


def test_a_file_that_is_nobodys_presence_is_left_alone(tmp_path: Path) -> None:
    stray = tmp_path / "notes.alive"
    stray.touch()

    assert list(departed(tmp_path)) == []
    assert stray.exists()
