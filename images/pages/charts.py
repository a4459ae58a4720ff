"""Charts as plain numbers for templates: bars in percent of a round maximum, and its axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

WIDTH, HEIGHT = 900, 180
GAP = 0.25


@dataclass(frozen=True, slots=True)
class Bar:
    """One day: its value, its text, and its place in an SVG of WIDTH by HEIGHT."""

    day: date
    value: int
    told: str
    x: str
    width: str
    slot_x: str
    slot_width: str
    y: str
    height: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A bar a day; `ticks` are the words of the axis, from the top down."""

    bars: list[Bar]
    ticks: list[str]
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def days(self) -> list[date]:
        """Return the days that the axis names: first, middle and last."""
        count = len(self.bars)
        return [self.bars[place].day for place in (0, count // 2, count - 1)]


def daily(values: Sequence[tuple[date, int]], tell: Callable[[int], str]) -> Chart:
    """Return the chart of a value per day."""
    top = _round_up(max((value for _, value in values), default=0))
    slot = WIDTH / max(1, len(values))
    bars = []
    for place, (day, value) in enumerate(values):
        # A day with anything at all is seen: two units of the picture at least.
        height = max(2.0, value / top * HEIGHT) if value else 0.0
        bars.append(
            Bar(
                day,
                value,
                tell(value),
                x=f"{(place + GAP / 2) * slot:.2f}",
                width=f"{slot * (1 - GAP):.2f}",
                slot_x=f"{place * slot:.2f}",
                slot_width=f"{slot:.2f}",
                y=f"{HEIGHT - height:.2f}",
                height=f"{height:.2f}",
            )
        )
    return Chart(bars, [tell(top), tell(top // 2), tell(0)])


def _round_up(value: int) -> int:
    """Return the next 2, 4, 6, 8, 10, 20 … at or above a value: half of it is round as well."""
    size = 1
    while True:
        for step in (2, 4, 6, 8):
            if value <= step * size:
                return step * size
        size *= 10


def share(value: int, whole: int) -> str:
    """Return a value's part of the whole in percent, for the width of a bar."""
    return f"{100 * value / whole:.2f}" if whole else "0"
