"""Skus beyond the item limit: one item counts their money, and nothing is lost or counted twice."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from pytest_django.fixtures import Settings

from accounts.models import ApiKey
from billing import reconciliation
from billing.metering.freeze import freeze
from billing.metering.send import send_due
from billing.metering.sink import StripeSink
from billing.models import (
    BillingAccount,
    LedgerEntry,
    MeterEvent,
    PriceException,
    PriceState,
    PriceVersion,
    StripeOperation,
    Subscription,
)
from billing.spending import prices
from billing.stripe import catalog, invoices, sharing, subscriptions
from billing.stripe.client import Stripe
from tests.billing.metered import use
from tests.billing.subscribed import now_of, subscribe, sync
from tests.emulators.stripe import Fault, StripeEmulator
from tests.factories import KeyFactory

FIVE = {f"m/{number}": 10_000 * (number + 1) for number in range(5)}
LATER = timedelta(hours=2)


@pytest.fixture(autouse=True)
def _four_items(settings: Settings) -> None:
    settings.STRIPE_SUBSCRIPTION_ITEMS = 4
    settings.STRIPE_METER_RATE = 10_000


def newest(sku: str) -> PriceVersion:
    return PriceVersion.objects.filter(sku=sku).latest("version")


def counted_alone() -> list[str]:
    own = PriceVersion.objects.filter(counted_in=None).exclude(sku="shared")
    return [str(version) for version in own.order_by("pk")]


def test_a_price_has_an_item_of_its_own_while_there_is_room(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    done = sync(stripe, stripe_account, FIVE)
    assert counted_alone() == ["m/0 v1", "m/1 v1", "m/2 v1"]
    shared = newest("shared")
    assert done[5:] == [
        *(f"m/{number} v1: {what}" for number in range(3) for what in ("made in Stripe", "active")),
        "shared v1: made in Stripe",
        *(f"{one}: active" for one in ("shared v1", "m/3 v1", "m/4 v1")),
    ]
    assert (shared.unit, shared.unit_micro) == ("0.0001 USD", 100)
    assert {newest("m/3").counted_in, newest("m/4").counted_in} == {shared}
    assert (newest("m/4").stripe_price, newest("m/4").livemode) == ("", None)
    assert len(stripe_account.objects("billing.meter")) == 4
    price = stripe_account.objects("price")[-1]
    assert (price["id"], price["unit_amount_decimal"]) == (shared.stripe_price, "0.01")
    copy = subscribe(stripe, stripe_account, KeyFactory().row)
    assert len(copy.items) == 4
    assert shared.stripe_price in copy.items
    assert not PriceException.objects.exists()


def test_the_shared_price_is_quoted_to_nobody(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account, FIVE)
    assert newest("shared").state == PriceState.ACTIVE
    assert prices.lowest_micro() == 10_000
    assert prices.PriceBook().offered(["shared"], None) == {}
    with pytest.raises(prices.UnknownPrice):
        prices.current(["shared"])


def test_how_a_price_is_counted_is_decided_once(
    db: None, stripe: Stripe, stripe_account: StripeEmulator, settings: Settings
) -> None:
    sync(stripe, stripe_account, FIVE)
    settings.STRIPE_SUBSCRIPTION_ITEMS = 20
    assert sync(stripe, stripe_account, FIVE) == []
    assert counted_alone() == ["m/0 v1", "m/1 v1", "m/2 v1"]
    settings.STRIPE_SUBSCRIPTION_ITEMS = 2
    assert sync(stripe, stripe_account, FIVE) == []
    assert counted_alone() == ["m/0 v1", "m/1 v1", "m/2 v1"]
    # Another price is another decision, of either kind.
    sync(stripe, stripe_account, FIVE | {"m/0": 11_000})
    assert newest("m/0").counted_in == newest("shared")
    settings.STRIPE_SUBSCRIPTION_ITEMS = 20
    sync(stripe, stripe_account, FIVE | {"m/0": 11_000, "m/3": 41_000})
    assert counted_alone() == ["m/0 v1", "m/1 v1", "m/2 v1", "m/3 v2"]


def test_a_price_that_is_no_whole_units_needs_an_item_of_its_own(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account, {"m/fine": 1_234})
    assert newest("m/fine").counted_in is None
    before = len(stripe_account.requests)
    with pytest.raises(sharing.PriceTooFine, match=r"m/2: 0.001234 USD is no multiple of 0.0001"):
        sync(stripe, stripe_account, {"m/0": 10_000, "m/1": 10_000, "m/2": 1_234})
    assert [version.sku for version in PriceVersion.objects.all()] == ["m/fine"]
    assert len(stripe_account.requests) == before


def test_the_database_refuses_what_cannot_be_counted(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account, FIVE)
    shared = PriceVersion.objects.filter(pk=newest("m/3").pk)
    for wrong in ({"unit_micro": 40_050}, {"stripe_price": "price_1", "livemode": False}):
        with pytest.raises(IntegrityError), transaction.atomic():
            shared.update(**wrong)


def test_prices_of_unconnected_days_are_counted_as_was_decided_then(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    prices.publish(FIVE, counting=sharing.counting)
    assert set(prices.current(FIVE)) == set(FIVE)
    assert catalog.pending(FIVE) == [
        f"{name} v1: to be made in Stripe" for name in ("m/0", "m/1", "m/2", "shared", "m/3", "m/4")
    ]
    sync(stripe, stripe_account, FIVE)
    assert len(stripe_account.objects("price")) == 4
    assert newest("shared").state == PriceState.ACTIVE
    assert catalog.pending(FIVE) == []


def test_running_subscriptions_have_the_shared_item_before_a_price_is_quoted(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    three = dict(list(FIVE.items())[:3])
    sync(stripe, stripe_account, three)
    first, second = (KeyFactory().row for _ in range(2))
    before = [subscribe(stripe, stripe_account, key).items for key in (first, second)]
    stripe_account.faults.add(Fault("429", "/v1/subscription_items", "POST", nth=1))
    done = sync(stripe, stripe_account, FIVE)
    assert "shared v1: active, 1 subscriptions without it" in done
    book = prices.PriceBook()
    for sku in ("m/3", "m/4"):
        with pytest.raises(prices.UnknownPrice):
            book.current([sku], first.organization_id)
        assert book.current([sku], second.organization_id)[sku].unit_micro == FIVE[sku]
    assert sorted(PriceException.objects.values_list("sku", flat=True)) == ["m/3", "m/4"]
    assert subscriptions.repair(stripe, now_of(stripe_account) + LATER) == 1
    assert not PriceException.objects.exists()
    assert prices.PriceBook().current(["m/4"], first.organization_id)
    # What they had they have still, each item itself.
    for copy, items in zip(Subscription.objects.order_by("pk"), before, strict=True):
        assert items.items() <= copy.items.items()
        assert len(copy.items) == 4


def test_a_lost_call_for_the_shared_item_is_made_up_for(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    stripe_account.faults.add(Fault("drop_after", "/v1/prices", "POST", nth=4, times=1))
    done = sync(stripe, stripe_account, FIVE)
    assert done[-3].startswith("shared v1: waits for Stripe: ")
    assert done[-2:] == ["m/3 v1: waits for shared v1", "m/4 v1: waits for shared v1"]
    assert newest("m/4").state == PriceState.DRAFT
    catalog.resume(stripe, now_of(stripe_account) + LATER)
    assert {version.state for version in PriceVersion.objects.all()} == {PriceState.ACTIVE}
    assert len(stripe_account.objects("price")) == 4
    assert catalog.resume(stripe, now_of(stripe_account) + LATER) == []


def metered(stripe: Stripe, emulator: StripeEmulator) -> ApiKey:
    """A key whose organization has a subscription to the five, an hour and a half ago."""
    sync(stripe, emulator, FIVE)
    key = KeyFactory().row
    subscribe(stripe, emulator, key)
    emulator.clock.advance(5400)
    return key


def drawn(key: ApiKey, emulator: StripeEmulator, sku: str, quantity: int) -> LedgerEntry:
    """Usage of half an hour ago, by the emulator's clock."""
    return use(key, quantity, at=now_of(emulator) - timedelta(minutes=30), model=sku)


