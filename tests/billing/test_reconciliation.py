"""Reconciliation: each thing that can go apart is taken apart, and must be found, and only it."""

import io
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models import F
from django.utils import timezone

from accounts.models import ApiKey, AuditEvent, Organization
from billing import reconciliation
from billing.metering import freeze
from billing.metering.send import send_due
from billing.metering.sink import StripeSink
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
    Subscription,
)
from billing.reconciliation import AlreadyResolved
from billing.spending import budgets, holds
from billing.stripe.client import Stripe
from tests.billing import authorize, capture, race, timetravel
from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop, Sold
from tests.factories import KeyFactory, OrganizationFactory
from tests.images.requests import give_requests

NOW = datetime(2099, 3, 10, 12, 30, tzinfo=UTC)
PRICE = 40_000


def consume(key: ApiKey, quantity: int = 1, *, at: datetime, model: str = "a/cheap") -> LedgerEntry:
    """Return the entry of images delivered at that time, each for its price."""
    entry = capture(authorize(key, model, quantity=quantity), model=model, delivered=quantity)
    entry.pk = LedgerEntry.objects.get(entry_key=entry.entry_key).pk
    timetravel.move(entry, to=at)
    entry.refresh_from_db()
    return entry


def found() -> dict[str, tuple[int, int]]:
    """Return expected and found of every open difference, by kind."""
    rows = Difference.objects.filter(state=DifferenceState.OPEN)
    assert rows.count() == rows.values("kind").distinct().count()
    return {row.kind: (row.expected, row.found) for row in rows}


def internal(now: datetime = NOW, since: datetime | None = None) -> dict[str, tuple[int, int]]:
    """Run the internal comparison and return what it found."""
    run = reconciliation.internal(now=now, since=since)
    assert run.differences == len(found())
    assert run.finished_at == now
    return found()


def metered(key: ApiKey, **changes: Any) -> None:
    """Let Stripe bill all consumption of the key's organization."""
    BillingAccount.objects.filter(pk=key.organization_id).update(metered_from=0, **changes)


def version(model: str = "a/cheap") -> PriceVersion:
    return PriceVersion.objects.get(sku=model)


def event(key: ApiKey, quantity: int = 1, **fields: Any) -> MeterEvent:
    """Return a meter event of the key's organization."""
    at = fields.pop("timestamp", NOW)
    return MeterEvent.objects.create(
        identifier=fields.pop("identifier", uuid.uuid4().hex),
        organization_id=key.organization_id,
        price_version=fields.pop("price_version", None) or version(),
        hour=at.replace(minute=0, second=0),
        quantity=quantity,
        timestamp=at,
        next_at=at,
        **fields,
    )


# --- Our own books


def test_books_that_agree_show_nothing(key: ApiKey) -> None:
    budgets.set_budget(key, 10_000_000, Period.MONTH, limit_images=100)
    budgets.set_budget(key, 10_000_000, Period.DAY)
    metered(key)
    capture(authorize(key, quantity=5), delivered=3)
    part = authorize(key, "c/dear", quantity=4)
    holds.capture_one(part, sku="c/dear")
    holds.release(authorize(key))
    now = timezone.now()
    freeze.freeze(now=now, running_hour=True)

    assert internal(now, now - timedelta(days=32)) == {}
    row = Reconciliation.objects.get()
    # One account, the day and month of the budget, a capture and two events.
    assert (row.kind, row.checked, row.differences) == ("internal", 6, 0)
    assert not Difference.objects.exists()


ACCOUNT = {
    "balance": (
        {"balance_micro": F("balance_micro") + 1},
        (10_000_000 - PRICE, 10_000_001 - PRICE),
    ),
    "spent": ({"spent_micro": F("spent_micro") - 5}, (PRICE, PRICE - 5)),
    "held": ({"held_micro": F("held_micro") + 7}, (2 * PRICE, 2 * PRICE + 7)),
}


@pytest.mark.parametrize("kind", ACCOUNT)
def test_a_total_that_left_the_ledger_is_found_and_closed_when_it_is_back(
    key: ApiKey, kind: str
) -> None:
    other = KeyFactory().row
    consume(key, at=NOW)
    consume(other, at=NOW)
    authorize(key, quantity=2, lease=timedelta(days=99_999))
    authorize(other, quantity=3, lease=timedelta(days=99_999))
    change, expected = ACCOUNT[kind]
    account = BillingAccount.objects.filter(pk=key.organization_id)
    before = account.values("balance_micro", "spent_micro", "held_micro").get()
    account.update(**change)

    assert internal() == {kind: expected}
    row = Difference.objects.get()
    assert row.organization_id == key.organization_id
    assert (row.first_seen_at, row.seen) == (NOW, 1)

    account.update(**before)
    assert internal(NOW + timedelta(minutes=10)) == {}
    row.refresh_from_db()
    assert row.state == DifferenceState.CLOSED


