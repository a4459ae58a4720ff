"""What an organization used: sums, latencies, and the requests themselves. Questions, no changes.

Sums of closed hours come from the rollups, those of the open ones from the requests, so they are
exact whenever they are asked for. The rollups are also the index by which requests with a rare
tag, model or error are found among millions: they tell in which hours such requests are.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import (
    BooleanField,
    Count,
    F,
    Func,
    Prefetch,
    Q,
    QuerySet,
    Sum,
    TextField,
    Value,
)
from django.db.models.functions import Cast, Collate, TruncDate

from accounts.models import Organization
from geekhub.lib.ids import REQUEST_ID
from geekhub.lib.moments import hour_of
from images.models import (
    DailyLatency,
    DailyUsage,
    Generation,
    GenerationStatus,
    HourlyLatency,
    HourlyTagUsage,
    HourlyTotal,
    HourlyUsage,
    Image,
)
from images.rollups import (
    BUCKET,
    DAY,
    ERROR,
    HOUR,
    MODEL,
    bucket_ms,
    closed_until,
    day_of,
    delivered,
)

DIMENSIONS = ("day", "model", "key", "tag", "error")
NAMES = {"key": "api_key_id"}
EVER = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which requests are meant: those that came in from `start` to before `end`, and so on.

    `status` is a GenerationStatus or the code of an error; None and empty mean any.
    """

    start: datetime
    end: datetime
    key: UUID | None = None
    model: str = ""
    status: str = ""
    tag: str = ""
    sandbox: bool | None = None

    @property
    def is_picky(self) -> bool:
        """Tell whether more than the time decides."""
        return bool(self.key or self.model or self.status or self.tag)


@dataclass(slots=True)
class Used:
    """Requests, what became of them, and what they delivered; micro-USD."""

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


@dataclass(frozen=True, slots=True)
class Latency:
    """How long requests that delivered took, in milliseconds, within 6.1 % (`rollups.WIDTH`)."""

    requests: int
    p50_ms: int
    p95_ms: int


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the list of requests, which goes from new to old."""

    created_at: datetime
    request_id: str

    def __str__(self) -> str:
        return f"{math.floor(self.created_at.timestamp() * 1_000_000)}-{self.request_id}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Return the place that `str` made the text of; raises ValueError."""
        micro, _, request_id = text.partition("-")
        if not (micro.isascii() and micro.isdigit() and len(micro) < 17):
            raise ValueError(text)
        if not REQUEST_ID.fullmatch(request_id):
            raise ValueError(text)
        return cls(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(micro)), request_id)


# --- Sums -------------------------------------------------------------------------------------


def total(organization: Organization, wanted: Wanted) -> Used:
    """Return the sum of all that is wanted."""
    return sums(organization, wanted, ()).get((), Used())


def sums(
    organization: Organization,
    wanted: Wanted,
    by: Sequence[str],
    *,
    zone: tzinfo = UTC,
    after: tuple[Any, ...] | None = None,
    limit: int | None = None,
) -> dict[tuple[Any, ...], Used]:
    """Return sums by the named dimensions (of DIMENSIONS, or `sandbox`), sorted by them.

    Days begin at midnight of `zone`. By tag, a request counts under each of its tags, and under
    the empty one if it has none. `after` and `limit` cut a page out of the sorted rows.
    """
    pieces = _pieces(wanted, zone if "day" in by else UTC)
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


