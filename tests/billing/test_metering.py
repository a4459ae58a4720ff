"""From the ledger to Stripe's meters: what is frozen, when it is sent, what becomes of it."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import Sum
from pytest_django.fixtures import Settings

from accounts.models import ApiKey
from billing.metering import doubt
from billing.metering.doubt import resolve_uncertain
from billing.metering.freeze import FREEZE_BATCH, freeze, reissue
from billing.metering.send import send_due
from billing.metering.sink import StripeSink
from billing.models import (
    BillingAccount,
    EntryKind,
    LedgerEntry,
    MeteredEntry,
    MeterEvent,
    MeterState,
    PriceVersion,
    Subscription,
)
from billing.spending import ledger, prices
from billing.stripe.client import Stripe, connect
from tests.billing import PRICES, authorize, capture, race
from tests.billing.metered import Metered, at_rest, sell, states, use, used
from tests.emulators.stripe import Fault, StripeEmulator
from tests.factories import KeyFactory

EVENTS = "/v1/billing/meter_events"
LEASE, HORIZON = {"minutes": 3}, {"hours": 25}
# Nobody knows whether these were counted, and whether they were.
LOST = {"drop_before": 0, "500_before": 0, "drop_after": 1, "500_after": 1}


@pytest.fixture
def metered(transactional_db: None, settings: Settings, stripe_account: StripeEmulator) -> Metered:
    """Three models sold in an account whose clock stands at the beginning of a coming month."""
    settings.STRIPE_METER_RATE = 10_000
    today = datetime.fromtimestamp(stripe_account.clock.time, UTC)
    month = (today.replace(day=1, hour=0, minute=0, second=0) + timedelta(days=32)).replace(day=1)
    stripe_account.clock.advance_to(month)
    prices.publish(PRICES)
    return sell(stripe_account)


@pytest.fixture
def sink(stripe: Stripe) -> StripeSink:
    return StripeSink(stripe)


@pytest.fixture
def acme(metered: Metered) -> ApiKey:
    """A key of an organization that has subscribed, ten days and half an hour ago."""
    key = metered.customer()
    metered.advance(days=10, minutes=30)
    return key


def one_event(metered: Metered, key: ApiKey, quantity: int = 3, **more: Any) -> MeterEvent:
    """Return an event of the hour before this one."""
    known = set(MeterEvent.objects.values_list("pk", flat=True))
    use(key, quantity, at=metered.now - timedelta(minutes=40), **more)
    freeze(now=metered.now)
    return MeterEvent.objects.exclude(pk__in=known).get()


def consumption(key: ApiKey) -> list[int]:
    entries = LedgerEntry.objects.filter(
        organization=key.organization, kind=EntryKind.CONSUMPTION
    ).order_by("pk")
    return list(entries.values_list("pk", flat=True))


# --- Freezing -----------------------------------------------------------------------------------


def test_an_hour_of_a_price_is_one_event(metered: Metered, acme: ApiKey) -> None:
    hour = metered.now.replace(minute=0)
    first = [use(acme, 2, at=hour - timedelta(minutes=50 - turn)) for turn in range(3)]
    other_model = use(acme, 1, at=hour - timedelta(minutes=30), model="b/middle")
    before = use(acme, 4, at=hour - timedelta(minutes=70))
    prices.publish({"a/cheap": 41_000})
    new_price = use(acme, 5, at=hour - timedelta(minutes=5))

    assert freeze(now=hour + timedelta(minutes=2)) == 4

    by_entry = {row.ledger_entry_id: row.meter_event for row in MeteredEntry.objects.all()}
    assert list(by_entry) == consumption(acme)
    event = by_entry[first[0].pk]
    assert {by_entry[entry.pk].pk for entry in first} == {event.pk}
    assert len({event.pk, *(by_entry[one.pk].pk for one in (other_model, before, new_price))}) == 4
    version = PriceVersion.objects.get(sku="a/cheap", version=1)
    started = hour - timedelta(hours=1)
    assert (event.quantity, event.hour, event.price_version) == (6, started, version)
    assert event.timestamp == first[-1].created_at
    assert event.state == MeterState.PENDING
    assert event.identifier.startswith(
        f"gh1:{acme.organization_id.hex}:{version.pk}:{started:%y%m%d%H}:"
    )
    assert len(event.identifier) <= 80
    assert BillingAccount.objects.get(pk=acme.organization_id).frozen_through == new_price.pk
    assert freeze(now=hour + timedelta(hours=5)) == 0


def test_a_running_hour_waits_until_it_has_been_over_for_two_minutes(
    metered: Metered, acme: ApiKey
) -> None:
    hour = metered.now.replace(minute=0)
    use(acme, at=hour - timedelta(seconds=1))
    running = use(acme, at=hour)
    assert freeze(now=hour + timedelta(seconds=119)) == 0
    assert freeze(now=hour + timedelta(seconds=120)) == 1
    assert freeze(now=hour + timedelta(minutes=61, seconds=59)) == 0
    assert MeteredEntry.objects.filter(ledger_entry=running).count() == 0
    # Before a cancellation it does not wait.
    assert freeze(now=hour + timedelta(minutes=5), running_hour=True) == 1
    assert MeteredEntry.objects.count() == 2


def test_nothing_behind_an_entry_that_waits_is_taken(metered: Metered, acme: ApiKey) -> None:
    hour = metered.now.replace(minute=0)
    use(acme, at=hour + timedelta(minutes=1))
    behind = use(acme, at=hour - timedelta(minutes=1))  # a clock that was set back
    assert freeze(now=hour + timedelta(minutes=5)) == 0
    assert freeze(now=hour + timedelta(minutes=65)) == 2
    assert MeteredEntry.objects.filter(ledger_entry=behind).count() == 1


def test_what_comes_late_to_an_hour_is_another_event_of_it(metered: Metered, acme: ApiKey) -> None:
    one, two = one_event(metered, acme, 1), one_event(metered, acme, 2)
    assert one.hour == two.hour
    assert one.identifier != two.identifier
    assert (one.quantity, two.quantity) == (1, 2)


def test_only_metered_consumption_is_frozen(metered: Metered, acme: ApiKey) -> None:
    stranger = KeyFactory().row  # has no subscription
    use(stranger, at=metered.now - timedelta(hours=2))
    paid = use(acme, at=metered.now - timedelta(hours=2))
    BillingAccount.objects.filter(pk=acme.organization_id).update(metered_from=paid.pk)
    ledger.record(acme.organization, EntryKind.RECHARGE, 5, entry_key="r", note="")
    assert freeze(now=metered.now) == 0
    billed = use(acme, at=metered.now - timedelta(hours=2))
    assert freeze(now=metered.now, organization=stranger.organization) == 0
    assert freeze(now=metered.now, organization=acme.organization) == 1
    assert MeteredEntry.objects.get().ledger_entry == billed


def test_a_timestamp_is_never_in_the_future(metered: Metered, acme: ApiKey) -> None:
    use(acme, at=metered.now + timedelta(seconds=20))  # the database's clock is ahead
    freeze(now=metered.now, running_hour=True)
    assert MeterEvent.objects.get().timestamp == metered.now


def test_many_batches_make_what_one_does(metered: Metered, acme: ApiKey) -> None:
    first = use(acme, at=metered.now - timedelta(hours=2))
    fields = {
        name: getattr(first, name)
        for name in ("organization", "kind", "amount_micro", "price_version", "sku", "quantity")
    }
    LedgerEntry.objects.bulk_create(
        LedgerEntry(
            **fields, entry_key=f"use:{number}", hold=first.hold, created_at=first.created_at
        )
        for number in range(FREEZE_BATCH)
    )
    assert freeze(now=metered.now) == 2
    assert sorted(MeterEvent.objects.values_list("quantity", flat=True)) == [1, 2000]
    assert MeteredEntry.objects.count() == 2001


def test_an_entry_is_frozen_once_by_many_at_once(
    metered: Metered, acme: ApiKey, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(30):
        use(acme, at=metered.now - timedelta(hours=1 + number % 3))

    made = race(6, lambda _: freeze(now=metered.now))

    assert sorted(made) == [0, 0, 0, 0, 0, 3]  # type: ignore[type-var]
    assert MeterEvent.objects.aggregate(sum=Sum("quantity"))["sum"] == 30
    assert MeteredEntry.objects.count() == 30
    # They waited for each other; none had to be stopped by the key of MeteredEntry.
    assert "was not frozen" not in caplog.text


def test_captures_that_go_on_meanwhile_are_frozen_once(metered: Metered, acme: ApiKey) -> None:
    def live(number: int) -> None:
        for _ in range(8):
            if number % 2:
                capture(authorize(acme))
            else:
                freeze(now=metered.now, running_hour=True)

    race(8, live)
    freeze(now=metered.now, running_hour=True)

    assert [row.pk for row in MeteredEntry.objects.order_by("pk")] == consumption(acme)
    assert len(consumption(acme)) == 32
    assert MeterEvent.objects.aggregate(sum=Sum("quantity"))["sum"] == 32


@pytest.mark.parametrize("table", ["billing_meteredentry", "billing_billingaccount"])
def test_events_and_their_entries_are_written_together(
    metered: Metered, acme: ApiKey, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    use(acme, at=metered.now - timedelta(hours=2))

    def fail(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith((f'INSERT INTO "{table}"', f'UPDATE "{table}"')):
            raise ConnectionError("the database is gone")
        return execute(sql, *rest)

    with connection.execute_wrapper(fail):
        assert freeze(now=metered.now) == 0
    assert "was not frozen" in caplog.text
    assert not MeterEvent.objects.exists()
    assert not MeteredEntry.objects.exists()
    assert freeze(now=metered.now) == 1


def test_an_entry_is_in_one_event_even_when_the_mark_is_wrong(
    metered: Metered, acme: ApiKey, caplog: pytest.LogCaptureFixture
) -> None:
    one_event(metered, acme)
    BillingAccount.objects.filter(pk=acme.organization_id).update(frozen_through=0)
    globex = metered.customer()
    use(globex, at=metered.now - timedelta(hours=2))
    # The one whose books are wrong is told of, and does not stop the other.
    assert freeze(now=metered.now) == 1
    assert f"the consumption of {acme.organization_id} was not frozen" in caplog.text
    assert MeterEvent.objects.filter(organization=acme.organization).count() == 1


# --- Sending: the table of outcomes -------------------------------------------------------------


def test_an_accepted_event_is_sent_once_as_it_was_frozen(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    event = one_event(metered, acme)

    assert send_due(sink, now=metered.now) == 1
    assert send_due(sink, now=metered.advance(days=2)) == 0

    (request,) = metered.sent()
    customer = BillingAccount.objects.get(pk=acme.organization_id).stripe_customer
    assert request.params == {
        "event_name": "img_cheap_v1",
        "identifier": event.identifier,
        "timestamp": str(int(event.timestamp.timestamp())),
        "payload": {"stripe_customer_id": customer, "value": "3"},
    }
    assert request.idempotency_key == f"{event.identifier}:1"
    event.refresh_from_db()
    assert (event.state, event.attempts, event.restamped_from) == (MeterState.ACCEPTED, 1, None)
    assert event.accepted_at is not None
    assert metered.total(acme) == 3


def test_events_of_one_moment_are_sent_in_the_order_they_were_written(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    first, second = one_event(metered, acme), one_event(metered, acme, 1)
    assert (first.next_at, first.timestamp) == (second.next_at, second.timestamp)
    # PostgreSQL puts a row that is written again behind the others.
    MeterEvent.objects.filter(pk=first.pk).update(last_error="")
    assert send_due(sink, now=metered.now) == 2
    sent = [one.params["identifier"] for one in metered.sent()]
    assert sent == [first.identifier, second.identifier]


@pytest.mark.parametrize("fault", ["429", "lock"])
def test_a_busy_stripe_did_not_count_and_frees_the_lane(
    metered: Metered, acme: ApiKey, sink: StripeSink, fault: Any
) -> None:
    event = one_event(metered, acme)
    one_event(metered, acme, 1)
    metered.emulator.faults.add(Fault(fault, EVENTS))

    assert send_due(sink, now=metered.now) == 0

    event.refresh_from_db()
    assert (event.state, event.first_attempt_at, event.attempts) == (MeterState.PENDING, None, 1)
    assert metered.now < event.next_at <= metered.now + timedelta(minutes=5)
    # The lane is left alone for this round, and is free for the next.
    assert len(metered.sent()) == 1
    assert send_due(sink, now=metered.now) == 1
    assert metered.times_sent()[event.identifier] == 1  # not before its time
    assert send_due(sink, now=metered.advance(minutes=5)) == 1
    assert metered.total(acme) == 4


@pytest.mark.parametrize(("fault", "already"), LOST.items())
def test_an_unknown_outcome_keeps_its_lane_and_is_resent_as_it_was(
    metered: Metered, acme: ApiKey, sink: StripeSink, fault: Any, already: int
) -> None:
    lost = one_event(metered, acme)
    next_one = one_event(metered, acme, 1)
    globex = metered.customer()
    metered.emulator.faults.add(Fault(fault, EVENTS))
    send_due(sink, now=metered.now, threads=1)
    lost.refresh_from_db()
    assert lost.state == MeterState.SENDING
    assert lost.last_error
    assert metered.total(acme) == 3 * already
    one_event(metered, acme, 7, model="b/middle")
    use(globex, 2, at=metered.now - timedelta(minutes=1))
    freeze(now=metered.now, running_hour=True)

    # Other lanes go on, and within the lease nothing of this one is sent.
    assert send_due(sink, now=metered.now) == 2
    assert metered.total(acme, "b/middle") == 7
    assert metered.total(globex) == 2
    assert metered.times_sent()[lost.identifier] == 1
    assert metered.times_sent()[next_one.identifier] == 0

    assert send_due(sink, now=metered.advance(**LEASE)) == 1
    assert send_due(sink, now=metered.now) == 1
    assert metered.total(acme) == 4
    assert at_rest()
    tries = [one for one in metered.sent() if one.params["identifier"] == lost.identifier]
    assert tries[0].params == tries[1].params
    assert [one.idempotency_key for one in tries] == [f"{lost.identifier}:{n}" for n in (1, 2)]
    # What was counted before is refused as known, and that is success.
    assert tries[1].status == (400 if already else 200)


def test_a_stored_500_is_not_replayed_for_ever(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    one_event(metered, acme)
    metered.emulator.faults.add(Fault("500_before", EVENTS, times=3))
    for _ in range(4):
        send_due(sink, now=metered.advance(**LEASE))
    assert not any(one.replayed for one in metered.sent())
    assert states() == {MeterState.ACCEPTED: 1}
    assert metered.total(acme) == 3


@pytest.mark.parametrize("fault", ["429", "lock"])
def test_busy_after_an_unknown_outcome_says_nothing_of_it(
    metered: Metered, acme: ApiKey, sink: StripeSink, fault: Any
) -> None:
    event = one_event(metered, acme)
    one_event(metered, acme, 1)
    metered.emulator.faults.add(Fault("drop_after", EVENTS), Fault(fault, EVENTS))
    send_due(sink, now=metered.now)
    send_due(sink, now=metered.advance(**LEASE))
    event.refresh_from_db()
    # The first attempt may have counted it: it keeps the lane, and its age.
    assert (event.state, event.attempts) == (MeterState.SENDING, 2)
    assert event.first_attempt_at is not None
    assert set(metered.times_sent()) == {event.identifier}
    for _ in range(2):
        send_due(sink, now=metered.advance(minutes=5))
    assert at_rest()
    assert metered.total(acme) == 4


def test_a_refused_event_is_rejected_and_nothing_else_waits(
    metered: Metered, acme: ApiKey, sink: StripeSink, caplog: pytest.LogCaptureFixture
) -> None:
    bad = one_event(metered, acme)
    one_event(metered, acme, 2, model="b/middle")
    metered.emulator.configure(immediate=frozenset({"archived_meter"}))
    meters = metered.shop.api.billing.meters
    meters.deactivate(bad.price_version.stripe_meter)

    assert send_due(sink, now=metered.now) == 1

    bad.refresh_from_db()
    assert bad.state == MeterState.REJECTED
    assert "inactive" in bad.last_error
    assert f"Stripe rejects {bad.identifier}" in caplog.text
    assert metered.total(acme, "b/middle") == 2
    meters.reactivate(bad.price_version.stripe_meter)
    assert send_due(sink, now=metered.advance(days=1)) == 0
    assert metered.times_sent()[bad.identifier] == 1
    # Once its cause is gone it is issued anew.
    again = reissue(bad, bad.quantity, now=metered.now)
    assert send_due(sink, now=metered.now) == 1
    assert (again.identifier, metered.total(acme)) == (f"{bad.identifier}:r1", 3)


@pytest.mark.parametrize(("fault", "already"), LOST.items())
def test_a_refusal_after_an_unknown_outcome_leaves_it_to_the_sums(
    metered: Metered, acme: ApiKey, sink: StripeSink, fault: Any, already: int
) -> None:
    event = one_event(metered, acme)
    metered.emulator.faults.add(Fault(fault, EVENTS))
    send_due(sink, now=metered.now)
    metered.emulator.configure(immediate=frozenset({"archived_meter"}))
    metered.shop.api.billing.meters.deactivate(event.price_version.stripe_meter)
    send_due(sink, now=metered.advance(**LEASE))
    assert states() == {MeterState.UNCERTAIN: 1}
    resolve_uncertain(sink, now=metered.advance(hours=2))
    send_due(sink, now=metered.now)
    assert states() == {MeterState.ACCEPTED if already else MeterState.REJECTED: 1}
    assert metered.total(acme) == 3 * already


def test_a_key_that_stripe_refuses_rejects_no_usage(
    metered: Metered, acme: ApiKey, sink: StripeSink, settings: Settings
) -> None:
    one_event(metered, acme)
    settings.STRIPE_SECRET_KEY = "sk_test_revoked"
    assert send_due(StripeSink(connect()), now=metered.now) == 0
    assert states() == {MeterState.PENDING: 1}
    assert send_due(sink, now=metered.advance(minutes=5)) == 1
    assert metered.total(acme) == 3


def test_one_organization_that_fails_stops_no_other(
    metered: Metered, acme: ApiKey, sink: StripeSink, caplog: pytest.LogCaptureFixture
) -> None:
    others = [metered.customer() for _ in range(3)]
    for key in (acme, *others):
        use(key, 2, at=metered.now - timedelta(seconds=1))
    metered.advance(seconds=1)
    freeze(now=metered.now, running_hour=True)
    broken = BillingAccount.objects.get(pk=acme.organization_id).stripe_customer

    class Failing:
        def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
            if customer == broken:
                raise RuntimeError("a bug")
            sink.send(event, customer=customer, event_name=event_name)

        def total(self, *span: Any) -> int:
            raise AssertionError("nobody asked")

    assert send_due(Failing(), now=metered.now, threads=1) == 3
    assert [metered.total(key) for key in others] == [2, 2, 2]
    assert f"metering of {acme.organization_id} failed" in caplog.text
    # It was claimed, so it is as if nobody knew; nothing is lost.
    assert send_due(sink, now=metered.advance(**LEASE)) == 1
    assert metered.total(acme) == 2


def test_books_of_one_that_cannot_be_read_stop_no_other(
    metered: Metered, acme: ApiKey, sink: StripeSink, caplog: pytest.LogCaptureFixture
) -> None:
    event, other = one_event(metered, acme), metered.customer()
    use(other, 2, at=metered.now)
    freeze(now=metered.now, running_hour=True)
    copy = Subscription.objects.filter(organization=acme.organization)
    copy.update(items={event.price_version.stripe_price: "?"})
    assert send_due(sink, now=metered.now, threads=1) == 1
    assert f"metering of {acme.organization_id} failed" in caplog.text
    assert (metered.total(acme), metered.total(other)) == (0, 2)
    metered.mirror()
    assert send_due(sink, now=metered.now) == 1


def test_a_round_ends_in_time_and_another_goes_on(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    for model in PRICES:
        one_event(metered, acme, model=model)
        one_event(metered, acme, model=model)

    class Slow:
        def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
            sink.send(event, customer=customer, event_name=event_name)
            threading.Event().wait(0.3)

        def total(self, *span: Any) -> int:
            raise AssertionError("nobody asked")

    assert send_due(Slow(), now=metered.now, threads=1, seconds=0.2) == 1
    # Two more were claimed and are as good as sent; the second ones of the lanes are not.
    assert states() == {
        MeterState.ACCEPTED: 1,
        MeterState.SENDING: 2,
        MeterState.PENDING: 3,
    }
    assert len(metered.sent()) == 1
    send_due(sink, now=metered.advance(**LEASE))
    send_due(sink, now=metered.now)
    assert states() == {MeterState.ACCEPTED: 6}
    assert [metered.total(acme, model) for model in PRICES] == [6, 6, 6]


def test_a_lane_that_is_taken_meanwhile_is_left_alone(metered: Metered, sink: StripeSink) -> None:
    # More lanes than a batch has: one of the second is taken while the first is sent.
    for key in [metered.customer() for _ in range(8)]:
        for model in PRICES:
            use(key, at=metered.now, model=model)
    freeze(now=metered.now, running_hour=True)
    last = MeterEvent.objects.order_by("-organization", "-price_version")[1]
    intruder = "another sender's"

    class Taking:
        def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
            MeterEvent.objects.get_or_create(
                identifier=intruder,
                defaults={
                    "organization_id": last.organization_id,
                    "price_version_id": last.price_version_id,
                    "hour": last.hour,
                    "quantity": 1,
                    "timestamp": last.timestamp,
                    "state": MeterState.UNCERTAIN,
                    "next_at": last.next_at + timedelta(days=1),
                },
            )
            sink.send(event, customer=customer, event_name=event_name)

        def total(self, *span: Any) -> int:
            raise AssertionError("nobody asked")

    assert send_due(Taking(), now=metered.now, threads=1) == 23
    last.refresh_from_db()
    assert (last.state, last.attempts) == (MeterState.PENDING, 0)
    assert metered.times_sent()[last.identifier] == 0


def test_an_answer_does_not_undo_what_others_have_found_meanwhile(
    metered: Metered, acme: ApiKey
) -> None:
    event = one_event(metered, acme)

    class Late:
        def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
            MeterEvent.objects.filter(pk=event.pk).update(state=MeterState.CONFIRMED)

        def total(self, *span: Any) -> int:
            raise AssertionError("nobody asked")

    send_due(Late(), now=metered.now)
    event.refresh_from_db()
    assert event.state == MeterState.CONFIRMED


def test_a_lease_that_is_over_is_taken_by_one(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    keys = [acme, *(metered.customer() for _ in range(5))]
    for key in keys:
        for model in PRICES:
            use(key, at=metered.now, model=model)
    freeze(now=metered.now, running_hour=True)
    metered.emulator.faults.add(Fault("drop_before", EVENTS, times=18))
    send_due(sink, now=metered.now)
    assert states() == {MeterState.SENDING: 18}

    now = metered.advance(**LEASE)
    race(6, lambda _: send_due(sink, now=now, threads=1))

    assert states() == {MeterState.ACCEPTED: 18}
    assert set(metered.times_sent().values()) == {2}


def test_a_claim_is_committed_before_the_call(metered: Metered, acme: ApiKey) -> None:
    event = one_event(metered, acme)
    seen: list[tuple[str, int, bool]] = []

    class Looking:
        def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
            # On this thread's connection a transaction would be seen, on another one its absence.
            seen.append((event.state, event.attempts, connection.in_atomic_block))
            seen.extend(
                race(
                    1, lambda _: (*MeterEvent.objects.values_list("state", "attempts").get(), True)
                )  # type: ignore[arg-type]
            )

        def total(self, *span: Any) -> int:
            raise AssertionError("nobody asked")

    assert send_due(Looking(), now=metered.now) == 1
    assert seen == [(MeterState.SENDING, 1, False), (MeterState.SENDING, 1, True)]
    event.refresh_from_db()
    assert event.state == MeterState.ACCEPTED


def test_many_senders_at_once_send_a_backlog_once(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    for hours in range(12):
        for model in PRICES:
            use(acme, 1 + hours, at=metered.now - timedelta(hours=1 + hours), model=model)
    assert freeze(now=metered.now) == 36

    race(3, lambda _: send_due(sink, now=metered.now))
    while send_due(sink, now=metered.advance(minutes=6)):
        pass

    assert states() == {MeterState.ACCEPTED: 36}
    assert [metered.total(acme, model) for model in PRICES] == [78, 78, 78]
    # Each event was claimed by one of them: no sender meets another in its lane at Stripe.
    assert set(metered.times_sent().values()) == {1}


def test_the_database_lets_one_unknown_into_a_lane(metered: Metered, acme: ApiKey) -> None:
    one, two = one_event(metered, acme), one_event(metered, acme)
    MeterEvent.objects.filter(pk=one.pk).update(state=MeterState.UNCERTAIN)
    with pytest.raises(IntegrityError), transaction.atomic():
        MeterEvent.objects.filter(pk=two.pk).update(state=MeterState.SENDING)


def test_calls_are_spread_over_time(
    metered: Metered, acme: ApiKey, sink: StripeSink, settings: Settings
) -> None:
    for hours in range(8):
        use(acme, at=metered.now - timedelta(hours=1 + hours))
    freeze(now=metered.now)
    settings.STRIPE_METER_RATE = 40
    began = datetime.now(UTC)
    assert send_due(sink, now=metered.now) == 8
    assert datetime.now(UTC) - began >= timedelta(seconds=7 / 40)


# --- Old unknown outcomes -----------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "already"), LOST.items())
def test_what_stripe_has_forgotten_is_asked_of_its_sums(
    metered: Metered, acme: ApiKey, sink: StripeSink, fault: Any, already: int
) -> None:
    one_event(metered, acme, 5)
    assert send_due(sink, now=metered.now) == 1
    event = one_event(metered, acme)
    metered.emulator.faults.add(Fault(fault, EVENTS))
    send_due(sink, now=metered.now)
    use(acme, 1, at=metered.now)

    # Nobody sends for a day. A resend now would be counted a second time.
    assert send_due(sink, now=metered.advance(**HORIZON)) == 0
    assert metered.times_sent()[event.identifier] == 1
    event.refresh_from_db()
    assert event.state == MeterState.UNCERTAIN
    # The sums may lag behind.
    assert resolve_uncertain(sink, now=metered.advance(minutes=59)) == 0
    assert resolve_uncertain(sink, now=metered.advance(minutes=2)) == 1
    event.refresh_from_db()
    assert event.state == (MeterState.ACCEPTED if already else MeterState.PENDING)

    freeze(now=metered.now)
    for _ in range(3):
        send_due(sink, now=metered.advance(minutes=6))
    assert states() == {MeterState.ACCEPTED: 3}
    assert metered.total(acme) == used(acme) == 9
    assert metered.times_sent()[event.identifier] == (1 if already else 2)


def test_sums_that_lag_are_waited_for(metered: Metered, acme: ApiKey, sink: StripeSink) -> None:
    metered.emulator.configure(summary_lag=26 * 3600)
    one_event(metered, acme)
    metered.emulator.faults.add(Fault("drop_after", EVENTS))
    send_due(sink, now=metered.now)
    send_due(sink, now=metered.advance(**HORIZON))
    resolve_uncertain(sink, now=metered.advance(minutes=61))
    assert states() == {MeterState.ACCEPTED: 1}
    assert metered.total(acme) == 3


def test_sums_that_fit_neither_way_decide_nothing(
    metered: Metered, acme: ApiKey, sink: StripeSink, caplog: pytest.LogCaptureFixture
) -> None:
    event = one_event(metered, acme)
    metered.emulator.faults.add(Fault("drop_after", EVENTS))
    send_due(sink, now=metered.now)
    customer = BillingAccount.objects.get(pk=acme.organization_id).stripe_customer
    metered.shop.use(customer, "img_cheap_v1", 1, at=event.timestamp)  # somebody else's doing
    send_due(sink, now=metered.advance(**HORIZON))
    assert resolve_uncertain(sink, now=metered.advance(hours=2)) == 0
    assert states() == {MeterState.UNCERTAIN: 1}
    assert (
        "may be counted or not: Stripe has 4 in its hour, with it there would be 3" in caplog.text
    )
    assert send_due(sink, now=metered.advance(hours=1)) == 0


def test_an_outage_while_sums_are_asked_changes_nothing(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    one_event(metered, acme)
    metered.emulator.faults.add(Fault("drop_after", EVENTS))
    send_due(sink, now=metered.now)
    send_due(sink, now=metered.advance(**HORIZON))
    metered.emulator.faults.add(Fault("drop_before", "*/event_summaries"))
    assert resolve_uncertain(sink, now=metered.advance(hours=2)) == 0
    assert states() == {MeterState.UNCERTAIN: 1}
    assert resolve_uncertain(sink, now=metered.advance(minutes=6)) == 1
    assert metered.total(acme) == 3


@pytest.mark.parametrize(("fault", "already"), LOST.items())
def test_whether_a_reissue_was_counted_is_told_by_the_sums_too(
    metered: Metered, acme: ApiKey, sink: StripeSink, fault: Any, already: int
) -> None:
    event = one_event(metered, acme)
    send_due(sink, now=metered.now)
    # Stripe loses it after all.
    cancel: Any = {
        "event_name": "img_cheap_v1",
        "type": "cancel",
        "cancel": {"identifier": event.identifier},
    }
    metered.shop.api.billing.meter_event_adjustments.create(cancel)
    assert metered.total(acme) == 0
    reissue(event, 3, now=metered.now)
    metered.emulator.faults.add(Fault(fault, EVENTS))
    send_due(sink, now=metered.now)
    send_due(sink, now=metered.advance(**HORIZON))
    assert resolve_uncertain(sink, now=metered.advance(hours=2)) == 1
    send_due(sink, now=metered.now)
    assert states() == {MeterState.ACCEPTED: 2}
    assert metered.times_sent()[f"{event.identifier}:r1"] == 2 - already
    assert metered.total(acme) == used(acme) == 3


def test_making_up_for_stripes_errors_is_no_usage(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    event = one_event(metered, acme)
    send_due(sink, now=metered.now)
    hour = (event.hour, event.hour + timedelta(hours=1))
    lane = (acme.organization_id, event.price_version_id, *hour)
    correction = reissue(event, -1, now=metered.now)
    # Seen twice, it is corrected once.
    assert reissue(event, -1, now=metered.now) == correction
    assert send_due(sink, now=metered.now) == 1
    assert metered.total(acme) == 2
    assert doubt.counted(*lane) == 3
    another = reissue(correction, 2, now=metered.now)
    assert another.identifier == f"{event.identifier}:r2"
    assert another.reissue_of == event
    # In another period it is billed there, and no longer expected here.
    MeterEvent.objects.filter(pk=another.pk).update(
        state=MeterState.ACCEPTED,
        timestamp=event.timestamp + timedelta(days=20),
        restamped_from=event.timestamp,
    )
    assert doubt.counted(*lane) == 1
    assert doubt.counted(*lane[:2], *(one + timedelta(days=20) for one in hour)) == 2


# --- Which invoice carries it ---------------------------------------------------------------------


def test_usage_without_a_subscription_waits(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    event = one_event(metered, acme)
    Subscription.objects.all().delete()
    assert send_due(sink, now=metered.now) == 0
    event.refresh_from_db()
    assert (event.state, event.attempts) == (MeterState.PENDING, 0)
    metered.mirror()
    assert send_due(sink, now=metered.advance(minutes=6)) == 1
    assert metered.sent()[0].params["timestamp"] == str(int(event.timestamp.timestamp()))


def test_usage_before_its_item_waits_for_it_and_moves_behind_it(
    metered: Metered, sink: StripeSink
) -> None:
    key = metered.customer(models=["b/middle"])
    metered.advance(days=3, minutes=30)
    event = one_event(metered, key)
    used_at = event.timestamp
    assert send_due(sink, now=metered.now) == 0
    assert metered.sent() == []
    event.refresh_from_db()
    assert "no item" in event.last_error

    added = metered.advance(minutes=10)
    subscription = metered.emulator.objects("subscription")[0]["id"]
    item: Any = {"subscription": subscription, "price": event.price_version.stripe_price}
    metered.shop.api.subscription_items.create(item)
    metered.mirror()
    assert send_due(sink, now=metered.advance(minutes=1)) == 1

    event.refresh_from_db()
    assert (event.timestamp, event.restamped_from) == (metered.now, used_at)
    assert event.timestamp > added
    (line,) = metered.emulator.usage(event_name="img_cheap_v1")
    assert (line.quantity, line.final) == (3, False)


def test_an_item_newer_than_our_clock_is_waited_for(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    event = one_event(metered, acme)
    later = metered.now + timedelta(seconds=90)
    subscription = Subscription.objects.get()
    subscription.items[event.price_version.stripe_price] = ["si_new", int(later.timestamp())]
    subscription.save()
    assert send_due(sink, now=metered.now) == 0
    event.refresh_from_db()
    assert (event.state, event.timestamp) == (MeterState.PENDING, later)
    assert send_due(sink, now=metered.now) == 0
    assert metered.sent() == []
    assert send_due(sink, now=metered.advance(seconds=90)) == 1


@pytest.mark.parametrize("invoice", ["draft", "final", "unknown", "unknown for long"])
def test_usage_of_the_last_period(
    metered: Metered, acme: ApiKey, sink: StripeSink, invoice: str
) -> None:
    end = Subscription.objects.get().period_end
    metered.emulator.clock.advance_to(end - timedelta(minutes=5))
    last = use(acme, 4, at=metered.now)
    metered.emulator.clock.advance_to(end + timedelta(minutes=2))
    assert freeze(now=metered.now) == 1
    # Our copy still shows the old period.
    assert send_due(sink, now=metered.now) == 0
    assert metered.sent() == []
    if invoice == "final":
        metered.advance(hours=2)
    metered.mirror()
    if invoice.startswith("unknown"):
        Subscription.objects.get().organization.invoices.all().delete()
        assert send_due(sink, now=metered.advance(minutes=6)) == 0
        assert metered.sent() == []
        if invoice == "unknown":
            metered.mirror()
        else:
            metered.advance(minutes=30)
    metered.advance(minutes=6)
    assert send_due(sink, now=metered.now) == 1

    event = MeterEvent.objects.get()
    moved = invoice in ("final", "unknown for long")
    assert event.restamped_from == (last.created_at if moved else None)
    assert event.timestamp == (metered.now if moved else last.created_at)
    metered.advance(hours=3)
    lines = metered.emulator.usage(event_name="img_cheap_v1")
    assert [(line.quantity, line.final) for line in lines if line.quantity] == [(4, not moved)]


def test_what_stripe_finds_too_old_is_moved_though_its_invoice_is_a_draft(
    metered: Metered, acme: ApiKey, sink: StripeSink
) -> None:
    event = one_event(metered, acme)
    metered.advance(days=36)
    metered.mirror()
    # As the invoices of a subscription that is unpaid stay.
    invoices = Subscription.objects.get().organization.invoices.all()
    assert invoices.filter(billing_reason="subscription_cycle").update(status="draft") == 1
    assert send_due(sink, now=metered.now) == 1
    used_at = event.timestamp
    event.refresh_from_db()
    assert (event.timestamp, event.restamped_from) == (metered.now, used_at)


def test_it_is_moved_once(
    metered: Metered, acme: ApiKey, sink: StripeSink, caplog: pytest.LogCaptureFixture
) -> None:
    event = one_event(metered, acme)
    metered.advance(days=32)
    metered.mirror()
    metered.emulator.faults.add(Fault("429", EVENTS))
    assert send_due(sink, now=metered.now) == 0
    used_at = event.timestamp
    event.refresh_from_db()
    moved_to = event.timestamp
    assert event.restamped_from == used_at
    assert moved_to == metered.now
    metered.advance(days=32)
    metered.mirror()
    assert send_due(sink, now=metered.now) == 0
    event.refresh_from_db()
    assert (event.state, event.timestamp) == (MeterState.UNBILLED, moved_to)
    assert f"no invoice will carry {event.identifier}" in caplog.text
    assert len(metered.sent()) == 1


@pytest.mark.parametrize("last_invoice", ["draft", "final"])
def test_after_a_subscription_has_ended(
    metered: Metered, acme: ApiKey, sink: StripeSink, last_invoice: str
) -> None:
    subscription = Subscription.objects.get()
    update: Any = {"cancel_at_period_end": True}
    metered.shop.api.subscriptions.update(subscription.stripe_id, update)
    metered.emulator.clock.advance_to(subscription.period_end - timedelta(minutes=5))
    use(acme, 4, at=metered.now)
    metered.emulator.clock.advance_to(subscription.period_end + timedelta(minutes=2))
    freeze(now=metered.now)
    if last_invoice == "final":
        metered.advance(hours=2)
    metered.mirror()
    send_due(sink, now=metered.now)
    metered.advance(hours=3)
    lines = metered.emulator.usage(event_name="img_cheap_v1")
    if last_invoice == "draft":
        assert states() == {MeterState.ACCEPTED: 1}
        assert [(line.quantity, line.final) for line in lines if line.quantity] == [(4, True)]
    else:
        # Never sent, where it would vanish: a person bills it.
        assert states() == {MeterState.UNBILLED: 1}
        assert metered.sent() == []