def test_long_ledgers_are_added_up_once_and_go_on_from_there(key: ApiKey) -> None:
    LedgerEntry.objects.bulk_create(
        LedgerEntry(
            organization=key.organization,
            kind=EntryKind.RECHARGE,
            amount_micro=3,
            entry_key=f"r:{number}",
        )
        for number in range(reconciliation.books.LONG_TAIL)
    )
    BillingAccount.objects.update(
        balance_micro=F("balance_micro") + 3 * reconciliation.books.LONG_TAIL
    )
    assert internal() == {}
    total = LedgerTotal.objects.get()
    last = LedgerEntry.objects.order_by("pk").last()
    assert last is not None
    # With the bonus.
    expected = (last.pk, 10_000_000 + 3 * reconciliation.books.LONG_TAIL, 0)
    assert (total.through, total.balance_micro, total.spent_micro) == expected

    consume(key, 2, at=NOW)
    assert internal() == {}
    # The mark is what is gone on from: it is believed until all is counted again.
    LedgerTotal.objects.update(balance_micro=F("balance_micro") - 1)
    assert internal().keys() == {"balance"}
    reconciliation.recount()
    assert internal() == {}
    total = LedgerTotal.objects.get()
    assert total.spent_micro == 2 * PRICE


BUDGET = {
    "budget_held": ({"held_micro": F("held_micro") + 1}, (3 * PRICE, 3 * PRICE + 1)),
    "budget_spent": ({"spent_micro": F("spent_micro") + 1}, (2 * PRICE, 2 * PRICE + 1)),
    "budget_held_images": ({"held_images": F("held_images") + 1}, (3, 4)),
    "budget_spent_images": ({"spent_images": F("spent_images") + 1}, (2, 3)),
}


@pytest.mark.parametrize("kind", BUDGET)
def test_a_budget_that_left_its_holds_or_the_ledger_is_found(key: ApiKey, kind: str) -> None:
    budgets.set_budget(key, 10_000_000, Period.DAY)
    budgets.set_budget(key, 10_000_000, Period.MONTH)
    capture(authorize(key, quantity=3), delivered=2)
    authorize(key, quantity=3)
    now = timezone.now()
    since = now - timedelta(days=32)
    assert internal(now, since) == {}
    change, expected = BUDGET[kind]
    BudgetPeriod.objects.filter(budget__period=Period.MONTH).update(**change)

    assert internal(now, since) == {kind: expected}
    row = Difference.objects.get()
    assert row.organization_id == key.organization_id
    assert row.key.startswith(f"{kind}:")


def test_a_capture_without_its_entry_is_found(key: ApiKey) -> None:
    consume(key, at=NOW)
    hold = authorize(key, quantity=2)
    moved = holds.capture_one(hold, sku="a/cheap")
    hold.refresh_from_db()
    holds.release(hold)
    Hold.objects.filter(pk=hold.pk).update(captured=2, settled_at=NOW - timedelta(days=1))

    assert moved is not None
    assert internal() == {"capture": (2, 1)}
    # Out of the window it is neither found nor taken for settled.
    assert reconciliation.internal(now=NOW + timedelta(days=4)).differences == 0
    assert found() == {"capture": (2, 1)}
    Hold.objects.filter(pk=hold.pk).update(captured=1)
    assert internal(since=NOW - timedelta(days=7)) == {}


def test_a_hold_past_its_lease_is_found_and_one_within_is_not(key: ApiKey) -> None:
    late, fresh = authorize(key, quantity=2), authorize(key)
    Hold.objects.filter(pk=late.pk).update(lease_until=NOW - timedelta(minutes=11))
    Hold.objects.filter(pk=fresh.pk).update(lease_until=NOW - timedelta(minutes=9))

    assert internal() == {"hold_forgotten": (0, 2 * PRICE)}
    assert Difference.objects.get().subject == late.request_id
    holds.expire(Hold.objects.get(pk=late.pk))
    assert internal() == {}


def test_consumption_that_is_in_no_event_is_found_when_it_should_be(key: ApiKey) -> None:
    before = consume(key, at=NOW - timedelta(hours=5))
    BillingAccount.objects.update(metered_from=before.pk)
    consume(key, 2, at=NOW - timedelta(minutes=74))
    assert internal() == {}
    consume(key, 3, at=NOW - timedelta(minutes=76))
    assert internal() == {"unmetered": (3, 0)}
    row = Difference.objects.get()
    assert row.hour == datetime(2099, 3, 10, 11, tzinfo=UTC)
    assert row.price_version == version()

    # A mark that passed them is as bad, however young they are.
    freeze.freeze(now=NOW)
    assert internal() == {}
    young = consume(key, 4, at=NOW - timedelta(minutes=1))
    BillingAccount.objects.update(frozen_through=young.pk)
    assert internal() == {"unmetered": (4, 0)}
    # Who is not metered has nothing to be in an event.
    BillingAccount.objects.update(metered_from=None)
    assert internal() == {}


