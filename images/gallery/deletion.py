"""Pictures are deleted.

Deleting is two steps, so that it survives a store that is away: the row is marked, and from then
on the picture is not shown; then its object is removed, now or in a later round of the worker. The
ledger and the request stay.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence

from django.db import transaction
from django.utils import timezone

from accounts import audit
from accounts.models import Organization, User
from images.gallery.browse import REQUEST, pick
from images.models import Generation, GenerationStatus, Image
from images.stores.contract import ImageStore, StorageError, StorageUnavailable

log = logging.getLogger(__name__)
BATCH = 500
PARALLEL = 8


class StillRunning(Exception):
    """The request is not finished; its pictures cannot be deleted yet."""


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
