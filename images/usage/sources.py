"""What is read where: whole closed hours from the rollups, the rest from the requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any

from django.db.models import BooleanField, F, Func, Q, QuerySet, TextField, Value
from django.db.models.functions import Cast

from accounts.models import Organization
from geekhub.lib.moments import hour_of
from images.models import Generation, GenerationStatus, HourlyTagUsage, HourlyTotal, HourlyUsage
from images.usage.rollups import DAY, HOUR, closed_until, day_of
from images.usage.span import EVER, Wanted, between

_NOTHING = Q(pk__in=[])
TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is read where: whole closed hours in the rollups, the rest in the requests.

    Of the closed ones, whole days in UTC are `days`, and the others `edges`.
    """

    closed: Q
    days: Q
    edges: Q
    open: Q


def cut(wanted: Wanted, zone: tzinfo) -> Pieces:
    """Divide the time into hours that are rolled up and moments that are not.

    An hour in which the time wanted begins or ends, or in which a day does (midnight in India is
    at half past an hour in UTC), is counted from its requests.
    """
    start, end = wanted.start, wanted.end
    until = min(closed_until() or EVER, end)
    split = {hour for moment in (start, end) if (hour := hour_of(moment)) != moment}
    if zone is not UTC:
        split |= {
            hour for moment in _midnights(start, end, zone) if (hour := hour_of(moment)) != moment
        }
    split = {hour for hour in split if hour < until}
    first, last = day_of(start - TICK) + DAY, day_of(until)
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
        opened = between(max(_ceil(until), start), end)
        if hour_of(until) != until:
            split.add(hour_of(until))
    else:
        opened = _NOTHING
    for hour in split:
        opened |= between(max(hour, start), min(hour + HOUR, end))
    return Pieces(closed, days, edges, opened)


def _ceil(moment: datetime) -> datetime:
    hour = hour_of(moment)
    return hour if hour == moment else hour + HOUR


def _midnights(start: datetime, end: datetime, zone: tzinfo) -> Iterator[datetime]:
    day = start.astimezone(zone).date()
    while (midnight := datetime.combine(day, time(), zone)) < end:
        yield midnight
        day += timedelta(days=1)


def hourly_table(wanted: Wanted, by: Sequence[str] = ()) -> Any:
    """Return the smallest of the hours' tables that knows what is asked."""
    if wanted.tag or "tag" in by:
        return HourlyTagUsage
    if wanted.key or wanted.model or "key" in by or "model" in by:
        return HourlyUsage
    return HourlyTotal


def rollup_rows(model: Any, organization: Organization, wanted: Wanted) -> QuerySet[Any]:
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


def matching(organization: Organization, wanted: Wanted, when: Q) -> QuerySet[Generation]:
    """Return the selected requests of some times.

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