def test_a_mark_behind_what_is_frozen_is_found(key: ApiKey) -> None:
    metered(key)
    consume(key, at=NOW - timedelta(hours=2))
    freeze.freeze(now=NOW)
    BillingAccount.objects.update(frozen_through=F("frozen_through") - 1)

    assert internal() == {"frozen_through": (0, 1)}


@pytest.mark.parametrize("quantity", [4, 6])
def test_an_event_whose_quantity_is_not_its_entries_is_found(key: ApiKey, quantity: int) -> None:
    metered(key)
    consume(key, 2, at=NOW - timedelta(hours=2))
    consume(key, 3, at=NOW - timedelta(hours=2))
    freeze.freeze(now=NOW)
    made = MeterEvent.objects.get()
    made.state = MeterState.ACCEPTED
    made.save()
    freeze.reissue(made, 7, now=NOW)
    assert internal() == {}
    MeterEvent.objects.filter(pk=made.pk).update(quantity=quantity)

    assert internal() == {"event_sum": (5, quantity)}


def test_an_entry_of_another_price_does_not_count_for_an_event(key: ApiKey) -> None:
    metered(key)
    consume(key, 2, at=NOW - timedelta(hours=2))
    freeze.freeze(now=NOW)
    MeterEvent.objects.update(price_version=version("c/dear"))

    assert internal() == {"event_sum": (0, 2)}


HOURS = timedelta(hours=1)
STUCK = {
    "event_rejected": {"state": MeterState.REJECTED},
    "event_unbilled": {"state": MeterState.UNBILLED},
    "event_uncertain": {"state": MeterState.UNCERTAIN},
    "event_sending": {"state": MeterState.SENDING, "first_attempt_at": NOW - 1.1 * HOURS},
    "event_pending": {"timestamp": NOW - 27 * HOURS},
}
FINE: list[dict[str, Any]] = [
    {"state": MeterState.SENDING, "first_attempt_at": NOW - 0.9 * HOURS},
    {"timestamp": NOW - 25 * HOURS},
    {"state": MeterState.ACCEPTED, "timestamp": NOW - 60 * HOURS},
    {"state": MeterState.CONFIRMED, "timestamp": NOW - 60 * HOURS},
]


@pytest.mark.parametrize("kind", STUCK)
def test_events_that_do_not_get_to_stripe_are_found(key: ApiKey, kind: str) -> None:
    # They have no entries, which an hour ago makes no difference of its own.
    since = NOW + timedelta(days=1)
    for fine in FINE:
        event(key, **fine)
    assert internal(since=since) == {}
    MeterEvent.objects.all().delete()
    made = event(key, 5, **STUCK[kind])

    assert internal(since=since) == {kind: (5, 0)}
    # What was sent in its place makes up for it.
    event(key, 5, state=MeterState.ACCEPTED, reissue_of=made)
    assert internal(since=since) == {}


def test_writes_that_failed_and_events_nobody_could_work_on_are_found(key: ApiKey) -> None:
    StripeOperation.objects.create(key="fine", kind="customer", attempts=3)
    StripeOperation.objects.create(key="done", kind="customer", state=OperationState.DONE)
    event_fields: dict[str, Any] = {"livemode": False, "payload": {}, "created": NOW}
    StripeEvent.objects.create(
        id="evt_1", type="invoice.paid", received_at=NOW - 0.9 * HOURS, **event_fields
    )
    assert internal() == {}
    StripeOperation.objects.create(
        key="bad", kind="customer", state=OperationState.FAILED, last_error="no such thing"
    )
    StripeEvent.objects.create(
        id="evt_2", type="invoice.paid", received_at=NOW - 1.1 * HOURS, **event_fields
    )
    StripeEvent.objects.create(
        id="evt_3",
        type="invoice.paid",
        received_at=NOW - 5 * HOURS,
        processed_at=NOW,
        **event_fields,
    )

    assert internal() == {"operation": (1, 0), "inbox": (1, 0)}
    assert Difference.objects.get(kind="operation").subject == "no such thing"
    StripeOperation.objects.filter(key="bad").update(state=OperationState.PENDING, attempts=10)
    assert internal() == {"operation": (1, 0), "inbox": (1, 0)}
    StripeOperation.objects.update(state=OperationState.DONE)
    StripeEvent.objects.update(processed_at=NOW)
    assert internal() == {}


# --- What becomes of a difference


