"""Find pictures: by filters, page by page, or by their references."""

import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.core.files.storage import storages
from django.db.models import Q, QuerySet

from accounts.models import Organization
from images.models import Image
from images.stores.private import PREFIX
from images.stores.supabase import SupabaseStorage

# A picture's public name, see Image.reference.
# The request in the name of an object.
REQUEST = re.compile(r"(?:private/)?[0-9a-f-]{36}/([0-9a-f-]{36})/")
REFERENCE = re.compile(r"(req_[0-9a-f]{24})-([0-9])")


class NoSuchPicture(Exception):
    """The organization does not have the picture."""


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
    """Return pictures, newest first, and the reference to continue after; empty at the end.

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
