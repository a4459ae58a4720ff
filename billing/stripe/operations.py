"""Writes to Stripe other than usage: each is a row before it is made, and is made once.

A write whose outcome is unknown is looked for before it is tried again. A lost connection keeps
its idempotency key; an answered 5xx gets a new one, since Stripe replays what it answered.
"""

import uuid
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone

from accounts.models import Organization
from billing.models import OperationState, StripeOperation
from billing.stripe.client import Stripe, StripeBusy, StripeFailure, StripeRefused, StripeUnknown
from billing.stripe.writes import KINDS
from geekhub.lib.outbox import Outbox

OUTBOX = Outbox(
    StripeOperation,
    waiting=Q(state=OperationState.PENDING),
    lease=timedelta(minutes=2),
    first_pause=timedelta(seconds=30),
    longest_pause=timedelta(hours=1),
)


def plan(
    kind: str, key: str, *, organization: Organization | None = None, **parameters: Any
) -> StripeOperation:
    """Return the row of a write, made once per `key`; whoever runs it comes later.

    Call it in the transaction that decides the write. Parameters are what JSON can hold.
    """
    operation, _ = StripeOperation.objects.get_or_create(
        key=key,
        defaults={
            "kind": kind,
            "organization": organization,
            "parameters": parameters,
            "next_at": timezone.now(),
        },
    )
    return operation


def run(stripe: Stripe, operation: StripeOperation, *, now: datetime) -> str:
    """Make a write unless it is made or somebody is at it; return the Stripe id.

    Raises StripeFailure when it could not be made now (StripeBusy also while another process is at
    it); a refused one is failed for good, which a person sees in the reconciliation.
    """
    if operation.state == OperationState.DONE:
        return operation.result
    claimed = OUTBOX.claim(operation, now)
    operation.refresh_from_db()
    if not claimed:
        if operation.state == OperationState.DONE:
            return operation.result
        raise StripeBusy(f"{operation.key} is being made")
    kind = KINDS[operation.kind]
    try:
        found = kind.find(stripe, operation) if operation.attempts > 1 else None
        result = found or kind.make(stripe, operation, str(operation.idempotency_key))
    except StripeFailure as error:
        _put_off(operation, error, now)
        raise
    StripeOperation.objects.filter(pk=operation.pk).update(
        state=OperationState.DONE, result=result, done_at=now, last_error=""
    )
    operation.refresh_from_db()
    return result


def run_due(stripe: Stripe, *, now: datetime, limit: int = 100) -> int:
    """Make what is due, the oldest first; return how many were made."""
    made = 0
    for operation in OUTBOX.due(now)[:limit]:
        try:
            run(stripe, operation, now=now)
        except StripeFailure:
            continue  # written down in its row; the others do not wait for it
        made += 1
    return made


def _put_off(operation: StripeOperation, error: StripeFailure, now: datetime) -> None:
    changes: dict[str, Any] = {"last_error": str(error)[:500]}
    if isinstance(error, StripeRefused):
        changes["state"] = OperationState.FAILED
    if isinstance(error, StripeUnknown) and error.answered:
        changes["idempotency_key"] = uuid.uuid4()
    # Whoever was at it before us may have made it after all.
    OUTBOX.put_off(operation, now, **changes)
    operation.refresh_from_db()