def test_a_difference_counts_equal_reads_half_an_hour_apart(key: ApiKey) -> None:
    BillingAccount.objects.update(held_micro=5)
    internal()
    internal(NOW + timedelta(minutes=29))
    row = Difference.objects.get()
    assert (row.seen, row.last_seen_at) == (1, NOW)
    internal(NOW + timedelta(minutes=30))
    row.refresh_from_db()
    assert (row.seen, row.last_seen_at) == (2, NOW + timedelta(minutes=30))
    # Other numbers are another difference: it is seen for the first time.
    BillingAccount.objects.update(held_micro=6)
    internal(NOW + timedelta(minutes=61))
    row.refresh_from_db()
    assert (row.seen, row.found) == (1, 6)
    assert Difference.objects.count() == 1


def test_an_accepted_difference_comes_back_only_with_other_numbers(key: ApiKey) -> None:
    BillingAccount.objects.update(held_micro=5)
    internal()
    row = Difference.objects.get()
    with pytest.raises(ValueError):
        reconciliation.resolve(row, "  ", None)
    actor = key.organization.memberships.get().user

    reconciliation.resolve(row, "A test of the alarm.", actor)

    row.refresh_from_db()
    assert (row.state, row.note) == (DifferenceState.ACCEPTED, "A test of the alarm.")
    audited = AuditEvent.objects.get(action="billing.difference_accepted")
    assert (audited.actor, audited.organization) == (actor, key.organization)
    assert audited.subject == row.key
    assert audited.details == {"note": "A test of the alarm.", "expected": 0, "found": 5}
    with pytest.raises(AlreadyResolved):
        reconciliation.resolve(row, "Again.", actor)
    assert AuditEvent.objects.filter(action="billing.difference_accepted").count() == 1

    assert internal(NOW + timedelta(hours=1)) == {}
    BillingAccount.objects.update(held_micro=6)
    assert internal(NOW + timedelta(hours=2)) == {"held": (0, 6)}


def test_many_hosts_at_once_open_one_difference(committed_key: ApiKey) -> None:
    BillingAccount.objects.update(held_micro=5)

    race(8, lambda number: reconciliation.internal(now=NOW))

    row = Difference.objects.get()
    assert (row.state, row.seen) == (DifferenceState.OPEN, 1)
    race(8, lambda number: reconciliation.internal(now=NOW + HOURS))
    row.refresh_from_db()
    assert row.seen == 2


def test_runs_without_differences_are_kept_for_a_month(key: ApiKey) -> None:
    internal()
    BillingAccount.objects.update(held_micro=5)
    internal(NOW + HOURS)
    BillingAccount.objects.update(held_micro=0)
    internal(NOW + timedelta(days=31))

    rows = Reconciliation.objects.order_by("pk").values_list("started_at", "differences")
    assert list(rows) == [(NOW + HOURS, 1), (NOW + timedelta(days=31), 0)]


# --- What Stripe has counted


class Metered:
    """An organization with a subscription, in the emulator's time."""

    def __init__(self, emulator: StripeEmulator, key: ApiKey) -> None:
        self.emulator, self.key, self.shop = emulator, key, Shop(emulator)
        self.sold: dict[str, Sold] = {}
        for row in PriceVersion.objects.order_by("pk"):
            self.sold[row.sku] = sold = self.shop.sell(row.event_name, f"{row.unit_micro / 10_000}")
            row.stripe_meter, row.stripe_price = sold.meter, sold.price
            row.stripe_product, row.livemode = sold.product, False
            row.save()
        self.customer = self.shop.customer()
        subscription = self.shop.subscribe(self.customer, *self.sold.values())
        metered(key, stripe_customer=self.customer)
        item = subscription["items"].data[0]
        Subscription.objects.create(
            stripe_id=subscription.id,
            organization_id=key.organization_id,
            status="active",
            items={
                one.price.id: [one.id, self.emulator.clock.now]
                for one in subscription["items"].data
            },
            period_start=datetime.fromtimestamp(item.current_period_start, UTC),
            period_end=datetime.fromtimestamp(item.current_period_end, UTC),
            fetched_at=self.now,
        )

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.emulator.clock.now, UTC)

    def hours_ago(self, hours: float) -> datetime:
        """Return a time in the middle of an hour."""
        return (self.now - timedelta(hours=hours)).replace(minute=30, second=0, microsecond=0)

    def use(
        self, ours: int, theirs: int | None = None, *, hours: float = 5, model: str = "a/cheap"
    ) -> MeterEvent:
        """Deliver images; Stripe has taken our event, and counts them, or another number."""
        at = self.hours_ago(hours)
        consume(self.key, ours, at=at, model=model)
        freeze.freeze(now=self.now)
        made = MeterEvent.objects.get(state=MeterState.PENDING)
        count = ours if theirs is None else theirs
        if count:
            name = self.sold[model].event_name
            self.shop.use(self.customer, name, count, at, made.identifier)
        MeterEvent.objects.filter(pk=made.pk).update(
            state=MeterState.ACCEPTED, accepted_at=self.now
        )
        made.refresh_from_db()
        return made

    def read(self, stripe: Stripe, *, later: timedelta = timedelta(0)) -> Reconciliation:
        self.emulator.clock.advance(later.total_seconds())
        return reconciliation.usage(stripe, now=self.now)

    def send(self, stripe: Stripe) -> int:
        return send_due(StripeSink(stripe), now=self.now)


