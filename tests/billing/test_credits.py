"""What Stripe is told of a balance beside usage: once, to the cent, and only while it bills."""

from typing import Any

import pytest
from django.db import transaction

from accounts.models import ApiKey
from billing.models import BillingAccount, OperationState, StripeOperation
from billing.stripe import credits, operations, subscriptions
from billing.stripe.client import Stripe, StripeFailure
from tests.billing import race
from tests.billing.subscribed import next_first, now_of, subscribe, sync
from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop


@pytest.fixture
def metered(key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator) -> ApiKey:
    """A key whose organization has a subscription, and nothing to tell Stripe."""
    BillingAccount.objects.filter(pk=key.organization_id).update(balance_micro=0)
    stripe_account.clock.advance_to(next_first(stripe_account))
    sync(stripe, stripe_account)
    subscribe(stripe, stripe_account, key)
    return key


def grant(key: ApiKey, micro: int, name: str = "grant:1") -> StripeOperation | None:
    with transaction.atomic():
        return credits.grant(key.organization, micro, key=name, name="Recharge")


@pytest.mark.parametrize(
    ("micro", "cents"),
    [
        *((0, 0), (4_999, 0), (5_000, 1), (10_000, 1), (14_999, 1), (15_000, 2), (25_000, 3)),
        *((-4_999, 0), (-5_000, -1), (-15_000, -2), (123_456_789, 12_346)),
        (9_007_199_254_740_993_0000, 9_007_199_254_740_993),
    ],
)
def test_half_a_cent_is_a_cent(micro: int, cents: int) -> None:
    assert credits.cents(micro) == cents


