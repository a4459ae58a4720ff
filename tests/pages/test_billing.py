"""The billing pages: the balance, the card, recharges, invoices to pictures, budgets, alerts."""

import asyncio
import codecs
import csv
import html
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core import mail
from django.db import connection, connections
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts import audit, keys
from accounts.models import ApiKey, AuditEvent, Organization, Role
from billing.alerts import delivery, raising
from billing.alerts.delivery import READERS
from billing.models import (
    AlertEndpoint,
    BillingAccount,
    Budget,
    BudgetPeriod,
    EntryKind,
    Invoice,
    LedgerEntry,
    LedgerTotal,
    Notification,
    Period,
    PriceState,
    PriceVersion,
    Subscription,
    scopes,
)
from billing.models.scopes import Holder
from billing.pages.urls import urlpatterns
from billing.spending import budgets, ledger, limits, movements
from billing.spending.limits import Use
from billing.stripe import invoices, standing
from billing.stripe.client import Stripe
from geekhub.lib.moments import from_epoch
from images.models import Image
from tests.billing import authorize
from tests.billing.buyer import Buyer, deliver, sell
from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.factories import KeyFactory
from tests.images.requests import FLUX, IMAGEN, make_request
from tests.pages import BACKEND, log_in, member_of, owner_of
from tests.pages.test_people import SHOW, start

PATH = "/dashboard/billing"
USD = 1_000_000
SEEN = ["", "/movements", "/movements.csv", "/invoices", "/budgets", "/alerts"]
CHANGED = [
    *("/card", "/portal", "/recharge", "/automatic"),
    *("/alerts/warning", "/alerts/endpoint", "/alerts/test"),
]


@pytest.fixture
def key(acme: Organization) -> ApiKey:
    return KeyFactory(organization=acme).row


@pytest.fixture
def shop(stripe_account: StripeEmulator, published: None) -> StripeEmulator:
    """A Stripe account in which two models are sold."""
    sell(Shop(stripe_account), [FLUX, IMAGEN])
    return stripe_account


@pytest.fixture
def owner(acme: Organization, client: Client) -> Client:
    return log_in(client, owner_of(acme))


@pytest.fixture
def buyer(stripe_account: StripeEmulator, key: ApiKey) -> Buyer:
    """Acme, subscribed in Stripe to two models."""
    return Buyer(stripe_account, sell(Shop(stripe_account), [FLUX, IMAGEN]), key)


def account_of(organization: Organization) -> BillingAccount:
    return BillingAccount.objects.get(pk=organization.pk)


def told(client: Client) -> str:
    """Return what the billing page says at its top."""
    text = client.get(PATH).text
    found = re.search(r'<div class="messages".*?</div>', text, re.DOTALL)
    assert found is not None
    return " ".join(re.sub(r"<[^>]*>", " ", found[0]).split())


def actions(organization: Organization) -> list[str]:
    events = AuditEvent.objects.filter(organization=organization).order_by("pk")
    made = [event.action for event in events if event.actor is not None]
    return [action for action in made if action != "organization.created"]


def file_of(client: Client, path: str) -> str:
    """Return a file that is written while it is sent."""
    answer: Any = client.get(path)
    assert answer["content-type"] == "text/csv; charset=utf-8"
    file = b"".join(answer.streaming_content)
    # Excel reads what does not begin so as Latin.
    assert file.startswith(codecs.BOM_UTF8)
    return file.decode("utf-8-sig")


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


# --- Who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SEEN)
@pytest.mark.parametrize("role", Role)
def test_who_sees_the_bills(role: Role, path: str, acme: Organization, client: Client) -> None:
    log_in(client, member_of(acme, role))
    may = role in (Role.OWNER, Role.ADMIN, Role.BILLING)
    assert client.get(PATH + path).status_code == (200 if may else 403)
    assert ('href="/dashboard/billing"' in client.get("/dashboard").text) is may


@pytest.mark.parametrize("path", CHANGED)
@pytest.mark.parametrize("role", [Role.ADMIN, Role.DEVELOPER, Role.VIEWER])
def test_who_does_not_manage_the_billing_changes_nothing(
    role: Role, path: str, acme: Organization, shop: StripeEmulator, client: Client
) -> None:
    log_in(client, member_of(acme, role))
    before, calls = account_of(acme), len(shop.requests)
    data = {
        "amount": "25",
        "url": "https://example.com",
        "below": "9",
        "automatic-below": "5",
        "automatic-amount": "25",
        "automatic-cap": "100",
    }
    assert client.post(PATH + path, data).status_code == 403
    assert client.post(PATH + path, {"stop": "yes"}).status_code == 403
    after = account_of(acme)
    assert (after.recharge_amount_micro, after.alert_below_micro) == (
        before.recharge_amount_micro,
        before.alert_below_micro,
    )
    assert not AlertEndpoint.objects.exists()
    assert len(shop.requests) == calls


def test_an_admin_sees_no_form_that_would_be_refused(
    acme: Organization, shop: StripeEmulator, client: Client
) -> None:
    log_in(client, member_of(acme, Role.ADMIN))
    for path in ("", "/alerts"):
        text = client.get(PATH + path).text
        for refused in CHANGED:
            assert f'action="{PATH}{refused}' not in text, (path, refused)


def urls_of(
    acme: Organization, invoice: Invoice, line: dict[str, Any], budget: Budget
) -> list[str]:
    """Return every URL of the billing pages that names something of Acme's."""
    made = []
    for one in [*urlpatterns]:
        route = str(one.pattern)
        if "<" in route:
            made.append(
                "/"
                + route.replace("<slug:invoice_id>", invoice.stripe_id).replace(
                    "<int:budget_id>", str(budget.pk)
                )
            )
    lines = f"{PATH}/invoices/{invoice.stripe_id}/lines/{line['id']}"
    return [*made, lines, f"{lines}/charges.csv"]


def test_a_stranger_finds_nothing_under_any_url(
    buyer: Buyer, stripe: Stripe, globex: Organization, acme: Organization, client: Client
) -> None:
    buyer.use(FLUX, 2)
    invoice, line = billed(stripe, buyer)
    budget = budgets.set_budget(buyer.key, USD, Period.DAY)
    urls = urls_of(acme, invoice, line, budget)
    assert len(urls) == 8
    log_in(client, owner_of(globex))
    calls = len(buyer.emulator.requests)
    for url in urls:
        for answer in (client.get(url), client.post(url, {"usd": "5"})):
            assert answer.status_code in (404, 405), url
        assert client.get(f"{url}?organization=acme").status_code in (404, 405), url
    pages = {path: client.get(PATH + path).text for path in SEEN if "." not in path}
    for path, text in (*pages.items(), ("csv", file_of(client, f"{PATH}/movements.csv"))):
        for secret in (invoice.stripe_id, invoice.number, "prod-web", "alice@acme.test"):
            assert secret not in text, (path, secret)
    assert len(buyer.emulator.requests) == calls
    assert Budget.objects.get().limit_micro == USD
    # And the owner finds all of it.
    log_in(client, owner_of(acme))
    for url in urls:
        assert client.get(url).status_code in (200, 302, 405), url


def test_a_line_belongs_to_its_invoice_alone(buyer: Buyer, stripe: Stripe, owner: Client) -> None:
    buyer.use(FLUX, 1)
    first, line = billed(stripe, buyer)
    buyer.use(FLUX, 1)
    second, _line = billed(stripe, buyer)
    assert owner.get(f"{PATH}/invoices/{first.stripe_id}/lines/{line['id']}").status_code == 200
    for name in (line["id"], "il_none", "nothing"):
        for end in ("", "/charges.csv"):
            path = f"{PATH}/invoices/{second.stripe_id}/lines/{name}{end}"
            assert owner.get(path).status_code == 404


# --- The balance ----------------------------------------------------------------------------------


def test_not_connected_it_says_so_and_hides_what_needs_stripe(
    acme: Organization, owner: Client
) -> None:
    text = owner.get(PATH).text
    assert "Stripe is not connected: billing is local." in text
    for hidden in ("Payment method", "Pay on Stripe", "Automatic recharge", "Add a card"):
        assert hidden not in text
    assert "Stripe is not connected" in owner.get(f"{PATH}/invoices").text
    for path in ("/card", "/portal", "/recharge", "/automatic"):
        data = {"amount": "25", "automatic-below": "5"}
        assert owner.post(PATH + path, data).status_code == 404, path
    assert owner.get(f"{PATH}/return?session=cs_test_1").status_code == 404
    assert LedgerEntry.objects.filter(organization=acme).count() == 1