@pytest.fixture
def shop(stripe_account: StripeEmulator, settings: Any, committed_key: ApiKey) -> Metered:
    """A metered organization three days after it subscribed."""
    settings.STRIPE_METER_RATE = 10_000
    BillingAccount.objects.update(credit_limit_micro=10**12)
    # The tenth of a month, so that periods are far away.
    start = datetime(2099, 3, 10, 0, 10, tzinfo=UTC)
    stripe_account.clock.advance_to(start)
    made = Metered(stripe_account, committed_key)
    stripe_account.clock.advance(3 * 86_400)
    return made


def test_usage_that_stripe_has_counted_is_confirmed(shop: Metered, stripe: Stripe) -> None:
    made = [shop.use(3, hours=5), shop.use(2, hours=5), shop.use(4, hours=60, model="c/dear")]
    young, old = shop.use(1, hours=1), shop.use(1, 0, hours=73)
    stranger = KeyFactory().row

    run = shop.read(stripe)

    # Two hours of two lanes were compared, what is too young or too old was not.
    assert (run.kind, run.checked, run.differences) == ("usage", 2, 0)
    assert found() == {}
    states = {row.pk: row.state for row in MeterEvent.objects.all()}
    assert [states[one.pk] for one in made] == ["confirmed"] * 3
    assert [states[one.pk] for one in (young, old)] == ["accepted"] * 2
    summaries = [r for r in shop.emulator.requests if r.path.endswith("/event_summaries")]
    assert len(summaries) == 2
    assert not MeterEvent.objects.filter(organization=stranger.organization).exists()


@pytest.mark.parametrize(("theirs", "delta"), [(97, 3), (103, -3)])
def test_a_small_difference_is_put_right_after_two_equal_reads(
    shop: Metered, stripe: Stripe, theirs: int, delta: int
) -> None:
    big = shop.use(100, theirs)
    shop.use(1000, hours=30)

    shop.read(stripe)
    assert found() == {"usage": (100, theirs)}
    shop.read(stripe, later=timedelta(minutes=29))
    assert found() == {"usage": (100, theirs)}
    assert MeterEvent.objects.filter(reissue_of=big).count() == 0

    shop.read(stripe, later=timedelta(minutes=1))
    assert found() == {}
    reissue = MeterEvent.objects.get(reissue_of=big)
    assert (reissue.identifier, reissue.quantity) == (f"{big.identifier}:r1", delta)
    row = Difference.objects.get()
    assert row.state == DifferenceState.FIXED
    assert row.note == f"{delta:+} sent to Stripe, seen alike 2 times."

    # While it is on its way, its hour says nothing.
    shop.read(stripe, later=timedelta(hours=1))
    assert found() == {}
    assert shop.send(stripe) == 1
    run = shop.read(stripe, later=timedelta(hours=1))
    assert (run.differences, found()) == (0, {})
    assert shop.emulator.meter_total(shop.customer, shop.sold["a/cheap"].event_name) == 1100
    states = MeterEvent.objects.filter(timestamp=big.timestamp).values_list("state", flat=True)
    assert list(states) == ["confirmed", "confirmed"]
    assert Difference.objects.count() == 1
    assert MeterEvent.objects.count() == 3


def test_two_hosts_put_it_right_once(shop: Metered, stripe: Stripe) -> None:
    shop.use(100, 97)
    shop.use(1000, hours=30)
    shop.read(stripe)
    shop.emulator.clock.advance(3600)

    race(6, lambda number: reconciliation.usage(stripe, now=shop.now))

    assert MeterEvent.objects.filter(reissue_of__isnull=False).count() == 1
    assert Difference.objects.filter(state=DifferenceState.FIXED).count() == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "month"),
    # Three images of 0.19: within 5 USD, beyond a fiftieth of the month. 27: the other way.
    [(100, 97, 0), (1000, 973, 3000)],
)
def test_a_large_difference_waits_for_a_person(
    shop: Metered, stripe: Stripe, ours: int, theirs: int, month: int
) -> None:
    shop.use(ours, theirs, model="c/dear")
    if month:
        shop.use(month, hours=30, model="c/dear")

    for _ in range(5):
        shop.read(stripe, later=timedelta(minutes=40))

    assert found() == {"usage": (ours, theirs)}
    row = Difference.objects.get()
    assert row.seen == 5
    assert row.price_version == version("c/dear")
    assert not MeterEvent.objects.filter(reissue_of__isnull=False).exists()
    reconciliation.resolve(row, "Refunded by hand.", None)
    shop.read(stripe, later=timedelta(minutes=40))
    assert found() == {}


