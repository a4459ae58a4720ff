"""Price versions: append-only, the newest one counts."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.db import IntegrityError, transaction

from billing.models import PriceVersion


class UnknownPrice(Exception):
    """A model has no published price; it is refused, never free."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What one image of a model costs from now until the request is settled."""

    model: str
    price_version_id: int
    unit_micro: int


def publish(prices: Mapping[str, int]) -> list[PriceVersion]:
    """Make a new version for each model whose price (micro-USD) differs; return the new ones.

    Safe to run again and on two hosts at once.
    """
    return [version for model, unit in prices.items() if (version := _publish_one(model, unit))]


def pending(prices: Mapping[str, int]) -> dict[str, tuple[int | None, int]]:
    """Return what publish() would change: {model: (price now, price then)} in micro-USD."""
    now = {version.model: version.unit_micro for version in _newest(prices)}
    return {
        model: (now.get(model), unit) for model, unit in prices.items() if now.get(model) != unit
    }


def current(models: Iterable[str]) -> dict[str, Quote]:
    """Return the quote of every model; raises UnknownPrice naming one without a price."""
    wanted = list(models)
    quotes = {
        version.model: Quote(version.model, version.pk, version.unit_micro)
        for version in _newest(wanted)
    }
    for model in wanted:
        if model not in quotes:
            raise UnknownPrice(model)
    return quotes


class PriceBook:
    """The current quotes, read again at most every `fresh_seconds`.

    A price that has just been superseded is still a price that was published: a request is billed
    what it was quoted.
    """

    def __init__(self, fresh_seconds: float = 5.0) -> None:
        self._fresh_seconds = fresh_seconds
        self._read_at = -math.inf
        self._quotes: Mapping[str, Quote] = {}

    def current(self, models: Iterable[str]) -> dict[str, Quote]:
        """Return the quote of every model, as `current` does."""
        wanted = list(models)
        old = time.monotonic() - self._read_at > self._fresh_seconds
        if old or not all(model in self._quotes for model in wanted):
            kept = {} if old else self._quotes
            self._quotes = {**kept, **current(wanted)}
            self._read_at = time.monotonic() if old else self._read_at
        return {model: self._quotes[model] for model in wanted}


def _newest(models: Iterable[str]) -> Iterable[PriceVersion]:
    # Ordered so that the last version of a model is the one a dict keeps.
    return PriceVersion.objects.filter(model__in=list(models)).order_by("version")


def _publish_one(model: str, unit_micro: int) -> PriceVersion | None:
    newest = PriceVersion.objects.filter(model=model).order_by("-version").first()
    if newest is not None and newest.unit_micro == unit_micro:
        return None
    number = newest.version + 1 if newest else 1
    try:
        with transaction.atomic():
            return PriceVersion.objects.create(model=model, version=number, unit_micro=unit_micro)
    except IntegrityError:
        if not PriceVersion.objects.filter(model=model, version=number).exists():
            raise  # no race: the price itself is refused
        # Another host published this version first; look again at what it says.
        return _publish_one(model, unit_micro)
