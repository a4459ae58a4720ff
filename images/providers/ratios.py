"""Aspect ratios, for models that take a ratio instead of a size."""

import math
from collections.abc import Iterable


def edges(size: str) -> tuple[int, int]:
    """Return width and height of a `WIDTHxHEIGHT`."""
    width, _, height = size.partition("x")
    return int(width), int(height)


def nearest(size: str | None, ratios: Iterable[str]) -> str:
    """Return the one of `ratios` (`W:H`) that is closest to the size; square if there is none.

    Compared as logarithms, so that 2:1 is as far from 1:1 as 1:2 is.
    """
    width, height = edges(size or "1x1")

    def distance(ratio: str) -> float:
        wide, _, high = ratio.partition(":")
        return abs(math.log(width / height) - math.log(float(wide) / float(high)))

    return min(ratios, key=distance)