def test_sums_that_lag_are_waited_for(shop: Metered, stripe: Stripe) -> None:
    shop.emulator.configure(summary_lag=4 * 3600)
    made = shop.use(100, hours=3)
    shop.use(1000, hours=20)

    shop.read(stripe)
    assert Difference.objects.filter(state=DifferenceState.OPEN).count() == 2
    shop.read(stripe, later=timedelta(hours=5))

    assert found() == {}
    made.refresh_from_db()
    assert made.state == MeterState.CONFIRMED
    assert not MeterEvent.objects.filter(reissue_of__isnull=False).exists()
    assert {row.state for row in Difference.objects.all()} == {DifferenceState.CLOSED}


def test_numbers_that_change_between_reads_are_not_acted_on(shop: Metered, stripe: Stripe) -> None:
    made = shop.use(100, 90)
    shop.use(4000, hours=30)
    name = shop.sold["a/cheap"].event_name
    for number in range(3):
        shop.read(stripe, later=timedelta(minutes=31))
        assert found() == {"usage": (100, 90 + number)}
        assert Difference.objects.get().seen == 1
        shop.shop.use(shop.customer, name, 1, made.timestamp)

    assert not MeterEvent.objects.filter(reissue_of__isnull=False).exists()


def test_usage_of_an_hour_in_which_we_sent_nothing_is_for_a_person(
    shop: Metered, stripe: Stripe
) -> None:
    shop.use(1000, hours=30)
    shop.shop.use(shop.customer, shop.sold["a/cheap"].event_name, 2, shop.hours_ago(4))
    shop.read(stripe)
    shop.read(stripe, later=HOURS)

    assert found() == {"usage": (0, 2)}


def test_what_made_up_for_a_rejected_event_counts_itself(shop: Metered, stripe: Stripe) -> None:
    lost = shop.use(10, 0)
    MeterEvent.objects.filter(pk=lost.pk).update(state=MeterState.REJECTED)
    lost.refresh_from_db()
    freeze.reissue(lost, 10, now=shop.now)
    assert shop.send(stripe) == 1

    run = shop.read(stripe)

    assert (run.checked, found()) == (1, {})


def test_one_lane_that_cannot_be_read_does_not_hold_the_others_back(
    shop: Metered, stripe: Stripe
) -> None:
    first, second = shop.use(5), shop.use(6, model="b/middle")
    PriceVersion.objects.filter(sku="a/cheap").update(stripe_meter="mtr_gone")

    shop.read(stripe)

    assert found() == {"usage_unread": (5, 0)}
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.state, second.state) == (MeterState.ACCEPTED, MeterState.CONFIRMED)
    PriceVersion.objects.filter(sku="a/cheap").update(stripe_meter=shop.sold["a/cheap"].meter)
    shop.read(stripe)
    assert found() == {}


@pytest.mark.parametrize(("fault", "calls"), [("500_before", 1), ("drop_before", 1), ("429", 3)])
def test_while_stripe_is_away_nothing_is_said(
    shop: Metered, stripe: Stripe, fault: Any, calls: int
) -> None:
    for model in shop.sold:
        shop.use(5, 4, model=model)
    shop.emulator.faults.add(Fault(fault, "*/event_summaries", times=99))
    before = len(shop.emulator.requests)

    run = shop.read(stripe)

    assert (run.checked, run.differences, found()) == (0, 0, {})
    assert len(shop.emulator.requests) - before == calls


# --- Invoices


def invoice_of(shop: Metered, **fields: Any) -> Invoice:
    """Return our copy of the invoice of the running period."""
    subscription = Subscription.objects.get()
    defaults: dict[str, Any] = {
        "stripe_id": "in_1",
        "organization_id": shop.key.organization_id,
        "number": "GH-1",
        "status": "open",
        "billing_reason": "subscription_cycle",
        "currency": "usd",
        "period_start": subscription.period_start,
        "period_end": subscription.period_end,
        "created": shop.now,
        "finalized_at": shop.now,
        "fetched_at": shop.now,
        **dict.fromkeys(
            ("subtotal_cents", "tax_cents", "total_cents", "amount_due_cents", "amount_paid_cents"),
            0,
        ),
        "lines": [],
    }
    return Invoice.objects.create(**(defaults | fields))


