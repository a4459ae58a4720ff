"""A plan of what goes wrong with which call, the same in every run."""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Kind = Literal[
    "drop_before",
    "drop_after",
    "500_before",
    "500_after",
    "429",
    "lock",
    "slow_before",
    "slow_after",
]
KINDS: tuple[Kind, ...] = (
    "drop_before",
    "drop_after",
    "500_before",
    "500_after",
    "429",
    "lock",
    "slow_before",
    "slow_after",
)
HOLD_LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the calls that match.

    `path` is a pattern of shell style. `nth` counts the matching calls from 1 since the fault was
    added; without it the next `times` ones are hit. A slow call waits for `gate`, then for `delay`
    seconds, before the work or after it; with a drop or a 500 it waits before that happens.
    `should_retry` is the header of that name on a 500 or 429.
    """

    kind: Kind
    path: str = "*"
    method: str = "*"
    nth: int | None = None
    times: int = 1
    gate: threading.Event | None = None
    delay: float = 0
    should_retry: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault called {self.kind!r}")

    def matches(self, method: str, path: str) -> bool:
        """Whether this call is meant."""
        return fnmatchcase(path, self.path) and self.method in ("*", method)

    def wait(self) -> None:
        """Hold the call back."""
        if self.gate is not None:
            self.gate.wait(HOLD_LIMIT)
        if self.delay:
            threading.Event().wait(self.delay)


class Faults:
    """The plan. Of several faults that hit one call, the one that was added first does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[tuple[Fault, list[int]]] = []
        self._chance: tuple[int, float, tuple[Fault, ...]] = (0, 0.0, ())
        self._arrived = 0

    def add(self, *faults: Fault) -> None:
        """Plan faults."""
        with self._lock:
            self._planned += [(fault, [0, 0]) for fault in faults]

    def random(self, seed: int, rate: float, faults: Sequence[Fault]) -> None:
        """Give `rate` of the matching calls one of `faults`, the same ones for the same seed."""
        if not 0 <= rate <= 1 or not faults:
            raise ValueError("random needs a rate between 0 and 1 and at least one fault")
        with self._lock:
            self._chance, self._arrived = (seed, rate, tuple(faults)), 0

    def clear(self) -> None:
        """Let everything go well from now on."""
        with self._lock:
            self._planned, self._chance, self._arrived = [], (0, 0.0, ()), 0

    def pick(self, method: str, path: str) -> Fault | None:
        """The fault of the call that has just arrived."""
        with self._lock:
            hit = None
            for fault, counts in self._planned:
                if not fault.matches(method, path):
                    continue
                counts[0] += 1
                due = counts[0] == fault.nth if fault.nth is not None else counts[1] < fault.times
                if due and hit is None:
                    counts[1] += 1
                    hit = fault
            seed, rate, choices = self._chance
            fitting = [fault for fault in choices if fault.matches(method, path)]
            if not fitting:
                return hit
            number = self._arrived
            self._arrived += 1
            dice = random.Random(f"{seed}:{number}")
            return hit or (dice.choice(fitting) if dice.random() < rate else None)
