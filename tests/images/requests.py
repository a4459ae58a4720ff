"""Requests that have ended, with their charge and their pictures, at any time of the past."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from accounts.models import ApiKey
from billing.models import Hold, LedgerEntry
from geekhub.lib.ids import new_request_id
from images.catalog.rows import CATALOG
from images.models import Generation, GenerationStatus, Image
from images.usage import rollups
from tests.billing import authorize, capture, release

FLUX, IMAGEN = "fal/flux-1.1-pro", "google/imagen-4"


def make_request(
    key: ApiKey,
    at: datetime,
    *,
    model: str = FLUX,
    delivered: int = 1,
    error: str = "",
    running: bool = False,
    tags: Sequence[str] = (),
    latency_ms: int | None = 1000,
    pictures: bool = False,
    **fields: Any,
) -> Generation:
    """Return a request of that moment, charged through a real hold.

    It delivered unless it has an `error` or is still `running`. Prices must be published.
    """
    request_id = new_request_id()
    if error or running:
        delivered = 0
    hold: Hold | None = None
    cost = 0
    if not key.sandbox:
        hold = authorize(key, model, quantity=max(1, delivered), request_id=request_id, tags=tags)
        if delivered:
            cost = -capture(hold, model=model, delivered=delivered).amount_micro
        elif error:
            release(hold)
    row = Generation.objects.create(
        request_id=request_id,
        organization_id=key.organization_id,
        api_key=key,
        sandbox=key.sandbox,
        hold=hold,
        owner=uuid.uuid4(),
        created_at=at,
        deadline_at=at + timedelta(minutes=1),
        finished_at=None if running else at + timedelta(seconds=1),
        latency_ms=None if running else latency_ms,
        fingerprint="f" * 64,
        tags=list(tags),
        error_code=error,
        status=(
            GenerationStatus.RUNNING
            if running
            else GenerationStatus.FAILED
            if error
            else GenerationStatus.SUCCEEDED
        ),
        **{
            "requested": [model],
            "model": model if delivered else "",
            "provider": CATALOG[model].provider if delivered else "",
            "n": max(1, delivered),
            "delivered": delivered,
            "cost_micro": cost,
            "parameters": {},
            "prompt": "a red kite",
            "attempts": [] if running else [{"model": model, "error": error or None}],
            **fields,
        },
    )
    if pictures:
        _give_pictures(row)
    return row


def give_requests() -> None:
    """Give each hold that a test made by itself the request that it would have been made for."""
    for hold in Hold.objects.filter(generation=None).prefetch_related("ledger_entries"):
        assert hold.api_key is not None
        charges = list(hold.ledger_entries.all())
        ended = GenerationStatus.SUCCEEDED if hold.captured else GenerationStatus.FAILED
        row = Generation.objects.create(
            request_id=hold.request_id,
            organization_id=hold.organization_id,
            api_key=hold.api_key,
            sandbox=False,
            hold=hold,
            owner=hold.owner,
            status=ended if hold.settled_at else GenerationStatus.RUNNING,
            requested=list(hold.quotes),
            parameters={},
            n=hold.quantity,
            fingerprint="f" * 64,
            delivered=hold.captured,
            cost_micro=-sum(entry.amount_micro for entry in charges),
            created_at=hold.created_at,
            deadline_at=hold.lease_until,
        )
        _give_pictures(row)


def _give_pictures(row: Generation) -> None:
    for index in range(row.delivered):
        Image.objects.create(
            generation=row,
            index=index,
            name=f"{row.organization_id}/{row.pk}/{index}.png",
            mime_type="image/png",
            width=1024,
            height=768,
            bytes=1000,
            sha256="0" * 64,
        )


def finish(row: Generation, key: ApiKey, *, model: str = FLUX, delivered: int = 1) -> LedgerEntry:
    """Let a running request of a live key deliver, charged as it was held."""
    assert row.hold is not None
    entry = capture(row.hold, model=model, delivered=delivered)
    Generation.objects.filter(pk=row.pk).update(
        status=GenerationStatus.SUCCEEDED,
        model=model,
        delivered=delivered,
        cost_micro=-entry.amount_micro,
        finished_at=row.created_at,
        latency_ms=90_000,
    )
    return entry


def close_all_hours() -> None:
    """Roll up every hour that is over."""
    while rollups.close_hours(now=timezone.now()):
        pass
