"""Sums of what an organization used, by any dimensions, without reading each request."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any

from django.db import connection
from django.db.models import Count, F, Q, Sum
from django.db.models.functions import Collate, TruncDate

from accounts.models import Organization
from images.models import DailyUsage, GenerationStatus, HourlyUsage
from images.usage.rollups import ERROR, MODEL
from images.usage.sources import Pieces, cut, hourly_table, matching, rollup_rows
from images.usage.span import Wanted


@dataclass(slots=True)
class Used:
    """Requests, their outcomes, and what they delivered; micro-USD."""

    requests: int = 0
    succeeded: int = 0
    running: int = 0
    images: int = 0
    cost_micro: int = 0

    @property
    def failed(self) -> int:
        """Return how many delivered nothing."""
        return self.requests - self.succeeded - self.running

    def add(self, other: "Used") -> None:
        """Add another's numbers."""
        self.requests += other.requests
        self.succeeded += other.succeeded
        self.running += other.running
        self.images += other.images
        self.cost_micro += other.cost_micro


def total(organization: Organization, wanted: Wanted) -> Used:
    """Return the sum of all that is wanted."""
    return grouped(organization, wanted, ()).get((), Used())


def grouped(
    organization: Organization,
    wanted: Wanted,
    by: Sequence[str],
    *,
    zone: tzinfo = UTC,
    after: tuple[Any, ...] | None = None,
    limit: int | None = None,
) -> dict[tuple[Any, ...], Used]:
    """Return sums by the named dimensions (day, model, key, tag, error or sandbox), sorted by them.

    Days begin at midnight of `zone`. By tag, a request counts under each of its tags, and under
    the empty one if it has none. `after` and `limit` cut a page out of the sorted rows.
    """
    pieces = cut(wanted, zone if "day" in by else UTC)
    found: dict[tuple[Any, ...], Used] = defaultdict(Used)
    for rows in (
        _closed(organization, wanted, pieces, by, zone, after, limit),
        _open(organization, wanted, pieces, by, zone),
    ):
        for key, used in rows:
            if after is None or key > after:
                found[key].add(used)
    return dict(sorted(found.items(), key=lambda item: item[0])[:limit])


# Of rollups, which have no running requests, and of requests.
_SUMS = {
    "total_requests": Sum("requests", default=0),
    "total_succeeded": Sum("requests", filter=Q(error_code=""), default=0),
    "total_images": Sum("images", default=0),
    "total_cost": Sum("cost_micro", default=0),
}
_COUNTS = {
    "total_requests": Count("pk"),
    "total_succeeded": Count("pk", filter=Q(status=GenerationStatus.SUCCEEDED)),
    "total_running": Count("pk", filter=Q(status=GenerationStatus.RUNNING)),
    "total_images": Sum("delivered", default=0),
    "total_cost": Sum("cost_micro", default=0),
}


def _closed(
    organization: Organization,
    wanted: Wanted,
    pieces: Pieces,
    by: Sequence[str],
    zone: tzinfo,
    after: tuple[Any, ...] | None,
    limit: int | None,
) -> Iterator[tuple[tuple[Any, ...], Used]]:
    """Yield sums of the rollups."""
    if wanted.status == GenerationStatus.RUNNING:
        return
    names = [f"by_{name}" for name in by]
    hourly = hourly_table(wanted, by)
    sources: list[tuple[Any, Q]] = [(hourly, pieces.closed)]
    if hourly is HourlyUsage and (zone is UTC or "day" not in by):
        sources = [(DailyUsage, pieces.days), (HourlyUsage, pieces.edges)]
    for model, when in sources:
        rows = (
            rollup_rows(model, organization, wanted)
            .filter(when)
            .annotate(**{f"by_{name}": _dimension(name, "hour", zone) for name in by})
        )
        if after is not None:
            rows = rows.filter(after_place(names, after))
        grouped = (
            rows.values_list(*names).annotate(**_SUMS).order_by(*names)[:limit]
            if by
            else [tuple(rows.aggregate(**_SUMS).values())]
        )
        for row in grouped:
            requests, succeeded, images, cost = row[len(by) :]
            yield row[: len(by)], Used(requests, succeeded, 0, images, cost)


def _open(
    organization: Organization,
    wanted: Wanted,
    pieces: Pieces,
    by: Sequence[str],
    zone: tzinfo,
) -> Iterator[tuple[tuple[Any, ...], Used]]:
    """Yield sums of requests; by tag, one with several tags is yielded under each."""
    names = [f"by_{name}" for name in by]
    rows = matching(organization, wanted, pieces.open).order_by()
    for row in (
        rows.annotate(
            **{f"by_{name}": _dimension(name, "created_at", zone, raw=True) for name in by}
        )
        .values_list(*names)
        .annotate(**_COUNTS)
        if by
        else [tuple(rows.aggregate(**_COUNTS).values())]
    ):
        key: tuple[Any, ...] = row[: len(by)]
        used = Used(*row[len(by) :])
        if "tag" not in by:
            yield key, used
            continue
        place = by.index("tag")
        for tag in set(key[place]) or {""}:
            yield (*key[:place], tag, *key[place + 1 :]), used


def _dimension(name: str, moment: str, zone: tzinfo, *, raw: bool = False) -> Any:
    """Return the expression of a dimension on rollups, or with `raw` on requests."""
    match name:
        case "day":
            return TruncDate(moment, tzinfo=zone)
        case "key":
            return F("api_key_id")
        case "sandbox":
            return F("sandbox")
        case "tag" if raw:
            return F("tags")
        case "model" if raw:
            return MODEL
        case "error" if raw:
            return ERROR
        case _:
            # Sorted as Python sorts, for the two parts are merged there.
            column = {"model": "model", "tag": "tag", "error": "error_code"}[name]
            return Collate(column, "C" if connection.vendor == "postgresql" else "BINARY")


def after_place(names: Sequence[str], after: Sequence[Any]) -> Q:
    """Return the condition that a row comes after another in the order of the names."""
    condition = Q()
    for place, name in enumerate(names):
        same = dict(zip(names[:place], after, strict=False))
        condition |= Q(**same, **{f"{name}__gt": after[place]})
    return condition
