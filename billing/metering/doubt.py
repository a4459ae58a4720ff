"""What sending again cannot tell, Stripe's sums decide."""

import logging
import uuid
from datetime import datetime, timedelta

from django.db.models import Q, Sum

from billing.metering.events import COUNTED, PAUSE, change
from billing.metering.sink import MeterSink
from billing.models import MeterEvent, MeterState
from billing.stripe.client import StripeFailure
from geekhub.lib.moments import hour_of

log = logging.getLogger("geekhub.billing")
# How long Stripe's sums, "eventually consistent", are given to hold what was sent last.
SETTLED = timedelta(hours=1)
HOUR = timedelta(hours=1)


def resolve_uncertain(sink: MeterSink, *, now: datetime) -> int:
    """Let Stripe's sums decide about uncertain events; return how many were decided.

    The hour holds what was accepted, with the event or without it; anything else needs a person,
    and the lane waits. One that was not counted is sent again under the same identifier: while
    Stripe remembers it, it cannot be counted twice even if the sums lagged behind; afterwards it is
    as good as a new one. If Stripe remembers it and does not count it, reconciliation finds the
    shortfall.
    """
    uncertain = MeterEvent.objects.filter(state=MeterState.UNCERTAIN, next_at__lte=now)
    decided = 0
    for event in uncertain.select_related("organization__billing_account", "price_version"):
        try:
            decided += _resolve(sink, event, now)
        except StripeFailure as error:
            change(event, next_at=now + PAUSE, last_error=str(error)[:500])
        except Exception:
            log.exception("whether %s was counted is still unknown", event.identifier)
    return decided


def counted(
    organization_id: uuid.UUID, price_version_id: int, start: datetime, end: datetime
) -> int:
    """Return what Stripe should count in a lane from start up to end, by what it has accepted.

    An event that makes up for an error of Stripe's is no usage of its own, unless it lies in
    another period than what it makes up for.
    """
    lane = MeterEvent.objects.filter(
        organization=organization_id, price_version=price_version_id, state__in=COUNTED
    )
    here = lane.filter(_own_usage(), timestamp__gte=start, timestamp__lt=end)
    elsewhere = lane.filter(
        restamped_from__isnull=False,
        reissue_of__state__in=COUNTED,
        reissue_of__timestamp__gte=start,
        reissue_of__timestamp__lt=end,
    )
    total = Sum("quantity", default=0)
    return int(here.aggregate(sum=total)["sum"] - elsewhere.aggregate(sum=total)["sum"])


def _own_usage() -> Q:
    return Q(reissue_of=None) | ~Q(reissue_of__state__in=COUNTED) | Q(restamped_from__isnull=False)


def _resolve(sink: MeterSink, event: MeterEvent, now: datetime) -> bool:
    start = hour_of(event.timestamp)
    found = sink.total(
        event.organization.billing_account.stripe_customer,
        event.price_version.stripe_meter,
        start,
        start + HOUR,
    )
    counts = MeterEvent.objects.filter(_own_usage(), pk=event.pk).exists()
    expected = counted(event.organization_id, event.price_version_id, start, start + HOUR)
    with_it = expected + (event.quantity if counts else 0)
    if found == with_it:
        return change(event, state=MeterState.ACCEPTED, accepted_at=now, last_error="")
    if found == with_it - event.quantity:
        return change(event, state=MeterState.PENDING, first_attempt_at=None, next_at=now)
    log.error(
        "%s may be counted or not: Stripe has %s in its hour, with it there would be %s",
        *(event.identifier, found, with_it),
    )
    change(
        event,
        next_at=now + SETTLED,
        last_error=f"Stripe counts {found} in its hour, expected {with_it} or "
        f"{with_it - event.quantity}",
    )
    return False


def put_in_doubt(event: MeterEvent, now: datetime, error: str) -> None:
    """Nothing is sent for this event until Stripe's sums show whether it was counted."""
    change(
        event,
        state=MeterState.UNCERTAIN,
        lease_until=None,
        next_at=now + SETTLED,
        last_error=error[:500],
    )
