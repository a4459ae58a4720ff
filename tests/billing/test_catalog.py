"""The catalogue in Stripe: one of each object, whatever happens on the way; drafts until then."""

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, transaction
from pytest_django.fixtures import Settings

from accounts.models import ApiKey
from billing.models import (
    BillingAccount,
    Invoice,
    MeterEvent,
    MeterState,
    PriceException,
    PriceState,
    PriceVersion,
    StripeOperation,
    Subscription,
)
from billing.spending import prices
from billing.stripe import catalog, customers, subscriptions
from billing.stripe.client import Stripe
from geekhub.asgi import Application
from images.catalog.rows import CATALOG
from tests.billing import PRICES, authorize, race, release
from tests.billing.metered import use
from tests.billing.subscribed import NAMES, checkout, next_first, now_of, subscribe, sync
from tests.emulators.stripe import Fault, StripeEmulator
from tests.factories import KeyFactory

DEARER = {**PRICES, "a/cheap": 45_000}
LATER = timedelta(hours=2)
PATHS = ("/v1/products", "/v1/billing/meters", "/v1/prices")


def objects(emulator: StripeEmulator) -> Counter[str]:
    kinds = ("product", "billing.meter", "price", "subscription_item")
    return Counter({kind: len(found) for kind in kinds if (found := emulator.objects(kind))})


def newest(model: str) -> PriceVersion:
    return PriceVersion.objects.filter(sku=model).latest("version")


# --- What is made -----------------------------------------------------------------------------


