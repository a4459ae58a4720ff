"""Rollups: the closed hours' requests, summed, so that no page adds up millions of rows.

An hour is closed when nothing can change its requests any longer; `close_hours` then sums it once,
and `images.usage` counts the hours that are still open from the requests
themselves. So an answer is exact at any time: a stopped worker makes it slower, never
wrong.

A request belongs to the hour it was received, even if it ended and was charged in the next.

Requests are summed by the hour; what is kept by the day, and without keys and models, is summed
from those rows in the same transaction, so it never says anything else.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import (
    Case,
    CharField,
    Count,
    F,
    IntegerField,
    Min,
    Model,
    QuerySet,
    Sum,
    Value,
    When,
)
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Floor, Greatest, Ln, TruncDay, TruncHour

from billing.models import EntryKind, LedgerEntry
from geekhub.lib.moments import hour_of
from images.models import (
    ClosedHours,
    DailyLatency,
    DailyUsage,
    Generation,
    GenerationStatus,
    HourlyLatency,
    HourlyTagUsage,
    HourlyTotal,
    HourlyUsage,
)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
# A request whose row is younger may not be committed yet, or come from a host whose clock is late.
MARGIN = timedelta(minutes=10)
# What one round of the worker closes at most, a day per transaction.
DAYS_A_ROUND = 7
# Bar b of the histogram counts latencies from WIDTH**b up to WIDTH**(b + 1) milliseconds. A
# percentile is reported as the middle of its bar, so it is off by at most √WIDTH: 6.1 %.
WIDTH = 1.125

# The model that delivered; for a failed or running request, the first requested.
MODEL = Case(
    When(model="", then=Cast(KT("requested__0"), CharField(max_length=100))),
    default=F("model"),
    output_field=CharField(max_length=100),
)
ERROR = Case(
    When(status=GenerationStatus.FAILED, error_code="", then=Value("internal_error")),
    When(status=GenerationStatus.FAILED, then=F("error_code")),
    default=Value(""),
    output_field=CharField(max_length=40),
)
BUCKET = Cast(Floor(Ln(Greatest(F("latency_ms"), 1)) / Value(math.log(WIDTH))), IntegerField())


@dataclass(frozen=True, slots=True)
class Difference:
    """An hour of an organization whose rollup is not what the ledger says.

    `hour` is None for charges that belong to no request. `what` is `images` or `cost_micro`, and of
    the rollup of a day, whose first hour `hour` is, `images of the day` or `cost_micro of the day`.
    """

    organization_id: UUID
    hour: datetime | None
    what: str
    rollup: int
    ledger: int


def closed_until() -> datetime | None:
    """Return the moment before which every hour is rolled up; None when none is yet."""
    return ClosedHours.objects.filter(pk=1).values_list("until", flat=True).first()


def close_hours(*, now: datetime) -> int:
    """Sum the hours that nothing can change any longer; return how many.

    Two hosts may call it at once: the second waits for the first and finds nothing to do.
    """
    closed = 0
    for _ in range(DAYS_A_ROUND):
        hours = _close_a_day(now)
        closed += hours
        if not hours:
            break
    return closed


def rebuild(since: datetime | None = None) -> int:
    """Recompute the closed hours since then, or all; return how many hours.

    A day is replaced in one transaction, so it is never seen half done.
    """
    until = closed_until()
    start = _first_hour() if since is None else hour_of(since)
    rebuilt = 0
    while until is not None and start is not None and start < until:
        stop = min(start + DAY, until)
        with transaction.atomic():
            ClosedHours.objects.select_for_update().get(pk=1)
            _build(start, stop)
        rebuilt += int((stop - start) / HOUR)
        start = stop
    return rebuilt


def prove(since: datetime | None = None) -> Iterator[Difference]:
    """Yield each closed hour whose pictures or cost are not the ledger's; nothing when all are."""
    until = closed_until()
    first = _first_hour()
    start = (first and day_of(first)) if since is None else hour_of(since)
    while until is not None and start is not None and start < until:
        stop = min(day_of(start) + DAY, until)
        yield from _prove(start, stop)
        start = stop
    stray = LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION, hold__generation=None)
    for row in stray.values("organization_id").annotate(
        images=Sum("quantity"), cost=-Sum("amount_micro")
    ):
        yield Difference(row["organization_id"], None, "images", 0, row["images"])
        yield Difference(row["organization_id"], None, "cost_micro", 0, row["cost"])


