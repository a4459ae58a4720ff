"""Whether our books agree with themselves, with what Stripe has counted, and with its invoices.

    internal      totals and ledger, holds and ledger, ledger and meter events; what is stuck
    usage         meter events and Stripe's sums of them, hour by hour
    draft, final  the lines of an invoice and the ledger

What does not agree is a Difference, one open row per key. It is closed when it agrees again, and
nothing is put right but what `usage` may: little, and seen alike twice.
"""

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain

from django.db import connection, transaction
from django.db.models import (
    BigIntegerField,
    Count,
    Exists,
    ExpressionWrapper,
    F,
    Max,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
)
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, TruncHour

from accounts import audit
from accounts.models import User
from billing import budgets, invoices, ledger, metering
from billing.models import (
    BillingAccount,
    BudgetPeriod,
    Difference,
    DifferenceState,
    EntryKind,
    Hold,
    HoldState,
    Invoice,
    LedgerEntry,
    LedgerTotal,
    MeterEvent,
    MeterState,
    OperationState,
    Period,
    PriceVersion,
    Reconciliation,
    StripeEvent,
    StripeOperation,
)
from billing.stripe_client import Stripe, StripeFailure, StripeRefused, StripeUnknown
from geekhub.lib import money

# How far back `internal` looks at single rows; older ones were looked at when they were new.
RECENT = timedelta(days=3)
# An organization's ledger is added up anew from its last total; past so many entries it moves on.
LONG_TAIL = 1000
# More rows than these tell a person nothing more.
MOST_FINDINGS = 1000
HOUR = timedelta(hours=1)
FREEZING, LEASE_PAST, SENDING = timedelta(minutes=75), timedelta(minutes=10), timedelta(hours=1)
WAITING = timedelta(hours=26)
# By then an operation has been tried for five hours.
MANY_ATTEMPTS = 10
# Stripe's sums come late; and what is older than three days is on an invoice.
SETTLED, PAST = timedelta(hours=2), timedelta(hours=72)
# Sums lag, so one that differs says nothing until it is read alike so much later.
BETWEEN_READS = timedelta(minutes=30)
# What may be put right without a person: this much, and one fiftieth of the organization's month.
MOST_MICRO, MONTH_PART = 5 * money.MICRO, 50
# The events of the period's last hour are frozen and sent in the first minutes of a draft.
DRAFT_SETTLES = timedelta(minutes=10)
FINAL_FOR = timedelta(days=35)
KEPT = timedelta(days=30)

IN_FLIGHT = (MeterState.PENDING, MeterState.SENDING, MeterState.UNCERTAIN)


class AlreadyResolved(Exception):
    """The difference is no longer open."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Two numbers that should be equal. `hour` is when the thing happened, if it did at a time."""

    kind: str
    about: str
    expected: int
    found: int
    organization_id: uuid.UUID | None = None
    price_version_id: int | None = None
    hour: datetime | None = None
    subject: str = ""

    @property
    def key(self) -> str:
        """What tells it from every other, and is the same when it is found again."""
        return f"{self.kind}:{self.about}"


# --- What is found ------------------------------------------------------------------------------


def resolve(difference: Difference, note: str, actor: User | None) -> None:
    """Accept a difference by a person's word; it comes back only if its numbers change.

    Raises ValueError without a note and AlreadyResolved when it is no longer open.
    """
    if not note.strip():
        raise ValueError("A note says why the difference is accepted.")
    with transaction.atomic():
        opened = Difference.objects.filter(pk=difference.pk, state=DifferenceState.OPEN)
        if not opened.update(state=DifferenceState.ACCEPTED, note=note.strip()[:500]):
            raise AlreadyResolved(difference.key)
        audit.record(
            "billing.difference_accepted",
            organization=difference.organization,
            actor=actor,
            subject=difference.key,
            note=note.strip(),
            expected=difference.expected,
            found=difference.found,
        )


def open_differences() -> QuerySet[Difference]:
    """Return what needs a person, by organization, model and hour."""
    found = Difference.objects.filter(state=DifferenceState.OPEN)
    return found.select_related("organization", "price_version").order_by(
        "organization__name", "price_version__model", "hour", "key"
    )


