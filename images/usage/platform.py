"""What the whole platform did: for staff, of all organizations. Questions, no changes.

Live keys only: the sandbox costs and earns nothing. Days are in UTC, as in the ledger. Closed
hours come from the rollups, those still open from the requests (`images.usage` says why).
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from accounts.models import Organization
from images.catalog.rows import CATALOG
from images.models import Generation, HourlyUsage
from images.usage.rollups import ERROR, MODEL, closed_until
from images.usage.span import EVER

DAYS = 30


@dataclass(slots=True)
class Earned:
    """Pictures, what they earned and what they cost us; micro-USD.

    Pictures of unknown cost are in `unknown`, and what they earned in `unknown_micro`: a
    margin covers the others only.
    """

    requests: int = 0
    failed: int = 0
    images: int = 0
    revenue_micro: int = 0
    cost_micro: int = 0
    unknown: int = 0
    unknown_micro: int = 0

    @property
    def margin_micro(self) -> int:
        """Return what is left of what was earned with pictures whose cost is known."""
        return self.revenue_micro - self.unknown_micro - self.cost_micro

    @property
    def is_known(self) -> bool:
        """Return whether the cost of anything is known, or there was nothing."""
        return self.unknown == 0 or self.unknown < self.images

    @property
    def margin_tenths(self) -> int | None:
        """Return the margin in tenths of a percent of those earnings; None without any."""
        known = self.revenue_micro - self.unknown_micro
        return self.margin_micro * 1000 // known if known else None

    @property
    def failed_tenths(self) -> int | None:
        """Return how many requests failed, in tenths of a percent; None without any."""
        return self.failed * 1000 // self.requests if self.requests else None

    def add(self, other: "Earned") -> None:
        """Add another's numbers."""
        self.requests += other.requests
        self.failed += other.failed
        self.images += other.images
        self.revenue_micro += other.revenue_micro
        self.cost_micro += other.cost_micro
        self.unknown += other.unknown
        self.unknown_micro += other.unknown_micro


@dataclass(slots=True)
class Month:
    """Thirty days up to now, by day, by model, by provider; and errors by provider and code."""

    days: dict[date, Earned]
    models: dict[str, Earned] = field(default_factory=lambda: defaultdict(Earned))
    providers: dict[str, Earned] = field(default_factory=lambda: defaultdict(Earned))
    errors: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    total: Earned = field(default_factory=Earned)


# Day, model, error, requests, images, micro-USD.
type _Row = tuple[date, str, str, int, int, int]


def month(now: datetime | None = None) -> Month:
    """Return the last thirty days, today included.

    A failed request counts for the first requested model, and its provider.
    """
    now = now or timezone.now()
    first = now.astimezone(UTC).date() - timedelta(days=DAYS - 1)
    found = Month({first + timedelta(days=place): Earned() for place in range(DAYS)})
    for day, model, error, requests, images, micro in _rows(first):
        earned = _earned(model, error, requests, images, micro)
        if day in found.days:
            found.days[day].add(earned)
        found.models[model].add(earned)
        found.providers[provider_of(model)].add(earned)
        found.total.add(earned)
        if error:
            found.errors[provider_of(model), error] += requests
    return found


def spent_by(organizations: Iterable[Organization]) -> Mapping[uuid.UUID, int]:
    """Return what each spent in thirty days, today included; micro-USD."""
    ids = [one.pk for one in organizations]
    first = _midnight(timezone.now().astimezone(UTC).date() - timedelta(days=DAYS - 1))
    until = max(closed_until() or EVER, first)
    spent: dict[uuid.UUID, int] = dict.fromkeys(ids, 0)
    closed = HourlyUsage.objects.filter(
        organization__in=ids, hour__gte=first, hour__lt=until, sandbox=False
    )
    opened = Generation.objects.filter(organization__in=ids, created_at__gte=until, sandbox=False)
    for rows in (closed, opened):
        sums = rows.order_by().values_list("organization").annotate(Sum("cost_micro"))
        for organization_id, micro in sums:
            spent[organization_id] += micro or 0
    return spent


def provider_of(model: str) -> str:
    """Return a model's provider, also for one no longer in the catalogue."""
    row = CATALOG.get(model)
    return row.provider if row else model.partition("/")[0] or "?"


def _rows(first: date) -> Iterator[_Row]:
    start = _midnight(first)
    until = max(closed_until() or EVER, start)
    closed: QuerySet[HourlyUsage] = HourlyUsage.objects.filter(
        hour__gte=start, hour__lt=until, sandbox=False
    )
    yield from (
        closed.order_by()
        .annotate(day=TruncDate("hour", tzinfo=UTC))
        .values_list("day", "model", "error_code")
        .annotate(Sum("requests"), Sum("images"), Sum("cost_micro"))
    )
    opened = Generation.objects.filter(created_at__gte=until, sandbox=False).order_by()
    yield from (
        opened.annotate(day=TruncDate("created_at", tzinfo=UTC), drawn_by=MODEL, outcome=ERROR)
        .values_list("day", "drawn_by", "outcome")
        .annotate(Count("pk"), Sum("delivered"), Sum("cost_micro"))
    )


def _earned(model: str, error: str, requests: int, images: int, micro: int) -> Earned:
    row = CATALOG.get(model)
    cost = row.cost_micro if row else None
    earned = Earned(requests, requests if error else 0, images, micro)
    if cost is None:
        earned.unknown, earned.unknown_micro = images, micro
    else:
        earned.cost_micro = images * cost
    return earned


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