def bucket_ms(bucket: int) -> int:
    """Return the latency in milliseconds that a bar of the histogram represents."""
    return round(math.pow(WIDTH, bucket + 0.5))


# --- Closing ----------------------------------------------------------------------------------


def _close_a_day(now: datetime) -> int:
    """Close the next hours, at most a day's; return how many."""
    end = _changeless_until(now)
    until = closed_until()
    if until is not None and until >= end:
        return 0
    ClosedHours.objects.get_or_create(pk=1)
    with transaction.atomic():
        state = ClosedHours.objects.select_for_update().get(pk=1)
        start = state.until or _first_hour()
        if start is None or start >= end:
            return 0
        stop = min(start + DAY, end)
        _build(start, stop)
        state.until = stop
        state.save()
    return int((stop - start) / HOUR)


def _changeless_until(now: datetime) -> datetime:
    """Return the hour before which every request has ended and is committed.

    Only a running request changes, so no hour is closed that has one, however long it hangs.
    """
    running = Generation.objects.filter(status=GenerationStatus.RUNNING)
    oldest = running.aggregate(oldest=Min("created_at"))["oldest"]
    return hour_of(min(now - MARGIN, oldest or now))


def _first_hour() -> datetime | None:
    first = Generation.objects.order_by("created_at").values_list("created_at", flat=True).first()
    return None if first is None else hour_of(first)


def day_of(moment: datetime) -> datetime:
    """Return the start of its day in UTC."""
    return hour_of(moment).replace(hour=0)


def _build(start: datetime, stop: datetime) -> None:
    """Sum the hours from `start` to before `stop`, and remove what was there.

    The rows stay in the database: one statement for each table, of millions of requests if need be.
    """
    for model in (HourlyUsage, HourlyTagUsage, HourlyTotal, HourlyLatency):
        model.objects.filter(hour__gte=start, hour__lt=stop).delete()
    requests = Generation.objects.filter(created_at__gte=start, created_at__lt=stop).order_by()
    requests = requests.annotate(hour=TruncHour("created_at", tzinfo=UTC), drawn_by=MODEL)
    _insert(HourlyUsage, (*USAGE, *SUMS), *_sums(requests))
    sums, parameters = _sums(requests, "tags")
    _insert(HourlyTagUsage, (*USAGE, "tag", *SUMS), _by_tag(sums), parameters)
    bars = (
        delivered(requests)
        .annotate(bar=BUCKET)
        .values_list("organization_id", "hour", "sandbox", "drawn_by", "bar")
        .annotate(total=Count("pk"))
    )
    _insert(HourlyLatency, (*BARS, "requests"), *bars.query.sql_with_params())
    _condense(start, stop)


def _condense(start: datetime, stop: datetime) -> None:
    """Sum the hours' rows from `start` to before `stop` without keys and models, and by the day."""
    hours = {"hour__gte": start, "hour__lt": stop}
    by = ("organization_id", "hour", "sandbox", "error_code")
    _sum_up(HourlyTotal, (*by, *SUMS), HourlyUsage.objects.filter(**hours).values_list(*by))
    days = {"hour__gte": day_of(start), "hour__lt": day_of(stop - HOUR) + DAY}
    for daily, hourly, columns in (
        (DailyUsage, HourlyUsage, (*USAGE, *SUMS)),
        (DailyLatency, HourlyLatency, (*BARS, "requests")),
    ):
        daily.objects.filter(**days).delete()
        rows = hourly.objects.filter(**days).annotate(day=TruncDay("hour", tzinfo=UTC))
        names = ["day" if name == "hour" else name for name in columns if name not in SUMS]
        _sum_up(daily, columns, rows.values_list(*names))


def _sum_up(model: type[Model], columns: Sequence[str], rows: QuerySet[Any, Any]) -> None:
    sums = [name for name in columns if name in SUMS]
    rows = rows.order_by().annotate(**{f"total_{name}": Sum(name) for name in sums})
    _insert(model, columns, *rows.query.sql_with_params())


USAGE = ("organization_id", "hour", "api_key_id", "sandbox", "model", "error_code")
SUMS = ("requests", "images", "cost_micro")
BARS = ("organization_id", "hour", "sandbox", "model", "bucket")
# The same columns of a query over requests, where some names are taken.
FROM_REQUESTS = ("organization_id", "hour", "api_key_id", "sandbox", "drawn_by", "outcome")
TOTALS = ("total_requests", "total_images", "total_cost")


