"""What dead processes left behind is settled."""

import uuid
from collections.abc import Sequence

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from billing.spending import holds
from images.drawing.clock import LEASE_BEYOND_DEADLINE
from images.models import Generation, GenerationStatus

# Of a process that died, and of a database that broke: the row does not know which.
INTERRUPTED = "The request was interrupted on our side and ended later. Nothing was charged."


def expire_abandoned(owners: Sequence[uuid.UUID]) -> int:
    """Settle what dead processes left: release the money, fail the request. Return how many.

    `owners` are processes known to be dead; whatever is past its lease is taken as well.
    """
    abandoned = 0
    for hold in holds.expirable(owners):
        with transaction.atomic():
            try:
                holds.expire(hold)
            except holds.HoldLost:
                continue
            _abandon(Generation.objects.filter(hold=hold))
        abandoned += 1
    overdue = timezone.now() - LEASE_BEYOND_DEADLINE
    free = Generation.objects.filter(status=GenerationStatus.RUNNING, hold=None)
    return (
        abandoned
        + _abandon(free.filter(owner__in=owners))
        + _abandon(free.filter(deadline_at__lt=overdue))
    )


def _abandon(generations: QuerySet[Generation]) -> int:
    """End running requests: with the pictures they delivered, or as failed; return how many."""
    running = generations.filter(status=GenerationStatus.RUNNING)
    now = timezone.now()
    return running.filter(delivered__gt=0).update(
        status=GenerationStatus.SUCCEEDED, finished_at=now
    ) + running.filter(delivered=0).update(
        status=GenerationStatus.FAILED,
        error_code="internal_error",
        error_message=INTERRUPTED,
        finished_at=now,
    )
