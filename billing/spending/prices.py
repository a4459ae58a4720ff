"""Price versions: append-only, the newest active one counts.

With Stripe connected a new version is a draft until Stripe can bill it (`billing.stripe.catalog`).
An organization whose subscription cannot bill it yet stays on an older one by an exception.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from django.db import IntegrityError, transaction

from billing.models import PriceException, PriceState, PriceVersion
from billing.models.prices import SHARED_SKU


class UnknownPrice(Exception):
    """A sku has no published price; it is refused, never free."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What one unit of a sku costs from now until the request is settled."""

    sku: str
    price_version_id: int
    unit_micro: int


# Says of a sku's new price, in micro-USD, in the units of which other price it is counted.
type Counting = Callable[[str, int], PriceVersion | None]


def in_its_own_units(sku: str, unit_micro: int) -> None:
    """Return no other price: see Counting."""


def publish(
    prices: Mapping[str, int],
    state: PriceState = PriceState.ACTIVE,
    *,
    counting: Counting = in_its_own_units,
) -> list[PriceVersion]:
    """Make a new version for each sku whose price (micro-USD) differs; return the new ones.

    How a version is counted is asked once, when it is made. Safe to run again and on two hosts at
    once.
    """
    made = (_publish_one(sku, unit, state, counting) for sku, unit in prices.items())
    return [version for version in made if version is not None]


def pending(prices: Mapping[str, int]) -> dict[str, tuple[int | None, int]]:
    """Return what publish() would change: {sku: (price now, price then)} in micro-USD."""
    known = PriceVersion.objects.filter(sku__in=list(prices)).order_by("version")
    now = {version.sku: version.unit_micro for version in known}
    return {sku: (now.get(sku), unit) for sku, unit in prices.items() if now.get(sku) != unit}


def current(skus: Iterable[str]) -> dict[str, Quote]:
    """Return the quote of every sku; raises UnknownPrice naming one without a price.

    What a certain organization pays is PriceBook's to say.
    """
    wanted = list(skus)
    return _all_of(wanted, _active(wanted))


def lowest_micro() -> int:
    """Return the lowest price on sale, in micro-USD; 1 when nothing is sold."""
    return min((quote.unit_micro for quote in _active().values()), default=1)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the database said at a moment of the monotonic clock; None: the sku has no price."""

    at: float
    quotes: Mapping[str, Quote | None]
    exceptions: Mapping[tuple[uuid.UUID, str], Quote | None]


class PriceBook:
    """What a unit costs an organization now: for requests, and for all that shows a price.

    The database is read again at most every `fresh_seconds`; for any number of threads. A price
    that has just been superseded is still a price that was published: a request is billed what it
    was quoted.
    """

    def __init__(self, fresh_seconds: float = 5.0) -> None:
        self._fresh_seconds = fresh_seconds
        self._last = _Reading(-math.inf, {}, {})

    def current(self, skus: Iterable[str], organization_id: uuid.UUID) -> dict[str, Quote]:
        """Return the organization's quote of every sku; raises UnknownPrice naming one."""
        wanted = list(skus)
        return _all_of(wanted, self.offered(wanted, organization_id))

    def offered(self, skus: Iterable[str], organization_id: uuid.UUID | None) -> dict[str, Quote]:
        """Return the quotes of those skus that have a price for the organization.

        None stands for an organization without exceptions.
        """
        wanted = list(skus)
        # Another thread may exchange the last reading at any moment; this one answers.
        reading = self._reading(wanted)
        quotes = {}
        for sku in wanted:
            quote = reading.quotes[sku]
            if organization_id is not None:
                quote = reading.exceptions.get((organization_id, sku), quote)
            if quote is not None:
                quotes[sku] = quote
        return quotes

    def _reading(self, wanted: list[str]) -> _Reading:
        """Return a reading that is fresh and has every wanted sku."""
        last, now = self._last, time.monotonic()
        if now - last.at > self._fresh_seconds:
            last = _Reading(now, {}, {})
        if not all(sku in last.quotes for sku in wanted):
            # Newer quotes with older exceptions would show a price that cannot be billed yet.
            quotes = {**last.quotes, **dict.fromkeys(wanted), **_active(wanted)}
            last = self._last = _Reading(last.at, quotes, _exceptions())
        return last


def _active(skus: Iterable[str] | None = None) -> dict[str, Quote]:
    """Return the quotes of these skus, or of all, that have a price."""
    versions = PriceVersion.objects.filter(state=PriceState.ACTIVE).exclude(sku=SHARED_SKU)
    if skus is not None:
        versions = versions.filter(sku__in=list(skus))
    # Ordered so that the last version of a sku is the one a dict keeps.
    return {version.sku: _quote(version) for version in versions.order_by("version")}


def _all_of(skus: Iterable[str], quotes: dict[str, Quote]) -> dict[str, Quote]:
    for sku in skus:
        if sku not in quotes:
            raise UnknownPrice(sku)
    return quotes


def _exceptions() -> dict[tuple[uuid.UUID, str], Quote | None]:
    rows = PriceException.objects.select_related("price_version")
    return {
        (row.organization_id, row.sku): _quote(row.price_version) if row.price_version else None
        for row in rows
    }


def _quote(version: PriceVersion) -> Quote:
    return Quote(version.sku, version.pk, version.unit_micro)


def _publish_one(
    sku: str, unit_micro: int, state: PriceState, counting: Counting
) -> PriceVersion | None:
    newest = PriceVersion.objects.filter(sku=sku).order_by("-version").first()
    if newest is not None and newest.unit_micro == unit_micro:
        return None
    number = newest.version + 1 if newest else 1
    try:
        with transaction.atomic():
            return PriceVersion.objects.create(
                sku=sku,
                version=number,
                unit_micro=unit_micro,
                state=state,
                counted_in=counting(sku, unit_micro),
            )
    except IntegrityError:
        if not PriceVersion.objects.filter(sku=sku, version=number).exists():
            raise  # no race: the price itself is refused
        # Another host published this version first; look again at what it says.
        return _publish_one(sku, unit_micro, state, counting)