def test_each_model_has_a_product_and_each_version_a_meter_and_a_price(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    done = sync(stripe, stripe_account)
    assert done == [
        "a/cheap: new -> 0.04 USD per image",
        "b/middle: new -> 0.065 USD per image",
        "c/dear: new -> 0.19 USD per image",
        "a/cheap v1: made in Stripe",
        "a/cheap v1: active",
        "b/middle v1: made in Stripe",
        "b/middle v1: active",
        "c/dear v1: made in Stripe",
        "c/dear v1: active",
    ]
    assert objects(stripe_account) == {"product": 3, "billing.meter": 3, "price": 3}
    version = newest("b/middle")
    assert (version.state, version.livemode) == (PriceState.ACTIVE, False)
    assert version.effective_from == now_of(stripe_account)
    product = next(p for p in stripe_account.objects("product") if p["name"] == "Middle")
    price = next(p for p in stripe_account.objects("price") if p["product"] == product["id"])
    meter = stripe.v1.billing.meters.retrieve(price["recurring"]["meter"])
    assert version.stripe_product == product["id"] == "geekhub_b-middle"
    assert (version.stripe_price, version.stripe_meter) == (price["id"], meter.id)
    assert (meter.event_name, meter.display_name) == ("img_middle_v1", "b/middle v1")
    assert meter.default_aggregation.formula == "sum"
    assert (price["unit_amount_decimal"], price["currency"]) == ("6.5", "usd")
    assert price["lookup_key"] == "geekhub_img_middle_v1"
    assert price["recurring"]["interval"] == "month"
    assert price["recurring"]["usage_type"] == "metered"
    assert price["metadata"] == {"model": "b/middle", "version": "1"}


def test_a_second_run_says_and_asks_nothing(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    before = len(stripe_account.requests)
    assert sync(stripe, stripe_account) == []
    assert len(stripe_account.requests) == before


@pytest.mark.parametrize(
    ("unit", "cents"), [(1, "0.0001"), (4_000, "0.4"), (190_000, "19"), (123_456_789, "12345.6789")]
)
def test_a_price_is_exact(
    db: None, stripe: Stripe, stripe_account: StripeEmulator, unit: int, cents: str
) -> None:
    sync(stripe, stripe_account, {"a/cheap": unit})
    assert [p["unit_amount_decimal"] for p in stripe_account.objects("price")] == [cents]


def test_active_versions_of_unconnected_days_get_objects_and_stay_active(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    prices.publish(PRICES)
    since = newest("a/cheap").effective_from
    assert catalog.pending(PRICES) == [
        "a/cheap v1: to be made in Stripe",
        "b/middle v1: to be made in Stripe",
        "c/dear v1: to be made in Stripe",
    ]
    sync(stripe, stripe_account)
    assert objects(stripe_account)["price"] == 3
    version = newest("a/cheap")
    assert (version.version, version.state, version.effective_from) == (1, "active", since)
    assert version.stripe_price


def test_another_price_is_another_version_and_nothing_is_changed(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    old = stripe_account.objects("price")
    assert catalog.pending(DEARER) == ["a/cheap: 0.04 -> 0.045 USD per image"]
    assert sync(stripe, stripe_account, DEARER) == [
        "a/cheap: 0.04 -> 0.045 USD per image",
        "a/cheap v2: made in Stripe",
        "a/cheap v2: active",
    ]
    assert stripe_account.objects("price")[:3] == old
    assert objects(stripe_account) == {"product": 3, "billing.meter": 4, "price": 4}
    assert prices.current(["a/cheap"])["a/cheap"].unit_micro == 45_000
    assert newest("a/cheap").stripe_product == "geekhub_a-cheap"


def test_event_names_of_the_catalogue_are_unique() -> None:
    names = Counter(PriceVersion(sku=model, version=1).event_name for model in CATALOG)
    assert names.most_common(1)[0][1] == 1


# --- What goes wrong on the way -----------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_before", "500_after", "429"])
def test_a_lost_call_is_made_up_for_and_nothing_is_made_twice(
    db: None, stripe: Stripe, stripe_account: StripeEmulator, kind: Any, path: str
) -> None:
    stripe_account.faults.add(Fault(kind, path, "POST", nth=2))
    done = sync(stripe, stripe_account)
    assert [line for line in done if "waits for Stripe" in line]
    assert newest("b/middle").state == PriceState.DRAFT
    with pytest.raises(prices.UnknownPrice):
        prices.current(["b/middle"])
    assert newest("c/dear").state == PriceState.ACTIVE  # one does not hold the others back
    now = now_of(stripe_account) + LATER
    assert catalog.resume(stripe, now) == [
        "b/middle v1: made in Stripe",
        "b/middle v1: active",
    ]
    assert objects(stripe_account) == {"product": 3, "billing.meter": 3, "price": 3}
    assert catalog.resume(stripe, now) == []


def test_stripe_away_leaves_the_old_price(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    stripe_account.faults.add(Fault("drop_before", times=100))
    done = sync(stripe, stripe_account, DEARER)
    assert done[1].startswith("a/cheap v2: waits for Stripe: ")
    assert prices.current(["a/cheap"])["a/cheap"].unit_micro == 40_000
    stripe_account.faults.clear()
    # The worker goes on without knowing the catalogue.
    catalog.resume(stripe, now_of(stripe_account))
    assert prices.current(["a/cheap"])["a/cheap"].unit_micro == 45_000


def test_two_hosts_at_once_make_one_of_each(
    transactional_db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    race(4, lambda _: sync(stripe, stripe_account))
    # Who came second may have left; somebody goes on.
    catalog.resume(stripe, now_of(stripe_account) + LATER)
    assert objects(stripe_account) == {"product": 3, "billing.meter": 3, "price": 3}
    assert PriceVersion.objects.filter(state=PriceState.ACTIVE).count() == 3
    assert sorted(v.stripe_price for v in PriceVersion.objects.all()) == sorted(
        p["id"] for p in stripe_account.objects("price")
    )


def test_a_new_database_takes_over_what_an_old_one_made(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    made = set(PriceVersion.objects.values_list("sku", "stripe_meter", "stripe_price"))
    PriceVersion.objects.all().delete()
    StripeOperation.objects.all().delete()
    sync(stripe, stripe_account)
    assert set(PriceVersion.objects.values_list("sku", "stripe_meter", "stripe_price")) == made
    assert objects(stripe_account) == {"product": 3, "billing.meter": 3, "price": 3}


def test_a_price_that_is_not_ours_is_not_taken_over(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    PriceVersion.objects.all().delete()
    StripeOperation.objects.all().delete()
    done = sync(stripe, stripe_account, DEARER)
    assert "already uses that lookup key" in done[3]
    assert newest("a/cheap").state == PriceState.DRAFT
    assert newest("a/cheap").stripe_price == ""
    assert newest("b/middle").state == PriceState.ACTIVE


def test_a_draft_that_is_overtaken_is_never_quoted(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    stripe_account.faults.add(Fault("500_before", "/v1/prices", "POST"))
    sync(stripe, stripe_account, DEARER)
    done = sync(stripe, stripe_account, {**PRICES, "a/cheap": 50_000})
    assert done[-1] == "a/cheap v2: retired"
    states = PriceVersion.objects.filter(sku="a/cheap").order_by("version")
    assert list(states.values_list("state", flat=True)) == ["active", "retired", "active"]
    assert prices.current(["a/cheap"])["a/cheap"].unit_micro == 50_000
    # Another host may still be at it.
    PriceVersion.objects.filter(pk=states[1].pk).update(state=PriceState.DRAFT)
    assert subscriptions.activate(states[1], now=now_of(stripe_account)) is False


# --- Subscriptions ------------------------------------------------------------------------------


def test_running_subscriptions_have_the_item_before_the_price_is_quoted(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    keys = [KeyFactory().row for _ in range(2)]
    copies = [subscribe(stripe, stripe_account, key) for key in keys]
    assert [len(copy.items) for copy in copies] == [3, 3]
    sync(stripe, stripe_account, DEARER)
    for copy in copies:
        copy.refresh_from_db()
        assert len(copy.items) == 4
        assert newest("a/cheap").stripe_price in copy.items
    assert not PriceException.objects.exists()
    assert objects(stripe_account)["subscription_item"] == 8


@pytest.mark.parametrize("kind", ["500_before", "429", "lock"])
def test_who_cannot_have_the_item_stays_on_the_price_and_the_others_do_not_wait(
    db: None, stripe: Stripe, stripe_account: StripeEmulator, kind: Any
) -> None:
    sync(stripe, stripe_account)
    first, second = (KeyFactory().row for _ in range(2))
    for key in (first, second):
        subscribe(stripe, stripe_account, key)
    stripe_account.faults.add(Fault(kind, "/v1/subscription_items", "POST", nth=1))
    done = sync(stripe, stripe_account, {**DEARER, "d/new": 10_000})
    assert "a/cheap v2: active, 1 subscriptions without it" in done
    book = prices.PriceBook()
    assert book.current(["a/cheap"], first.organization_id)["a/cheap"].unit_micro == 40_000
    assert book.current(["a/cheap"], second.organization_id)["a/cheap"].unit_micro == 45_000
    assert book.current(["d/new"], first.organization_id)["d/new"].unit_micro == 10_000
    [exception] = PriceException.objects.all()
    assert exception.price_version is not None
    assert (exception.organization, exception.price_version.version) == (first.organization, 1)
    # Not in the same moment again, but later.
    assert subscriptions.repair(stripe, now_of(stripe_account)) == 0
    assert subscriptions.repair(stripe, now_of(stripe_account) + LATER) == 1
    assert not PriceException.objects.exists()
    assert prices.PriceBook().current(["a/cheap"], first.organization_id)["a/cheap"].unit_micro == (
        45_000
    )
    assert objects(stripe_account)["subscription_item"] == 10
    assert subscriptions.repair(stripe, now_of(stripe_account) + LATER) == 0


def test_a_new_model_is_not_to_be_had_without_its_item(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    key = KeyFactory().row
    subscribe(stripe, stripe_account, key)
    stripe_account.faults.add(Fault("429", "/v1/subscription_items", "POST"))
    sync(stripe, stripe_account, {**PRICES, "d/new": 10_000})
    with pytest.raises(prices.UnknownPrice):
        prices.PriceBook().current(["d/new"], key.organization_id)
    stranger = KeyFactory().row
    assert prices.PriceBook().current(["d/new"], stranger.organization_id)
    subscriptions.repair(stripe, now_of(stripe_account) + LATER)
    assert prices.PriceBook().current(["d/new"], key.organization_id)


def test_nobody_answering_is_not_the_organizations_fault(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    subscribe(stripe, stripe_account, KeyFactory().row)
    stripe_account.faults.add(Fault("drop_before", "/v1/subscription_items", "POST"))
    sync(stripe, stripe_account, DEARER)
    assert newest("a/cheap").state == PriceState.DRAFT
    assert not PriceException.objects.exists()
    catalog.resume(stripe, now_of(stripe_account) + LATER)
    assert newest("a/cheap").state == PriceState.ACTIVE
    assert not PriceException.objects.exists()


def test_the_twenty_first_item_waits_for_room(
    db: None, stripe: Stripe, stripe_account: StripeEmulator, settings: Settings
) -> None:
    many = {f"m/model{number}": 10_000 for number in range(20)}
    # As before prices shared an item: each has one, and no place is kept.
    settings.STRIPE_SUBSCRIPTION_ITEMS = 21
    sync(stripe, stripe_account, many)
    settings.STRIPE_SUBSCRIPTION_ITEMS = 20
    key = KeyFactory().row
    copy = subscribe(stripe, stripe_account, key)
    assert len(copy.items) == 20
    asked = len(stripe_account.requests)
    sync(stripe, stripe_account, {**many, "m/one-more": 10_000})
    posted = [r for r in stripe_account.requests[asked:] if r.path == "/v1/subscription_items"]
    assert posted == []
    assert PriceException.objects.get().sku == "m/one-more"
    stripe.v1.subscription_items.delete(copy.items[newest("m/model0").stripe_price][0])
    subscriptions.mirror(stripe, copy.stripe_id, now=now_of(stripe_account))
    subscriptions.repair(stripe, now_of(stripe_account) + LATER)
    # The oldest that is missing comes first: here it is what a person took away.
    assert PriceException.objects.get().sku == "m/one-more"


def test_a_subscription_that_begins_while_a_price_is_made_gets_its_item_later(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    key = KeyFactory().row
    session = checkout(stripe, stripe_account, key)
    sync(stripe, stripe_account, DEARER)
    stripe_account.complete_checkout(session)
    begun = stripe_account.objects("subscription")[0]["id"]
    subscriptions.mirror(stripe, begun, now=now_of(stripe_account))
    # Metering has begun, so the new price must not be quoted: nothing would bill it.
    book = prices.PriceBook()
    assert book.current(["a/cheap"], key.organization_id)["a/cheap"].unit_micro == 40_000
    assert subscriptions.repair(stripe, now_of(stripe_account)) == 1
    assert not PriceException.objects.exists()
    assert newest("a/cheap").stripe_price in Subscription.objects.get().items


def test_a_subscription_and_a_price_that_begin_at_once_do_not_miss_each_other(
    transactional_db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    for number in range(3):
        wanted = {**PRICES, "a/cheap": 50_000 + number}
        catalog.sync(stripe, PRICES, now=now_of(stripe_account), names=NAMES)
        key = KeyFactory().row
        stripe_account.complete_checkout(checkout(stripe, stripe_account, key))
        begun = stripe_account.objects("subscription")[-1]["id"]
        prices.publish(wanted, PriceState.DRAFT)
        draft = newest("a/cheap")
        catalog._make_objects(stripe, draft, now_of(stripe_account))

        def both(who: int, begun: str = begun, draft: PriceVersion = draft) -> object:
            if who:
                return subscriptions.mirror(stripe, begun, now=now_of(stripe_account))
            return subscriptions.activate(draft, now=now_of(stripe_account))

        race(2, both)
        assert PriceException.objects.filter(organization=key.organization).exists()


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time")
@pytest.mark.parametrize("who", ["subscription", "price"])
def test_prices_stand_still_while_it_is_written_down_who_lacks_which(
    transactional_db: None, stripe: Stripe, stripe_account: StripeEmulator, who: str
) -> None:
    sync(stripe, stripe_account)
    key = KeyFactory().row
    stripe_account.complete_checkout(checkout(stripe, stripe_account, key))
    begun = stripe_account.objects("subscription")[-1]["id"]
    prices.publish(DEARER, PriceState.DRAFT)
    draft = newest("a/cheap")
    catalog._make_objects(stripe, draft, now_of(stripe_account))

    def work() -> None:
        try:
            if who == "price":
                subscriptions.activate(draft, now=now_of(stripe_account))
            else:
                subscriptions.mirror(stripe, begun, now=now_of(stripe_account))
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    with transaction.atomic():
        subscriptions.lock_prices()
        thread.start()
        while thread.is_alive() and not is_somebody_waiting():
            thread.join(0.01)
        assert thread.is_alive()
    thread.join()


def is_somebody_waiting() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


# --- The end of a version -----------------------------------------------------------------------


def test_a_version_is_retired_when_its_last_invoice_is_final(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    stripe_account.clock.advance_to(next_first(stripe_account))
    sync(stripe, stripe_account)
    key = KeyFactory().row
    copy = subscribe(stripe, stripe_account, key)
    old = newest("a/cheap")
    sync(stripe, stripe_account, DEARER)
    assert catalog.retire(stripe, now_of(stripe_account)) == []

    def invoice(status: str, name: str = "in_cycle", start: datetime | None = None) -> None:
        turned = customers.next_month(begun)
        Invoice.objects.update_or_create(
            stripe_id=name,
            defaults={
                "organization": key.organization,
                "status": status,
                "currency": "usd",
                "period_start": start or begun,
                "period_end": turned,
                "subtotal_cents": 0,
                "tax_cents": 0,
                "total_cents": 0,
                "amount_due_cents": 0,
                "amount_paid_cents": 0,
                "lines": [],
                "created": turned,
                "fetched_at": turned,
            },
        )

    begun = now_of(stripe_account)
    stripe_account.clock.advance_to(customers.next_month(begun))
    after = now_of(stripe_account) + timedelta(minutes=5)
    # Our copy still says the old period.
    assert catalog.retire(stripe, after) == []
    subscriptions.mirror(stripe, copy.stripe_id, now=after)
    assert catalog.retire(stripe, after) == []
    # An invoice of something else is none of the month.
    invoice("paid", "in_once", customers.next_month(begun))
    assert catalog.retire(stripe, after) == []
    invoice("draft")
    assert catalog.retire(stripe, after) == []
    invoice("open")
    PriceException.objects.create(
        organization=KeyFactory().row.organization, sku="a/cheap", price_version=old, reason="x"
    )
    assert catalog.retire(stripe, after) == []
    PriceException.objects.all().delete()
    assert catalog.retire(stripe, after) == ["a/cheap v1: retired"]

    old.refresh_from_db()
    assert old.state == PriceState.RETIRED
    copy.refresh_from_db()
    assert old.stripe_price not in copy.items
    assert len(copy.items) == 3
    assert stripe.v1.prices.retrieve(old.stripe_price).active is False
    assert stripe.v1.billing.meters.retrieve(old.stripe_meter).status == "inactive"
    assert newest("a/cheap").state == PriceState.ACTIVE
    assert catalog.retire(stripe, after) == []


@pytest.mark.parametrize("why", ["held", "not frozen", "not sent", ""])
def test_a_version_that_is_still_used_is_not_retired(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator, why: str
) -> None:
    sync(stripe, stripe_account)
    old, now = newest("a/cheap"), now_of(stripe_account)
    hold = authorize(key) if why == "held" else None
    entry = use(key, 1, at=now)
    BillingAccount.objects.filter(pk=key.organization_id).update(
        metered_from=0, frozen_through=0 if why == "not frozen" else entry.pk
    )
    sync(stripe, stripe_account, DEARER)
    event = MeterEvent.objects.create(
        identifier="gh1:1",
        organization=key.organization,
        price_version=old,
        hour=now,
        quantity=1,
        timestamp=now,
        next_at=now,
        state=MeterState.PENDING if why == "not sent" else MeterState.ACCEPTED,
    )
    # Pages of Checkout may still sell it, and requests still be quoted it.
    assert catalog.retire(stripe, now + timedelta(hours=47)) == []
    later = now + timedelta(hours=49)
    if why:
        assert catalog.retire(stripe, later) == []
    if hold:
        release(hold)
    BillingAccount.objects.update(frozen_through=entry.pk)
    event.state = MeterState.CONFIRMED
    event.save()
    assert catalog.retire(stripe, later) == ["a/cheap v1: retired"]


@pytest.mark.parametrize(
    "path", ["/v1/subscription_items/*", "/v1/prices/*", "/v1/billing/meters/*/deactivate"]
)
@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_after"])
def test_retiring_goes_on_where_it_was_broken_off(
    db: None, stripe: Stripe, stripe_account: StripeEmulator, kind: Any, path: str
) -> None:
    stripe_account.clock.advance_to(next_first(stripe_account))
    sync(stripe, stripe_account)
    copy = subscribe(stripe, stripe_account, KeyFactory().row)
    # A draft with items everywhere that is overtaken before it is quoted.
    prices.publish(DEARER, PriceState.DRAFT)
    draft = newest("a/cheap")
    catalog._make_objects(stripe, draft, now_of(stripe_account))
    subscriptions.add_items(stripe, draft, now_of(stripe_account))
    prices.publish(PRICES, PriceState.DRAFT)
    stripe_account.faults.add(Fault(kind, path))
    [line] = catalog.retire(stripe, now_of(stripe_account))
    assert line.startswith("a/cheap v2: still in Stripe: ")
    assert catalog.retire(stripe, now_of(stripe_account)) == ["a/cheap v2: retired"]
    copy.refresh_from_db()
    assert draft.stripe_price not in copy.items
    assert stripe.v1.prices.retrieve(draft.stripe_price).active is False
    assert stripe.v1.billing.meters.retrieve(draft.stripe_meter).status == "inactive"


# --- Modes and the command ------------------------------------------------------------------------


def test_a_live_key_and_a_test_catalogue_refuse_to_start(
    db: None, stripe: Stripe, stripe_account: StripeEmulator, settings: Settings
) -> None:
    catalog.check_mode()
    sync(stripe, stripe_account)
    catalog.check_mode()
    settings.STRIPE_LIVEMODE = True
    for start in (
        catalog.check_mode,
        lambda: call_command("sync_catalog"),
        lambda: call_command("worker", "--once"),
    ):
        with pytest.raises(ImproperlyConfigured, match="is a live key"):
            start()
    PriceVersion.objects.update(livemode=True)
    catalog.check_mode()
    settings.STRIPE_LIVEMODE = False
    with pytest.raises(ImproperlyConfigured, match="is a test key"):
        catalog.check_mode()
    # Without a key nothing is said to Stripe, whichever mode the objects have.
    settings.STRIPE_SECRET_KEY = ""
    catalog.check_mode()


def test_the_server_does_not_start_with_the_wrong_key(
    transactional_db: None,
    stripe: Stripe,
    stripe_account: StripeEmulator,
    settings: Settings,
    tmp_path: Path,
) -> None:
    sync(stripe, stripe_account)
    settings.STRIPE_LIVEMODE, settings.STATIC_ROOT = True, tmp_path
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    with pytest.raises(ImproperlyConfigured):
        asyncio.run(Application()({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "is a live key" in sent[0]["message"]


def test_the_worker_makes_nothing_in_the_other_mode(
    db: None, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    stripe_account.faults.add(Fault("drop_before", "/v1/products", "POST"))
    sync(stripe, stripe_account, {"a/cheap": 40_000})
    PriceVersion.objects.update(livemode=True)
    asked = len(stripe_account.requests)
    with pytest.raises(ImproperlyConfigured):
        catalog.resume(stripe, now_of(stripe_account))
    assert len(stripe_account.requests) == asked


def run(*arguments: str) -> list[str]:
    out = StringIO()
    call_command("sync_catalog", *arguments, stdout=out)
    return out.getvalue().splitlines()


def test_the_command_brings_the_catalogue_to_stripe(
    db: None, stripe_account: StripeEmulator
) -> None:
    tried = run("--dry-run")
    assert len(tried) == len(CATALOG)
    assert not PriceVersion.objects.exists()
    assert stripe_account.requests == []
    assert run()[: len(CATALOG)] == tried
    assert objects(stripe_account)["price"] == len(CATALOG)
    assert run() == run("--dry-run") == []
    names = {product["name"] for product in stripe_account.objects("product")}
    assert names == {model.name for model in CATALOG.values()}
