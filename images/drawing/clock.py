"""The time of one request. Nothing else reads its deadline."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

LEASE_BEYOND_DEADLINE = timedelta(seconds=30)


def lease(*, seconds_before: float = 0, deadlines: int = 1) -> timedelta:
    """Return after how long what a request holds is free again, if nobody gives it back.

    Its deadline begins to count `seconds_before` later at most; a request that may wait for another
    one has two.
    """
    seconds = seconds_before + deadlines * settings.REQUEST_DEADLINE_SECONDS
    return timedelta(seconds=seconds) + LEASE_BEYOND_DEADLINE


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of a request since it was let in, and what is left of it."""

    started_at: datetime = field(default_factory=timezone.now)
    seconds: float = field(default_factory=lambda: settings.REQUEST_DEADLINE_SECONDS)
    _started: float = field(default_factory=time.monotonic)

    @property
    def deadline_at(self) -> datetime:
        """Return when it must be over."""
        return self.started_at + timedelta(seconds=self.seconds)

    def elapsed(self) -> float:
        """Return the seconds that have passed."""
        return time.monotonic() - self._started

    def left(self) -> float:
        """Return the seconds until the deadline; below 0 when it has passed."""
        return self.seconds - self.elapsed()

    def until(self, *, reserve: float = 0, least: float = 0) -> float:
        """Return the deadline in the event loop's time.

        A share of what is left may be kept in reserve; it is at least so many seconds from now.
        """
        return asyncio.get_running_loop().time() + max(least, self.left() * (1 - reserve))