_NOTHING = Q(pk__in=[])
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What is read where: whole closed hours in the rollups, the rest in the requests.

    Of the closed ones, those of whole days of UTC are `days`, and the others `edges`.
    """

    closed: Q
    days: Q
    edges: Q
    open: Q


def _pieces(wanted: Wanted, zone: tzinfo) -> _Pieces:
    """Divide the time into hours that are rolled up and moments that are not.

    An hour in which the time wanted begins or ends, or in which a day does (midnight in India is
    at half past an hour of UTC), is counted from its requests.
    """
    start, end = wanted.start, wanted.end
    until = min(closed_until() or EVER, end)
    split = {hour for moment in (start, end) if (hour := hour_of(moment)) != moment}
    if zone is not UTC:
        split |= {
            hour for moment in _midnights(start, end, zone) if (hour := hour_of(moment)) != moment
        }
    split = {hour for hour in split if hour < until}
    first, last = day_of(start - _TICK) + DAY, day_of(until)
    closed = Q(hour__gte=hour_of(start), hour__lt=until)
    days, edges = _NOTHING, closed
    if first < last:
        days = Q(hour__gte=first, hour__lt=last)
        edges = Q(hour__gte=hour_of(start), hour__lt=first) | Q(hour__gte=last, hour__lt=until)
    if split:
        closed &= ~Q(hour__in=split)
        edges &= ~Q(hour__in=split)
    if until < end:
        # The hour in which the rollups end is theirs only if it is whole.
        opened = _between(max(_ceil(until), start), end)
        if hour_of(until) != until:
            split.add(hour_of(until))
    else:
        opened = _NOTHING
    for hour in split:
        opened |= _between(max(hour, start), min(hour + HOUR, end))
    return _Pieces(closed, days, edges, opened)


def _ceil(moment: datetime) -> datetime:
    hour = hour_of(moment)
    return hour if hour == moment else hour + HOUR


def _midnights(start: datetime, end: datetime, zone: tzinfo) -> Iterator[datetime]:
    day = start.astimezone(zone).date()
    while (midnight := datetime.combine(day, time(), zone)) < end:
        yield midnight
        day += timedelta(days=1)


def _closed(
    organization: Organization,
    wanted: Wanted,
    pieces: _Pieces,
    by: Sequence[str],
    zone: tzinfo,
    after: tuple[Any, ...] | None,
    limit: int | None,
) -> Iterator[tuple[tuple[Any, ...], Used]]:
    """Yield sums of the rollups."""
    if wanted.status == GenerationStatus.RUNNING:
        return
    names = [f"by_{name}" for name in by]
    hourly = _hourly(wanted, by)
    sources: list[tuple[Any, Q]] = [(hourly, pieces.closed)]
    if hourly is HourlyUsage and (zone is UTC or "day" not in by):
        sources = [(DailyUsage, pieces.days), (HourlyUsage, pieces.edges)]
    for model, when in sources:
        rows = (
            _rollups(model, organization, wanted)
            .filter(when)
            .annotate(**{f"by_{name}": _dimension(name, "hour", zone) for name in by})
        )
        if after is not None:
            rows = rows.filter(_beyond(names, after))
        grouped = (
            rows.values_list(*names).annotate(**_SUMS).order_by(*names)[:limit]
            if by
            else [tuple(rows.aggregate(**_SUMS).values())]
        )
        for row in grouped:
            requests, succeeded, images, cost = row[len(by) :]
            yield row[: len(by)], Used(requests, succeeded, 0, images, cost)


def _hourly(wanted: Wanted, by: Sequence[str] = ()) -> Any:
    """Return the smallest of the hours' tables that knows what is asked."""
    if wanted.tag or "tag" in by:
        return HourlyTagUsage
    if wanted.key or wanted.model or "key" in by or "model" in by:
        return HourlyUsage
    return HourlyTotal


def _rollups(model: Any, organization: Organization, wanted: Wanted) -> QuerySet[Any]:
    rows: QuerySet[Any] = model.objects.filter(organization=organization)
    if wanted.tag:
        rows = rows.filter(tag=wanted.tag)
    if wanted.key is not None:
        rows = rows.filter(api_key_id=wanted.key)
    if wanted.model:
        rows = rows.filter(model=wanted.model)
    if wanted.sandbox is not None:
        rows = rows.filter(sandbox=wanted.sandbox)
    match wanted.status:
        case "":
            return rows
        case GenerationStatus.SUCCEEDED:
            return rows.filter(error_code="")
        case GenerationStatus.FAILED:
            return rows.exclude(error_code="")
        case code:
            return rows.filter(error_code=code)