def test_a_grant_is_for_metered_prices(
    metered: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    grant(metered, 50_000_000)
    grant(metered, 50_000_000)
    assert operations.run_due(stripe, now=now_of(stripe_account)) == 1
    assert operations.run_due(stripe, now=now_of(stripe_account)) == 0
    [made] = stripe_account.objects("billing.credit_grant")
    assert made["amount"]["monetary"] == {"currency": "usd", "value": 5000}
    assert made["applicability_config"]["scope"]["price_type"] == "metered"
    assert made["name"] == "Recharge"
    assert made["metadata"] == {
        "operation": "grant:1",
        "organization": str(metered.organization_id),
    }


def test_nothing_is_told_while_nothing_is_metered(key: ApiKey) -> None:
    assert grant(key, 50_000_000) is None
    with transaction.atomic():
        debt = credits.charge(
            key.organization, 50_000_000, key="debt:1", description="Debt", subscription="sub_1"
        )
    assert debt is None
    assert not StripeOperation.objects.exists()


@pytest.mark.parametrize("micro", [0, 4_999, -10_000_000])
def test_less_than_half_a_cent_is_no_grant(metered: ApiKey, micro: int) -> None:
    assert grant(metered, micro) is None


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_before", "500_after", "429"])
@pytest.mark.parametrize("what", ["grant", "charge", "note"])
def test_a_lost_call_gives_nothing_twice(
    metered: ApiKey, stripe: Stripe, stripe_account: StripeEmulator, kind: Any, what: str
) -> None:
    copy = subscriptions.live(metered.organization)
    account = BillingAccount.objects.get(pk=metered.organization_id)
    assert copy is not None
    with transaction.atomic():
        if what == "grant":
            path, name = "/v1/billing/credit_grants", "billing.credit_grant"
            operation = grant(metered, 1_000_000)
        elif what == "charge":
            path, name = "/v1/invoiceitems", "invoiceitem"
            operation = credits.charge(
                metered.organization,
                1_000_000,
                key="debt:1",
                description="Debt",
                subscription=copy.stripe_id,
            )
        else:
            path, name = "/v1/credit_notes", "credit_note"
            invoice = invoice_of(stripe, stripe_account, account.stripe_customer)
            operation = credits.credit_note(
                metered.organization, invoice, 1_000_000, key="note:1", memo="A broken picture"
            )
    assert operation is not None
    stripe_account.faults.add(Fault(kind, path, "POST"))
    with pytest.raises(StripeFailure):
        operations.run(stripe, operation, now=now_of(stripe_account))
    result = operations.run(stripe, operation, now=now_of(stripe_account))
    assert [made["id"] for made in stripe_account.objects(name)] == [result]
    operation.refresh_from_db()
    assert (operation.state, operation.result) == (OperationState.DONE, result)


def invoice_of(stripe: Stripe, emulator: StripeEmulator, customer: str, *, pay: bool = True) -> str:
    """Return an invoice of 3 USD, final and paid or not."""
    api = Shop(emulator).api
    invoice = api.invoices.create({"customer": customer, "auto_advance": False})
    assert invoice.id
    api.invoice_items.create(
        {"customer": customer, "invoice": invoice.id, "amount": 300, "currency": "usd"}
    )
    api.invoices.finalize_invoice(invoice.id)
    if pay:
        api.invoices.pay(invoice.id)
    return invoice.id


@pytest.mark.parametrize("pay", [True, False])
def test_a_credit_note_is_for_the_invoice_as_it_stands(
    metered: ApiKey, stripe: Stripe, stripe_account: StripeEmulator, pay: bool
) -> None:
    customer = BillingAccount.objects.get(pk=metered.organization_id).stripe_customer
    invoice = invoice_of(stripe, stripe_account, customer, pay=pay)
    operation = credits.credit_note(
        metered.organization, invoice, 1_000_000, key="note:1", memo="A broken picture"
    )
    operations.run(stripe, operation, now=now_of(stripe_account))
    [note] = stripe_account.objects("credit_note")
    assert (note["invoice"], note["amount"], note["memo"]) == (invoice, 100, "A broken picture")
    assert stripe.v1.invoices.retrieve(invoice).amount_remaining == (0 if pay else 200)
    assert stripe.v1.customers.retrieve(customer).balance == (-100 if pay else 0)


def test_many_at_once_plan_one_grant(
    committed_key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    subscribe(stripe, stripe_account, committed_key)
    stripe_account.clock.advance(60)

    def work(_: int) -> int:
        grant(committed_key, 1_000_000)
        return operations.run_due(stripe, now=now_of(stripe_account))

    race(6, work)
    operations.run_due(stripe, now=now_of(stripe_account))
    made = [
        g["amount"]["monetary"]["value"] for g in stripe_account.objects("billing.credit_grant")
    ]
    assert sorted(made) == [100, 1000]


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_before", "500_after"])
def test_credit_that_is_taken_back_is_taken_back_once(
    metered: ApiKey, stripe: Stripe, stripe_account: StripeEmulator, kind: Any
) -> None:
    now = now_of(stripe_account)
    copy = subscriptions.live(metered.organization)
    assert copy is not None
    grant(metered, 1_000_000)
    with transaction.atomic():
        credits.charge(
            metered.organization, 1_000_000, key="d", description="D", subscription=copy.stripe_id
        )
    operations.run_due(stripe, now=now)
    with transaction.atomic():
        credits.withdraw(metered.organization)
        credits.withdraw(metered.organization)
    stripe_account.faults.add(
        Fault(kind, "/v1/billing/credit_grants/*/expire", "POST"),
        Fault(kind, "/v1/invoiceitems/*", "DELETE"),
    )
    for operation in StripeOperation.objects.filter(key__startswith="end:"):
        with pytest.raises(StripeFailure):
            operations.run(stripe, operation, now=now)
        operations.run(stripe, operation, now=now)
    assert stripe_account.objects("invoiceitem") == []
    [ended] = stripe_account.objects("billing.credit_grant")
    assert ended["expires_at"] == stripe_account.clock.now
    # What is given afterwards stays.
    grant(metered, 2_000_000, "grant:2")
    operations.run_due(stripe, now=now)
    assert stripe_account.objects("billing.credit_grant")[-1]["expires_at"] is None
