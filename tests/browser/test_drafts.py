"""What was typed survives an ended session, a token of an earlier log-in and the back button."""

import re
from collections.abc import Callable

from django.conf import settings
from playwright.sync_api import BrowserContext, Page, Route, expect

from accounts.models import ApiKey, Organization, User
from billing.models import Budget
from images.models import Generation
from tests.browser.test_playground import THREE
from tests.factories import KeyFactory
from tests.pages import owner_of
from tests.server import AppServer

PASSWORD = "correct horse battery"
NEW_KEY = "/dashboard/keys/new"
KEPT = "Log in to continue. What you typed is kept."


def end_session(context: BrowserContext) -> None:
    context.clear_cookies(name=settings.SESSION_COOKIE_NAME)


def log_in_again(page: Page, user: User, then: str) -> None:
    """Give the password on the login that a form has led to."""
    page.wait_for_url(re.compile(r"/login\?next="))
    page.locator("input[name=login]").fill(user.email)
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("input[name=password]").press("Enter")
    page.wait_for_url(f"**{then}")


def write_key(page: Page) -> None:
    page.goto(NEW_KEY)
    page.get_by_label("Name").fill("prod-web")
    page.get_by_label("Live: real models").check()
    page.get_by_label("Budget in USD").fill("25")
    page.get_by_label("Budget per").select_option("week")
    page.get_by_label(THREE[0], exact=True).check()


def test_a_key_s_form_survives_the_end_of_its_session(
    page: Page, context: BrowserContext, login: Callable[[User], None], acme: Organization
) -> None:
    owner = owner_of(acme)
    login(owner)
    write_key(page)
    end_session(context)
    page.goto("/login?next=/dashboard")
    expect(page.get_by_text(KEPT)).to_be_hidden()
    login(owner)
    write_key(page)
    end_session(context)
    page.get_by_role("button", name="Create key").click()
    expect(page.get_by_text(KEPT)).to_be_visible()
    log_in_again(page, owner, NEW_KEY)
    expect(page.get_by_label("Name")).to_have_value("prod-web")
    expect(page.get_by_label("Live: real models")).to_be_checked()
    expect(page.get_by_label("Budget in USD")).to_have_value("25")
    expect(page.get_by_label("Budget per")).to_have_value("week")
    expect(page.get_by_label(THREE[0], exact=True)).to_be_checked()
    assert ApiKey.objects.count() == 0  # nothing was sent but by the person
    page.get_by_role("button", name="Create key").click()
    expect(page.locator("#secret")).to_be_visible()
    key = ApiKey.objects.get()
    assert (key.name, key.allowed_models) == ("prod-web", [THREE[0]])

    # Sent once more by a reload it makes no second key, and behind it is an empty form.
    page.reload()
    expect(page.locator(".message")).to_contain_text("This form was already sent")
    page.go_back()
    page.goto(NEW_KEY)
    expect(page.get_by_label("Name")).to_have_value("")
    assert ApiKey.objects.count() == 1


def test_a_budget_s_form_survives_a_token_of_an_earlier_log_in(
    page: Page, context: BrowserContext, site: AppServer, login: Callable[[User], None],
    acme: Organization,
) -> None:  # fmt: skip
    KeyFactory(organization=acme)
    login(owner_of(acme))
    page.goto("/dashboard/billing/budgets")
    page.get_by_label("For").select_option(index=1)
    page.get_by_label("USD").fill("12.5")
    context.add_cookies(
        [{"name": settings.CSRF_COOKIE_NAME, "value": "x" * 32, "url": site.origin}]
    )
    page.get_by_role("button", name="Save budget").click()
    expect(page.locator(".message")).to_contain_text("The form had expired")
    assert page.url == f"{site.origin}/dashboard/billing/budgets"
    expect(page.get_by_label("USD")).to_have_value("12.5")
    assert Budget.objects.count() == 0
    page.get_by_role("button", name="Save budget").click()
    expect(page.locator(".message")).to_contain_text("Budget saved.")
    assert Budget.objects.get().limit_micro == 12_500_000
    expect(page.get_by_label("USD")).to_have_value("")


def test_the_playground_survives_the_end_of_its_session(
    page: Page, context: BrowserContext, login: Callable[[User], None], acme: Organization
) -> None:
    owner = owner_of(acme)
    login(owner)
    page.goto("/dashboard/playground")
    page.get_by_label("Prompt").fill("a red kite\nover the sea")
    for box in page.locator("input[name=models]").all():
        box.set_checked(box.get_attribute("value") in THREE)
    page.get_by_label("Images per model").select_option("2")
    page.get_by_label("Sandbox: free").check()
    end_session(context)
    page.get_by_role("button", name="Generate", exact=True).click()
    log_in_again(page, owner, "/dashboard/playground")
    expect(page.get_by_label("Prompt")).to_have_value("a red kite\nover the sea")
    expect(page.get_by_label("Images per model")).to_have_value("2")
    expect(page.get_by_label("Sandbox: free")).to_be_checked()
    expect(page.locator("input[name=models]:checked")).to_have_count(len(THREE))
    assert Generation.objects.count() == 0
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("article[data-state=succeeded]")).to_have_count(3)


def test_nobody_else_finds_what_was_typed(
    page: Page, context: BrowserContext, login: Callable[[User], None], acme: Organization,
    globex: Organization,
) -> None:  # fmt: skip
    login(owner_of(acme))
    write_key(page)
    end_session(context)
    page.get_by_role("button", name="Create key").click()
    log_in_again(page, owner_of(globex), NEW_KEY)
    expect(page.get_by_label("Name")).to_have_value("")
    assert "prod-web" not in page.evaluate("JSON.stringify(sessionStorage)")
    page.goto("/dashboard/playground")
    page.get_by_label("Prompt").fill("a secret recipe")
    assert "a secret recipe" in page.evaluate("JSON.stringify(sessionStorage)")
    page.locator("summary", has_text="Your account").click()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    kept = page.evaluate("JSON.stringify(sessionStorage)")
    assert "a secret recipe" not in kept


def test_what_is_answered_after_the_log_out_does_not_come_back(
    page: Page, site: AppServer, login: Callable[[User], None], acme: Organization
) -> None:
    asked: list[Route] = []

    def log_out(leave: Route) -> None:
        asked[0].fulfill(status=302, headers={"Location": "/login?next=/dashboard/playground"})
        leave.continue_()

    page.route("**/playground/code*", lambda route: asked.append(route))
    page.route("**/logout", log_out)
    login(owner_of(acme))
    page.goto("/dashboard/playground")
    with page.expect_request("**/playground/code*"):
        page.get_by_label("Prompt").fill("a secret recipe")
    page.locator("summary", has_text="Your account").click()
    page.get_by_role("button", name="Log out").click(no_wait_after=True)
    page.wait_for_url(f"{site.origin}/login")


def test_no_password_is_kept(page: Page, acme: Organization) -> None:
    page.goto("/login")
    page.locator("input[name=login]").fill("alice@acme.test")
    page.locator("input[name=password]").fill("wrong horse battery")
    page.locator("input[name=password]").press("Enter")
    expect(page.locator(".message:not([hidden]), .errors").first).to_be_visible()
    kept = page.evaluate("JSON.stringify(sessionStorage)")
    assert "wrong horse" not in kept