def _open(
    organization: Organization,
    wanted: Wanted,
    pieces: _Pieces,
    by: Sequence[str],
    zone: tzinfo,
) -> Iterator[tuple[tuple[Any, ...], Used]]:
    """Yield sums of requests; by tag, one with several tags is yielded under each."""
    names = [f"by_{name}" for name in by]
    rows = _requests(organization, wanted, pieces.open).order_by()
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


def _beyond(names: Sequence[str], after: Sequence[Any]) -> Q:
    """Return the condition that a row comes after another in the order of the names."""
    condition = Q()
    for place, name in enumerate(names):
        same = dict(zip(names[:place], after, strict=False))
        condition |= Q(**same, **{f"{name}__gt": after[place]})
    return condition


# --- Latencies --------------------------------------------------------------------------------


def latencies(organization: Organization, wanted: Wanted) -> dict[str, Latency]:
    """Return each model's latencies, and under the empty name those of all."""
    pieces = _pieces(wanted, UTC)
    bars: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    live = {} if wanted.sandbox is None else {"sandbox": wanted.sandbox}
    days = DailyLatency.objects.filter(pieces.days, organization=organization, **live)
    edges = HourlyLatency.objects.filter(pieces.edges, organization=organization, **live)
    opened = delivered(_requests(organization, wanted, pieces.open).order_by())
    for model, bucket, requests in (
        *days.order_by().values_list("model", "bucket").annotate(Sum("requests")),
        *edges.order_by().values_list("model", "bucket").annotate(Sum("requests")),
        *opened.annotate(drawn_by=MODEL, bucket=BUCKET)
        .values_list("drawn_by", "bucket")
        .annotate(Count("pk")),
    ):
        bars[model][bucket] += requests
        bars[""][bucket] += requests
    return {model: _latency(histogram) for model, histogram in sorted(bars.items())}


