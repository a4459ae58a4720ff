"""Checkout, the portal and the invoice page, clicked over HTTP as a browser would."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import stripe

from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop, Sold

NOVEMBER = datetime(2026, 11, 12, 13, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
URLS: Any = {
    "success_url": "https://ours.example/ok?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "https://ours.example/back",
}


@pytest.fixture(scope="module")
def server() -> Iterator[StripeEmulator]:
    with StripeEmulator(now=NOVEMBER, check_contract=True) as running:
        yield running


@pytest.fixture
def sold(shop: Shop) -> Sold:
    return shop.sell("img", "4")


@pytest.fixture
def customer(shop: Shop) -> str:
    return shop.customer(card=None)


@pytest.fixture(scope="module")
def browser() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


def click(browser: httpx.Client, url: str, name: str, **fields: str) -> httpx.Response:
    """Press the button with this id on a page."""
    page = browser.get(url).text
    form = next(f for f in re.findall(r"<form.*?</form>", page, re.S) if f'id="{name}"' in f)
    action = re.search(r'action="([^"]+)"', form)
    assert action is not None
    hidden = dict(re.findall(r'name="?(\w+)"? value="([^"]*)"', form))
    return browser.post(str(httpx.URL(url).join(action[1])), data=hidden | fields)


def opened(shop: Shop, params: Any) -> stripe.checkout.Session:
    """A new Checkout session."""
    return shop.api.checkout.sessions.create(params | URLS)


def types(emulator: StripeEmulator, since: int) -> list[str]:
    return [event["type"] for event in emulator.events[since:]]


def test_a_subscription(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str, browser: httpx.Client
) -> None:
    other = shop.sell("other", "5")
    session = opened(
        shop,
        {
            "mode": "subscription",
            "customer": customer,
            "line_items": [{"price": sold.price}, {"price": other.price}],
            "subscription_data": {
                "billing_cycle_anchor": int(DECEMBER.timestamp()),
                "proration_behavior": "none",
                "metadata": {"org": "7"},
            },
            "metadata": {"org": "7"},
        },
    )
    assert (session.status, session.payment_status, session.amount_total) == ("open", "unpaid", 0)
    url = str(session.url)
    assert url.startswith(f"{emulator.url}/c/pay/cs_test_")
    assert 'href="https://ours.example/back"' in browser.get(url).text
    refused = click(browser, url, "decline")
    assert refused.status_code == 402
    assert "Your card was declined." in refused.text
    assert shop.api.subscriptions.list({"customer": customer}).data == []
    seen = len(emulator.events)
    done = click(browser, url, "pay")
    assert done.headers["location"] == f"https://ours.example/ok?session={session.id}"
    session = shop.api.checkout.sessions.retrieve(session.id, {"expand": ["line_items"]})
    assert (session.status, session.payment_status, session.url) == (
        "complete",
        "no_payment_required",
        None,
    )
    assert [line["price"]["id"] for line in session["line_items"]["data"]] == [
        sold.price,
        other.price,
    ]
    sub = shop.api.subscriptions.retrieve(str(session.subscription))
    assert (sub.status, sub.billing_cycle_anchor) == ("active", int(DECEMBER.timestamp()))
    assert sub.metadata["org"] == "7"
    assert sub.default_payment_method is not None
    assert types(emulator, seen) == [
        "payment_method.attached",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.payment_succeeded",
        "invoice.paid",
        "checkout.session.completed",
    ]
    assert 'id="done"' in browser.get(url).text
    shop.use(customer, "img", 10)
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    assert shop.api.invoices.list({"customer": customer}).data[0].amount_paid == 40


def test_a_payment(
    emulator: StripeEmulator, shop: Shop, customer: str, browser: httpx.Client
) -> None:
    session = opened(
        shop,
        {
            "mode": "payment",
            "customer": customer,
            "client_reference_id": "recharge-1",
            "line_items": [
                {
                    "quantity": 2,
                    "price_data": {
                        "currency": "usd",
                        "unit_amount": 1000,
                        "product_data": {"name": "Credit"},
                    },
                }
            ],
            "payment_intent_data": {
                "setup_future_usage": "off_session",
                "metadata": {"org": "7"},
            },
        },
    )
    assert (session.amount_total, session.currency) == (2000, "usd")
    wrong = click(browser, str(session.url), "pay", card="1234")
    assert "incorrect" in wrong.text
    seen = len(emulator.events)
    assert click(browser, str(session.url), "decline").status_code == 402
    assert types(emulator, seen) == ["payment_intent.created", "payment_intent.payment_failed"]
    assert click(browser, str(session.url), "pay").status_code == 303
    session = shop.api.checkout.sessions.retrieve(session.id, {"expand": ["payment_intent"]})
    assert (session.payment_status, session.client_reference_id) == ("paid", "recharge-1")
    assert session["payment_intent"]["amount_received"] == 2000
    assert session["payment_intent"]["metadata"]["org"] == "7"
    assert len(shop.api.payment_methods.list({"customer": customer}).data) == 1
    assert types(emulator, seen)[2:] == [
        "payment_intent.succeeded",
        "payment_method.attached",
        "checkout.session.completed",
    ]


def test_a_setup(
    emulator: StripeEmulator, shop: Shop, customer: str, browser: httpx.Client
) -> None:
    session = opened(
        shop,
        {"mode": "setup", "customer": customer, "currency": "usd"},
    )
    click(browser, str(session.url), "pay")
    session = shop.api.checkout.sessions.retrieve(session.id, {"expand": ["setup_intent"]})
    (card,) = shop.api.payment_methods.list({"customer": customer}).data
    assert session["setup_intent"]["payment_method"] == card.id
    settings = shop.api.customers.retrieve(customer).invoice_settings
    assert settings is not None
    assert settings.default_payment_method is None


def test_expiry(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str, browser: httpx.Client
) -> None:
    params: Any = {"mode": "subscription", "customer": customer, **URLS}
    params["line_items"] = [{"price": sold.price}]
    sessions = shop.api.checkout.sessions
    first, second = sessions.create(params), sessions.create(params)
    assert sessions.expire(first.id).status == "expired"
    assert browser.get(str(first.url)).status_code == 410
    emulator.clock.advance(24 * 3600)
    assert sessions.retrieve(second.id).status == "expired"
    assert types(emulator, -2) == ["checkout.session.expired"] * 2
    with pytest.raises(stripe.InvalidRequestError, match="can be expired"):
        sessions.expire(first.id)


def test_what_checkout_refuses(shop: Shop, sold: Sold, customer: str) -> None:
    good: Any = {"mode": "subscription", "customer": customer, **URLS}
    good["line_items"] = [{"price": sold.price}]
    for change, message in (
        ({"success_url": ""}, "success_url"),
        ({"line_items": [{"price": sold.price, "quantity": 1}]}, "usage_type is metered"),
        ({"mode": "payment"}, "does not fit the mode"),
        ({"payment_intent_data": {"description": "x"}}, "in `subscription` mode"),
        ({"expires_at": int(NOVEMBER.timestamp()) + 60}, "30 minutes to 24 hours"),
        ({"customer_email": "a@example.com"}, "only specify one"),
        ({"customer": "cus_x"}, "No such customer"),
        ({"subscription_data": {"trial_period_days": 3}}, "not played"),
    ):
        with pytest.raises(stripe.InvalidRequestError, match=message):
            shop.api.checkout.sessions.create(good | change)


def test_a_customer_is_made_on_need(emulator: StripeEmulator, shop: Shop, sold: Sold) -> None:
    params: Any = {"mode": "subscription", "customer_email": "new@example.com", **URLS}
    params["line_items"] = [{"price": sold.price}]
    session = shop.api.checkout.sessions.create(params)
    emulator.complete_checkout(session.id)
    session = shop.api.checkout.sessions.retrieve(session.id, {"expand": ["customer"]})
    assert session["customer"]["email"] == "new@example.com"


def test_the_portal(
    emulator: StripeEmulator, shop: Shop, sold: Sold, browser: httpx.Client
) -> None:
    customer = shop.customer()
    sub = shop.subscribe(customer, sold)
    portal = shop.api.billing_portal.sessions.create(
        {"customer": customer, "return_url": "https://ours.example/billing"}
    )
    page = browser.get(portal.url).text
    assert 'id="return" href="https://ours.example/billing"' in page
    assert "4242" in page
    assert click(browser, portal.url, "cancel-subscription").status_code == 303
    assert shop.api.subscriptions.retrieve(sub.id).cancel_at_period_end is True
    click(browser, portal.url, "renew-subscription")
    assert shop.api.subscriptions.retrieve(sub.id).cancel_at_period_end is False
    assert types(emulator, -2) == ["customer.subscription.updated"] * 2
    click(browser, portal.url, "save-card", card="5555555555554444")
    settings = shop.api.customers.retrieve(
        customer, {"expand": ["invoice_settings.default_payment_method"]}
    ).invoice_settings
    assert settings is not None
    assert settings["default_payment_method"]["card"]["last4"] == "4444"
    assert "declined" in click(browser, portal.url, "save-card", card="4000000000000002").text
    emulator.clock.advance(3600)
    assert browser.get(portal.url).status_code == 404


def test_a_flow_of_the_portal(
    emulator: StripeEmulator, shop: Shop, sold: Sold, browser: httpx.Client
) -> None:
    customer = shop.customer()
    shop.subscribe(customer, sold)
    portal = shop.api.billing_portal.sessions.create(
        {"customer": customer, "flow_data": {"type": "payment_method_update"}}
    )
    page = browser.get(portal.url).text
    assert 'id="save-card"' in page
    assert "cancel-subscription" not in page


def test_the_invoice_page(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str, browser: httpx.Client
) -> None:
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img", 100)
    emulator.clock.advance_to(datetime(2026, 12, 12, 14, tzinfo=UTC))
    invoice = shop.api.invoices.list({"customer": customer}).data[0]
    assert (invoice.status, invoice.attempt_count) == ("open", 1)
    url = str(invoice.hosted_invoice_url)
    assert click(browser, url, "pay", card="4000000000000341").status_code == 402
    assert click(browser, url, "pay").status_code == 303
    assert "<p id=status>paid</p>" in browser.get(url).text
    assert shop.api.subscriptions.retrieve(sub.id).status == "active"
    assert browser.get(str(invoice.invoice_pdf)).content.startswith(b"%PDF")
