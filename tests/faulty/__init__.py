"""A database that breaks at a statement of a test's choice: Django's own engine, and a script.

The engine of the settings is exchanged while a test starts the application, so only connections
that the application opens are of it. Errors are the driver's, raised where the driver raises them,
COMMIT included.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from django.db import connection

type Error = Literal["OperationalError", "InterfaceError", "DataError", "IntegrityError"]
type Script = Callable[[int, str], "Break | None"]


@dataclass(frozen=True, slots=True)
class Break:
    """How a statement fails: with which error, and whether the database had executed it by then.

    With `hang_up` the session is really ended by PostgreSQL.
    """

    error: Error = "OperationalError"
    after: bool = False
    hang_up: bool = False


@dataclass(slots=True)
class Happened:
    """The statements that came under a script, and those that broke, with their numbers."""

    statements: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class _Stage:
    """The script that is on, if one is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._script: Script | None = None
        self._happened = Happened()

    def next(self, statement: str) -> Break | None:
        """Return what is to happen to the next statement."""
        with self._lock:
            if self._script is None:
                return None
            self._happened.statements.append(statement)
            number = len(self._happened.statements)
            found = self._script(number, statement)
            if found is not None:
                self._happened.broken.append(f"{number}: {' '.join(statement.split())[:60]}")
            return found

    def set(self, script: Script | None) -> Happened:
        """Begin a script, or end it."""
        with self._lock:
            self._script, self._happened = script, Happened()
            return self._happened


stage = _Stage()


@contextmanager
def engine() -> Iterator[None]:
    """Let connections that are opened from now on, by other threads, break by script."""
    from tests.faulty import base  # noqa: F401 - it asks this thread's connection what it is

    settings = connection.settings_dict
    real = settings["ENGINE"]
    settings["ENGINE"] = "tests.faulty"
    try:
        yield
    finally:
        settings["ENGINE"] = real


@contextmanager
def breaking(script: Script) -> Iterator[Happened]:
    """Ask the script of each statement of the application; it gets its number, from 1."""
    try:
        yield stage.set(script)
    finally:
        stage.set(None)


def at(*numbers: int, how: Break) -> Script:
    """Break at these statements."""
    return lambda number, _: how if number in numbers else None


def since(first: int, how: Break) -> Script:
    """Break at this statement and at all that follow: the database is away."""
    return lambda number, _: how if number >= first else None
