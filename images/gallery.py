"""Pictures after they were delivered: find, delete, retention, and what is really in the store.

Deleting is two steps, so that it survives a store that is away: the row is marked, and from then
on the picture is told to nobody; then its object goes, now or in a later round of the worker.
The ledger and the request stay.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.core.files.storage import Storage, storages
from django.db import transaction
from django.db.models import Count, Q, QuerySet, Sum
from django.utils import timezone

from accounts import audit
from accounts.models import Organization, User
from images.models import Generation, GenerationStatus, Image
from images.private import PREFIX
from images.spool import Spool
from images.storage import ImageStore, StorageError, StorageUnavailable, SupabaseStorage

log = logging.getLogger(__name__)

BATCH = 500
PARALLEL = 8
# A picture is stored before its row is committed; a younger object may be one of those.
ORPHAN_AGE = timedelta(hours=1)


# A picture's public name, see Image.reference.
# The request in the name of an object.
REQUEST = re.compile(r"(?:private/)?[0-9a-f-]{36}/([0-9a-f-]{36})/")
REFERENCE = re.compile(r"(req_[0-9a-f]{24})-([0-9])")


class NoSuchPicture(Exception):
    """The organization has no such picture."""


class StillRunning(Exception):
    """The request is not finished; its pictures cannot be deleted yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What pictures to show; those from `since` and before `until`. Empty means any."""

    words: tuple[str, ...] = ()
    model: str = ""
    key: uuid.UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


def browse(
    organization: Organization, filters: Filters, *, after: str, most: int
) -> tuple[list[Image], str]:
    """Return pictures, newest first, and the reference to go on after; empty at the end.

    `words` are looked for in the prompts, any case, all of them; give a `since` with them, because
    no index helps to find them. Raises NoSuchPicture when `after` is not one of the organization.
    """
    images = _showable(organization)
    if filters.model:
        images = images.filter(generation__model=filters.model)
    if filters.key:
        images = images.filter(generation__api_key=filters.key)
    if filters.since:
        images = images.filter(generation__created_at__gte=filters.since)
    if filters.until:
        images = images.filter(generation__created_at__lt=filters.until)
    for word in filters.words:
        images = images.filter(generation__prompt__icontains=word)
    if after:
        images = images.filter(_beyond(*_place(organization, after)))
    page = list(
        images.order_by("-generation__created_at", "-generation__request_id", "index")[: most + 1]
    )
    return page[:most], page[most - 1].reference if len(page) > most else ""


def _place(organization: Organization, reference: str) -> tuple[datetime, str, int]:
    match = REFERENCE.fullmatch(reference)
    request = match and organization.generations.filter(request_id=match[1]).first()
    if not match or not request:
        raise NoSuchPicture(reference)
    return request.created_at, request.request_id, int(match[2])


def _beyond(created_at: datetime, request_id: str, index: int) -> Q:
    # The first condition says again what the others imply, for the index.
    return Q(generation__created_at__lte=created_at) & (
        Q(generation__created_at__lt=created_at)
        | Q(generation__request_id__lt=request_id)
        | Q(generation__request_id=request_id, index__gt=index)
    )


def _showable(organization: Organization) -> QuerySet[Image]:
    return Image.objects.filter(
        generation__organization=organization, deleted_at=None
    ).select_related("generation__api_key")


def pick(organization: Organization, references: Collection[str]) -> list[Image]:
    """Return these pictures, newest first, without those deleted since.

    Raises NoSuchPicture when one was never the organization's.
    """
    wanted = {
        (match[1], int(match[2])) for one in references if (match := REFERENCE.fullmatch(one))
    }
    rows = Image.objects.filter(
        generation__organization=organization,
        generation__request_id__in={request_id for request_id, _ in wanted},
    ).select_related("generation__api_key")
    found = [
        image
        for image in rows.order_by("-generation__created_at", "-generation__request_id", "index")
        if (image.generation.request_id, image.index) in wanted
    ]
    if len(found) < len(set(references)):
        raise NoSuchPicture
    return [image for image in found if image.deleted_at is None]


def links(images: Collection[Image]) -> dict[str, str]:
    """Return where each picture is read from, by its name; the addresses of private ones expire.

    One call to the store signs them all. A picture whose object is missing has no link. Raises
    StorageError when the store of the private ones is away.
    """
    private = [image.name for image in images if image.name.startswith(PREFIX)]
    public = [image.name for image in images if not image.name.startswith(PREFIX)]
    found = {name: storages["images"].url(name) for name in public}
    store = storages["private_images"]
    if not isinstance(store, SupabaseStorage):
        return found | {name: store.url(name) for name in private}
    signed = store.sign_many(private, settings.SIGNED_URL_SECONDS) if private else {}
    return found | {name: link for name, link in signed.items() if link}


def delete(organization: Organization, references: Collection[str], *, actor: User) -> int:
    """Mark pictures as deleted; return how many. The worker removes their objects.

    Raises NoSuchPicture, and then none is marked.
    """
    with transaction.atomic():
        images = pick(organization, references)
        for image in images:
            mark_deleted(image.generation, image.index)
        if images:
            audit.record(
                "pictures.deleted",
                organization=organization,
                actor=actor,
                pictures=[image.reference for image in images],
            )
    return len(images)


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
    """Delete the objects of marked pictures; return those that are gone.

    When the store is away the others are left to another round.
    """
    gate, away = asyncio.Semaphore(PARALLEL), False

    async def one(image: Image) -> Image | None:
        nonlocal away
        async with gate:
            if away:
                return None
            try:
                await store.adelete(image.name)
            except StorageError as error:
                if isinstance(error, StorageUnavailable):
                    away = True
                log.warning("%s is not deleted yet: %s", image.name, error)
                return None
        return image

    return [image for image in await asyncio.gather(*map(one, images)) if image is not None]


def mark_purged(images: Sequence[Image]) -> None:
    """Write down that the objects are gone."""
    Image.objects.filter(pk__in=[image.pk for image in images]).update(purged_at=timezone.now())


async def is_deleted(name: str) -> bool:
    """Return whether the picture of this name is marked as deleted, or its request has failed."""
    if await Image.objects.filter(name=name, deleted_at__isnull=False).aexists():
        return True
    match = REQUEST.match(name)
    failed = Generation.objects.filter(status=GenerationStatus.FAILED)
    return match is not None and await failed.filter(pk=match[1]).aexists()


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


def forget_prompts() -> int:
    """Blank the next batch of prompts that their organizations keep no longer; return how many.

    With them goes what a model made of them.
    """
    forgotten = 0
    for organization in Organization.objects.filter(prompts_days__isnull=False):
        days = organization.prompts_days
        if days is None or forgotten >= BATCH:
            continue
        old = list(
            Generation.objects.filter(
                organization=organization, created_at__lt=timezone.now() - timedelta(days=days)
            )
            .exclude(prompt="")
            .values_list("pk", flat=True)[: BATCH - forgotten]
        )
        with transaction.atomic():
            Image.objects.filter(generation__in=old).update(revised_prompt="")
            forgotten += Generation.objects.filter(pk__in=old).update(prompt="")
    return forgotten


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
