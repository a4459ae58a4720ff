"""Whether every picture is in the store, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.core.files.storage import Storage
from django.utils import timezone

from images.models import Image
from images.stores.private import PREFIX
from images.stores.spool import Spool

# A picture is stored before its row is committed; a younger object may be one of those.
ORPHAN_AGE = timedelta(hours=1)


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
    A missing picture that waits in the spool is not a difference. An object of a deleted picture is
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