def line_of(shop: Metered, quantity: int, cents: int, model: str = "a/cheap") -> dict[str, Any]:
    subscription = Subscription.objects.get()
    return {
        "id": f"il_{model}",
        "price": shop.sold[model].price,
        "description": model,
        "quantity": str(quantity),
        "unit_cents": "4",
        "amount_cents": cents,
        "start": int(subscription.period_start.timestamp()),
        "end": int(subscription.period_end.timestamp()),
    }


@pytest.mark.parametrize(
    ("quantity", "cents", "expected"),
    [
        (10, 40, {}),
        (10, 41, {}),
        (10, 39, {}),
        (10, 42, {"invoice_final": (400_000, 420_000)}),
        (10, 38, {"invoice_final": (400_000, 380_000)}),
        (9, 36, {"invoice_final": (10, 9)}),
        (11, 44, {"invoice_final": (10, 11)}),
    ],
)
def test_a_final_line_is_the_ledger_to_the_cent(
    shop: Metered, quantity: int, cents: int, expected: dict[str, Any]
) -> None:
    shop.use(7)
    shop.use(3, hours=9)
    invoice = invoice_of(
        shop, lines=[line_of(shop, quantity, cents), line_of(shop, 0, 0, "c/dear")]
    )

    run = reconciliation.final(invoice, now=shop.now)

    assert found() == expected
    assert (run.kind, run.subject) == ("invoice_final", "in_1")
    assert (run.checked, run.differences) == (2, len(expected))


def test_usage_without_a_line_and_a_line_without_usage_are_found(shop: Metered) -> None:
    shop.use(7)
    invoice = invoice_of(shop, lines=[line_of(shop, 0, 0, "b/middle")])
    reconciliation.final(invoice, now=shop.now)
    assert found() == {"invoice_final": (7, 0)}

    # A line of which we know nothing is not ours to judge, an invoice of no period has no usage.
    Invoice.objects.update(lines=[line_of(shop, 7, 28) | {"price": "price_else"}])
    Invoice.objects.update(billing_reason="manual")
    reconciliation.final(Invoice.objects.get(), now=shop.now)
    assert found() == {}


def test_a_draft_is_read_anew_and_what_it_lacked_closes_with_it(
    shop: Metered, stripe: Stripe
) -> None:
    made = shop.use(7, 5)
    shop.emulator.configure(grace=48 * 3600)
    end = Subscription.objects.get().period_end
    shop.emulator.clock.advance_to(end + timedelta(minutes=9))
    (draft,) = [one for one in shop.emulator.objects("invoice") if one["status"] == "draft"]
    invoice = invoice_of(
        shop, stripe_id=draft["id"], status="draft", created=end, finalized_at=None
    )
    # Young drafts are left alone.
    assert reconciliation.invoices_due(stripe, now=shop.now) == 0
    shop.emulator.clock.advance(120)

    assert reconciliation.invoices_due(stripe, now=shop.now) == 1
    assert found() == {"invoice_draft": (7, 5)}
    assert reconciliation.invoices_due(stripe, now=shop.now) == 0

    name = shop.sold["a/cheap"].event_name
    shop.shop.use(shop.customer, name, 2, made.timestamp)
    shop.emulator.clock.advance(1800)
    assert reconciliation.invoices_due(stripe, now=shop.now) == 1
    assert found() == {}
    invoice.refresh_from_db()
    assert {line["quantity"] for line in invoice.lines} == {"7", "0"}

    shop.emulator.clock.advance(48 * 3600)
    # Our copy still says draft; what comes back is the final one.
    assert reconciliation.invoices_due(stripe, now=shop.now) == 1
    assert Reconciliation.objects.filter(kind="invoice_final", differences=0).count() == 1
    assert reconciliation.invoices_due(stripe, now=shop.now) == 0
    shop.emulator.clock.advance(86_400)
    assert reconciliation.invoices_due(stripe, now=shop.now) == 0


def test_a_draft_that_is_gone_has_no_differences(shop: Metered, stripe: Stripe) -> None:
    shop.use(7, 5)
    invoice = invoice_of(
        shop, stripe_id="in_gone", status="draft", created=shop.now - HOURS, finalized_at=None
    )
    Difference.objects.create(
        key="invoice_draft:in_gone:il_1",
        kind="invoice_draft",
        stripe_invoice="in_gone",
        expected=1,
        found=0,
        last_seen_at=shop.now,
    )

    run = reconciliation.draft(stripe, invoice, now=shop.now)

    assert (run.checked, found()) == (0, {})