def _note(findings: Iterable[Finding], compared: Q, now: datetime) -> list[Difference]:
    """Open or renew a difference for each finding; close what was `compared` and agrees now."""
    by_key = {finding.key: finding for finding in findings}
    _drop_accepted(by_key)
    Difference.objects.filter(compared, state=DifferenceState.OPEN).exclude(key__in=by_key).update(
        state=DifferenceState.CLOSED, note="They agree now.", last_seen_at=now
    )
    Difference.objects.bulk_create(
        [_difference(finding, now) for finding in by_key.values()], ignore_conflicts=True
    )
    opened = list(Difference.objects.filter(key__in=by_key, state=DifferenceState.OPEN))
    for row in opened:
        _see_again(row, by_key[row.key], now)
    return opened


def _drop_accepted(by_key: dict[str, Finding]) -> None:
    accepted = Difference.objects.filter(key__in=by_key, state=DifferenceState.ACCEPTED)
    for key, expected, found in list(accepted.values_list("key", "expected", "found")):
        if key in by_key and (by_key[key].expected, by_key[key].found) == (expected, found):
            del by_key[key]


def _difference(finding: Finding, now: datetime) -> Difference:
    return Difference(
        key=finding.key,
        kind=finding.kind,
        organization_id=finding.organization_id,
        price_version_id=finding.price_version_id,
        hour=finding.hour,
        subject=finding.subject[:200],
        expected=finding.expected,
        found=finding.found,
        first_seen_at=now,
        last_seen_at=now,
    )


def _see_again(row: Difference, finding: Finding, now: datetime) -> None:
    """Count a read that is alike and late enough; begin anew when the numbers are others."""
    alike = (row.expected, row.found) == (finding.expected, finding.found)
    if alike and now - row.last_seen_at < BETWEEN_READS:
        return
    # Of two hosts at once, one counts.
    mine = Difference.objects.filter(
        pk=row.pk, state=DifferenceState.OPEN, seen=row.seen, last_seen_at=row.last_seen_at
    )
    row.seen = row.seen + 1 if alike else 1
    row.expected, row.found, row.last_seen_at = finding.expected, finding.found, now
    row.subject = finding.subject[:200]
    mine.update(
        seen=row.seen,
        expected=row.expected,
        found=row.found,
        last_seen_at=now,
        subject=row.subject,
    )


# --- Our own books ------------------------------------------------------------------------------


def internal(*, now: datetime, since: datetime | None = None) -> Reconciliation:
    """Compare our tables with each other, single rows from `since` (three days ago) on."""
    since = since or now - RECENT
    run = Reconciliation.objects.create(kind="internal", started_at=now)
    opened = 0
    for check in CHECKS:
        findings = list(check.find(now, since))
        # A list that was cut says nothing about what is not on it.
        whole = len(findings) < MOST_FINDINGS
        recent = Q(hour=None) | Q(hour__gte=since)
        compared = Q(kind__in=check.kinds) & recent if whole else Q(pk=None)
        opened += len(_note(findings, compared, now))
    Reconciliation.objects.filter(differences=0, started_at__lt=now - KEPT).delete()
    return _finish(run, _looked_at(since), opened, now)


def recount() -> None:
    """Forget the totals of the ledger, so that internal() adds it up from its first entry."""
    LedgerTotal.objects.all().delete()


def _finish(run: Reconciliation, checked: int, opened: int, now: datetime) -> Reconciliation:
    run.finished_at, run.checked, run.differences = now, checked, opened
    run.save(update_fields=["finished_at", "checked", "differences"])
    return run


def _looked_at(since: datetime) -> int:
    return (
        BillingAccount.objects.count()
        + BudgetPeriod.objects.filter(starts_at__gte=since).count()
        + Hold.objects.filter(state=HoldState.CAPTURED, settled_at__gte=since).count()
        + MeterEvent.objects.filter(timestamp__gte=since).count()
    )


