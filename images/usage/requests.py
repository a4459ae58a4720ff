"""The requests themselves, page by page."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime

from django.db.models import Prefetch, Q, QuerySet, Sum

from accounts.models import Organization
from geekhub.lib.ids import REQUEST_ID
from geekhub.lib.moments import hour_of
from images.models import Generation, GenerationStatus, Image
from images.usage.rollups import HOUR, closed_until
from images.usage.sources import TICK, hourly_table, matching, rollup_rows
from images.usage.span import Place, Wanted, between


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
        end = min(end, before.created_at + TICK)
        wanted = replace(wanted, end=min(wanted.end, before.created_at + HOUR))

    def newest(when: Q, count: int) -> list[Generation]:
        rows = _described(matching(organization, wanted, when).filter(place))
        rows = rows.defer("prompt", "skipped", "attempts")
        return list(rows.order_by("-created_at", "-request_id")[:count])

    until = closed_until()
    if not wanted.is_picky or until is None:
        return newest(between(start, end), size)
    found = newest(between(max(start, until), end), size) if end > until else []
    if len(found) < size and (hours := _hours(organization, wanted, until, size - len(found))):
        within = Q()
        for first, last in _ranges(hours):
            within |= between(max(first, start), min(last + HOUR, until, end))
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
    rows = rollup_rows(hourly_table(wanted), organization, wanted).filter(
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
    """Return the newest pictures that are not deleted, out of that many newest requests."""
    newest = (
        Generation.objects.filter(organization=organization)
        .order_by("-created_at")
        .defer("skipped", "attempts")
        .prefetch_related(Prefetch("images", Image.objects.filter(deleted_at=None)))[:among]
    )
    found = [image for generation in newest for image in generation.images.all()]
    return found[:count]
