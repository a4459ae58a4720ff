"""The circuit that stops calling a provider that fails."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(slots=True)
class Circuit:
    """Stops calling a provider that fails, and looks soon whether it is back.

    It opens when at least `LEAST` of the latest calls failed and these are `SHARE` of them or more.
    Open for `pause` seconds, then half-open: one call is let through, and its outcome closes the
    circuit or opens it again, for twice as long each time.

    When one caller alone had all the failures, what that one asks for may be at fault. Then it is
    open for that caller only, until another's call shows how the provider is.
    """

    RECENT: ClassVar[int] = 20
    RECENT_SECONDS: ClassVar[float] = 60.0
    LEAST: ClassVar[int] = 5
    SHARE: ClassVar[float] = 0.8
    SHORTEST: ClassVar[float] = 1.0
    LONGEST: ClassVar[float] = 30.0

    clock: Callable[[], float] = time.monotonic
    pause: float = SHORTEST
    opened_at: float | None = None
    probing: bool = False
    # Whom it is open for; None: everybody.
    blamed: str | None = None
    # When the latest calls ended, whose they were, and whether they failed.
    _recent: deque[tuple[float, str, bool]] = field(
        default_factory=lambda: deque(maxlen=Circuit.RECENT)
    )

    @property
    def failures(self) -> int:
        """Return how many of the latest calls failed."""
        return sum(failed for _, _, failed in self._recent)

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """Return what a call would meet now, of the blamed caller if there is one."""
        opened_at = self.opened_at  # other threads ask, too, while the event loop closes it
        if opened_at is None:
            return "closed"
        waited = self.clock() - opened_at
        return "half-open" if waited >= self.pause and not self.probing else "open"

    def is_open_for(self, caller: str) -> bool:
        """Return whether a call of that caller would not be made now."""
        return self.state == "open" and self.blamed in (None, caller)

    def admit(self, caller: str) -> bool:
        """Return whether a call may be made; in the half-open state only the first may."""
        if self.is_open_for(caller):
            return False
        self.probing = self.probing or self.state == "half-open"
        return True

    def succeeded(self, caller: str, *, began: float) -> None:
        """Note that the provider answered sensibly, a refusal included.

        `began` is the clock's time when the call was made: one from before the circuit opened says
        nothing about now.
        """
        if self.opened_at is not None:
            if began < self.opened_at:
                return
            self.close()
        self._recent.append((self.clock(), caller, False))

    def failed(self, caller: str, *, began: float, at_once: bool) -> bool:
        """Note a failure; return whether the circuit has just opened.

        `at_once`: our account is at fault for every caller, and no short pause mends it.
        """
        now = self.clock()
        if self.opened_at is None:
            self._recent.append((now, caller, True))
            latest = [one for one in self._recent if one[0] > now - self.RECENT_SECONDS]
            failed = [who for _, who, failed in latest if failed]
            if not at_once and len(failed) < max(self.LEAST, self.SHARE * len(latest)):
                return False
            self.pause = self.LONGEST if at_once else self.SHORTEST
            self.blamed = caller if len(set(failed)) == 1 and not at_once else None
            self.opened_at = now
            return True
        if began >= self.opened_at:
            if self.blamed not in (None, caller):
                self.blamed = None
            else:
                self.pause = min(self.LONGEST, self.pause * 2)
            self.opened_at, self.probing = now, False
        return False

    def abandoned(self, *, began: float) -> None:
        """Note that a call ended without showing anything about the provider."""
        if self.opened_at is not None and began >= self.opened_at:
            self.probing = False

    def close(self) -> None:
        """Start over."""
        self.pause, self.opened_at, self.probing, self.blamed = self.SHORTEST, None, False, None
        self._recent.clear()
