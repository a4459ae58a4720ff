"""What we sent compared with what Stripe has counted, hour by hour."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain

from django.db import transaction
from django.db.models import Q

from billing.metering import freeze
from billing.metering.events import COUNTED, IN_FLIGHT
from billing.models import (
    Comparison,
    Difference,
    DifferenceState,
    MeterEvent,
    MeterState,
    Period,
    Reconciliation,
)
from billing.reconciliation.differences import Finding, finish, lane_hour, note
from billing.spending import budgets, ledger
from billing.stripe.client import Stripe, StripeFailure, StripeRefused, StripeUnknown
from geekhub.lib import money
from geekhub.lib.moments import from_epoch, hour_of

HOUR = timedelta(hours=1)
# Stripe's sums come late; and what is older than three days is on an invoice.
SETTLED, PAST = timedelta(hours=2), timedelta(hours=72)
# What may be put right without a person: this much, and one fiftieth of the organization's month.
MOST_MICRO, MONTH_PART = 5 * money.MICRO, 50


@dataclass(frozen=True, slots=True)
class Lane:
    """The usage of one organization and price version, and the names they have in Stripe."""

    organization_id: uuid.UUID
    price_version_id: int
    customer: str
    meter: str


@dataclass(slots=True)
class Expected:
    """Units by hour that Stripe should have counted, and what cannot be said yet."""

    units: Counter[datetime]
    accepted: dict[datetime, list[str]]
    in_flight: set[datetime]


def usage(stripe: Stripe, *, now: datetime, since: datetime | None = None) -> Reconciliation:
    """Compare what we sent with Stripe's sums, for the hours from `since` (72) to 2 hours ago.

    What is equal is confirmed. A lane that Stripe cannot tell about now is left for the next run.
    """
    first, end = hour_of(since or now - PAST), hour_of(now - SETTLED)
    run = Reconciliation.objects.create(kind=Comparison.USAGE, started_at=now)
    checked = opened = 0
    for lane in _lanes(first, end):
        expected = _expected(lane, first, end)
        try:
            found = _counted_by_stripe(stripe, lane, first, end)
        except StripeUnknown:
            break  # Stripe is away, and each lane would wait for its own timeout
        except StripeRefused as error:
            opened += len(_unreadable(lane, expected, str(error), now))
            continue
        except StripeFailure:
            continue
        hours = sorted({*expected.units, *found} - expected.in_flight)
        checked += len(hours)
        opened += _compare_usage(lane, hours, expected, found, now)
    return finish(run, checked, opened, now)


def _lanes(first: datetime, end: datetime) -> list[Lane]:
    rows = (
        MeterEvent.objects.filter(timestamp__gte=first, timestamp__lt=end)
        .exclude(organization__billing_account__stripe_customer="")
        .exclude(price_version__stripe_meter="")
        .values_list(
            "organization_id",
            "price_version_id",
            "organization__billing_account__stripe_customer",
            "price_version__stripe_meter",
        )
    )
    return [Lane(*row) for row in rows.distinct().order_by("organization_id", "price_version_id")]


def _expected(lane: Lane, first: datetime, end: datetime) -> Expected:
    """Sum up a lane. A reissue makes up for what was lost: it moves it from hour to hour."""
    expected = Expected(Counter(), defaultdict(list), set())
    within = Q(timestamp__gte=first, timestamp__lt=end)
    made_up = Q(reissue_of__timestamp__gte=first, reissue_of__timestamp__lt=end)
    events = MeterEvent.objects.filter(
        within | made_up,
        organization_id=lane.organization_id,
        price_version_id=lane.price_version_id,
    )
    for event in events.select_related("reissue_of"):
        original = event.reissue_of
        hours = {hour_of(event.timestamp)} | ({hour_of(original.timestamp)} if original else set())
        if event.state in IN_FLIGHT:
            expected.in_flight |= hours
        elif event.state in COUNTED:
            expected.units[hour_of(event.timestamp)] += event.quantity
            expected.accepted[hour_of(event.timestamp)].append(event.pk)
            if original is not None and original.state in COUNTED:
                expected.units[hour_of(original.timestamp)] -= event.quantity
    for hour in [one for one in expected.units if not first <= one < end]:
        del expected.units[hour]
    return expected


def _counted_by_stripe(
    stripe: Stripe, lane: Lane, first: datetime, end: datetime
) -> Mapping[datetime, int]:
    rows = stripe.each(
        stripe.v1.billing.meters.event_summaries.list,
        lane.meter,
        customer=lane.customer,
        start_time=int(first.timestamp()),
        end_time=int(end.timestamp()),
        value_grouping_window="hour",
    )
    return {from_epoch(row.start_time): round(row.aggregated_value) for row in rows}


def _compare_usage(
    lane: Lane,
    hours: list[datetime],
    expected: Expected,
    found: Mapping[datetime, int],
    now: datetime,
) -> int:
    alike = [hour for hour in hours if expected.units[hour] == found.get(hour, 0)]
    MeterEvent.objects.filter(
        pk__in=list(chain.from_iterable(expected.accepted[hour] for hour in alike)),
        state=MeterState.ACCEPTED,
    ).update(state=MeterState.CONFIRMED)
    findings = [
        Finding(
            "usage",
            lane_hour(lane.organization_id, lane.price_version_id, hour),
            expected.units[hour],
            found.get(hour, 0),
            lane.organization_id,
            lane.price_version_id,
            hour,
        )
        for hour in hours
        if hour not in alike
    ]
    of_lane = Q(organization_id=lane.organization_id, price_version_id=lane.price_version_id)
    compared = of_lane & (Q(kind="usage", hour__in=hours) | Q(kind="usage_unread"))
    opened = note(findings, compared, now)
    return sum(not _put_right(row, lane, now) for row in opened)


def _unreadable(lane: Lane, expected: Expected, why: str, now: datetime) -> list[Difference]:
    finding = Finding(
        "usage_unread",
        f"{lane.organization_id}:{lane.price_version_id}",
        expected.units.total(),
        0,
        lane.organization_id,
        lane.price_version_id,
        subject=why,
    )
    return note([finding], Q(pk=None), now)


def _put_right(difference: Difference, lane: Lane, now: datetime) -> bool:
    """Send what is missing or take back what is too much, if it is little and no accident."""
    hour = difference.hour
    if difference.kind != "usage" or hour is None or difference.seen < 2:
        return False
    sent = MeterEvent.objects.filter(
        organization_id=lane.organization_id,
        price_version_id=lane.price_version_id,
        timestamp__gte=hour,
        timestamp__lt=hour + HOUR,
        reissue_of=None,
        state__in=COUNTED,
    )
    largest = sent.select_related("organization", "price_version").order_by("-quantity", "pk")
    missing = difference.expected - difference.found
    if (event := largest.first()) is None or not _is_little(event, missing, hour):
        return False
    with transaction.atomic():
        mine = Difference.objects.filter(pk=difference.pk, state=DifferenceState.OPEN)
        note = f"{missing:+} sent to Stripe, seen alike {difference.seen} times."
        if mine.update(state=DifferenceState.FIXED, note=note):
            freeze.reissue(event, missing, now=now)
    return True


def _is_little(event: MeterEvent, units: int, hour: datetime) -> bool:
    micro = abs(units) * event.price_version.unit_micro
    month = budgets.period_start(Period.MONTH, hour)
    spent = ledger.spent_since(event.organization, since=month)
    return micro <= MOST_MICRO and micro * MONTH_PART <= spent
