"""Our own tables compared with each other, and what is stuck in them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import connection
from django.db.models import (
    BigIntegerField,
    Case,
    Count,
    ExpressionWrapper,
    F,
    Max,
    OuterRef,
    Q,
    Subquery,
    Sum,
    When,
)
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, TruncHour

from billing.metering.events import COUNTED
from billing.models import (
    BillingAccount,
    BudgetPeriod,
    Comparison,
    EntryKind,
    Hold,
    HoldState,
    LedgerEntry,
    LedgerTotal,
    MeterEvent,
    MeterState,
    OperationState,
    Reconciliation,
    StripeEvent,
    StripeOperation,
)
from billing.models.prices import SHARED_UNIT_MICRO
from billing.reconciliation.differences import Finding, finish, lane_hour, note

# How far back `internal` looks at single rows; older ones were looked at when they were new.
RECENT = timedelta(days=3)
# An organization's ledger is added up anew from its last total; past so many entries it moves on.
LONG_TAIL = 1000
# More rows than these tell a person nothing more.
MOST_FINDINGS = 1000
FREEZING, LEASE_PAST, SENDING = timedelta(minutes=75), timedelta(minutes=10), timedelta(hours=1)
WAITING = timedelta(hours=26)
# By then an operation has been tried for five hours.
MANY_ATTEMPTS = 10
KEPT = timedelta(days=30)


def internal(*, now: datetime, since: datetime | None = None) -> Reconciliation:
    """Compare our tables with each other, single rows from `since` (three days ago) on."""
    since = since or now - RECENT
    run = compare(Comparison.INTERNAL, CHECKS, _looked_at(since), now=now, since=since)
    Reconciliation.objects.filter(differences=0, started_at__lt=now - KEPT).delete()
    return run


def compare(
    kind: Comparison, checks: "Iterable[Check]", looked_at: int, *, now: datetime, since: datetime
) -> Reconciliation:
    """Note what the checks find; close what they compare from `since` on and find no more."""
    run = Reconciliation.objects.create(kind=kind, started_at=now)
    opened = 0
    for check in checks:
        findings = list(check.find(now, since))
        # A list that was cut says nothing about what is not on it.
        whole = len(findings) < MOST_FINDINGS
        recent = Q(hour=None) | Q(hour__gte=since)
        compared = Q(kind__in=check.kinds) & recent if whole else Q(pk=None)
        opened += len(note(findings, compared, now))
    return finish(run, looked_at, opened, now)


def recount() -> None:
    """Forget the totals of the ledger, so that internal() adds it up from its first entry."""
    LedgerTotal.objects.all().delete()


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
        .annotate(units=Sum("quantity"))
        .order_by("at")
    )
    for row in rows[:MOST_FINDINGS]:
        yield Finding(
            "unmetered",
            lane_hour(row["organization_id"], row["price_version_id"], row["at"]),
            row["units"],
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
    own = Q(entries__ledger_entry__organization_id=F("organization_id"))
    counted = Case(
        When(
            entries__ledger_entry__price_version_id=F("price_version_id"),
            then=F("entries__ledger_entry__quantity"),
        ),
        When(
            entries__ledger_entry__price_version__counted_in_id=F("price_version_id"),
            then=-F("entries__ledger_entry__amount_micro") / SHARED_UNIT_MICRO,
        ),
        output_field=BigIntegerField(),
    )
    events = MeterEvent.objects.filter(reissue_of=None, timestamp__gte=since).annotate(
        frozen=Coalesce(Sum(counted, filter=own), 0, output_field=BigIntegerField())
    )
    for event in events.exclude(frozen=F("quantity")).order_by("timestamp")[:MOST_FINDINGS]:
        yield _of_event("event_sum", event, event.frozen, event.quantity, hour=event.timestamp)


def _stuck_events(now: datetime, since: datetime) -> Iterator[Finding]:
    """Find meter events that are not with Stripe and will not get there by themselves."""
    made_up = Coalesce(Sum("reissues__quantity", filter=Q(reissues__state__in=COUNTED)), 0)
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
    stuck = StripeEvent.objects.filter(processed_at=None, received_at__lt=now - SENDING)
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