def _latency(histogram: dict[int, int]) -> Latency:
    count = sum(histogram.values())
    return Latency(count, _rank(histogram, -(-count // 2)), _rank(histogram, -(-count * 95 // 100)))


def _rank(histogram: dict[int, int], rank: int) -> int:
    """Return the latency of the request that is the `rank`-th fastest."""
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank <= 0:
            return bucket_ms(bucket)
    raise ValueError("the rank is beyond the histogram")


# --- Requests ---------------------------------------------------------------------------------


class HasTag(Func):
    """Whether a JSON list of strings has one."""

    output_field = BooleanField()
    arity = 2

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "EXISTS (SELECT 1 FROM json_each(%(expressions)s)"
        joiner = ") WHERE value = "
        return self.as_sql(compiler, connection, template=template, arg_joiner=joiner, **context)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "(%(expressions)s)"
        return self.as_sql(compiler, connection, template=template, arg_joiner=" ? ", **context)


def _between(start: datetime, end: datetime) -> Q:
    return Q(created_at__gte=start, created_at__lt=end)


def _requests(organization: Organization, wanted: Wanted, when: Q) -> QuerySet[Generation]:
    """Return what is wanted of the requests of some times.

    Not of the whole time as well: PostgreSQL would read its index for that, too.
    """
    rows = Generation.objects.filter(when, organization=organization)
    if wanted.key is not None:
        rows = rows.filter(api_key_id=wanted.key)
    if wanted.model:
        rows = rows.filter(Q(model=wanted.model) | Q(model="", requested__0=wanted.model))
    if wanted.sandbox is not None:
        rows = rows.filter(sandbox=wanted.sandbox)
    if wanted.tag:
        rows = rows.filter(HasTag(F("tags"), Cast(Value(wanted.tag), TextField())))
    if wanted.status in GenerationStatus.values:
        rows = rows.filter(status=wanted.status)
    elif wanted.status:
        rows = rows.filter(status=GenerationStatus.FAILED, error_code=wanted.status)
    return rows


def find(organization: Organization, request_id: str) -> Generation | None:
    """Return a request of the organization by its public id; None if there is none."""
    if not REQUEST_ID.fullmatch(request_id):
        return None
    return _described(
        Generation.objects.filter(organization=organization, request_id=request_id)
    ).first()


def page(
    organization: Organization, wanted: Wanted, *, before: Place | None = None, size: int
) -> list[Generation]:
    """Return the newest requests, or those that come after a place; keys and pictures loaded.

    Its cost grows with `size`, and with the requests of the hours it comes from; not with how many
    the organization has.
    """
    start, end = wanted.start, wanted.end
    place = Q()
    if before is not None:
        place = Q(created_at__lt=before.created_at) | Q(request_id__lt=before.request_id)
        end = min(end, before.created_at + _TICK)
        wanted = replace(wanted, end=min(wanted.end, before.created_at + HOUR))

    def newest(when: Q, count: int) -> list[Generation]:
        rows = _described(_requests(organization, wanted, when).filter(place))
        rows = rows.defer("prompt", "skipped", "attempts")
        return list(rows.order_by("-created_at", "-request_id")[:count])

    until = closed_until()
    if not wanted.is_picky or until is None:
        return newest(_between(start, end), size)
    found = newest(_between(max(start, until), end), size) if end > until else []
    if len(found) < size and (hours := _hours(organization, wanted, until, size - len(found))):
        within = Q()
        for first, last in _ranges(hours):
            within |= _between(max(first, start), min(last + HOUR, until, end))
        found += newest(within, size - len(found))
    return found


def _described(rows: QuerySet[Generation]) -> QuerySet[Generation]:
    return rows.select_related("api_key").prefetch_related(
        Prefetch("images", Image.objects.filter(deleted_at=None))
    )


def _hours(
    organization: Organization, wanted: Wanted, until: datetime, size: int
) -> list[datetime]:
    """Return the newest closed hours that have `size` of the wanted requests, old to new.

    The newest two may be used up in part, so their requests are not counted.
    """
    if wanted.status == GenerationStatus.RUNNING:
        return []
    rows = _rollups(_hourly(wanted), organization, wanted).filter(
        hour__gte=hour_of(wanted.start), hour__lt=min(until, wanted.end)
    )
    hours: list[datetime] = []
    for number, (hour, requests) in enumerate(
        rows.order_by("-hour").values_list("hour").annotate(Sum("requests"))[: size + 2]
    ):
        hours.append(hour)
        if number > 1:
            size -= requests
        if size <= 0:
            break
    return hours[::-1]


def _ranges(hours: Iterable[datetime]) -> Iterator[tuple[datetime, datetime]]:
    """Yield first and last of each run of hours without a gap."""
    first = last = None
    for hour in hours:
        if last is not None and first is not None and hour - last > HOUR:
            yield first, last
            first = None
        first, last = first or hour, hour
    if first is not None and last is not None:
        yield first, last


def latest_images(organization: Organization, count: int, *, among: int = 60) -> list[Image]:
    """Return the newest pictures that are not deleted, out of so many newest requests."""
    newest = (
        Generation.objects.filter(organization=organization)
        .order_by("-created_at")
        .defer("skipped", "attempts")
        .prefetch_related(Prefetch("images", Image.objects.filter(deleted_at=None)))[:among]
    )
    found = [image for generation in newest for image in generation.images.all()]
    return found[:count]


__all__ = [
    "DIMENSIONS",
    "Latency",
    "Place",
    "Used",
    "Wanted",
    "find",
    "latencies",
    "latest_images",
    "page",
    "sums",
    "total",
]