def test_one_event_has_the_money_of_all_that_share(
    transactional_db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    key = metered(stripe, stripe_account)
    used = [("m/0", 7), ("m/3", 2), ("m/4", 3), ("m/3", 1)]
    entries = [drawn(key, stripe_account, sku, quantity) for sku, quantity in used]
    now = now_of(stripe_account)
    assert freeze(now=now, running_hour=True) == 2
    shared, own = MeterEvent.objects.order_by("-quantity")
    assert (own.price_version, own.quantity) == (newest("m/0"), 7)
    # 3 at 0.04 USD and 3 at 0.05 USD.
    assert (shared.price_version, shared.quantity) == (newest("shared"), 2_700)
    metered_in = [entry.metered.meter_event_id for entry in entries]
    assert metered_in == [own.pk, shared.pk, shared.pk, shared.pk]
    assert send_due(StripeSink(stripe), now=now) == 2
    customer = BillingAccount.objects.get(pk=key.organization_id).stripe_customer
    assert stripe_account.meter_total(customer, newest("shared").event_name) == 2_700
    assert stripe_account.meter_total(customer, newest("m/0").event_name) == 7
    reconciliation.internal(now=now)
    found = reconciliation.open_differences()
    assert [row for row in found if row.kind == "event_sum"] == []


def test_a_shared_event_that_is_not_its_entries_is_found(
    transactional_db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    key = metered(stripe, stripe_account)
    drawn(key, stripe_account, "m/3", 2)
    now = now_of(stripe_account)
    freeze(now=now, running_hour=True)
    MeterEvent.objects.update(quantity=799)
    reconciliation.internal(now=now)
    (row,) = (one for one in reconciliation.open_differences() if one.kind == "event_sum")
    assert (row.expected, row.found) == (800, 799)


def test_the_line_of_the_shared_item_is_the_ledger(
    transactional_db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    key = metered(stripe, stripe_account)
    for sku, quantity in [("m/3", 2), ("m/4", 3), ("m/0", 7)]:
        drawn(key, stripe_account, sku, quantity)
    now = now_of(stripe_account)
    freeze(now=now, running_hour=True)
    send_due(StripeSink(stripe), now=now)
    copy = Subscription.objects.get()
    stripe_account.clock.advance_to(copy.period_end + timedelta(minutes=10))
    draft = stripe_account.objects("invoice")[-1]
    made = invoices.mirror(stripe, draft["id"], now=now_of(stripe_account))
    assert made is not None
    (line,) = (one for one in made.lines if one["price"] == newest("shared").stripe_price)
    assert (line["quantity"], line["unit_cents"], line["amount_cents"]) == ("2300", "0.01", 23)
    total = invoices.line_total(made, line)
    assert (total.units, total.micro, total.agrees(line)) == (5, 230_000, True)
    assert not total.agrees(line | {"quantity": "2301"})  # type: ignore[arg-type]
    assert [(one.sku, one.units, one.cost_micro) for one in invoices.line_spend(made, line)] == [
        ("m/3", 2, 80_000),
        ("m/4", 3, 150_000),
    ]
    reconciliation.draft(stripe, made, now=now_of(stripe_account))
    assert [one.kind for one in reconciliation.open_differences()] == []


def test_a_shared_price_is_retired_with_its_last_invoice_and_the_item_stays(
    transactional_db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    key = metered(stripe, stripe_account)
    drawn(key, stripe_account, "m/4", 3)
    now = now_of(stripe_account)
    freeze(now=now, running_hour=True)
    sync(stripe, stripe_account, FIVE | {"m/4": 60_000})
    old = PriceVersion.objects.get(sku="m/4", version=1)
    over = now + timedelta(days=40)
    # What is not sent yet keeps it.
    assert catalog.retire(stripe, over) == []
    send_due(StripeSink(stripe), now=now)
    assert catalog.retire(stripe, over) == []
    copy = Subscription.objects.get()
    stripe_account.clock.advance_to(copy.period_end + timedelta(days=2))
    invoices.mirror(stripe, stripe_account.objects("invoice")[-1]["id"], now=now_of(stripe_account))
    assert catalog.retire(stripe, over) == ["m/4 v1: retired"]
    old.refresh_from_db()
    assert old.state == PriceState.RETIRED
    assert not StripeOperation.objects.filter(kind__in=["item_end", "price_end"]).exists()
    assert newest("shared").state == PriceState.ACTIVE