def _sums(requests: QuerySet[Generation], *more: str) -> tuple[str, Sequence[Any]]:
    """Return the statement, and its parameters, that sums requests by USAGE and `more`."""
    rows = (
        requests.annotate(outcome=ERROR)
        .values_list(*FROM_REQUESTS, *more)
        .annotate(
            total_requests=Count("pk"),
            total_images=Sum("delivered"),
            total_cost=Sum("cost_micro"),
        )
        # An organization's rows are stored together, as they are read.
        .order_by(F("organization_id"), F("hour"))
    )
    return rows.query.sql_with_params()


def _by_tag(sums: str) -> str:
    """Return the statement that counts each sum under each of its tags."""
    tags = "(CASE WHEN s.tags = '[]' THEN '[\"\"]' ELSE s.tags END)"
    if connection.vendor == "postgresql":
        unnest = f"jsonb_array_elements_text{tags} AS t(value)"
    else:
        unnest = f"json_each{tags} AS t"
    groups = ", ".join([*(f"s.{name}" for name in FROM_REQUESTS), "t.value"])
    totals = ", ".join(f"SUM(s.{name})" for name in TOTALS)
    return (
        f"SELECT {groups}, {totals} FROM ({sums}) AS s CROSS JOIN {unnest} "
        f"GROUP BY {groups} ORDER BY s.organization_id, t.value, s.hour"
    )


def _insert(
    model: type[Model], columns: Sequence[str], select: str, parameters: Sequence[Any]
) -> None:
    names = ", ".join(f'"{name}"' for name in columns)
    with connection.cursor() as cursor:
        cursor.execute(f'INSERT INTO "{model._meta.db_table}" ({names}) {select}', parameters)


def delivered(requests: QuerySet[Generation]) -> QuerySet[Generation]:
    """Return those whose latency counts: they delivered, and it is known how long they took."""
    return requests.filter(status=GenerationStatus.SUCCEEDED, latency_ms__isnull=False)


# --- Proving ----------------------------------------------------------------------------------

type _Cell = tuple[UUID, datetime]


def _prove(start: datetime, stop: datetime) -> Iterator[Difference]:
    charged: dict[_Cell, tuple[int, int]] = {
        (row[0], row[1]): (row[2], row[3])
        for row in LedgerEntry.objects.filter(
            kind=EntryKind.CONSUMPTION,
            hold__generation__created_at__gte=start,
            hold__generation__created_at__lt=stop,
        )
        .order_by()
        .annotate(hour=TruncHour("hold__generation__created_at", tzinfo=UTC))
        .values_list("organization_id", "hour")
        .annotate(pictures=Sum("quantity"), cost=-Sum("amount_micro"))
    }
    yield from _compare(HourlyUsage, start, stop, charged)
    yield from _compare(HourlyTotal, start, stop, charged)
    if stop - start < DAY:
        # The rollup of an unfinished day is not read.
        return
    whole: dict[_Cell, tuple[int, int]] = {}
    for (organization, _), (images, cost) in charged.items():
        before = whole.get((organization, start), (0, 0))
        whole[organization, start] = (before[0] + images, before[1] + cost)
    yield from _compare(DailyUsage, start, stop, whole, " of the day")


def _compare(
    model: Any,
    start: datetime,
    stop: datetime,
    charged: dict[_Cell, tuple[int, int]],
    of: str = "",
) -> Iterator[Difference]:
    ours: dict[_Cell, tuple[int, int]] = {
        (row[0], row[1]): (row[2], row[3])
        for row in model.objects.filter(hour__gte=start, hour__lt=stop, sandbox=False)
        .order_by()
        .values_list("organization_id", "hour")
        .annotate(Sum("images"), Sum("cost_micro"))
    }
    for cell in sorted(ours.keys() | charged.keys(), key=lambda one: (one[1], str(one[0]))):
        rollup, ledger = ours.get(cell, (0, 0)), charged.get(cell, (0, 0))
        for what, mine, theirs in zip(("images", "cost_micro"), rollup, ledger, strict=True):
            if mine != theirs:
                yield Difference(*cell, what + of, mine, theirs)