def _accounts(now: datetime, since: datetime) -> Iterator[Finding]:
    # One statement, so that totals and rows are of one moment. Ledger ids of an organization are
    # in the order of their commits (ADR 0011): nothing can come before a mark later.
    accounts = BillingAccount.objects.annotate(
        counted=Coalesce(F("organization__ledger_total__through"), 0),
        counted_balance=Coalesce(F("organization__ledger_total__balance_micro"), 0),
        counted_spent=Coalesce(F("organization__ledger_total__spent_micro"), 0),
    ).annotate(
        more_balance=_of_tail(Sum("amount_micro")),
        more_spent=_of_tail(-Sum("amount_micro", filter=Q(kind=EntryKind.CONSUMPTION))),
        more=_of_tail(Count("pk")),
        last=_of_tail(Max("pk")),
        held=Coalesce(
            Subquery(
                Hold.objects.filter(organization_id=OuterRef("pk"), state=HoldState.HELD)
                .order_by()
                .values("organization_id")
                .annotate(held=Sum(REMAINING))
                .values("held")
            ),
            0,
            output_field=BigIntegerField(),
        ),
    )
    for account in accounts.iterator():
        balance = account.counted_balance + account.more_balance
        spent = account.counted_spent + account.more_spent
        pairs = {
            "balance": (balance, account.balance_micro),
            "spent": (spent, account.spent_micro),
            "held": (account.held, account.held_micro),
        }
        for kind, (expected, found) in pairs.items():
            if expected != found:
                yield Finding(kind, str(account.pk), expected, found, account.pk)
        if account.more >= LONG_TAIL:
            # Whoever else does it at once has a mark that is as good.
            LedgerTotal.objects.update_or_create(
                organization_id=account.pk,
                defaults={"through": account.last, "balance_micro": balance, "spent_micro": spent},
            )


REMAINING = ExpressionWrapper(
    F("amount_micro") - F("captured") * (F("amount_micro") / F("quantity")),
    output_field=BigIntegerField(),
)


def _of_tail(total: Combinable) -> Coalesce:
    entries = LedgerEntry.objects.filter(organization_id=OuterRef("pk"), pk__gt=OuterRef("counted"))
    grouped = entries.order_by().values("organization_id").annotate(total=total)
    return Coalesce(Subquery(grouped.values("total")), 0, output_field=BigIntegerField())


# What each open hold still holds, and what was charged, by budget period.
BUDGETS = """
    SELECT p.id, p.held_micro, p.spent_micro, p.held_images, p.spent_images,
        COALESCE(h.micro, 0), COALESCE(s.micro, 0), COALESCE(h.images, 0), COALESCE(s.images, 0)
    FROM billing_budgetperiod p
    LEFT JOIN (
        SELECT CAST(each.value AS BIGINT) AS period,
            SUM(hold.amount_micro - hold.captured * (hold.amount_micro / hold.quantity)) AS micro,
            SUM(hold.quantity - hold.captured) AS images
        FROM billing_hold hold, {each}
        WHERE hold.state = 'held'
        GROUP BY 1
    ) h ON h.period = p.id
    LEFT JOIN (
        SELECT CAST(each.value AS BIGINT) AS period,
            SUM(-entry.amount_micro) AS micro, SUM(entry.quantity) AS images
        FROM billing_ledgerentry entry JOIN billing_hold hold ON hold.id = entry.hold_id, {each}
        WHERE entry.kind = 'consumption' AND entry.created_at >= %s
            AND entry.organization_id IN (SELECT organization_id FROM billing_budget)
        GROUP BY 1
    ) s ON s.period = p.id
    WHERE p.held_micro <> COALESCE(h.micro, 0) OR p.held_images <> COALESCE(h.images, 0)
        OR p.starts_at >= %s AND (
            p.spent_micro <> COALESCE(s.micro, 0) OR p.spent_images <> COALESCE(s.images, 0)
        )
    ORDER BY p.id LIMIT {most}
"""
EACH = {
    "postgresql": "jsonb_array_elements_text(hold.budget_periods) AS each(value)",
    "sqlite": "json_each(hold.budget_periods) AS each",
}