def test_the_numbers_are_exact(acme: Organization, key: ApiKey, owner: Client) -> None:
    BillingAccount.objects.filter(pk=acme.pk).update(credit_limit_micro=5 * USD)
    make_request(key, timezone.now(), model=FLUX, delivered=3)
    make_request(key, timezone.now(), model=IMAGEN, delivered=1)
    authorize(key, FLUX, quantity=2)
    text = text_of(owner.get(PATH).text)
    # 10 − 4 × 0.04, of which 0.08 is held; and 5 may be owed.
    assert "Balance $9.84 $14.76 available" in text
    assert "Held $0.08 " in text
    assert "Spent this month $0.16 for 4 images" in text
    assert "Credit limit $5.00" in text
    assert "fal/flux-1.1-pro 3 $0.12 google/imagen-4 1 $0.04 Total 4 $0.16" in text
    assert re.search(r"1 image google/imagen-4 [\d: -]+ -\$0\.04 \$9\.84 3 images", text)
    assert re.search(r"Bonus Sign-up bonus [\d: -]+ \+\$10\.00 \$10\.00", text)


def test_what_is_not_of_this_month_is_not_in_it(
    acme: Organization, key: ApiKey, owner: Client
) -> None:
    make_request(key, timezone.now(), model=FLUX)
    start_of_month = budgets.period_start(Period.MONTH, timezone.now())
    with connection.cursor() as cursor:
        trigger(cursor, on=False)
        LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION).update(
            created_at=start_of_month - timedelta(seconds=1)
        )
        trigger(cursor, on=True)
    text = text_of(owner.get(PATH).text)
    assert "Spent this month $0.00 for 0 images" in text
    assert "Nothing was spent this month." in text


def trigger(cursor: Any, *, on: bool) -> None:
    """Let the ledger be changed for a moment, to have entries of the past."""
    if connection.vendor == "postgresql":
        word = "ENABLE" if on else "DISABLE"
        cursor.execute(f"ALTER TABLE billing_ledgerentry {word} TRIGGER USER")
    elif on:
        for text in trigger.dropped:  # type: ignore[attr-defined]
            cursor.execute(text)
    else:
        cursor.execute(
            "SELECT name, sql FROM sqlite_master"
            " WHERE type = 'trigger' AND tbl_name = 'billing_ledgerentry'"
        )
        found = cursor.fetchall()
        trigger.dropped = [text for _name, text in found]  # type: ignore[attr-defined]
        for name, _text in found:
            cursor.execute(f'DROP TRIGGER "{name}"')


def owe(acme: Organization, number: str = "ACME-0007") -> Invoice:
    now = timezone.now()
    return Invoice.objects.create(
        stripe_id="in_owed",
        organization=acme,
        number=number,
        status="open",
        currency="usd",
        period_start=now,
        period_end=now,
        subtotal_cents=1234,
        tax_cents=0,
        total_cents=1234,
        amount_due_cents=1234,
        amount_paid_cents=0,
        payment_failed=True,
        lines=[],
        created=now,
        finalized_at=now,
        fetched_at=now,
    )


