"""Pictures after they were delivered: delete, retention, and what is really in the store.

Deleting is two steps, so that it survives a store that is away: the row is marked, and from then
on the picture is told to nobody; then its object goes, now or in a later round of the worker.
The ledger and the request stay.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.core.files.storage import Storage
from django.db.models import Count, QuerySet, Sum
from django.utils import timezone

from accounts.models import Organization
from images.models import Generation, GenerationStatus, Image
from images.private import PREFIX
from images.spool import Spool
from images.storage import ImageStore, StorageError

log = logging.getLogger(__name__)

BATCH = 500
PARALLEL = 8
# A picture is stored before its row is committed; a younger object may be one of those.
ORPHAN_AGE = timedelta(hours=1)


class StillRunning(Exception):
    """The request is not finished; its pictures cannot be deleted yet."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a retention rule would delete now."""

    images: int
    bytes: int


def mark_deleted(generation: Generation, index: int | None = None) -> list[Image]:
    """Mark one picture, or all, as deleted; return those whose objects must go.

    Raises StillRunning. Marking twice returns the same again until the objects are gone.
    """
    if generation.status == GenerationStatus.RUNNING:
        raise StillRunning(generation.request_id)
    images = Image.objects.filter(generation=generation, purged_at=None)
    if index is not None:
        images = images.filter(index=index)
    images.filter(deleted_at=None).update(deleted_at=timezone.now())
    return list(images)


async def purge(store: ImageStore, images: Iterable[Image]) -> list[Image]:
    """Delete the objects of marked pictures; return those that are gone."""
    gate = asyncio.Semaphore(PARALLEL)

    async def one(image: Image) -> Image | None:
        async with gate:
            try:
                await store.adelete(image.name)
            except StorageError as error:
                log.warning("%s is not deleted yet: %s", image.name, error)
                return None
        return image

    return [image for image in await asyncio.gather(*map(one, images)) if image is not None]


def mark_purged(images: Sequence[Image]) -> None:
    """Write down that the objects are gone."""
    Image.objects.filter(pk__in=[image.pk for image in images]).update(purged_at=timezone.now())


def to_purge() -> list[Image]:
    """Return the next batch of marked pictures whose objects are still there."""
    return list(
        Image.objects.filter(deleted_at__isnull=False, purged_at=None).order_by("deleted_at")[
            :BATCH
        ]
    )


def preview(organization: Organization, days: int) -> Preview:
    """Return what keeping pictures for `days` would delete today."""
    totals = _older_than(organization, days).aggregate(images=Count("pk"), bytes=Sum("bytes"))
    return Preview(totals["images"], totals["bytes"] or 0)


def enforce_retention() -> int:
    """Mark the next batch of pictures that their organizations no longer keep; return how many."""
    marked = 0
    for organization in Organization.objects.filter(retention_days__isnull=False):
        days = organization.retention_days
        if days is not None and marked < BATCH:
            old = _older_than(organization, days).values_list("pk", flat=True)[: BATCH - marked]
            marked += Image.objects.filter(pk__in=list(old)).update(deleted_at=timezone.now())
    return marked


def _older_than(organization: Organization, days: int) -> QuerySet[Image]:
    return Image.objects.filter(
        generation__organization=organization,
        generation__created_at__lt=timezone.now() - timedelta(days=days),
        deleted_at=None,
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the rows and the store."""

    kind: str
    name: str
    repaired: bool = False


def verify(
    store: Storage, spool: Spool | None, *, private: bool, since: datetime | None
) -> Iterator[Finding]:
    """Yield where rows and objects of one store differ.

    The kinds are `missing`, `wrong size`, `undeleted` and `orphan`.
    A missing picture that waits in the spool is no difference. An object of a deleted picture is
    removed; the rest is for a person to decide.
    """
    waiting = set(spool.names()) if spool else set()
    rows = Image.objects.order_by("pk").filter(name__startswith=PREFIX if private else "")
    if not private:
        rows = rows.exclude(name__startswith=PREFIX)
    if since is not None:
        rows = rows.filter(generation__created_at__gte=since)
    for image in rows.filter(deleted_at=None).iterator():
        if image.name in waiting:
            continue
        try:
            size = store.size(image.name)
        except FileNotFoundError:
            yield Finding("missing", image.name)
        else:
            if size != image.bytes:
                yield Finding("wrong size", image.name)
    for image in rows.filter(purged_at__isnull=False).iterator():
        if store.exists(image.name):
            store.delete(image.name)
            yield Finding("undeleted", image.name, repaired=True)
    yield from _orphans(store, PREFIX.rstrip("/") if private else "")


def _orphans(store: Storage, top: str) -> Iterator[Finding]:
    cutoff = timezone.now() - ORPHAN_AGE
    for organization in store.listdir(top)[0]:
        for request in store.listdir(f"{top}/{organization}".strip("/"))[0]:
            folder = f"{top}/{organization}/{request}".strip("/")
            names = [f"{folder}/{file}" for file in store.listdir(folder)[1]]
            known = set(Image.objects.filter(name__in=names).values_list("name", flat=True))
            for name in names:
                if name not in known and store.get_created_time(name) < cutoff:
                    yield Finding("orphan", name)
