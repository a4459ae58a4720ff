"""How long pictures and prompts are kept."""

from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Count, QuerySet, Sum
from django.utils import timezone

from accounts.models import Organization
from images.gallery.deletion import BATCH
from images.models import Generation, Image


@dataclass(frozen=True, slots=True)
class Preview:
    """What a retention rule would delete now."""

    images: int
    bytes: int


def preview(organization: Organization, days: int) -> Preview:
    """Return what keeping pictures for `days` would delete today."""
    totals = older_than(organization, days).aggregate(images=Count("pk"), bytes=Sum("bytes"))
    return Preview(totals["images"], totals["bytes"] or 0)


def enforce_retention() -> int:
    """Mark the next batch of pictures that their organizations no longer keep; return how many."""
    marked = 0
    for organization in Organization.objects.filter(retention_days__isnull=False):
        days = organization.retention_days
        if days is not None and marked < BATCH:
            old = older_than(organization, days).values_list("pk", flat=True)[: BATCH - marked]
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


def older_than(organization: Organization, days: int) -> QuerySet[Image]:
    return Image.objects.filter(
        generation__organization=organization,
        generation__created_at__lt=timezone.now() - timedelta(days=days),
        deleted_at=None,
    )
