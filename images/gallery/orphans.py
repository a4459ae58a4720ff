"""Objects that are nobody's picture: what a killed process, or an outage, left in the store.

A picture is stored before the transaction that records and charges it. Where that never came, the
request's row says so: it failed, or delivered fewer than were asked for. The folders of such
requests are looked at once, a day after they ended, when nothing works on them any longer. No other
folder is, so nothing that we did not put there is ever touched.
"""

import logging
from datetime import datetime, timedelta

from django.core.files.storage import storages
from django.db.models import F, Q

from billing.models import JobRun
from geekhub.lib.moments import LONG_AGO
from images.models import Generation, GenerationStatus, Image
from images.stores.private import PREFIX

log = logging.getLogger(__name__)

AGE = timedelta(hours=24)
# A folder is a call to the store.
BATCH = 200
# What one look at the requests spans, of which nearly all delivered what was asked for.
SPAN = timedelta(days=7)
CURSOR = "orphans swept through"


def sweep(now: datetime) -> int:
    """Remove the orphans of the next requests; return how many. What fails is done again."""
    cursor, _ = JobRun.objects.get_or_create(name=CURSOR, defaults={"started_at": LONG_AGO})
    begin, end = _span(cursor.started_at, now - AGE)
    requests = list(
        Generation.objects.filter(created_at__gte=begin, created_at__lt=end)
        .filter(Q(status=GenerationStatus.FAILED) | Q(delivered__lt=F("n")))
        .order_by("created_at")
        .select_related("api_key")[:BATCH]
    )
    removed = sum(_remove(one) for one in requests)
    through = requests[-1].created_at if len(requests) == BATCH else end
    JobRun.objects.filter(pk=cursor.pk, started_at__lt=through).update(started_at=through)
    return removed


def _span(begin: datetime, cutoff: datetime) -> tuple[datetime, datetime]:
    """Return from when until when to look; until before the first that has not ended long ago."""
    later = Generation.objects.filter(created_at__gte=begin).order_by("created_at")
    first = later.values_list("created_at", flat=True).first()
    if first is None:
        return begin, begin
    unfinished = later.filter(created_at__lt=cutoff).filter(
        Q(finished_at=None) | Q(finished_at__gte=cutoff)
    )
    waiting = unfinished.values_list("created_at", flat=True).first()
    return first, min(first + SPAN, cutoff, waiting or cutoff)


def _remove(request: Generation) -> int:
    """Remove what lies in a request's folder and is none of its pictures."""
    private = request.api_key.private
    store = storages["private_images" if private else "images"]
    folder = f"{PREFIX if private else ''}{request.organization_id}/{request.pk}"
    names = {f"{folder}/{file}" for file in store.listdir(folder)[1]}
    orphans = names.difference(
        Image.objects.filter(generation=request).values_list("name", flat=True)
    )
    for name in sorted(orphans):
        store.delete(name)
        log.info("%s was no picture of %s and is removed", name, request.request_id)
    return len(orphans)
