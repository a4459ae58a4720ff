"""One customer per organization, and the pages of Stripe it is sent to."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from accounts.models import ApiKey
from billing.models import BillingAccount, Subscription
from billing.stripe import cards, customers, subscriptions
from billing.stripe.client import Stripe, StripeFailure, plain
from tests.billing import race
from tests.billing.subscribed import (
    BACK,
    OK,
    checkout,
    next_first,
    now_of,
    subscribe,
    sync,
)
from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.factories import KeyFactory


def account_of(key: ApiKey) -> BillingAccount:
    return BillingAccount.objects.get(pk=key.organization_id)


# --- The customer -------------------------------------------------------------------------------


def test_an_organization_has_one_customer(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    now = now_of(stripe_account)
    name = customers.ensure(stripe, key.organization, now=now)
    assert customers.ensure(stripe, key.organization, now=now) == name
    [made] = stripe_account.objects("customer")
    assert (made["id"], made["name"]) == (name, key.organization.name)
    assert made["email"] == key.organization.memberships.get().user.email
    assert made["metadata"] == {"organization": str(key.organization_id)}
    assert account_of(key).stripe_customer == name
    assert len(stripe_account.requests) == 1


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_before", "500_after", "429"])
def test_a_lost_call_makes_no_second_customer(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator, kind: Any
) -> None:
    # Somebody else has the same address, and another organization's customer as well.
    email = key.organization.memberships.get().user.email
    for metadata in ({}, {"organization": "another"}):
        stripe.v1.customers.create({"email": email, "metadata": metadata})
    stripe_account.faults.add(Fault(kind, "/v1/customers", "POST"))
    with pytest.raises(StripeFailure):
        customers.ensure(stripe, key.organization, now=now_of(stripe_account))
    assert account_of(key).stripe_customer == ""
    name = customers.ensure(stripe, key.organization, now=now_of(stripe_account))
    mine = {"organization": str(key.organization_id)}
    found = [c["id"] for c in stripe_account.objects("customer") if c["metadata"] == mine]
    assert found == [name] == [account_of(key).stripe_customer]


def test_many_at_once_make_one_customer(
    committed_key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    def work(_: int) -> str:
        return customers.ensure(stripe, committed_key.organization, now=now_of(stripe_account))

    names = {name for name in race(6, work, losing=StripeFailure) if isinstance(name, str)}
    assert names == {account_of(committed_key).stripe_customer}
    assert len(stripe_account.objects("customer")) == 1


# --- Checkout -------------------------------------------------------------------------------------


def test_checkout_sells_every_price_and_turns_over_on_the_first(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    now = now_of(stripe_account)
    name = checkout(stripe, stripe_account, key)
    [session] = stripe_account.objects("checkout.session")
    assert session["id"] == name
    assert (session["success_url"], session["cancel_url"]) == (OK, BACK)
    assert session["payment_method_collection"] == "always"
    assert session["metadata"] == {"organization": str(key.organization_id)}
    stripe_account.complete_checkout(name)
    [made] = stripe_account.objects("subscription")
    first = customers.next_month(now)
    assert (first.day, first.hour, first.minute, first.tzinfo) == (1, 0, 0, UTC)
    assert made["billing_cycle_anchor"] == int(first.timestamp())
    assert made["metadata"] == {"organization": str(key.organization_id)}
    prices = {item["price"]["lookup_key"] for item in made["items"]["data"]}
    assert prices == {"geekhub_img_cheap_v1", "geekhub_img_middle_v1", "geekhub_img_dear_v1"}


@pytest.mark.parametrize(
    ("now", "then"),
    [
        ("2026-12-31T23:59:59", "2027-01-01"),
        ("2026-12-01T00:00:00", "2027-01-01"),
        ("2027-02-28T12:00:00", "2027-03-01"),
    ],
)
def test_the_next_first_is_after_now(now: str, then: str) -> None:
    utc = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert customers.next_month(utc) == datetime.fromisoformat(then).replace(tzinfo=UTC)


@pytest.mark.parametrize(("left", "lasts"), [(240, 240), (90, 90), (5, 31), (3000, 23 * 60)])
def test_the_page_ends_with_the_month(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator, left: int, lasts: int
) -> None:
    stripe_account.clock.advance_to(next_first(stripe_account))
    sync(stripe, stripe_account)
    stripe_account.clock.advance_to(next_first(stripe_account) - timedelta(minutes=left))
    checkout(stripe, stripe_account, key)
    [session] = stripe_account.objects("checkout.session")
    assert session["expires_at"] - stripe_account.clock.now == lasts * 60


def test_the_card_becomes_the_default_and_is_shown(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    copy = subscribe(stripe, stripe_account, key, "5555555555554444")
    account = account_of(key)
    assert (account.card_brand, account.card_last4) == ("mastercard", "4444")
    [customer] = stripe_account.objects("customer")
    default = customer["invoice_settings"]["default_payment_method"]
    assert plain(stripe.v1.payment_methods.retrieve(default))["card"]["last4"] == "4444"
    # Looking again does not undo what the customer chooses in the portal.
    stripe_account.save_card(account.stripe_customer, "4242424242424242")
    subscriptions.mirror(stripe, copy.stripe_id, now=now_of(stripe_account))
    assert (account_of(key).card_brand, account_of(key).card_last4) == ("visa", "4242")
    changed = [
        r
        for r in stripe_account.requests
        if (r.method, r.path) == ("POST", f"/v1/customers/{account.stripe_customer}")
    ]
    assert len(changed) == 1


def test_a_card_changed_in_the_portal_is_shown(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    customer = customers.ensure(stripe, key.organization, now=now_of(stripe_account))
    cards.mirror(stripe, customer, now=now_of(stripe_account))
    assert (account_of(key).card_brand, account_of(key).card_last4) == ("", "")
    stripe_account.save_card(customer)
    cards.mirror(stripe, customer, now=now_of(stripe_account))
    assert (account_of(key).card_brand, account_of(key).card_last4) == ("visa", "4242")
    stripe.v1.customers.delete(customer)
    cards.mirror(stripe, customer, now=now_of(stripe_account))
    assert (account_of(key).card_brand, account_of(key).card_last4) == ("", "")


def test_nothing_is_sold_before_the_catalogue_is_in_stripe(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    with pytest.raises(customers.NothingToSell):
        checkout(stripe, stripe_account, key)
    assert stripe_account.requests == []


def test_who_is_subscribed_is_sent_to_the_portal(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    with pytest.raises(customers.NoCustomer):
        customers.portal(stripe, key.organization, BACK)
    subscribe(stripe, stripe_account, key)
    with pytest.raises(customers.AlreadySubscribed):
        checkout(stripe, stripe_account, key)
    url = customers.portal(stripe, key.organization, BACK)
    assert url.startswith(stripe_account.url)
    [session] = stripe_account.objects("billing_portal.session")
    assert session["customer"] == account_of(key).stripe_customer
    assert session["return_url"] == BACK


def test_a_subscription_we_have_not_heard_of_counts(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    stripe_account.complete_checkout(checkout(stripe, stripe_account, key))
    assert not Subscription.objects.exists()
    with pytest.raises(customers.AlreadySubscribed):
        checkout(stripe, stripe_account, key)
    assert Subscription.objects.get().organization == key.organization


def test_the_page_in_the_other_tab_is_closed(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    first, second = (checkout(stripe, stripe_account, key) for _ in range(2))
    states = {s["id"]: s["status"] for s in stripe_account.objects("checkout.session")}
    assert states == {first: "expired", second: "open"}


def test_two_subscriptions_at_once_leave_one(
    committed_key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    sync(stripe, stripe_account)
    shop = Shop(stripe_account)
    customer = customers.ensure(stripe, committed_key.organization, now=now_of(stripe_account))
    for _ in range(2):
        shop.api.subscriptions.create(
            {
                "customer": customer,
                "items": [{"price": version.stripe_price} for version in subscriptions.sold()],
            }
        )
    begun = [row["id"] for row in stripe_account.objects("subscription")]

    def work(number: int) -> Subscription | None:
        return subscriptions.mirror(stripe, begun[number % 2], now=now_of(stripe_account))

    race(4, work, losing=StripeFailure)
    for number in range(2):  # a webhook that failed is worked on again
        work(number)
    states = sorted(row["status"] for row in stripe_account.objects("subscription"))
    assert states == ["active", "canceled"]
    kept = subscriptions.live(committed_key.organization)
    assert kept is not None
    assert kept.status == "active"
    found = {row["id"]: row["status"] for row in stripe_account.objects("subscription")}
    assert found[kept.stripe_id] == "active"
    other = Subscription.objects.exclude(pk=kept.pk).get()
    assert (other.status, other.ended_at is None) == ("canceled", False)


def test_another_organizations_customer_stays_apart(
    key: ApiKey, stripe: Stripe, stripe_account: StripeEmulator
) -> None:
    now = now_of(stripe_account)
    other = KeyFactory().row
    assert customers.ensure(stripe, key.organization, now=now) != customers.ensure(
        stripe, other.organization, now=now
    )
