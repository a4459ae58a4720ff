"""The pages for staff in a browser, under their own policy: light, dark, and on a phone."""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page, expect

from accounts.models import Organization, User
from billing import reconciliation
from billing.spending import ledger
from geekhub.staff.site import PAGES
from tests.browser.chromium import DESKTOP, PHONE
from tests.browser.conftest import Watched
from tests.factories import KeyFactory
from tests.images.requests import IMAGEN, make_request
from tests.pages.staff import staff

# Where the pictures go when somebody wants to look at them.
PICTURES = os.environ.get("STAFF_PICTURES")


@pytest.fixture
def boss(login: Callable[[User], None], acme: Organization) -> User:
    user = staff()
    login(user)
    key = KeyFactory(organization=acme).row
    now = timezone.now()
    for day in range(12):
        make_request(key, now - timedelta(days=day), delivered=1 + day * 5 % 4)
    make_request(key, now - timedelta(days=1), model=IMAGEN, delivered=2)
    make_request(key, now, model=IMAGEN, error="provider_unavailable")
    reconciliation.internal(now=now)
    return user


def take(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_list_and_the_figures_are_drawn(
    scheme: str, page: Page, boss: User, acme: Organization
) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto("/staff/")
    expect(page.get_by_text("Revenue", exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name="Organizations")).to_be_visible()
    take(page, f"platform-{scheme}")
    for model, _ in PAGES:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        page.goto(reverse(f"admin:{name}_changelist"))
        expect(page.locator("#changelist")).to_be_visible()
        take(page, f"{name}-{scheme}")
    page.goto(reverse("admin:accounts_organization_change", args=[acme.pk]))
    expect(page.get_by_role("link", name="Credit limit…")).to_be_visible()
    take(page, f"organization-{scheme}")
    for model in ("images_generation", "accounts_apikey"):
        page.goto(reverse(f"admin:{model}_changelist"))
        page.locator("#result_list th a, #result_list td a").first.click()
        take(page, f"{model}-one-{scheme}")


def test_a_phone_needs_no_scrolling_sideways(page: Page, boss: User, acme: Organization) -> None:
    page.set_viewport_size(PHONE)
    for path in (
        "/staff/",
        reverse("admin:billing_difference_changelist"),
        reverse("admin:accounts_organization_change", args=[acme.pk]),
        reverse("admin:accounts_organization_change", args=[acme.pk]).replace("change", "refund"),
    ):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        take(page, f"phone-{path.strip('/').replace('/', '-')}")
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, path
    page.set_viewport_size(DESKTOP)


def test_a_refund_and_a_look_at_the_customer_s_pages(
    page: Page, watched: Watched, boss: User, acme: Organization
) -> None:
    watched.expect("400 (Bad Request)")
    before = ledger.balance(acme).balance_micro
    page.goto(reverse("admin:accounts_organization_changelist"))
    page.get_by_role("link", name="Acme").first.click()
    page.get_by_role("link", name="Refund…").click()
    page.get_by_label("Amount, USD").fill("0.19")
    page.get_by_label("Ticket").fill("T-4711")
    page.get_by_label("Reason").fill("drawn upside down")
    take(page, "refund")
    page.get_by_role("button", name="Refund").click()
    expect(page.get_by_text("Tick this to confirm.")).to_be_visible()
    assert ledger.balance(acme).balance_micro == before
    page.get_by_label("Yes, do it now").check()
    page.get_by_role("button", name="Refund").click()
    expect(page.get_by_text("$0.19 was added to the balance.")).to_be_visible()
    assert ledger.balance(acme).balance_micro == before + 190_000

    page.get_by_role("link", name="View as customer…").click()
    page.get_by_label("Reason").fill("cannot find the invoice")
    page.get_by_label("Yes, do it now").check()
    page.get_by_role("button", name="View as customer").click()
    expect(page.get_by_text("Staff view: you see Acme")).to_be_visible()
    take(page, "looking")
    page.get_by_role("button", name="Exit customer view").click()
    expect(page).to_have_url(re.compile(f"/staff/accounts/organization/{acme.pk}/change/"))