def test_a_final_invoice_with_a_difference_is_looked_at_again(
    shop: Metered, stripe: Stripe
) -> None:
    shop.use(7)
    invoice_of(shop, lines=[line_of(shop, 5, 20)])
    assert reconciliation.invoices_due(stripe, now=shop.now) == 1
    assert reconciliation.invoices_due(stripe, now=shop.now + timedelta(minutes=29)) == 0
    assert reconciliation.invoices_due(stripe, now=shop.now + timedelta(minutes=31)) == 1
    assert found() == {"invoice_final": (7, 5)}
    assert Difference.objects.get().seen == 2


# --- The command


def reconcile(*arguments: str) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr of the command."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("reconcile", *arguments, stdout=out, stderr=err)
    except SystemExit as exit_:
        return int(exit_.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def test_the_command_without_stripe(key: ApiKey) -> None:
    capture(authorize(key))
    give_requests()
    expected = "Stripe is not connected: compared our own books only.\n"
    assert reconcile() == (0, "", expected + "3 compared, 0 differences.\n")

    BillingAccount.objects.update(held_micro=5)
    code, out, err = reconcile()
    assert (code, err) == (1, expected + "3 compared, 1 differences.\n")
    header, line = out.splitlines()
    assert " ".join(header.split()) == "organization model hour kind expected found subject"
    name = key.organization.name
    assert line.startswith(name)
    assert line[len(name) :].split()[:5] == ["-", "-", "held", "0", "5"]

    code, out, err = reconcile("--json")
    assert (code, err) == (1, expected)
    assert json.loads(out) == {
        "checked": 3,
        "differences": [
            {
                "organization": name,
                "model": None,
                "hour": None,
                "kind": "held",
                "expected": 0,
                "found": 5,
                "subject": f"held:{key.organization_id}",
                "seen": 1,
            }
        ],
    }


@pytest.mark.parametrize(
    ("since", "words"),
    [
        ("yesterday", "'yesterday' is not a date such as 2026-11-01."),
        ("2026-13-01", "'2026-13-01' is not a date such as 2026-11-01."),
        ("2999-01-01", "2999-01-01 is in the future."),
    ],
)
def test_the_command_refuses_what_is_no_date(key: ApiKey, since: str, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        reconcile("--since", since)
    assert not Reconciliation.objects.exists()


def test_the_command_counts_from_the_first_entry(key: ApiKey) -> None:
    LedgerTotal.objects.create(
        organization=key.organization, through=10**9, balance_micro=10_000_000, spent_micro=0
    )
    BillingAccount.objects.filter(pk=key.organization_id).update(balance_micro=10_000_000)
    capture(authorize(key))
    give_requests()
    # The mark hides what came after it from the ten-minute run, and not from the command.
    assert internal(timezone.now()).keys() == {"balance", "spent"}
    assert reconcile()[0] == 0


def test_the_command_compares_usage_since_a_date(
    stripe_account: StripeEmulator, settings: Any, committed_key: ApiKey
) -> None:
    BillingAccount.objects.update(credit_limit_micro=10**12)
    shop = Metered(stripe_account, committed_key)
    old = shop.use(20, 19, hours=10 * 24)
    give_requests()
    assert (timezone.now() - shop.now) < timedelta(minutes=5)

    code, out, err = reconcile("--json", "--since", f"{shop.hours_ago(24):%Y-%m-%d}")
    assert (code, json.loads(out)["differences"], err) == (0, [], "")
    code, out, err = reconcile("--json", "--since", f"{shop.hours_ago(11 * 24):%Y-%m-%d}")

    (row,) = json.loads(out)["differences"]
    assert code == 1
    assert row == {
        "organization": committed_key.organization.name,
        "model": "a/cheap v1",
        "hour": f"{old.hour:%Y-%m-%d %H:%M}",
        "kind": "usage",
        "expected": 20,
        "found": 19,
        "subject": row["subject"],
        "seen": 1,
    }


def test_differences_are_told_by_organization_model_and_hour(key: ApiKey) -> None:
    other: Organization = OrganizationFactory(name="AAA first")
    for organization, model, hour in [
        (key.organization, "a/cheap", NOW),
        (key.organization, "a/cheap", NOW - HOURS),
        (other, "c/dear", NOW),
        (other, "b/middle", NOW),
    ]:
        Difference.objects.create(
            key=f"{organization}:{model}:{hour}",
            kind="usage",
            organization=organization,
            price_version=version(model),
            hour=hour,
            expected=1,
            found=2,
            last_seen_at=NOW,
        )
    told = [
        (str(row.organization), str(row.price_version), row.hour)
        for row in reconciliation.open_differences()
    ]
    mine = str(key.organization)
    assert told == [
        (str(other), "b/middle v1", NOW),
        (str(other), "c/dear v1", NOW),
        (mine, "a/cheap v1", NOW - HOURS),
        (mine, "a/cheap v1", NOW),
    ]
    assert Hold.objects.filter(state=HoldState.HELD).count() == 0
