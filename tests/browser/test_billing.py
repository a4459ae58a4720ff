"""Money in a browser: a card, a recharge, and from an invoice down to a picture."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from django.db import connections
from playwright.sync_api import Page, expect
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization, User
from billing.alerts import raising
from billing.metering import freeze
from billing.models import Invoice, LedgerEntry, Period, scopes
from billing.models.scopes import Holder
from billing.spending import limits
from billing.stripe import invoices
from billing.stripe.client import Stripe
from geekhub.work import due, jobs
from tests.billing.buyer import sell
from tests.browser.chromium import PHONE
from tests.browser.conftest import Watched
from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.pages import owner_of
from tests.server import Api, AppServer

FLUX = "fal/flux-1.1-pro"


@pytest.fixture
def shop(
    stripe_account: StripeEmulator, settings: Settings, published: None, watched: Watched
) -> StripeEmulator:
    """A Stripe in which one model is sold, and whose pages a form's answer may lead to."""
    watched.expect("/favicon.ico")  # its pages have none
    settings.SECURE_CSP = {
        **settings.SECURE_CSP,
        "form-action": ["'self'", stripe_account.url],
    }
    sell(Shop(stripe_account), [FLUX])
    return stripe_account


def moment(emulator: StripeEmulator) -> datetime:
    return datetime.fromtimestamp(emulator.clock.now, UTC)


def invoice_of_the_month(stripe: Stripe, emulator: StripeEmulator) -> Invoice:
    """Let the month end as it does: usage is sent, Stripe makes an invoice and collects it."""
    # The browser's loop runs in this thread, and jobs have one of their own.
    with ThreadPoolExecutor(1) as worker:
        worker.submit(_work, moment(emulator)).result()
    subscription = emulator.objects("subscription")[-1]
    emulator.clock.advance_to(subscription["items"]["data"][0]["current_period_end"])
    emulator.clock.advance(2 * 3600)
    drawn = [one for one in emulator.objects("invoice") if one["billing_reason"] != "manual"][-1]
    copy = invoices.mirror(stripe, drawn["id"], now=moment(emulator))
    assert copy is not None
    return copy


def _work(now: datetime) -> None:
    # With the running hour, which the worker lets end first: the month may end with it.
    freeze.freeze(now=now, running_hour=True)
    due.run_due(jobs.current(jobs.BILLING), now=now)
    connections.close_all()


def test_from_a_card_to_the_picture_on_an_invoice(
    page: Page,
    site: AppServer,
    login: Callable[[User], None],
    shop: StripeEmulator,
    stripe: Stripe,
    acme: Organization,
    live_key: NewKey,
) -> None:
    login(owner_of(acme))
    page.goto("/dashboard")
    page.get_by_role("link", name="Billing").click()
    expect(page.get_by_text("No card on file")).to_be_visible()

    page.get_by_role("button", name="Add a card").click()
    expect(page.get_by_role("heading", name="Checkout")).to_be_visible()
    page.locator("#pay").click()
    expect(page.get_by_text("Card saved.")).to_be_visible()
    expect(page.get_by_text("Visa •••• 4242")).to_be_visible()
    expect(page.get_by_text("Monthly invoices")).to_be_visible()

    page.get_by_label("$50").check()
    page.get_by_role("button", name="Pay on Stripe").click()
    page.locator("#pay").click()
    expect(page.get_by_text("$50.00 was added to your balance.")).to_be_visible()
    first = page.locator(".movements tbody tr").first
    expect(first).to_contain_text("Recharge by card")
    expect(first).to_contain_text("+$50.00")
    expect(first).to_contain_text("$60.00")

    with (api := Api(site.origin, live_key.secret)).http:
        drawn = api.draw(model=FLUX, prompt="a red kite")
        drawn.raise_for_status()
    request_id = drawn.headers["x-request-id"]
    invoice = invoice_of_the_month(stripe, shop)

    page.get_by_role("link", name="Invoices").click()
    page.get_by_role("link", name=invoice.number).click()
    page.get_by_role("link", name=FLUX).click()
    expect(page.get_by_text("Equal", exact=True)).to_be_visible()
    picture = page.get_by_role("img", name=f"Image 1 of {request_id}")
    picture.scroll_into_view_if_needed()  # it loads when it comes into sight
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 0
    page.get_by_role("link", name=request_id).click()
    expect(page.get_by_text("a red kite", exact=True)).to_be_visible()


def test_going_back_pays_nothing_and_the_portal_changes_the_card(
    page: Page,
    watched: Watched,
    login: Callable[[User], None],
    shop: StripeEmulator,
    acme: Organization,
) -> None:
    watched.expect("400 (Bad Request)")
    login(owner_of(acme))
    page.goto("/dashboard/billing")
    page.get_by_label("Other", exact=True).check()
    page.get_by_label("Other amount in USD").fill("4")
    page.get_by_role("button", name="Pay on Stripe").click()
    expect(page.get_by_text("Enter an amount between $5.00 and $10,000.00.")).to_be_visible()
    page.get_by_label("Other amount in USD").fill("7.50")
    page.get_by_role("button", name="Pay on Stripe").click()
    page.locator("#cancel").click()
    expect(page.get_by_text("Nothing was charged.")).to_be_visible()
    assert LedgerEntry.objects.filter(organization=acme).count() == 1

    page.get_by_role("button", name="Add a card").click()
    page.locator("#pay").click()
    page.get_by_role("button", name="Manage card, tax ID and subscription").click()
    page.locator("#card").fill("5555555555554444")
    page.locator("#save-card").click()
    page.locator("#return").click()
    expect(page.get_by_text("Mastercard •••• 4444")).to_be_visible()


def test_the_policy_stops_a_form_that_leads_elsewhere(
    page: Page,
    watched: Watched,
    login: Callable[[User], None],
    shop: StripeEmulator,
    settings: Settings,
    acme: Organization,
) -> None:
    settings.SECURE_CSP = {**settings.SECURE_CSP, "form-action": ["'self'"]}
    watched.expect("form-action")
    login(owner_of(acme))
    page.goto("/dashboard/billing")
    page.get_by_role("button", name="Add a card").click()
    page.wait_for_timeout(1000)
    assert page.url.endswith("/dashboard/billing")


PAGES = ("", "/movements", "/invoices", "/budgets", "/alerts")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_a_phone_in_both_languages_and_colours(
    path: str,
    page: Page,
    login: Callable[[User], None],
    shop: StripeEmulator,
    acme: Organization,
    live_key: NewKey,
) -> None:
    owner = owner_of(acme)
    for holder in (
        Holder(scopes.KEY, live_key.row.family),
        Holder(scopes.TAG, "w" * 40),
        Holder(scopes.ORGANIZATION),
    ):
        limits.set_budget(
            acme,
            holder,
            Period.MONTH,
            limit_micro=1_000_000_000,
            limit_images=100_000,
            actor=owner,
        )
    raising.raise_alert(acme, "recharge_failed", "one", amount_usd="25.00", reason="Your card.")
    login(owner)
    page.set_viewport_size(PHONE)
    for language in ("ES", "EN"):
        page.goto(f"/dashboard/billing{path}")
        page.locator(".languages").get_by_role("button", name=language).click()
        expect(page.locator("html")).to_have_attribute("lang", language.lower())
        for colours in ("light", "dark"):
            page.emulate_media(color_scheme=colours)  # type: ignore[arg-type]
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            assert re.search(r"\S", page.locator("h1").inner_text())
