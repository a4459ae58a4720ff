"""What a dependency that is away costs: one caller's wait at a time, and one line a second."""

import copy
import logging
import threading
import time
from collections.abc import Callable

from geekhub.lib.db import is_away


class Seldom:
    """Lets one through in so many `seconds`; `clock` returns seconds and never goes back."""

    def __init__(self, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock()

    def passes(self) -> bool:
        """Return whether it is time for the next one."""
        now = self._clock()
        with self._lock:
            if now < self._next:
                return False
            self._next = now + self._seconds
            return True


class Breaker:
    """Leaves alone for `seconds` what did not answer; then one caller at a time tries again.

    Without it every caller would wait for the same silence.
    """

    def __init__(self, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._until: float | None = None

    def lets_through(self) -> bool:
        """Return whether to try; who tries reports failed() or worked()."""
        if self._until is None:
            return True
        with self._lock:
            until, now = self._until or 0.0, self._clock()
            if now < until:
                return False
            # The others wait for what this one finds out.
            self._until = now + self._seconds
            return True

    def failed(self) -> None:
        """Leave it alone from now on."""
        with self._lock:
            self._until = self._clock() + self._seconds

    def worked(self) -> None:
        """Let everybody through again."""
        if self._until is not None:
            with self._lock:
                self._until = None


class OutageFilter(logging.Filter):
    """Turns what an outage makes every caller log into one line a second.

    Of the database each would be a traceback of sixty lines, all of them the same. Of an answer of
    503 without one, the code that gave it has logged why.
    """

    def __init__(self) -> None:
        super().__init__()
        self._database, self._answers = Seldom(), Seldom()

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """Return whether to write the record, or a line in its place."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is None and getattr(record, "status_code", None) == 503:
            return self._answers.passes()
        if error is None or not is_away(error):
            return True
        if not self._database.passes():
            return False
        line = copy.copy(record)
        reason = " ".join(str(error).split())
        line.msg, line.args = "the database is away: %s; %s", (reason, record.getMessage())
        line.exc_info = line.exc_text = None
        return line
