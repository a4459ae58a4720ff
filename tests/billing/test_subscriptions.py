"""Copies of subscriptions, and from when to when usage is metered: nothing twice, nothing lost."""

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import Sum

from accounts.models import ApiKey
from billing.metering import freeze
from billing.metering.send import send_due
from billing.metering.sink import StripeSink
from billing.models import (
    BillingAccount,
    EntryKind,
    LedgerEntry,
    MeteredEntry,
    StripeOperation,
    Subscription,
)
from billing.spending import ledger
from billing.stripe import credits, invoices, operations, subscriptions
from billing.stripe.client import Stripe, StripeFailure
from tests.billing import authorize, capture, race
from tests.billing.metered import use
from tests.billing.subscribed import checkout, next_first, now_of, subscribe, sync
from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.factories import KeyFactory


def account_of(key: ApiKey) -> BillingAccount:
    return BillingAccount.objects.get(pk=key.organization_id)


def adjust(key: ApiKey, micro: int, name: str = "adjustment:1") -> None:
    ledger.record(key.organization, EntryKind.ADJUSTMENT, micro, entry_key=name, note="")


def opening() -> StripeOperation:
    return StripeOperation.objects.get(key__startswith="opening:")


def credit_left(stripe: Stripe, key: ApiKey) -> int:
    """Return the cents of credit that Stripe would use for the organization's next invoice."""
    summary = stripe.v1.billing.credit_balance_summary.retrieve(
        {
            "customer": account_of(key).stripe_customer,
            "filter": {
                "type": "applicability_scope",
                "applicability_scope": {"price_type": "metered"},
            },
        }
    )
    monetary = summary.balances[0].available_balance.monetary
    assert monetary is not None
    return monetary.value


@pytest.fixture
def month(stripe: Stripe, stripe_account: StripeEmulator) -> StripeEmulator:
    """Stripe's clock on the first of a month, 00:00."""
    stripe_account.clock.advance_to(next_first(stripe_account))
    return stripe_account


# --- The copy -----------------------------------------------------------------------------------


def test_a_copy_has_what_stripe_has(key: ApiKey, stripe: Stripe, month: StripeEmulator) -> None:
    sync(stripe, month)
    copy = subscribe(stripe, month, key)
    [made] = month.objects("subscription")
    items = {i["price"]["id"]: [i["id"], i["created"]] for i in made["items"]["data"]}
    assert (copy.stripe_id, copy.organization, copy.status) == (
        made["id"],
        key.organization,
        "active",
    )
    assert copy.items == items
    assert (copy.period_start, copy.period_end) == (now_of(month), next_first(month))
    assert (copy.cancels_at, copy.ended_at) == (None, None)
    stripe.v1.subscriptions.update(copy.stripe_id, {"cancel_at_period_end": True})
    again = subscriptions.mirror(stripe, copy.stripe_id, now=now_of(month))
    assert again is not None
    assert (again.pk, again.cancels_at) == (copy.pk, next_first(month))
    assert subscriptions.live(key.organization) == again


