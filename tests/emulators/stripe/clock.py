"""The emulator's time. It is frozen until a test moves it, or ticks with the real clock.

Whatever becomes due on the way (period ends, finalisation, payment retries, error reports) runs in
the order of its time, and for equal times in the order in which it was planned. Nothing sleeps.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from datetime import datetime

Moment = int | float | datetime


def seconds(moment: Moment) -> float:
    """A Unix time; a datetime must say its zone."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError("a datetime without a zone")
        return moment.timestamp()
    return float(moment)


class Clock:
    """A virtual clock with a diary. `ticking` adds the real time that has passed."""

    def __init__(
        self, start: Moment | None, lock: threading.RLock, *, ticking: bool = False
    ) -> None:
        self._time = float(int(time.time())) if start is None else seconds(start)
        self._lock = lock
        self._started = time.monotonic() if ticking else None
        self._diary: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def time(self) -> float:
        """The Unix time with its fraction, which only a ticking clock has."""
        if self._started is None:
            return self._time
        return self._time + time.monotonic() - self._started

    @property
    def now(self) -> int:
        """The Unix time in whole seconds."""
        return int(self.time)

    def at(self, moment: float, work: Callable[[], None]) -> None:
        """Plan work for a time; what is planned for the past runs at the next step."""
        heapq.heappush(self._diary, (moment, next(self._order), work))

    def advance(self, by: float) -> None:
        """Let so many seconds pass."""
        if by < 0:
            raise ValueError("time does not run backwards")
        self.advance_to(self.time + by)

    def advance_to(self, moment: Moment) -> None:
        """Let time pass until that moment, and do what becomes due at the time it is due."""
        target = seconds(moment)
        with self._lock:
            if target < self.time:
                raise ValueError("time does not run backwards")
            ticking, self._started, start = self._started is not None, None, self.time
            self._time = min(start, target)
            try:
                while self._diary and self._diary[0][0] <= target:
                    due, _, work = heapq.heappop(self._diary)
                    self._time = max(self._time, due)
                    work()
            finally:
                self._time = max(self._time, target)
                self._started = time.monotonic() if ticking else None

    def catch_up(self) -> None:
        """Do what a ticking clock has passed on its own."""
        with self._lock:
            if self._diary and self._diary[0][0] <= self.time:
                self.advance_to(self.time)