def test_the_grace_and_the_suspension_say_what_to_do(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    assert "unpaid" not in owner.get(PATH).text
    owe(acme)
    now = timezone.now()
    standing.payment_failed(acme, now=now)
    text = owner.get(PATH).text
    until = account_of(acme).grace_until
    assert until is not None
    assert until > now + timedelta(days=13)
    assert "An invoice is unpaid. Service continues until" in text
    assert "could not be charged: $12.34 is due." in text_of(text)
    assert f'href="{PATH}/invoices/in_owed/stripe"' in text
    standing.collection_ended(acme)
    text = text_of(owner.get(PATH).text)
    assert "Suspended: new requests are refused" in text
    assert "Requests work again as soon as every invoice is paid." in text
    standing.suspend(acme, "unusual use", None)
    text = text_of(owner.get(PATH).text)
    assert "Our staff suspended this organization: unusual use." in text
    assert "a payment alone does not lift the suspension" in text
    assert "as soon as every invoice is paid" not in text
    assert Invoice.objects.get().payment_failed


EVERYWHERE = ("", "/playground", "/gallery", "/usage", "/keys", "/settings", "/welcome")


@pytest.mark.parametrize("role", Role)
def test_every_page_says_what_is_wrong_in_words_for_the_role(
    role: Role, acme: Organization, shop: StripeEmulator, client: Client
) -> None:
    person = log_in(client, member_of(acme, role))
    pages = [f"/dashboard{one}" for one in EVERYWHERE]
    pages += ["/accounts/sessions/", "/dashboard/organizations/new", "/dashboard/nothing"]
    sees_bills = role in (Role.OWNER, Role.ADMIN, Role.BILLING)
    owe(acme)
    assert not any("unpaid" in person.get(page).text for page in pages)
    standing.payment_failed(acme, now=timezone.now())
    for page in pages:
        text = person.get(page).text
        assert "An invoice is unpaid. Service continues until" in text
        assert ("$12.34 is due" in text_of(text)) is sees_bills
        assert (f'href="{PATH}/invoices/in_owed"' in text) is sees_bills
        assert ("An owner or member with the Billing role can pay it" in text) is not sees_bills
    standing.suspend(acme, "unusual use", None)
    for page in pages:
        text = text_of(person.get(page).text)
        assert "Suspended: new requests are refused" in text
        assert ("unusual use" in text) is sees_bills
        assert ("An owner or admin can see why." in text) is not sees_bills
    Invoice.objects.update(payment_failed=False)
    standing.resume(acme, None)
    assert not any("Suspended" in person.get(page).text for page in pages)


# --- The card -------------------------------------------------------------------------------------


def test_a_card_is_given_on_stripes_page_and_known_on_return(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    answer = owner.post(f"{PATH}/card?organization=acme")
    session = shop.objects("checkout.session")[-1]
    assert answer.status_code == 302
    assert answer["location"] == session["url"]
    assert "no-store" in answer["cache-control"]
    assert session["mode"] == "subscription"
    base = f"http://testserver{PATH}/return?organization=acme"
    assert session["success_url"] == f"{base}&session={{CHECKOUT_SESSION_ID}}"
    assert session["cancel_url"] == f"{base}&left=card"
    assert not Subscription.objects.exists()

    shop.complete_checkout(session["id"])
    answer = owner.get(f"{PATH}/return?organization=acme&session={session['id']}")
    assert (answer.status_code, answer["location"]) == (302, PATH)
    copy = Subscription.objects.get()
    assert (copy.organization, copy.ended_at) == (acme, None)
    assert (account_of(acme).card_brand, account_of(acme).card_last4) == ("visa", "4242")
    text = owner.get(PATH).text
    for words in ("Card saved.", "Visa •••• 4242", "Monthly invoices"):
        assert words in text
    assert "Add a card" not in text
    # Who has a subscription is led to the portal, from an old tab too.
    answer = owner.post(f"{PATH}/card")
    assert "/p/session/" in answer["location"]
    assert [one["customer"] for one in shop.objects("subscription")] == [
        account_of(acme).stripe_customer
    ]
    assert actions(acme)[-2:] == ["billing.card_begun", "billing.portal_opened"]
    # The webhook changes nothing more.
    assert deliver(shop, *shop.events) == [200] * len(shop.events)


def test_the_portal_is_for_who_is_known_to_stripe(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    assert owner.post(f"{PATH}/portal").status_code == 404
    customer = Shop(shop).customer()
    BillingAccount.objects.filter(pk=acme.pk).update(stripe_customer=customer)
    answer = owner.post(f"{PATH}/portal?organization=acme")
    session = shop.objects("billing_portal.session")[-1]
    assert answer["location"] == session["url"]
    assert session["customer"] == customer
    back = f"http://testserver{PATH}/return?organization=acme&left=portal"
    assert session["return_url"] == back
    shop.save_card(customer, "5555555555554444")
    assert owner.get(back).status_code == 302
    assert (account_of(acme).card_brand, account_of(acme).card_last4) == ("mastercard", "4444")
    assert "Mastercard •••• 4444" in owner.get(PATH).text


def test_stripe_that_is_away_changes_nothing_and_is_told(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    shop.faults.add(Fault("500_before", times=100))
    for path, data in (("/card", {}), ("/recharge", {"amount": "25"})):
        answer = owner.post(PATH + path, data)
        assert (answer.status_code, answer["location"]) == (302, PATH)
        assert told(owner) == "Stripe did not respond. Nothing was changed. Try again."
    shop.faults.clear()
    assert owner.post(f"{PATH}/card").status_code == 302
    assert len(shop.objects("customer")) == 1


def test_nothing_to_sell_is_told(acme: Organization, shop: StripeEmulator, owner: Client) -> None:
    PriceVersion.objects.update(state=PriceState.RETIRED)
    assert owner.post(f"{PATH}/card")["location"] == PATH
    assert told(owner) == "Monthly invoices are not available yet. Try again later."


def test_forms_may_lead_to_stripe_and_nowhere_else(tmp_path: Path) -> None:
    keys = {"STRIPE_SECRET_KEY": "sk_test_x", "STRIPE_WEBHOOK_SECRET": "whsec_x"}
    assert "form-action 'self';" in start(tmp_path, SHOW).stdout
    assert (
        "form-action 'self' https://checkout.stripe.com https://billing.stripe.com;"
        in start(tmp_path, SHOW, **keys).stdout
    )
    base = {"STRIPE_API_BASE": "http://127.0.0.1:4242/"}
    assert (
        "form-action 'self' http://127.0.0.1:4242;" in start(tmp_path, SHOW, **keys, **base).stdout
    )
    own = {"STRIPE_PAGE_ORIGINS": "https://pay.example.com"}
    assert (
        "form-action 'self' https://pay.example.com;" in start(tmp_path, SHOW, **keys, **own).stdout
    )


# --- Recharges ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "cents"),
    [
        ({"amount": "10"}, 1000),
        ({"amount": "100", "other": "7"}, 10_000),
        ({"amount": "other", "other": "7.50"}, 750),
        ({"amount": "other", "other": " $1,234.56 "}, 123_456),
        ({"amount": "other", "other": "5"}, 500),
        ({"amount": "other", "other": "10000"}, 1_000_000),
    ],
)
def test_an_amount_is_paid_at_stripe(
    data: dict[str, str], cents: int, acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    answer = owner.post(f"{PATH}/recharge", data)
    session = shop.objects("checkout.session")[-1]
    assert (answer.status_code, answer["location"]) == (302, session["url"])
    assert (session["mode"], session["amount_total"]) == ("payment", cents)
    assert account_of(acme).balance_micro == 10 * USD


@pytest.mark.parametrize(
    ("amount", "other", "words"),
    [
        ("other", "4.99", "Enter an amount between $5.00 and $10,000.00."),
        ("other", "10000.01", "Enter an amount between $5.00 and $10,000.00."),
        ("other", "-25", "This amount is not allowed."),
        ("other", "5.001", "Use at most two decimals."),
        ("other", "", "Enter an amount such as 25 or 7.50."),
        ("other", "a lot", "Enter an amount such as 25 or 7.50."),
        ("other", "1e3000", "Enter an amount such as 25 or 7.50."),
        ("other", "NaN", "Enter an amount such as 25 or 7.50."),
        ("26", "", "Select a valid choice."),
        ("", "25", "This field is required."),
    ],
)
def test_an_amount_that_is_none_is_told_and_asks_stripe_nothing(
    amount: str, other: str, words: str, acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    calls = len(shop.requests)
    answer = owner.post(f"{PATH}/recharge", {"amount": amount, "other": other})
    assert answer.status_code == 400
    assert words in answer.text
    assert len(shop.requests) == calls
    assert actions(acme) == []


def paid(shop: StripeEmulator, owner: Client, amount: str = "25") -> str:
    owner.post(f"{PATH}/recharge", {"amount": amount})
    session = shop.objects("checkout.session")[-1]
    shop.complete_checkout(session["id"])
    return str(session["id"])


def test_on_return_the_money_is_there_once(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    session = paid(shop, owner)
    for _twice in range(2):
        answer = owner.get(f"{PATH}/return?organization=acme&session={session}")
        assert (answer.status_code, answer["location"]) == (302, PATH)
        assert told(owner) == "$25.00 was added to your balance."
        assert account_of(acme).balance_micro == 35 * USD
    assert deliver(shop, *shop.events) == [200] * len(shop.events)
    (entry,) = LedgerEntry.objects.filter(kind=EntryKind.RECHARGE)
    assert entry.amount_micro == 25 * USD
    # Stripe's id stays in the ledger, and the page needs none.
    assert entry.note == "Recharge by card"
    assert entry.payment_id.startswith("pi_")
    assert "Recharge by card" in owner.get(PATH).text
    assert "pi_" not in owner.get(PATH).text
    # The card is kept for automatic recharges.
    assert "Visa •••• 4242" in owner.get(PATH).text


def test_leaving_without_paying_is_no_error(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    owner.post(f"{PATH}/recharge", {"amount": "25"})
    session = shop.objects("checkout.session")[-1]["id"]
    for query in (f"session={session}", "left=recharge"):
        assert owner.get(f"{PATH}/return?{query}")["location"] == PATH
        assert told(owner) == "You did not complete the payment. Nothing was charged."
    assert account_of(acme).balance_micro == 10 * USD
    owner.get(f"{PATH}/return")
    assert told(owner) == ""


def test_a_session_of_somebody_else_is_not_found(
    acme: Organization, globex: Organization, shop: StripeEmulator, owner: Client
) -> None:
    session = paid(shop, owner)
    stranger = log_in(Client(), owner_of(globex))
    assert stranger.get(f"{PATH}/return?session={session}").status_code == 404
    # Also for one whom Stripe knows.
    BillingAccount.objects.filter(pk=globex.pk).update(stripe_customer=Shop(shop).customer())
    assert stranger.get(f"{PATH}/return?session={session}").status_code == 404
    assert stranger.get(f"{PATH}/return?session=cs_test_none").status_code == 404
    for organization in (acme, globex):
        assert account_of(organization).balance_micro == 10 * USD


def test_on_return_stripe_may_be_away(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    session = paid(shop, owner)
    shop.faults.add(Fault("500_before", times=100))
    assert owner.get(f"{PATH}/return?session={session}")["location"] == PATH
    assert told(owner) == "We haven&#x27;t heard from Stripe yet. This page will update shortly."
    assert account_of(acme).balance_micro == 10 * USD


AUTOMATIC = {"automatic-below": "5", "automatic-amount": "25", "automatic-cap": "100"}


def automatic_of(acme: Organization) -> tuple[int | None, int | None, int | None]:
    account = account_of(acme)
    return (
        account.recharge_below_micro,
        account.recharge_amount_micro,
        account.recharge_daily_cap_micro,
    )


def test_the_automatic_recharge_is_set_shown_and_stopped(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    BillingAccount.objects.filter(pk=acme.pk).update(card_brand="visa", card_last4="4242")
    assert "Turn on" in owner.get(PATH).text
    owner.post(f"{PATH}/automatic", {**AUTOMATIC, "automatic-below": "7.50"})
    assert automatic_of(acme) == (7_500_000, 25 * USD, 100 * USD)
    text = owner.get(PATH).text
    assert "When less than $7.50 is available, we charge your card $25.00, up to $100.00" in text
    assert 'value="7.50"' in text
    owner.post(f"{PATH}/automatic", {"stop": "yes"})
    assert automatic_of(acme) == (None, None, None)
    assert actions(acme) == ["recharge.automatic", "recharge.automatic"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("amount", "4", "Enter an amount between $5.00 and $10,000.00."),
        ("cap", "24.99", "The daily maximum cannot be less than one recharge."),
        ("below", "-1", "This amount is not allowed."),
        ("below", "", "This field is required."),
        ("below", "99999999999", "This amount is not allowed."),
    ],
)
def test_an_automatic_recharge_that_cannot_be_is_told(
    field: str, value: str, words: str, acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    answer = owner.post(f"{PATH}/automatic", {**AUTOMATIC, f"automatic-{field}": value})
    assert answer.status_code == 400
    assert words in answer.text
    assert automatic_of(acme) == (None, None, None)


# --- Movements ------------------------------------------------------------------------------------


@pytest.fixture
def busy(acme: Organization, key: ApiKey) -> Organization:
    """An organization with 61 movements, of every kind, and a stranger's in between."""
    stranger = KeyFactory().row
    for number in range(56):
        make_request(key, timezone.now(), model=(FLUX, IMAGEN)[number % 2])
        if number % 14 == 0:
            make_request(stranger, timezone.now())
            kind = (EntryKind.RECHARGE, EntryKind.REFUND)[number // 14 % 2]
            ledger.record(acme, kind, 5 * USD, entry_key=f"t:{number}", note="=1+1")
    return acme


def both(client: Client, query: str) -> list[tuple[str, str]]:
    """Return amount and balance of each row that is shown."""
    text = client.get(f"{PATH}/movements{query}").text
    return re.findall(r'numeric nowrap(?: came-in)?">(.*?)</td>\s*<td[^>]*>(.*?)</td>', text)


def shown(micro: int) -> str:
    sign = "-" if micro < 0 else ""
    return f"{sign}${abs(micro) / USD:.2f}"


@pytest.mark.parametrize("counted", ["never", "before", "in the middle", "now"])
def test_every_movement_is_shown_with_the_balance_after_it(
    counted: str, busy: Organization, owner: Client
) -> None:
    truth = list(ledger.movements(busy))
    if counted != "never":
        place = {"before": -1, "in the middle": 30, "now": 0}[counted]
        LedgerTotal.objects.create(
            organization=busy,
            through=truth[place].pk,
            balance_micro=truth[place].balance_after,
            spent_micro=0,
        )
    for kind in ("", *EntryKind):
        wanted = [row for row in truth if kind in ("", row.kind)]
        assert bool(wanted) is (kind != EntryKind.ADJUSTMENT)
        expected = [
            (
                ("+" if row.amount_micro > 0 else "") + shown(row.amount_micro),
                shown(row.balance_after),
            )
            for row in wanted
        ]
        assert both(owner, f"?kind={kind}") == expected[:50]
        if len(expected) > 50:
            assert both(owner, f"?kind={kind}&before={wanted[49].pk}") == expected[50:]
        file = file_of(owner, f"{PATH}/movements.csv?kind={kind}")
        rows = list(csv.reader(file.splitlines()))
        assert tuple(rows[0]) == movements.CSV_COLUMNS
        assert [(row[1], row[2], row[3], row[9]) for row in rows[1:]] == [
            (
                row.kind,
                f"{row.amount_micro / USD:.2f}",
                f"{row.balance_after / USD:.2f}",
                str(row.pk),
            )
            for row in wanted
        ]


def test_the_way_to_older_movements(busy: Organization, owner: Client) -> None:
    text = owner.get(f"{PATH}/movements?kind=consumption").text
    found = re.search(r'rel="next" href="([^"]*)"', text)
    assert found is not None
    older = owner.get(found[1].replace("&amp;", "&")).text
    assert older.count("1 image") == 6
    assert 'rel="next"' not in older
    assert "Newest" in older


def test_a_spreadsheet_runs_no_note(busy: Organization, owner: Client) -> None:
    text = file_of(owner, f"{PATH}/movements.csv")
    assert "'=1+1" in text
    assert ",=1+1" not in text


@pytest.mark.parametrize("before", ["", "x", "-1", "1.5", "9" * 25, "٣"])
def test_a_place_that_is_none_is_not_found(before: str, acme: Organization, owner: Client) -> None:
    assert owner.get(f"{PATH}/movements", {"before": before}).status_code == 404


def test_the_first_page_reads_no_more_than_it_shows(busy: Organization, owner: Client) -> None:
    newest = ledger.movements(busy).first()
    assert newest is not None
    LedgerTotal.objects.create(
        organization=busy, through=newest.pk, balance_micro=newest.balance_after, spent_micro=0
    )
    with CaptureQueriesContext(connection) as queries:
        assert len(movements.page(busy, before=None, size=50)) == 50
    assert len(queries) == 3
    assert not any("OVER (" in query["sql"] for query in queries)


def in_the_loop(organization: Organization, path: str) -> str:
    """Return a file as the owner gets it from an event loop."""

    async def ask() -> str:
        browser = AsyncClient()
        await browser.aforce_login(person, backend=BACKEND)
        answer: Any = await browser.get(path)
        text = b"".join([part async for part in answer.streaming_content]).decode("utf-8-sig")
        await sync_to_async(connections.close_all)()
        return text

    person = owner_of(organization)
    return asyncio.run(ask())


def test_files_are_the_same_in_the_event_loop(busy: Organization, owner: Client) -> None:
    path = f"{PATH}/movements.csv"
    assert owner.get(path)["content-disposition"] == 'attachment; filename="movements.csv"'
    assert in_the_loop(busy, path) == file_of(owner, path)


# --- Invoices -------------------------------------------------------------------------------------


def billed(stripe: Stripe, buyer: Buyer, model: str = FLUX) -> tuple[Invoice, dict[str, Any]]:
    """Let the month end; return our copy of its invoice, and its line of a model."""
    buyer.end_month()
    buyer.collect()
    made = invoices.mirror(stripe, buyer.latest()["id"], now=buyer.now)
    assert made is not None
    (line,) = (one for one in made.lines if one["price"] == buyer.sold[model].price)
    return made, line


def test_invoices_are_listed_with_number_period_status_and_amounts(
    buyer: Buyer, stripe: Stripe, owner: Client
) -> None:
    assert "No invoices yet" in owner.get(f"{PATH}/invoices").text
    buyer.use(FLUX, 30)
    invoice, _line = billed(stripe, buyer)
    text = text_of(owner.get(f"{PATH}/invoices").text)
    days = f"{invoice.period_start:%Y-%m-%d} – {invoice.period_end:%Y-%m-%d}"
    assert f"{invoice.number} {days} {days} Paid $1.20 $1.20" in text


def test_an_invoice_shows_its_lines(buyer: Buyer, stripe: Stripe, owner: Client) -> None:
    buyer.use(FLUX, 30)
    buyer.use(IMAGEN, 2)
    invoice, line = billed(stripe, buyer)
    answer = owner.get(f"{PATH}/invoices/{invoice.stripe_id}")
    text = text_of(answer.text)
    assert "Total $1.28 Paid $1.28" in text
    assert re.search(r"fal/flux-1\.1-pro .* 30 \$0\.04 \$1\.20", text)
    assert re.search(r"google/imagen-4 .* 2 \$0\.04 \$0\.08", text)
    assert f"{PATH}/invoices/{invoice.stripe_id}/lines/{line['id']}" in answer.text
    # The links are requested on a click, and are on no page.
    found = invoices.links(stripe, invoice)
    assert found.pdf not in answer.text
    assert found.page not in answer.text


def test_what_was_paid_in_advance_is_told_apart(acme: Organization, owner: Client) -> None:
    invoice = owe(acme)
    line = {"id": "il_1", "price": "", "description": "Much", "quantity": "1", "unit_cents": ""}
    line |= {"amount_cents": 1234, "start": 0, "end": 0}
    Invoice.objects.filter(pk=invoice.pk).update(tax_cents=100, total_cents=334, lines=[line])
    text = text_of(owner.get(f"{PATH}/invoices/in_owed").text)
    assert "Tax $1.00 Credits applied -$10.00 Total $3.34" in text


def test_the_pdf_and_the_page_are_fetched_on_click_and_kept_nowhere(
    buyer: Buyer, stripe: Stripe, owner: Client, caplog: pytest.LogCaptureFixture
) -> None:
    buyer.use(FLUX, 30)
    invoice, _line = billed(stripe, buyer)
    found = invoices.links(stripe, invoice)
    caplog.set_level(logging.DEBUG)
    for path, url in (("pdf", found.pdf), ("stripe", found.page)):
        calls = len(buyer.emulator.requests)
        answer = owner.get(f"{PATH}/invoices/{invoice.stripe_id}/{path}")
        assert (answer.status_code, answer["location"]) == (302, url)
        assert "no-store" in answer["cache-control"]
        assert len(buyer.emulator.requests) == calls + 1
    assert found.page not in caplog.text
    assert found.pdf not in caplog.text


def test_a_draft_has_no_pdf_and_stripe_may_be_away(
    buyer: Buyer, stripe: Stripe, owner: Client
) -> None:
    buyer.use(FLUX, 30)
    invoice = invoices.mirror(stripe, buyer.end_month(), now=buyer.now)
    assert invoice is not None
    page = f"{PATH}/invoices/{invoice.stripe_id}"
    text = owner.get(page).text
    assert "Draft invoice" in text
    assert f'href="{page}/pdf"' not in text
    answer = owner.get(f"{page}/pdf")
    assert answer["location"] == page
    assert "A draft has no page or PDF yet." in owner.get(page).text
    buyer.emulator.faults.add(Fault("500_before", times=100))
    assert owner.get(f"{page}/stripe")["location"] == page
    assert "Stripe did not respond. Try again in a moment." in owner.get(page).text


def test_without_stripe_copies_stay_readable(acme: Organization, owner: Client) -> None:
    owe(acme)
    assert "ACME-0007" in owner.get(f"{PATH}/invoices").text
    text = owner.get(f"{PATH}/invoices/in_owed").text
    assert "View on Stripe" not in text
    for path in ("pdf", "stripe"):
        assert owner.get(f"{PATH}/invoices/in_owed/{path}").status_code == 404


# --- Down to the pictures -------------------------------------------------------------------------


def charge(buyer: Buyer, delivered: int, model: str = FLUX) -> LedgerEntry:
    """Have pictures drawn that are kept, and Stripe told of them."""
    row = make_request(buyer.key, timezone.now(), model=model, delivered=delivered, pictures=True)
    entry = LedgerEntry.objects.get(hold=row.hold)
    buyer.meter(entry)
    return entry


def test_a_line_opens_to_the_pictures_in_it(buyer: Buyer, stripe: Stripe, owner: Client) -> None:
    entries = [charge(buyer, 2), charge(buyer, 6)]
    other = charge(buyer, 1, IMAGEN)
    later = make_request(buyer.key, timezone.now(), pictures=True)  # in no event yet
    deleted = Image.objects.get(generation__request_id=entries[0].request_id, index=1)
    deleted.deleted_at = timezone.now()
    deleted.save()
    invoice, line = billed(stripe, buyer)
    answer = owner.get(f"{PATH}/invoices/{invoice.stripe_id}/lines/{line['id']}")
    text = text_of(answer.text)
    assert "On the invoice $0.32 8 × $0.04 In the ledger $0.32 8 images Compared Equal" in text
    for entry in entries:
        assert f'href="/dashboard/usage/{entry.request_id}"' in answer.text
        assert owner.get(f"/dashboard/usage/{entry.request_id}").status_code == 200
    for absent in (other.request_id, later.request_id):
        assert absent not in answer.text
    # One of two is deleted; of six, four are shown.
    images = Image.objects.filter(generation__hold__ledger_entries__in=entries)
    pictured = [image.index for image in images if f"{image.reference}/small" in answer.text]
    assert sorted(pictured) == [0, 0, 1, 2, 3]
    assert "1 deleted" in text
    assert "+2" in text
    assert re.search(r"2 \$0\.08 .* 6 \$0\.24", text)


def test_the_line_of_the_shared_item_opens_to_models_and_pictures(
    stripe_account: StripeEmulator, key: ApiKey, stripe: Stripe, owner: Client
) -> None:
    ultra = "fal/flux-1.1-pro-ultra"
    shared = PriceVersion.objects.create(sku="shared", version=1, unit="0.0001 USD", unit_micro=100)
    PriceVersion.objects.filter(sku__in=[FLUX, IMAGEN]).update(counted_in=shared)
    buyer = Buyer(stripe_account, sell(Shop(stripe_account), ["shared", ultra]), key)
    entries = [charge(buyer, 2), charge(buyer, 3, IMAGEN)]
    other = charge(buyer, 1, ultra)
    invoice, line = billed(stripe, buyer, "shared")
    page = owner.get(f"{PATH}/invoices/{invoice.stripe_id}")
    where = f"{PATH}/invoices/{invoice.stripe_id}/lines/{line['id']}"
    assert f'<a href="{where}">Other models</a>' in page.text
    answer = owner.get(where)
    text = text_of(answer.text)
    assert "On the invoice $0.20 2000 × $0.0001 In the ledger $0.20 5 images Compared Equal" in text
    assert f"By model Model Images Amount {FLUX} 2 $0.08 {IMAGEN} 3 $0.12" in text
    for entry in entries:
        assert f'href="/dashboard/usage/{entry.request_id}"' in answer.text
    images = Image.objects.filter(generation__hold__ledger_entries__in=entries)
    assert images.count() == 5
    assert all(f"{image.reference}/small" in answer.text for image in images)
    assert other.request_id not in answer.text
    rows = list(csv.DictReader(file_of(owner, f"{where}/charges.csv").splitlines()))
    assert [(row["model"], row["images"], row["amount_usd"]) for row in rows] == [
        (FLUX, "2", "0.08"),
        (IMAGEN, "3", "0.12"),
    ]


def test_streamed_pictures_are_each_beside_their_own_charge(
    buyer: Buyer, stripe: Stripe, owner: Client
) -> None:
    row = make_request(buyer.key, timezone.now(), delivered=2, pictures=True)
    entry = LedgerEntry.objects.get(hold=row.hold)
    with connection.cursor() as cursor:
        trigger(cursor, on=False)
        LedgerEntry.objects.filter(pk=entry.pk).update(
            first_unit=1, quantity=1, amount_micro=-40_000
        )
        trigger(cursor, on=True)
    entry.refresh_from_db()
    buyer.meter(entry)
    invoice, line = billed(stripe, buyer)
    text = owner.get(f"{PATH}/invoices/{invoice.stripe_id}/lines/{line['id']}").text
    assert f"{row.request_id}-1/small.webp" in text
    assert f"{row.request_id}-0/small.webp" not in text


def test_a_long_line_has_pages_and_its_file_has_all(
    buyer: Buyer, stripe: Stripe, owner: Client
) -> None:
    entries = [charge(buyer, 1) for _ in range(51)]
    charge(buyer, 1, IMAGEN)
    invoice, line = billed(stripe, buyer)
    page = f"{PATH}/invoices/{invoice.stripe_id}/lines/{line['id']}"
    with CaptureQueriesContext(connection) as queries:
        first = owner.get(page).text
    assert len(queries) < 20
    second = owner.get(f"{page}?after={entries[49].pk}").text
    link = r'href="/dashboard/usage/(req_\w+)"'
    assert re.findall(link, first) == [entry.request_id for entry in entries[:50]]
    assert re.findall(link, second) == [entries[50].request_id]
    assert f"?after={entries[49].pk}" in first
    assert 'rel="next"' not in second
    for text in (first, second):
        assert "51 images" in text_of(text)
    assert owner.get(f"{page}?after=x").status_code == 404
    assert len(first.encode()) < 150_000

    answer = owner.get(f"{page}/charges.csv")
    name = f"invoice-{invoice.number}-flux-1.1-pro"
    assert answer["content-disposition"] == f'attachment; filename="{name}.csv"'
    rows = list(csv.DictReader(file_of(owner, f"{page}/charges.csv").splitlines()))
    assert [row["request"] for row in rows] == [entry.request_id for entry in entries]
    assert sum(float(row["amount_usd"]) for row in rows) == pytest.approx(2.04)


def test_the_file_of_an_invoice_has_every_line_once(
    buyer: Buyer, stripe: Stripe, owner: Client
) -> None:
    charged = [charge(buyer, 1), charge(buyer, 2, IMAGEN), charge(buyer, 3)]
    invoice, _line = billed(stripe, buyer)
    path = f"{PATH}/invoices/{invoice.stripe_id}/charges.csv"
    text = file_of(owner, path)
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["request"]: row["images"] for row in rows} == {
        charged[0].request_id: "1",
        charged[1].request_id: "2",
        charged[2].request_id: "3",
    }
    assert text.count("unit_usd") == 1
    assert sum(int(row["images"]) for row in rows) == 6
    assert in_the_loop(buyer.organization, path) == text


def test_a_line_that_does_not_agree_says_so(buyer: Buyer, stripe: Stripe, owner: Client) -> None:
    charge(buyer, 2)
    invoice, line = billed(stripe, buyer)
    for one in invoice.lines:
        if one["id"] == line["id"]:
            one["quantity"] = "3"
    invoice.save()
    text = text_of(owner.get(f"{PATH}/invoices/{invoice.stripe_id}/lines/{line['id']}").text)
    assert "Not equal our staff were notified and are looking into it" in text


def test_a_line_without_pictures_opens_nowhere(buyer: Buyer, stripe: Stripe, owner: Client) -> None:
    buyer.shop.api.invoice_items.create(
        {"customer": buyer.customer, "amount": 500, "currency": "usd", "description": "A debt"}
    )
    buyer.use(FLUX, 1)
    invoice, _line = billed(stripe, buyer)
    (debt,) = (one for one in invoice.lines if not one["price"] or one["amount_cents"] == 500)
    text = owner.get(f"{PATH}/invoices/{invoice.stripe_id}").text
    assert "A debt" in text
    assert f"/lines/{debt['id']}" not in text
    path = f"{PATH}/invoices/{invoice.stripe_id}/lines/{debt['id']}"
    assert owner.get(path).status_code == 404


# --- Budgets --------------------------------------------------------------------------------------


def test_budgets_are_set_changed_and_removed(
    acme: Organization, key: ApiKey, owner: Client
) -> None:
    person = member_of(acme, Role.DEVELOPER)
    page = f"{PATH}/budgets"
    assert "No budgets" in owner.get(page).text
    holder = f"key:{key.family}"
    answer = owner.post(page, {"holder": holder, "period": "day", "usd": "2.50"})
    assert (answer.status_code, answer["location"]) == (302, page)
    owner.post(
        page, {"holder": f"member:{person.pk}", "period": "month", "usd": "", "images": "10"}
    )
    # The same again is a change, not a second one.
    owner.post(page, {"holder": holder, "period": "day", "usd": "3", "images": "7"})
    mine, theirs = Budget.objects.order_by("pk")
    assert (mine.key_family, mine.period, mine.limit_micro, mine.limit_images) == (
        key.family,
        "day",
        3 * USD,
        7,
    )
    assert (theirs.member, theirs.limit_micro, theirs.limit_images) == (person, None, 10)
    assert {one.organization for one in (mine, theirs)} == {acme}
    assert 'value="3.00"' in owner.get(f"{page}/{mine.pk}").text
    owner.post(f"{page}/{mine.pk}", {"usd": "4", "images": ""})
    mine.refresh_from_db()
    assert (mine.limit_micro, mine.limit_images) == (4 * USD, None)
    # One with a period, in which something was drawn.
    make_request(key, timezone.now(), delivered=2)
    assert BudgetPeriod.objects.get(budget=mine).spent_micro == 80_000
    assert "$0.08 of $4.00 2%" in text_of(owner.get(page).text)
    assert "0 of 10 images 0%" in text_of(owner.get(page).text)
    owner.post(f"{page}/{mine.pk}/remove")
    assert list(Budget.objects.all()) == [theirs]
    assert actions(acme) == ["budget.set"] * 4 + ["budget.removed"]
    removed = AuditEvent.objects.latest("pk")
    assert (removed.subject, removed.details) == ("prod-web", {"period": "day", "usd": "4.00"})
    assert LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION).count() == 1


def test_the_organization_and_its_tags_get_budgets(
    acme: Organization, key: ApiKey, globex: Organization, owner: Client
) -> None:
    key.tags = ["web", "café"]
    key.save()
    KeyFactory(organization=globex, tags=["theirs"])
    page = f"{PATH}/budgets"
    text = owner.get(page).text
    for offered in (">Whole organization<", ">web<", ">café<", ">written below<"):
        assert text.count(offered) == 1, offered
    assert "theirs" not in text

    for data in (
        {"holder": "organization:", "period": "week", "usd": "9"},
        {"holder": "tag:café", "period": "day", "images": "3"},
        {"holder": "tag", "tag": " team-a ", "period": "month", "usd": "5"},
        # The same again is a change.
        {"holder": "tag:café", "period": "day", "images": "4"},
        {"holder": "organization:", "period": "week", "usd": "10", "tag": ""},
    ):
        answer = owner.post(page, data)
        assert (answer.status_code, answer["location"]) == (302, page)
    whole, cafe, team = Budget.objects.order_by("pk")
    assert [one.holder for one in (whole, cafe, team)] == [
        Holder(scopes.ORGANIZATION),
        Holder(scopes.TAG, "café"),
        Holder(scopes.TAG, "team-a"),
    ]
    assert {one.organization for one in (whole, cafe, team)} == {acme}
    assert (whole.limit_micro, cafe.limit_images, team.limit_micro) == (10 * USD, 4, 5 * USD)

    make_request(key, timezone.now(), delivered=2, tags=["web", "café"])
    shown = text_of(owner.get(page).text)
    # What is nearest to a request comes first, and of one kind by name.
    for words in (
        r"Tag café all requests with the tag per day .*? 2 of 4 images 50% .*?"
        r"Tag team-a all requests with the tag per month .*? \$0\.00 of \$5\.00 0% .*?"
        r"Whole organization all keys, playgrounds too per week .*? \$0\.08 of \$10\.00 0%",
        r"Remove the budget of the whole organization per week\?",
        r"Remove the budget of the tag team-a per month\?",
    ):
        assert re.search(words, shown), words
    assert "Whole organization, per week" in text_of(owner.get(f"{page}/{whole.pk}").text)
    owner.post(f"{page}/{whole.pk}", {"usd": "4", "images": "8"})
    whole.refresh_from_db()
    assert (whole.limit_micro, whole.limit_images) == (4 * USD, 8)
    for budget in (whole, team):
        assert owner.post(f"{page}/{budget.pk}/remove").status_code == 302
    assert list(Budget.objects.all()) == [cafe]
    assert actions(acme) == ["budget.set"] * 6 + ["budget.removed"] * 2
    told = AuditEvent.objects.filter(organization=acme).order_by("pk")
    assert [(event.subject, event.details) for event in told][-3:] == [
        ("Whole organization", {"period": "week", "usd": "4.00", "images": 8}),
        ("Whole organization", {"period": "week", "usd": "4.00", "images": 8}),
        ("Tag team-a", {"period": "month", "usd": "5.00"}),
    ]


def test_a_budget_in_spanish_is_audited_in_one_language(
    acme: Organization, owner: Client, settings: Settings
) -> None:
    owner.cookies[settings.LANGUAGE_COOKIE_NAME] = "es"
    page = f"{PATH}/budgets"
    owner.post(page, {"holder": "organization:", "period": "day", "usd": "9"})
    owner.post(page, {"holder": "tag", "tag": "web", "period": "day", "usd": "9"})
    text = owner.get(page).text
    assert "Toda la organización" in text
    assert "Etiqueta web" in text
    subjects = AuditEvent.objects.filter(action="budget.set").order_by("pk")
    assert [event.subject for event in subjects] == ["Whole organization", "Tag web"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"holder": "tag", "tag": ""}, "Write it here."),
        ({"holder": "tag", "tag": "  "}, "Write it here."),
        ({"holder": "tag", "tag": "x" * 41}, "at most 40 characters"),
        ({"holder": "tag", "tag": "a\0b"}, "Null characters are not allowed."),
        ({"holder": "organization:", "tag": "web"}, "Choose “written below”, or leave this empty."),
        ({"tag": "web"}, "Choose “written below”, or leave this empty."),
        ({"holder": "tag:unknown"}, "Select a valid choice"),
        ({"holder": "organization:x"}, "Select a valid choice"),
        ({"holder": "organization"}, "Select a valid choice"),
    ],
)
def test_a_budget_of_a_tag_that_cannot_be_is_told(
    data: dict[str, str], words: str, key: ApiKey, owner: Client
) -> None:
    whole = {"holder": f"key:{key.family}", "period": "day", "usd": "1", **data}
    answer = owner.post(f"{PATH}/budgets", whole)
    assert answer.status_code == 400
    assert words in html.unescape(answer.text)
    assert not Budget.objects.exists()


def test_a_budget_of_the_organization_or_a_tag_is_for_those_who_manage_the_billing(
    acme: Organization, globex: Organization, client: Client
) -> None:
    holders = (Holder(scopes.ORGANIZATION), Holder(scopes.TAG, "web"))
    here = [budgets.set_for(acme.pk, holder, USD, Period.DAY) for holder in holders]
    there = [budgets.set_for(globex.pk, holder, USD, Period.DAY) for holder in holders]
    page = f"{PATH}/budgets"
    new = {"period": "week", "usd": "1", "holder": "tag", "tag": "web"}
    # An admin has the form, for keys, in which these are no choice.
    for role, made, changed in (
        (Role.ADMIN, 400, 403),
        (Role.DEVELOPER, 403, 403),
        (Role.VIEWER, 403, 403),
        (Role.BILLING, 302, 302),
    ):
        log_in(client, member_of(acme, role))
        assert client.post(page, new).status_code == made, role
        for budget in here:
            answer = client.post(f"{page}/{budget.pk}", {"usd": "9"})
            assert answer.status_code == changed, role
            if changed == 403:
                assert client.post(f"{page}/{budget.pk}/remove").status_code == 403
        for budget in there:
            assert client.post(f"{page}/{budget.pk}", {"usd": "9"}).status_code in (403, 404)
            assert client.post(f"{page}/{budget.pk}/remove").status_code in (403, 404)
    limits_here = Budget.objects.filter(organization=acme).order_by("pk")
    assert [budget.limit_micro for budget in limits_here] == [9 * USD, 9 * USD, USD]
    assert {budget.limit_micro for budget in Budget.objects.filter(organization=globex)} == {USD}
    assert Budget.objects.filter(organization=globex).count() == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"usd": "", "images": ""}, "Set a limit in USD, in images, or both."),
        ({"usd": "-1"}, "This amount is not allowed."),
        ({"usd": "x"}, "Enter an amount such as 25 or 7.50."),
        ({"images": "-1"}, "greater than or equal to 0"),
        ({"images": "99999999999999999999"}, "less than or equal to"),
        ({"usd": "5", "period": "year"}, "Select a valid choice"),
        ({"usd": "5", "holder": "member:999999"}, "Select a valid choice"),
        ({"usd": "5", "holder": "nobody"}, "Select a valid choice"),
    ],
)
def test_a_budget_that_cannot_be_is_told(
    data: dict[str, str], words: str, key: ApiKey, owner: Client
) -> None:
    whole = {"holder": f"key:{key.family}", "period": "day", **data}
    answer = owner.post(f"{PATH}/budgets", whole)
    assert answer.status_code == 400
    assert words in answer.text
    assert not Budget.objects.exists()


def test_nobody_elses_key_or_person_gets_a_budget(
    acme: Organization, globex: Organization, owner: Client
) -> None:
    theirs = KeyFactory(organization=globex).row
    for holder in (f"key:{theirs.family}", f"member:{owner_of(globex).pk}"):
        answer = owner.post(f"{PATH}/budgets", {"holder": holder, "period": "day", "usd": "1"})
        assert answer.status_code == 400
    with pytest.raises(limits.NoSuchHolder):
        limits.set_budget(
            acme,
            Holder(scopes.KEY, theirs.family),
            Period.DAY,
            limit_micro=1,
            limit_images=None,
            actor=None,
        )
    assert not Budget.objects.exists()


def test_an_admin_sets_budgets_of_keys_and_of_nobody(
    acme: Organization, key: ApiKey, client: Client
) -> None:
    person = member_of(acme, Role.DEVELOPER)
    members_budget = budgets.set_for(acme.pk, Holder(scopes.MEMBER, person.pk), USD, Period.DAY)
    log_in(client, member_of(acme, Role.ADMIN))
    page = f"{PATH}/budgets"
    assert person.email not in re.findall(r"<select.*?</select>", client.get(page).text, re.S)[0]
    data = {"holder": f"key:{key.family}", "period": "day", "usd": "1"}
    assert client.post(page, data).status_code == 302
    data = {"holder": f"member:{person.pk}", "period": "week", "usd": "1"}
    assert client.post(page, data).status_code == 400
    assert client.post(f"{page}/{members_budget.pk}", {"usd": "9"}).status_code == 403
    assert client.post(f"{page}/{members_budget.pk}/remove").status_code == 403
    assert Budget.objects.get(member=person).limit_micro == USD
    # And the role for billing, which has no keys to manage, sets both.
    log_in(client, member_of(acme, Role.BILLING))
    assert client.post(f"{page}/{members_budget.pk}", {"usd": "9"}).status_code == 302
    data = {"holder": f"key:{key.family}", "period": "day", "usd": "2"}
    assert client.post(page, data).status_code == 302
    assert sorted(Budget.objects.values_list("limit_micro", flat=True)) == [2 * USD, 9 * USD]


def test_who_has_left_leaves_a_budget_that_can_only_be_removed(
    acme: Organization, owner: Client
) -> None:
    person = member_of(acme, Role.DEVELOPER)
    budget = budgets.set_for(acme.pk, Holder(scopes.MEMBER, person.pk), USD, Period.DAY)
    acme.memberships.filter(user=person).delete()
    owner.post(f"{PATH}/budgets/{budget.pk}", {"usd": "5"})
    assert "You can only remove it." in owner.get(f"{PATH}/budgets").text
    budget.refresh_from_db()
    assert budget.limit_micro == USD
    owner.post(f"{PATH}/budgets/{budget.pk}/remove")
    assert not Budget.objects.exists()


def test_keys_that_cost_nothing_or_have_ended_are_not_offered(
    acme: Organization, key: ApiKey, owner: Client
) -> None:
    KeyFactory(organization=acme, name="of-the-sandbox", sandbox=True)
    ended = KeyFactory(organization=acme, name="revoked").row
    ended.revoked_at = timezone.now()
    ended.save()
    text = owner.get(f"{PATH}/budgets").text
    assert "prod-web" in text
    assert "of-the-sandbox" not in text
    assert "revoked" not in text


@pytest.mark.parametrize(
    ("use", "percent", "with_held"),
    [
        (Use("usd", 100, 0, 0), 0, 0),
        (Use("usd", 3, 1, 1), 33, 66),
        (Use("usd", 1000, 999, 0), 99, 99),
        (Use("usd", 1000, 1000, 5), 100, 100),
        (Use("usd", 1000, 5000, 0), 100, 100),
        (Use("images", 0, 0, 0), 100, 100),
    ],
)
def test_how_much_of_a_budget_is_used(use: Use, percent: int, with_held: int) -> None:
    assert (use.percent, use.held_percent) == (percent, with_held)


@pytest.mark.parametrize(
    ("period", "begun", "ends"),
    [
        (Period.DAY, (2026, 12, 31), (2027, 1, 1)),
        (Period.WEEK, (2026, 12, 28), (2027, 1, 4)),
        (Period.MONTH, (2027, 1, 1), (2027, 2, 1)),
        (Period.MONTH, (2027, 2, 1), (2027, 3, 1)),
        (Period.MONTH, (2026, 12, 1), (2027, 1, 1)),
    ],
)
def test_when_a_period_ends(period: Period, begun: Any, ends: Any) -> None:
    begin, end = (datetime(*day, tzinfo=UTC) for day in (begun, ends))
    assert limits.ends_at(period, begin) == end


# --- Alerts ---------------------------------------------------------------------------------------


def test_the_warning_is_set(acme: Organization, owner: Client) -> None:
    assert 'value="1.00"' in owner.get(f"{PATH}/alerts").text
    for _twice in range(2):
        answer = owner.post(f"{PATH}/alerts/warning", {"below": "12.5"})
        assert (answer.status_code, answer["location"]) == (302, f"{PATH}/alerts")
    assert account_of(acme).alert_below_micro == 12_500_000
    assert actions(acme) == ["alerts.warning_set"]
    for bad in ("", "x", "-1", "99999999999"):
        assert owner.post(f"{PATH}/alerts/warning", {"below": bad}).status_code == 400
    assert account_of(acme).alert_below_micro == 12_500_000


def test_the_secret_of_an_endpoint_is_shown_once(acme: Organization, owner: Client) -> None:
    url = "https://hooks.example.com/geekhub"
    answer = owner.post(f"{PATH}/alerts/endpoint", {"url": url})
    row = AlertEndpoint.objects.get()
    assert (row.organization, row.url) == (acme, url)
    assert row.secret in answer.text
    assert "no-store" in answer["cache-control"]
    page = owner.get(f"{PATH}/alerts").text
    assert url in page
    assert row.secret not in page
    owner.post(f"{PATH}/alerts/endpoint", {"url": url})
    assert AlertEndpoint.objects.get().secret != row.secret
    owner.post(f"{PATH}/alerts/endpoint/remove")
    assert not AlertEndpoint.objects.exists()
    assert actions(acme) == [
        "alerts.endpoint_set",
        "alerts.endpoint_set",
        "alerts.endpoint_removed",
    ]


@pytest.mark.parametrize(
    "url", ["", "x", "http://example.com", "https://127.0.0.1/x", "https://a:b@example.com"]
)
def test_an_address_that_cannot_be_is_told(url: str, acme: Organization, owner: Client) -> None:
    answer = owner.post(f"{PATH}/alerts/endpoint", {"url": url})
    assert answer.status_code == 400
    assert 'class="errors"' in answer.text
    assert not AlertEndpoint.objects.exists()


def test_a_test_is_told_like_any_alert_and_once_a_minute(acme: Organization, owner: Client) -> None:
    viewer = log_in(Client(), member_of(acme, Role.VIEWER))
    assert viewer.post(f"{PATH}/alerts/test").status_code == 403
    assert not Notification.objects.exists()

    for _ in range(3):
        assert owner.post(f"{PATH}/alerts/test")["location"] == f"{PATH}/alerts"
    # The minute may end in between.
    assert Notification.objects.count() in (1, 2)
    page = owner.get(f"{PATH}/alerts").text
    assert f"A test requested by {owner_of(acme).email}." in page
    row = Notification.objects.earliest("created_at")
    minute = int(row.key.rpartition(":")[2])
    assert not raising.send_test(acme, owner_of(acme), now=from_epoch(minute * 60 + 59))
    assert raising.send_test(acme, owner_of(acme), now=from_epoch(minute * 60 - 1))

    delivery.deliver_due(now=timezone.now())
    message = mail.outbox[0]
    assert message.to == [owner_of(acme).email]
    assert message.subject == "Test alert for Acme"
    assert "Nothing is wrong" in str(message.body)


def test_who_is_told(acme: Organization, owner: Client) -> None:
    people = {role: member_of(acme, role).email for role in Role}
    gone = member_of(acme, Role.ADMIN)
    gone.is_active = False
    gone.save()
    text = owner.get(f"{PATH}/alerts").text
    assert "alice@acme.test" in text
    for role, email in people.items():
        assert (email in text) is (role in READERS), role
    assert gone.email not in text


def test_an_alert_names_the_budget_also_after_it_was_removed(
    acme: Organization, key: ApiKey, owner: Client
) -> None:
    for holder in (Holder(scopes.ORGANIZATION), Holder(scopes.TAG, "web")):
        budgets.set_for(acme.pk, holder, None, Period.DAY, limit_images=2)
    make_request(key, timezone.now(), tags=["web"])
    assert raising.scan(now=timezone.now()) == 2
    for removed in (False, True):
        if removed:
            for budget in Budget.objects.all():
                assert budgets.remove(budget)
        text = text_of(owner.get(f"{PATH}/alerts").text)
        for whose in ("the whole organization", "the tag web"):
            assert text.count(f"50% of the budget of {whose} for this day is used.") == 1


def test_what_was_told_is_shown_with_what_became_of_it(
    acme: Organization, key: ApiKey, globex: Organization, owner: Client
) -> None:
    budget = budgets.set_budget(key, USD, Period.MONTH)
    details: dict[str, Any] = {"percent": 80, "period": "month", "member": None}
    raising.raise_alert(acme, "budget", "1", budget=budget.pk, **details)
    raising.raise_alert(acme, "low_balance", "2", available_usd="0.85", below_usd="1.00")
    raising.raise_alert(acme, "recharge_failed", "3", amount_usd="25.00", reason="Declined.")
    raising.raise_alert(acme, "payment_failed", "4", invoice="A-1", amount_due_cents=5)
    raising.raise_alert(acme, "suspended", "5", reason="x")
    raising.raise_alert(acme, "resumed", "6")
    raising.raise_alert(globex, "payment_failed", "7", invoice="GLOBEX-1", amount_due_cents=5)
    now = timezone.now()
    changes: dict[str, dict[str, Any]] = {
        "1": {"settled_at": now},
        "2": {"settled_at": now, "attempts": 1, "emailed_at": now},
        "3": {"settled_at": now, "attempts": 1, "emailed_at": now, "posted_at": now},
        "4": {"attempts": 2, "emailed_at": now, "post_error": "HTTP 500"},
        "5": {
            "attempts": 14,
            "settled_at": now,
            "email_error": "SMTP mail.internal; endpoint: no",
            "post_error": "HTTP 503; later",
        },
    }
    for name, change in changes.items():
        Notification.objects.filter(key=name).update(**change)
    text = text_of(owner.get(f"{PATH}/alerts").text)
    moment = r"[\d: -]{16,17}"
    for words in (
        r"80% of the budget of prod-web for this month is used\. "
        rf"{moment} Included in a later alert",
        rf"Only \$0\.85 is available, less than \$1\.00\. {moment} Email ",
        rf"An automatic recharge of \$25\.00 failed: Declined\. {moment} Email and webhook",
        rf"Payment of invoice A-1 failed\. {moment} Retrying HTTP 500",
        rf"The organization was suspended\. {moment} Not delivered HTTP 503; later",
        rf"The organization was resumed\. {moment} Sending",
    ):
        assert re.search(words, text), words
    assert "GLOBEX-1" not in text
    assert "mail.internal" not in text


# --- The audit log --------------------------------------------------------------------------------


def recorded() -> Iterator[str]:
    """Yield every action that the code writes down."""
    root = Path(__file__).resolve().parent.parent.parent
    for app in ("accounts", "billing", "images"):
        for path in (root / app).rglob("*.py"):
            text = path.read_text()
            yield from re.findall(r"\b(?:audit\.|_)?record\(\s*\"([a-z]+\.[a-z_]+)\"", text)


def test_every_action_has_words() -> None:
    found = set(recorded())
    assert {"budget.set", "recharge.begun", "alerts.endpoint_set", "key.created"} <= found
    found |= {f"account.{one}" for one in ("ok", "grace", "suspended")}
    found |= {f"balance.{one}" for one in (EntryKind.REFUND, EntryKind.ADJUSTMENT)}
    assert found - set(audit.LABELS) == set()


def test_a_recharge_that_begins_is_in_the_audit_log(
    acme: Organization, shop: StripeEmulator, owner: Client
) -> None:
    paid(shop, owner, "50")
    event = AuditEvent.objects.get(action="recharge.begun")
    assert (event.actor, event.details) == (owner_of(acme), {"amount_usd": "50.00"})
    assert "Started a recharge" in owner.get("/dashboard/settings/audit").text


# --- What a browser found -------------------------------------------------------------------------


def test_an_invoice_of_nothing_and_lines_of_nothing_are_not_listed(
    acme: Organization, owner: Client
) -> None:
    now = timezone.now()
    line = {
        "id": "il_1", "price": "", "description": "Pictures", "quantity": 3, "unit_cents": "4",
        "amount_cents": 12, "start": 0, "end": 0,
    }  # fmt: skip
    none = line | {"id": "il_2", "description": "Nothing", "quantity": 0, "amount_cents": 0}
    for name, reason, cents in (
        ("in_begun", "subscription_create", 0),
        ("in_paid_by_credit", "subscription_cycle", 0),
        ("in_month", "subscription_cycle", 12),
    ):
        Invoice.objects.create(
            stripe_id=name, organization=acme, number=name.upper(), status="paid", currency="usd",
            period_start=now, period_end=now, subtotal_cents=cents, tax_cents=0, total_cents=cents,
            amount_due_cents=cents, amount_paid_cents=cents, lines=[line, none], created=now,
            fetched_at=now, billing_reason=reason,
        )  # fmt: skip
    text = owner.get(f"{PATH}/invoices").text
    assert "IN_BEGUN" not in text
    assert "IN_PAID_BY_CREDIT" in text
    assert "IN_MONTH" in text
    one = owner.get(f"{PATH}/invoices/in_month").text
    assert "Pictures" in one
    assert "Nothing" not in one
    assert owner.get(f"{PATH}/invoices/in_begun").status_code == 200


def test_an_owner_sets_a_budget_for_a_person_s_playground(
    acme: Organization, owner: Client
) -> None:
    person = member_of(acme, Role.DEVELOPER)
    key = keys.playground(acme, person, sandbox=False)
    keys.playground(acme, person, sandbox=True)  # free, so without a budget
    text = owner.get(f"{PATH}/budgets").text
    assert text.count(f">Playground · {person.email}<") == 1
    form = {"holder": f"key:{key.family}", "period": "day", "usd": "3"}
    assert owner.post(f"{PATH}/budgets", form).status_code == 302
    budget = Budget.objects.get()
    assert (budget.key_family, budget.limit_micro) == (key.family, 3 * USD)
    assert f"Playground · {person.email}" in owner.get(f"{PATH}/budgets").text