def test_what_is_none_of_ours_is_not_copied(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    shop = Shop(stripe_account)
    price = subscriptions.sold()[0].stripe_price
    strange = shop.api.subscriptions.create(
        {"customer": shop.customer(), "items": [{"price": price}]}
    )
    for name in (strange.id, "sub_missing"):
        assert subscriptions.mirror(stripe, name, now=now_of(stripe_account)) is None
    assert not Subscription.objects.exists()


def test_a_slow_fetch_does_not_undo_a_newer_one(
    committed_key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    copy = subscribe(stripe, stripe_account, committed_key)
    gate = threading.Event()
    path = f"/v1/subscriptions/{copy.stripe_id}"
    stripe_account.faults.add(Fault("slow_after", path, "GET", nth=1, gate=gate))
    asked = len(stripe_account.requests)
    now = now_of(stripe_account)

    def slow() -> None:
        try:
            subscriptions.mirror(stripe, copy.stripe_id, now=now)
        finally:
            connection.close()

    thread = threading.Thread(target=slow)
    thread.start()
    while len(stripe_account.requests) == asked:  # until it has its old answer
        thread.join(0.01)
    stripe.v1.subscriptions.update(copy.stripe_id, {"cancel_at_period_end": True})
    subscriptions.mirror(stripe, copy.stripe_id, now=now)
    gate.set()
    thread.join()
    copy.refresh_from_db()
    assert copy.cancels_at is not None


# --- Metering opens -----------------------------------------------------------------------------


def test_a_credit_is_told_when_metering_opens(
    key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    sync(stripe, month)
    capture(authorize(key, quantity=3), delivered=3)
    last = LedgerEntry.objects.latest("pk")
    copy = subscribe(stripe, month, key)
    account = account_of(key)
    assert (account.metered_from, account.frozen_through) == (last.pk, last.pk)
    operation = opening()
    assert (operation.key, operation.kind) == (f"opening:{copy.stripe_id}", "credit_grant")
    assert operation.parameters["cents"] == 988
    assert month.objects("billing.credit_grant") == []  # told by the worker, later
    operations.run_due(stripe, now=now_of(month))
    [grant] = month.objects("billing.credit_grant")
    assert grant["amount"]["monetary"] == {"currency": "usd", "value": 988}
    assert (grant["category"], grant["name"]) == ("paid", "Balance brought forward")
    assert credit_left(stripe, key) == 988
    assert freeze.freeze(now=now_of(month), running_hour=True) == 0


def test_a_debt_is_on_the_first_invoice(key: ApiKey, stripe: Stripe, month: StripeEmulator) -> None:
    sync(stripe, month)
    adjust(key, -13_004_999)
    copy = subscribe(stripe, month, key)
    operation = opening()
    assert (operation.kind, operation.parameters["cents"]) == ("invoice_item", 300)
    operations.run_due(stripe, now=now_of(month))
    month.clock.advance_to(next_first(month))
    [invoice] = [i for i in month.objects("invoice") if i["billing_reason"] == "subscription_cycle"]
    assert invoice["parent"]["subscription_details"]["subscription"] == copy.stripe_id
    assert invoice["total"] == 300
    assert "Balance brought forward" in {line["description"] for line in invoice["lines"]["data"]}


@pytest.mark.parametrize("left", [0, 4_999, -4_999])
def test_less_than_half_a_cent_is_not_told(
    key: ApiKey, stripe: Stripe, month: StripeEmulator, left: int
) -> None:
    sync(stripe, month)
    adjust(key, left - 10_000_000)
    subscribe(stripe, month, key)
    assert account_of(key).metered_from is not None
    assert not StripeOperation.objects.filter(key__startswith="opening:").exists()


def test_an_organization_without_a_ledger_is_metered_from_the_beginning(
    stripe: Stripe, month: StripeEmulator, db: None
) -> None:
    sync(stripe, month)
    key = KeyFactory(organization__bonus="0").row
    subscribe(stripe, month, key)
    assert account_of(key).metered_from == 0


def test_looking_again_opens_nothing_again(
    key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    sync(stripe, month)
    copy = subscribe(stripe, month, key)
    before = account_of(key).metered_from
    adjust(key, 5_000_000)
    for _ in range(2):
        subscriptions.mirror(stripe, copy.stripe_id, now=now_of(month))
    assert account_of(key).metered_from == before
    assert opening().parameters["cents"] == 1000
    assert subscriptions.repair(stripe, now_of(month)) == 0
    # Nor does another process that looked before this one had written.
    operations.run_due(stripe, now=now_of(month))
    assert subscriptions._tell_balance(copy) is False
    assert account_of(key).metered_from == before


def test_all_consumption_is_before_the_mark_or_after_it(
    committed_key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    stripe_account.complete_checkout(checkout(stripe, stripe_account, committed_key))
    begun = stripe_account.objects("subscription")[0]["id"]
    holds = [authorize(committed_key) for _ in range(16)]

    def work(number: int) -> object:
        if number % 8 == 3:
            return subscriptions.mirror(stripe, begun, now=now_of(stripe_account))
        return capture(holds[number])

    race(16, work, losing=StripeFailure)
    account = account_of(committed_key)
    entries = LedgerEntry.objects.filter(organization=committed_key.organization)
    told = entries.filter(pk__lte=account.metered_from).aggregate(sum=Sum("amount_micro"))["sum"]
    assert opening().parameters["cents"] == credits.cents(told)
    freeze.freeze(now=now_of(stripe_account), running_hour=True)
    later = entries.filter(pk__gt=account.metered_from, kind=EntryKind.CONSUMPTION)
    assert MeteredEntry.objects.count() == later.count()


@pytest.mark.parametrize("status", ["past_due", "unpaid"])
def test_only_a_running_subscription_opens(
    key: ApiKey, stripe: Stripe, month: StripeEmulator, status: str
) -> None:
    sync(stripe, month)
    month.configure(final_action=status)
    month.complete_checkout(checkout(stripe, month, key))
    customer = account_of(key).stripe_customer
    [begun] = month.objects("subscription")
    stripe.v1.invoice_items.create({"customer": customer, "amount": 100, "currency": "usd"})
    month.set_cards(customer, "insufficient_funds")
    month.clock.advance_to(next_first(month))
    month.clock.advance(timedelta(days=20).total_seconds())
    copy = subscriptions.mirror(stripe, begun["id"], now=now_of(month))
    assert copy is not None
    assert copy.status == status
    assert (account_of(key).metered_from is not None) == (status == "past_due")


# --- Metering closes, and opens again -----------------------------------------------------------


def send(stripe: Stripe, month: StripeEmulator) -> None:
    """Freeze what hours are over, send it, and do what is due."""
    now = now_of(month)
    freeze.freeze(now=now)
    send_due(StripeSink(stripe), now=now, threads=1)
    operations.run_due(stripe, now=now)


def images_at_stripe(month: StripeEmulator, key: ApiKey) -> int:
    customer = account_of(key).stripe_customer
    return int(month.meter_total(customer, "img_cheap_v1"))


def test_usage_after_the_end_is_the_balances_and_nothing_is_told_twice(
    committed_key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    key = committed_key
    sync(stripe, month)
    first = subscribe(stripe, month, key)
    send(stripe, month)
    stripe.v1.subscriptions.update(first.stripe_id, {"cancel_at_period_end": True})
    end = next_first(month)
    use(key, 100, at=end - timedelta(days=3))
    use(key, 10, at=end - timedelta(minutes=1))
    month.clock.advance_to(end - timedelta(days=2))
    send(stripe, month)
    assert images_at_stripe(month, key) == 100

    # The end: the last hour is frozen though its hour has only just ended.
    month.clock.advance_to(end)
    after = [use(key, 5, at=end), use(key, 2, at=end + timedelta(minutes=3))]
    month.clock.advance(300)
    ended = subscriptions.mirror(stripe, first.stripe_id, now=now_of(month))
    assert ended is not None
    assert (ended.status, ended.ended_at) == ("canceled", end)
    assert account_of(key).metered_from is None
    assert not MeteredEntry.objects.filter(ledger_entry__in=after).exists()
    invoices.mirror(stripe, month.objects("invoice")[-1]["id"], now=now_of(month))
    month.clock.advance(300)
    send(stripe, month)
    assert images_at_stripe(month, key) == 110

    # A new one at once. The draft of the old one still collects, so nothing opens yet.
    second = subscribe(stripe, month, key)
    assert account_of(key).metered_from is None
    waiting = use(key, 3, at=now_of(month))
    assert subscriptions.repair(stripe, now_of(month)) == 0
    month.clock.advance(2 * 3600)
    final = [i for i in month.objects("invoice") if i["billing_reason"] == "subscription_cycle"]
    assert [(i["status"], i["subtotal"], i["amount_due"]) for i in final] == [("paid", 440, 0)]
    assert credit_left(stripe, key) == 1000 - 440

    assert subscriptions.repair(stripe, now_of(month)) == 1
    account = account_of(key)
    assert account.metered_from == waiting.pk
    assert account.balance_micro == 10_000_000 - 120 * 40_000
    send(stripe, month)
    assert credit_left(stripe, key) == 520  # the old credit is gone, the balance is there
    assert images_at_stripe(month, key) == 110

    use(key, 50, at=now_of(month))
    month.clock.advance_to(next_first(month))
    month.clock.advance(300)
    subscriptions.mirror(stripe, second.stripe_id, now=now_of(month))
    for found in month.objects("invoice"):
        invoices.mirror(stripe, found["id"], now=now_of(month))
    send(stripe, month)
    month.clock.advance(2 * 3600)
    last = month.objects("invoice")[-1]
    assert (last["status"], last["subtotal"], last["amount_due"]) == ("paid", 200, 0)
    assert images_at_stripe(month, key) == 160
    assert credit_left(stripe, key) == 320 == credits.cents(account_of(key).balance_micro)


def test_metering_opens_when_what_is_owed_is_paid(
    stripe: Stripe, month: StripeEmulator, transactional_db: None
) -> None:
    sync(stripe, month)
    key = KeyFactory(organization__bonus="0", organization__credit_limit="100").row
    first = subscribe(stripe, month, key)
    use(key, 100, at=now_of(month))
    month.clock.advance(2 * 3600)
    send(stripe, month)
    customer = account_of(key).stripe_customer
    month.set_cards(customer, "insufficient_funds")
    stripe.v1.subscriptions.update(first.stripe_id, {"cancel_at_period_end": True})
    month.clock.advance_to(next_first(month))
    month.clock.advance(2 * 3600)
    subscriptions.mirror(stripe, first.stripe_id, now=now_of(month))
    second = subscribe(stripe, month, key)
    # The debt of 4 USD is on an open invoice: it must not be asked for once more.
    assert subscriptions.repair(stripe, now_of(month)) == 0
    assert account_of(key).metered_from is None
    owed = next(i["id"] for i in month.objects("invoice") if i["status"] == "open")
    month.set_cards(customer, None)
    stripe.v1.invoices.pay(owed)
    invoices.mirror(stripe, owed, now=now_of(month))
    assert account_of(key).balance_micro == 0
    subscriptions.mirror(stripe, second.stripe_id, now=now_of(month))
    assert account_of(key).metered_from is not None
    assert not StripeOperation.objects.filter(key=f"opening:{second.stripe_id}").exists()


def test_metering_does_not_open_while_an_earlier_credit_is_on_its_way(
    committed_key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    sync(stripe, month)
    first = subscribe(stripe, month, committed_key)
    stripe.v1.subscriptions.cancel(first.stripe_id)
    subscriptions.mirror(stripe, first.stripe_id, now=now_of(month))
    assert account_of(committed_key).metered_from is None
    subscribe(stripe, month, committed_key)
    assert account_of(committed_key).metered_from is None
    operations.run_due(stripe, now=now_of(month))
    assert subscriptions.repair(stripe, now_of(month)) == 1
    for _ in range(2):
        operations.run_due(stripe, now=now_of(month))
    assert credit_left(stripe, committed_key) == 1000


def test_a_debt_that_no_invoice_took_is_told_once(
    committed_key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    sync(stripe, month)
    adjust(committed_key, -13_000_000)
    first = subscribe(stripe, month, committed_key)
    operations.run_due(stripe, now=now_of(month))
    stripe.v1.subscriptions.cancel(first.stripe_id)
    subscriptions.mirror(stripe, first.stripe_id, now=now_of(month))
    adjust(committed_key, -1_000_000, "adjustment:2")
    subscribe(stripe, month, committed_key)
    for _ in range(2):
        operations.run_due(stripe, now=now_of(month))
    assert [item["amount"] for item in month.objects("invoiceitem")] == [400]


def test_a_part_of_an_hour_before_a_sudden_end_stays_on_the_balance(
    committed_key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    sync(stripe, month)
    first = subscribe(stripe, month, committed_key)
    whole = use(committed_key, 1, at=now_of(month) + timedelta(minutes=10))
    part = use(committed_key, 2, at=now_of(month) + timedelta(minutes=70))
    month.clock.advance(80 * 60)
    stripe.v1.subscriptions.cancel(first.stripe_id)
    subscriptions.mirror(stripe, first.stripe_id, now=now_of(month))
    assert account_of(committed_key).metered_from is None
    assert [row.ledger_entry_id for row in MeteredEntry.objects.all()] == [whole.pk]
    assert part.pk > account_of(committed_key).frozen_through
    assert account_of(committed_key).balance_micro == 10_000_000 - 3 * 40_000


def test_metering_stays_open_until_all_before_the_end_is_frozen(
    committed_key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    sync(stripe, month)
    first = subscribe(stripe, month, committed_key)
    end = now_of(month) + timedelta(hours=2)
    # A clock that went back: what is frozen is a prefix, so the second has to wait for the first.
    use(committed_key, 1, at=end + timedelta(minutes=1))
    use(committed_key, 1, at=end - timedelta(minutes=1))
    month.clock.advance_to(end)
    stripe.v1.subscriptions.cancel(first.stripe_id)
    subscriptions.mirror(stripe, first.stripe_id, now=now_of(month))
    assert account_of(committed_key).metered_from is not None
    assert subscriptions.repair(stripe, end + timedelta(minutes=5)) == 0
    freeze.freeze(now=end + timedelta(hours=2))
    assert MeteredEntry.objects.count() == 2
    assert subscriptions.repair(stripe, end + timedelta(hours=2)) == 1
    assert account_of(committed_key).metered_from is None


def test_the_worker_closes_what_ended_unheard(
    committed_key: ApiKey, stripe: Stripe, month: StripeEmulator
) -> None:
    sync(stripe, month)
    first = subscribe(stripe, month, committed_key)
    Subscription.objects.filter(pk=first.pk).update(status="canceled", ended_at=now_of(month))
    assert subscriptions.repair(stripe, now_of(month)) == 1
    assert account_of(committed_key).metered_from is None
    assert subscriptions.repair(stripe, now_of(month)) == 0