def _budgets(now: datetime, since: datetime) -> Iterator[Finding]:
    moment = connection.ops.adapt_datetimefield_value(since)
    with connection.cursor() as cursor:
        cursor.execute(
            BUDGETS.format(each=EACH[connection.vendor], most=MOST_FINDINGS // 4), [moment, moment]
        )
        rows = [[int(value) for value in row] for row in cursor.fetchall()]
    periods = BudgetPeriod.objects.select_related("budget").in_bulk([row[0] for row in rows])
    names = ("held", "spent", "held_images", "spent_images")
    for pk, *numbers in rows:
        period = periods.get(pk)
        if period is None:
            continue  # removed a moment ago
        for name, found, expected in zip(names, numbers[:4], numbers[4:], strict=True):
            spending = name.startswith("spent")
            if expected != found and (period.starts_at >= since or not spending):
                yield Finding(
                    f"budget_{name}",
                    str(pk),
                    expected,
                    found,
                    period.budget.organization_id,
                    hour=period.starts_at if spending else None,
                    subject=f"budget {period.budget_id} from {period.starts_at:%Y-%m-%d}",
                )


def _captures(now: datetime, since: datetime) -> Iterator[Finding]:
    captured = Hold.objects.filter(state=HoldState.CAPTURED, settled_at__gte=since)
    charged = captured.annotate(charged=Coalesce(Sum("ledger_entries__quantity"), 0))
    for hold in charged.exclude(charged=F("captured")).order_by("settled_at")[:MOST_FINDINGS]:
        yield Finding(
            "capture",
            str(hold.pk),
            hold.captured,
            hold.charged,
            hold.organization_id,
            hour=hold.settled_at,
            subject=hold.request_id,
        )


def _forgotten_holds(now: datetime, since: datetime) -> Iterator[Finding]:
    late = Hold.objects.filter(state=HoldState.HELD, lease_until__lt=now - LEASE_PAST)
    for hold in late.annotate(remaining=REMAINING).order_by("lease_until")[:MOST_FINDINGS]:
        yield Finding(
            "hold_forgotten",
            str(hold.pk),
            0,
            hold.remaining,
            hold.organization_id,
            subject=hold.request_id,
        )


def _unmetered(now: datetime, since: datetime) -> Iterator[Finding]:
    """Find consumption that Stripe should bill and that is in no meter event."""
    account = "organization__billing_account__"
    passed = Q(pk__lte=F(f"{account}frozen_through"), created_at__gte=since)
    waiting = Q(pk__gt=F(f"{account}frozen_through"), created_at__lt=now - FREEZING)
    entries = LedgerEntry.objects.filter(
        passed | waiting,
        pk__gt=F(f"{account}metered_from"),
        kind=EntryKind.CONSUMPTION,
        metered=None,
    )
    rows = (
        entries.values(
            "organization_id", "price_version_id", at=TruncHour("created_at", tzinfo=UTC)
        )
        .annotate(images=Sum("quantity"))
        .order_by("at")
    )
    for row in rows[:MOST_FINDINGS]:
        yield Finding(
            "unmetered",
            _lane_hour(row["organization_id"], row["price_version_id"], row["at"]),
            row["images"],
            0,
            row["organization_id"],
            row["price_version_id"],
            row["at"],
        )


def _frozen_too_far(now: datetime, since: datetime) -> Iterator[Finding]:
    account = "organization__billing_account__"
    ahead = LedgerEntry.objects.filter(
        pk__gt=F(f"{account}frozen_through"), metered__isnull=False
    ).values("organization_id")
    for row in ahead.annotate(entries=Count("pk")).order_by("organization_id")[:MOST_FINDINGS]:
        yield Finding(
            "frozen_through",
            str(row["organization_id"]),
            0,
            row["entries"],
            row["organization_id"],
            subject="entries in meter events that come after what was frozen",
        )


def _event_sums(now: datetime, since: datetime) -> Iterator[Finding]:
    # An entry of another organization or price does not count.
    own = Q(
        entries__ledger_entry__organization_id=F("organization_id"),
        entries__ledger_entry__price_version_id=F("price_version_id"),
    )
    events = MeterEvent.objects.filter(reissue_of=None, timestamp__gte=since).annotate(
        frozen=Coalesce(Sum("entries__ledger_entry__quantity", filter=own), 0)
    )
    for event in events.exclude(frozen=F("quantity")).order_by("timestamp")[:MOST_FINDINGS]:
        yield _of_event("event_sum", event, event.frozen, event.quantity, hour=event.timestamp)


def _stuck_events(now: datetime, since: datetime) -> Iterator[Finding]:
    """Find meter events that are not with Stripe and will not get there by themselves."""
    made_up = Coalesce(Sum("reissues__quantity", filter=Q(reissues__state__in=metering.COUNTED)), 0)
    lost = Q(state__in=[MeterState.REJECTED, MeterState.UNBILLED, MeterState.UNCERTAIN])
    late = Q(state=MeterState.SENDING, first_attempt_at__lt=now - SENDING) | Q(
        state=MeterState.PENDING, timestamp__lt=now - WAITING
    )
    events = MeterEvent.objects.filter(lost | late).annotate(made_up=made_up)
    for event in events.exclude(made_up=F("quantity")).order_by("timestamp")[:MOST_FINDINGS]:
        yield _of_event(f"event_{event.state}", event, event.quantity, event.made_up)


def _of_event(
    kind: str, event: MeterEvent, expected: int, found: int, hour: datetime | None = None
) -> Finding:
    return Finding(
        kind,
        event.identifier,
        expected,
        found,
        event.organization_id,
        event.price_version_id,
        hour,
        event.last_error,
    )


def _stuck_operations(now: datetime, since: datetime) -> Iterator[Finding]:
    stuck = StripeOperation.objects.filter(
        Q(state=OperationState.FAILED)
        | Q(state=OperationState.PENDING, attempts__gte=MANY_ATTEMPTS)
    )
    for row in stuck.order_by("pk")[:MOST_FINDINGS]:
        yield Finding("operation", row.key[:180], 1, 0, row.organization_id, subject=row.last_error)


def _stuck_inbox(now: datetime, since: datetime) -> Iterator[Finding]:
    stuck = StripeEvent.objects.filter(processed_at=None, received_at__lt=now - HOUR)
    for row in stuck.order_by("received_at")[:MOST_FINDINGS]:
        yield Finding("inbox", row.pk, 1, 0, subject=f"{row.type} {row.object_id} {row.error}")


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison, and the kinds of all that it can find."""

    find: Callable[[datetime, datetime], Iterable[Finding]]
    kinds: tuple[str, ...]


CHECKS = (
    Check(_accounts, ("balance", "spent", "held")),
    Check(_budgets, ("budget_held", "budget_spent", "budget_held_images", "budget_spent_images")),
    Check(_captures, ("capture",)),
    Check(_forgotten_holds, ("hold_forgotten",)),
    Check(_unmetered, ("unmetered",)),
    Check(_frozen_too_far, ("frozen_through",)),
    Check(_event_sums, ("event_sum",)),
    Check(
        _stuck_events,
        ("event_rejected", "event_unbilled", "event_uncertain", "event_sending", "event_pending"),
    ),
    Check(_stuck_operations, ("operation",)),
    Check(_stuck_inbox, ("inbox",)),
)


# --- What Stripe has counted --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane:
    """The usage of one organization and price version, and the names they have in Stripe."""

    organization_id: uuid.UUID
    price_version_id: int
    customer: str
    meter: str


@dataclass(slots=True)
class Expected:
    """Images by hour that Stripe should have counted, and what cannot be said yet."""

    images: Counter[datetime]
    accepted: dict[datetime, list[str]]
    in_flight: set[datetime]


def usage(stripe: Stripe, *, now: datetime, since: datetime | None = None) -> Reconciliation:
    """Compare what we sent with Stripe's sums, for the hours from `since` (72) to 2 hours ago.

    What is equal is confirmed. A lane that Stripe cannot tell about now is left for the next run.
    """
    first, end = _hour(since or now - PAST), _hour(now - SETTLED)
    run = Reconciliation.objects.create(kind="usage", started_at=now)
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
        hours = sorted({*expected.images, *found} - expected.in_flight)
        checked += len(hours)
        opened += _compare_usage(lane, hours, expected, found, now)
    return _finish(run, checked, opened, now)


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
        hours = {_hour(event.timestamp)} | ({_hour(original.timestamp)} if original else set())
        if event.state in IN_FLIGHT:
            expected.in_flight |= hours
        elif event.state in metering.COUNTED:
            expected.images[_hour(event.timestamp)] += event.quantity
            expected.accepted[_hour(event.timestamp)].append(event.pk)
            if original is not None and original.state in metering.COUNTED:
                expected.images[_hour(original.timestamp)] -= event.quantity
    for hour in [one for one in expected.images if not first <= one < end]:
        del expected.images[hour]
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
    return {
        datetime.fromtimestamp(row.start_time, UTC): round(row.aggregated_value) for row in rows
    }


def _compare_usage(
    lane: Lane,
    hours: list[datetime],
    expected: Expected,
    found: Mapping[datetime, int],
    now: datetime,
) -> int:
    alike = [hour for hour in hours if expected.images[hour] == found.get(hour, 0)]
    MeterEvent.objects.filter(
        pk__in=list(chain.from_iterable(expected.accepted[hour] for hour in alike)),
        state=MeterState.ACCEPTED,
    ).update(state=MeterState.CONFIRMED)
    findings = [
        Finding(
            "usage",
            _lane_hour(lane.organization_id, lane.price_version_id, hour),
            expected.images[hour],
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
    opened = _note(findings, compared, now)
    return sum(not _put_right(row, lane, now) for row in opened)


def _unreadable(lane: Lane, expected: Expected, why: str, now: datetime) -> list[Difference]:
    finding = Finding(
        "usage_unread",
        f"{lane.organization_id}:{lane.price_version_id}",
        expected.images.total(),
        0,
        lane.organization_id,
        lane.price_version_id,
        subject=why,
    )
    return _note([finding], Q(pk=None), now)


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
        state__in=metering.COUNTED,
    )
    largest = sent.select_related("organization", "price_version").order_by("-quantity", "pk")
    missing = difference.expected - difference.found
    if (event := largest.first()) is None or not _is_little(event, missing, hour):
        return False
    with transaction.atomic():
        mine = Difference.objects.filter(pk=difference.pk, state=DifferenceState.OPEN)
        note = f"{missing:+} sent to Stripe, seen alike {difference.seen} times."
        if mine.update(state=DifferenceState.FIXED, note=note):
            metering.reissue(event, missing, now=now)
    return True


def _is_little(event: MeterEvent, images: int, hour: datetime) -> bool:
    micro = abs(images) * event.price_version.unit_micro
    month = budgets.period_start(Period.MONTH, hour)
    spent = ledger.spent_since(event.organization, since=month)
    return micro <= MOST_MICRO and micro * MONTH_PART <= spent


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _lane_hour(organization_id: uuid.UUID, price_version_id: int, hour: datetime) -> str:
    return f"{organization_id}:{price_version_id}:{hour:%Y-%m-%dT%H}"


# --- Invoices -----------------------------------------------------------------------------------


def draft(stripe: Stripe, invoice: Invoice, *, now: datetime) -> Reconciliation:
    """Compare a draft as it is in Stripe now, while there is time to send what is missing.

    Raises StripeFailure.
    """
    fresh = invoices.mirror(stripe, invoice.stripe_id, now=now)
    if fresh is None:
        run = Reconciliation.objects.create(
            kind="invoice_draft", subject=invoice.stripe_id, started_at=now
        )
        _note([], Q(key__startswith=f"invoice_draft:{invoice.stripe_id}:"), now)
        return _finish(run, 0, 0, now)
    return _compare_invoice(
        "invoice_draft" if fresh.status == "draft" else "invoice_final", fresh, now
    )


def final(invoice: Invoice, *, now: datetime) -> Reconciliation:
    """Compare an invoice that no usage is added to any more; a person decides what follows."""
    return _compare_invoice("invoice_final", invoice, now)


def invoices_due(stripe: Stripe, *, now: datetime) -> int:
    """Compare drafts every half hour, and final invoices once, or until they agree."""
    done = Reconciliation.objects.filter(subject=OuterRef("stripe_id"))
    drafts = _drafts(now).exclude(
        Exists(done.filter(kind="invoice_draft", started_at__gt=now - BETWEEN_READS))
    )
    finals = _finals(now - FINAL_FOR).exclude(
        Exists(done.filter(kind="invoice_final", differences=0))
        | Exists(done.filter(kind="invoice_final", started_at__gt=now - BETWEEN_READS))
    )
    return _compare_invoices(stripe, drafts, finals, now)


def invoices_since(stripe: Stripe, *, now: datetime, since: datetime) -> int:
    """Compare every draft, and every invoice that became final since then; return how many."""
    return _compare_invoices(stripe, _drafts(now), _finals(since), now)


def _drafts(now: datetime) -> QuerySet[Invoice]:
    return Invoice.objects.filter(
        status="draft", billing_reason__startswith="subscription", created__lte=now - DRAFT_SETTLES
    )


def _finals(since: datetime) -> QuerySet[Invoice]:
    final_ones = Invoice.objects.filter(finalized_at__gte=since)
    return final_ones.exclude(status__in=["draft", "void", "deleted"])


def _compare_invoices(
    stripe: Stripe, drafts: QuerySet[Invoice], finals: QuerySet[Invoice], now: datetime
) -> int:
    compared = 0
    for invoice in list(drafts):
        try:
            draft(stripe, invoice, now=now)
        except StripeUnknown:
            break  # Stripe is away
        except StripeFailure:
            continue
        compared += 1
    for invoice in finals.iterator():
        final(invoice, now=now)
        compared += 1
    return compared


def _compare_invoice(kind: str, invoice: Invoice, now: datetime) -> Reconciliation:
    run = Reconciliation.objects.create(kind=kind, subject=invoice.stripe_id, started_at=now)
    versions = {
        version.stripe_price: version
        for version in PriceVersion.objects.filter(
            stripe_price__in=[line["price"] for line in invoice.lines if line.get("price")]
        )
    }
    lines = [(line, versions[line["price"]]) for line in invoice.lines if line["price"] in versions]
    findings = [
        *(one for line, version in lines if (one := _line(kind, invoice, line, version))),
        *_without_line(kind, invoice, {version.pk for _, version in lines}),
    ]
    # What the draft showed is on the final invoice, or it is gone.
    about = Q(key__startswith=f"{kind}:{invoice.stripe_id}:")
    if kind == "invoice_final":
        about |= Q(key__startswith=f"invoice_draft:{invoice.stripe_id}:")
    opened = _note(findings, about, now)
    return _finish(run, len(lines), len(opened), now)


def _line(
    kind: str, invoice: Invoice, line: invoices.Line, version: PriceVersion
) -> Finding | None:
    """Find what a line has too much or too little: images, or else more than a cent."""
    ours = invoices.line_total(invoice, line)
    if ours.agrees(line):
        return None
    quantity = round(Decimal(line["quantity"]))
    pair, unit = (ours.images, quantity), "images"
    if ours.images == quantity:
        pair, unit = (ours.micro, line["amount_cents"] * invoices.MICRO_PER_CENT), "micro-USD"
    return Finding(
        kind,
        f"{invoice.stripe_id}:{line['id']}",
        *pair,
        invoice.organization_id,
        version.pk,
        subject=f"{unit} on {invoice.number or invoice.stripe_id}",
    )


def _without_line(kind: str, invoice: Invoice, billed: set[int]) -> Iterator[Finding]:
    """Find what Stripe counted in the invoice's period at a price that is not on it."""
    if not invoice.billing_reason.startswith("subscription"):
        return
    used = MeterEvent.objects.filter(
        organization_id=invoice.organization_id,
        timestamp__gte=invoice.period_start,
        timestamp__lt=invoice.period_end,
        state__in=metering.COUNTED,
    ).exclude(price_version_id__in=billed)
    rows = used.values("price_version_id").annotate(images=Sum("quantity")).exclude(images=0)
    for row in rows.order_by("price_version_id"):
        yield Finding(
            kind,
            f"{invoice.stripe_id}:v{row['price_version_id']}",
            row["images"],
            0,
            invoice.organization_id,
            row["price_version_id"],
            subject=f"no line on {invoice.number or invoice.stripe_id}",
        )
