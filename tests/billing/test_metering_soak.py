"""Senders, freezers and customers at once before a Stripe that loses calls and answers.

In the end Stripe has counted exactly what the ledger says, and no two outcomes of a lane were
unknown at once. Time is Stripe's: between two rounds minutes pass, and now and then a day, after
which Stripe has forgotten every identifier.
"""

import os
import random
from datetime import timedelta

import pytest
from django.db.models import Count
from pytest_django.fixtures import Settings

from accounts.models import ApiKey
from billing.metering.doubt import resolve_uncertain
from billing.metering.freeze import freeze
from billing.metering.send import HORIZON, send_due
from billing.metering.sink import StripeSink
from billing.models import EntryKind, LedgerEntry, MeteredEntry, MeterEvent, MeterState
from billing.spending import prices
from billing.stripe.client import Stripe
from tests.billing import PRICES, race
from tests.billing.metered import Metered, at_rest, sell, states, use, used
from tests.emulators.stripe import Fault, StripeEmulator

EVENTS = "/v1/billing/meter_events"
KINDS = ("drop_before", "drop_after", "500_before", "500_after", "429", "lock")
SENDERS, CUSTOMERS = 3, 3
PROVED = bool(os.environ.get("PROVE"))


@pytest.fixture
def metered(transactional_db: None, settings: Settings, stripe_account: StripeEmulator) -> Metered:
    settings.STRIPE_METER_RATE = 10_000
    prices.publish(PRICES)
    return sell(stripe_account)


def expect_exactly_the_ledger(metered: Metered, keys: list[ApiKey]) -> None:
    for key in keys:
        for model in PRICES:
            assert metered.total(key, model) == used(key, model)
    entries = LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION)
    assert MeteredEntry.objects.count() == entries.count() > 0
    # What was sent under one identifier was always the same.
    payloads: dict[str, object] = {}
    for request in metered.sent():
        if request.params:
            first = payloads.setdefault(request.params["identifier"], request.params)
            assert request.params == first


def expect_no_late_resend(metered: Metered) -> None:
    """Check that nothing was sent again when Stripe might have forgotten it and counted it."""
    counted: dict[str, float] = {}
    for event in metered.emulator.meter_events:
        assert event.identifier not in counted, "counted twice"
        counted[event.identifier] = event.received
    for request in metered.sent():
        if request.params and (first := counted.get(request.params["identifier"])) is not None:
            assert request.at - first <= HORIZON.total_seconds()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(8) if PROVED else range(1))
def test_what_is_lost_on_the_way_is_counted_once(
    metered: Metered, stripe: Stripe, seed: int
) -> None:
    keys = [metered.customer(bonus="1000") for _ in range(CUSTOMERS)]
    sink = StripeSink(stripe)
    faults = [Fault(kind, EVENTS) for kind in KINDS]
    metered.emulator.faults.random(seed, 0.4, faults)
    dice = random.Random(seed)

    def work(number: int, turn: int) -> None:
        now = metered.now
        if number < SENDERS:
            send_due(sink, now=now, threads=2)
        elif number == SENDERS:
            freeze(now=now, running_hour=True)
            resolve_uncertain(sink, now=now)
        else:
            for draw in range(3):
                use(
                    keys[(number + draw) % CUSTOMERS],
                    1 + draw,
                    at=now,
                    model=list(PRICES)[(number + turn) % len(PRICES)],
                )

    rounds = 40 if PROVED else 16
    for turn in range(rounds):
        race(SENDERS + 1 + CUSTOMERS, lambda number, turn=turn: work(number, turn))  # type: ignore[misc]
        unknown = MeterEvent.objects.filter(state__in=[MeterState.SENDING, MeterState.UNCERTAIN])
        lanes = unknown.values("organization", "price_version").annotate(count=Count("pk"))
        assert all(lane["count"] == 1 for lane in lanes)
        metered.advance(minutes=6 if dice.random() < 0.85 else 60 * 25)

    lossy = len([one for one in metered.sent() if one.fault])
    metered.emulator.faults.clear()
    freeze(now=metered.now, running_hour=True)
    for _ in range(60):
        if at_rest():
            break
        metered.advance(minutes=20)
        resolve_uncertain(sink, now=metered.now)
        send_due(sink, now=metered.now)
    assert set(states()) == {MeterState.ACCEPTED}
    expect_exactly_the_ledger(metered, keys)
    expect_no_late_resend(metered)
    assert lossy >= 10
    print(
        f"lossy soak {seed}: {MeterEvent.objects.count()} events, {len(metered.sent())} calls, "
        f"{lossy} faults, Stripe == ledger"
    )


@pytest.mark.slow
def test_when_stripe_forgets_sooner_than_is_agreed_it_double_counts(
    metered: Metered, stripe: Stripe
) -> None:
    # The proof that the soak can fail: with a window shorter than our horizon, sending again is
    # counting again, and only the horizon keeps us from it.
    key = metered.customer()
    sink = StripeSink(stripe)
    metered.emulator.configure(identifier_window=60)
    metered.emulator.faults.add(Fault("drop_after", EVENTS))
    use(key, 3, at=metered.now)
    freeze(now=metered.now, running_hour=True)
    send_due(sink, now=metered.now)
    assert send_due(sink, now=metered.advance(minutes=3)) == 1
    assert metered.total(key) == 6
    assert used(key) == 3


@pytest.mark.slow
@pytest.mark.parametrize("late", [timedelta(hours=20), timedelta(hours=24), timedelta(days=5)])
def test_nothing_is_sent_again_after_the_horizon(
    metered: Metered, stripe: Stripe, late: timedelta
) -> None:
    keys = [metered.customer() for _ in range(2)]
    sink = StripeSink(stripe)
    # Half of it arrives, and no answer comes back.
    metered.emulator.faults.random(
        7, 1.0, [Fault("drop_after", EVENTS), Fault("drop_before", EVENTS)]
    )
    for key in keys:
        for model in PRICES:
            use(key, 2, at=metered.now, model=model)
    freeze(now=metered.now, running_hour=True)
    send_due(sink, now=metered.now)
    arrived = len(metered.emulator.meter_events)
    assert 0 < arrived < 6
    assert states() == {MeterState.SENDING: 6}
    metered.emulator.faults.clear()
    # Stripe has forgotten what it was sent.
    metered.emulator.configure(identifier_window=60)

    metered.advance(seconds=late.total_seconds() + 60)
    assert send_due(sink, now=metered.now) == 0
    assert states() == {MeterState.UNCERTAIN: 6}
    metered.advance(minutes=61)
    assert resolve_uncertain(sink, now=metered.now) == 6
    assert states() == {MeterState.ACCEPTED: arrived, MeterState.PENDING: 6 - arrived}
    assert send_due(sink, now=metered.now) == 6 - arrived
    assert states() == {MeterState.ACCEPTED: 6}
    expect_exactly_the_ledger(metered, keys)
