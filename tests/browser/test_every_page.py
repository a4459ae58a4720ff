"""Every page: axe finds nothing serious, it fits a phone in both languages, it is light to load.

Each page is loaded twice, once for each language, and looked at in both colours. A new page fails
`test_no_page_is_forgotten` until it is listed here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from allauth.account.forms import default_token_generator
from allauth.account.utils import user_pk_to_url_str
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP
from axe_playwright_python.base import AXE_SCRIPT
from django.conf import settings as django_settings
from django.template.loader import render_to_string
from django.urls import get_resolver, reverse
from playwright.sync_api import BrowserContext, Page, expect
from pytest_django.fixtures import Settings

from accounts import keys, members
from accounts.keys import NewKey
from accounts.models import Organization, Role, User
from billing.alerts import raising
from billing.models import BillingAccount, Budget, LedgerEntry, Period, scopes
from billing.models.scopes import Holder
from billing.spending import limits
from billing.stripe import invoices
from billing.stripe.client import Stripe
from geekhub.staff.site import PAGES
from images.models import Generation, GenerationStatus, Image
from tests.billing.buyer import Buyer, sell
from tests.browser.chromium import DESKTOP, PHONE
from tests.browser.conftest import Watched
from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.pages import member_of, owner_of
from tests.pages.staff import staff
from tests.pages.test_walk import walk
from tests.server import Api, AppServer

MOST_BYTES = 150_000
FLUX = "fal/flux-1.1-pro"
THREE = (FLUX, "openai/gpt-image-2", "google/gemini-3-pro-image")
PASSWORD = "correct horse battery"

WORK = (
    *("dashboard", "welcome", "organization_new", "usage", "usage_detail"),
    *("gallery", "gallery_picture", "gallery_delete", "playground"),
    *("keys", "key_new", "key_rotate"),
)
SETTINGS = ("settings", "settings_members", "settings_audit")
BILLING = (
    *("billing", "billing_movements", "billing_invoices", "billing_invoice", "billing_line"),
    *("billing_budgets", "billing_budget", "billing_alerts"),
)
ACCOUNT = (
    *("account_email", "account_change_password", "account_reauthenticate", "mfa_index"),
    *("mfa_activate_totp", "mfa_list_webauthn", "mfa_add_webauthn", "usersessions_list"),
    "socialaccount_connections",
)
ENTRANCE = (
    *("login", "account_signup", "account_reset_password", "account_reset_password_done"),
    *("account_reset_password_from_key", "account_reset_password_from_key_done", "invitation"),
    *("account_inactive", "socialaccount_login_cancelled"),
)
ERRORS = ("socialaccount_login_error",)
# Where people are most of the time.
MAIN = {
    *("dashboard", "playground", "gallery", "usage", "usage_detail", "keys", "key_new"),
    *("settings_members", "billing", "billing_invoices", "login"),
}
# Answers to forms, files, and addresses that lead on to one of the pages.
NO_PAGES = {
    *("key_revoke", "key_resume", "playground_draw", "playground_results", "playground_code"),
    *("usage_export", "gallery_zip", "picture_thumbnail", "organization_switch", "settings_leave"),
    *("settings_member_role", "settings_member_remove", "settings_member_owner"),
    *("settings_invitation_revoke", "billing_card", "billing_portal", "billing_recharge"),
    *("billing_automatic", "billing_return", "billing_movements_csv", "billing_invoice_csv"),
    *("billing_invoice_pdf", "billing_invoice_stripe", "billing_line_csv"),
    *("billing_budget_remove", "billing_alerts_warning", "billing_alerts_endpoint"),
    *(
        "billing_alerts_endpoint_remove",
        "billing_alerts_test",
        "account_login",
        "account_logout",
        "account_set_password",
    ),
    *("account_email_verification_sent", "account_confirm_login_code", "account_confirm_email"),
    *("mfa_authenticate", "mfa_reauthenticate", "mfa_reauthenticate_webauthn"),
    *("mfa_login_webauthn", "mfa_download_recovery_codes", "socialaccount_signup"),
}
# With a second factor, see `test_the_pages_of_two_factors`.
FACTORS = {
    *("mfa_view_recovery_codes", "mfa_generate_recovery_codes", "mfa_deactivate_totp"),
    *("mfa_edit_webauthn", "mfa_remove_webauthn"),
}


def test_no_page_is_forgotten() -> None:
    listed = {*WORK, *SETTINGS, *BILLING, *ACCOUNT, *ENTRANCE, *ERRORS, *NO_PAGES, *FACTORS}
    found = {
        one.name
        for route, one in walk(get_resolver().url_patterns)
        if route.startswith(("dashboard", "accounts/", "invitations/", "login")) and one.name
    }
    assert found - listed == set()
    assert listed - found == set()


# --- What there is to see -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _open(settings: Settings) -> None:
    settings.OPEN_FOR_SIGNUP = True
    settings.MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = True


@dataclass
class Things:
    """Acme with something of everything; `places` has the arguments of the pages' URLs."""

    owner: User
    viewer: User
    places: dict[str, list[Any]] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)

    def url(self, name: str) -> str:
        """Return the address of a page."""
        return reverse(name, args=self.places.get(name)) + self.queries.get(name, "")


@pytest.fixture
def things(site: AppServer, acme: Organization, live_key: NewKey, test_key: NewKey) -> Things:
    """Pictures, a refusal, keys of every kind, people, an invitation, budgets, alerts."""
    owner, viewer = owner_of(acme), member_of(acme, Role.VIEWER)
    with (api := Api(site.origin, live_key.secret)).http:
        api.draw(prompt="a red kite", model=FLUX, n=2).raise_for_status()
    with (api := Api(site.origin, test_key.secret)).http:
        assert api.draw(prompt="sandbox:refuse of a kite", model=FLUX).status_code == 400
    tagged = keys.create(acme, "a-rather-long-name-of-a-key", tags=["web", "production"])
    keys.pause(tagged.row, "It spent 2.00 USD within an hour.")
    keys.revoke(keys.create(acme, "old").row, actor=owner)
    invited = members.invite(acme, "nina@new.test", Role.DEVELOPER, actor=owner)
    for holder in (
        Holder(scopes.KEY, live_key.row.family),
        Holder(scopes.MEMBER, viewer.pk),
        Holder(scopes.TAG, "web"),
        Holder(scopes.ORGANIZATION),
    ):
        limits.set_budget(
            acme, holder, Period.DAY, limit_micro=50_000_000, limit_images=100, actor=owner
        )
    raising.raise_alert(acme, "recharge_failed", "one", amount_usd="25.00", reason="Your card.")
    drawn = Generation.objects.get(status=GenerationStatus.SUCCEEDED)
    reference = Image.objects.filter(generation=drawn)[0].reference
    places: dict[str, list[Any]] = {
        "usage_detail": [drawn.request_id],
        "gallery_picture": [reference],
        "key_rotate": [live_key.row.pk],
        "billing_budget": [Budget.objects.filter(organization=acme).earliest("pk").pk],
        "invitation": [invited.token],
    }
    return Things(owner, viewer, places, {"gallery_delete": f"?picture={reference}"})


# --- How it is looked at ------------------------------------------------------------------------

# Moderate findings are a matter of taste; these keep somebody out.
SERIOUS = {"serious", "critical"}
AXE = """async (rules) => {
    const found = await axe.run(document, {resultTypes: ["violations"], ...rules});
    return found.violations.flatMap((one) => one.nodes.map((node) => (
        {impact: node.impact, text: `${one.id}: ${node.target.join(" ")}: ${node.failureSummary}`}
    )));
}"""
# What the page took before its pictures, as many bytes as were sent.
TAKEN = """() => [...performance.getEntriesByType("navigation"),
    ...performance.getEntriesByType("resource")]
    .filter((one) => !one.name.includes("/storage/"))
    .reduce((sum, one) => sum + one.encodedBodySize, 0)"""

# What a phone shows only to who moves it sideways, or not at all: tabs, the name of the
# organization, and rows that are made to fit.
HIDDEN = """() => [
    ...[...document.querySelectorAll(".tabs a")].filter((one) => {
        const {left, right} = one.getBoundingClientRect();
        const bar = one.parentElement.getBoundingClientRect();
        return left < Math.max(0, bar.left) || right > Math.min(innerWidth, bar.right);
    }),
    ...[...document.querySelectorAll(".switcher summary .cut, .table-box:has(.stacks)")]
        .filter((one) => one.scrollWidth > one.clientWidth),
].map((one) => one.innerText.slice(0, 40))"""


class Look:
    """Looks at one page after another and writes down what is wrong with them."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page, self.origin = page, origin
        self.wrong: dict[str, list[str]] = {}
        page.emulate_media(reduced_motion="reduce")

    def load(self, path: str, language: str = "en", status: int = 200) -> None:
        """Open the page in a language."""
        name = django_settings.LANGUAGE_COOKIE_NAME
        self.page.context.add_cookies([{"name": name, "value": language, "url": self.origin}])
        answer = self.page.goto(path)
        assert answer is not None
        self.note(path, answer.status == status, f"answers {answer.status}")
        self.note(path, self.path == path, f"leads to {self.page.url}")

    @property
    def path(self) -> str:
        """Where the browser is, without the origin."""
        return self.page.url.removeprefix(self.origin)

    def note(self, path: str, good: bool, words: str) -> None:
        """Write down what is not good."""
        if not good:
            self.wrong.setdefault(path, []).append(words)

    def axe(self, path: str, state: str = "", **rules: Any) -> None:
        """Write down what axe finds on the page as it is."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE_SCRIPT)
        for one in self.page.evaluate(AXE, rules):
            words = " ".join(one["text"].split())
            self.note(path, one["impact"] not in SERIOUS, f"{state}: {one['impact']}: {words}")

    def fits(self, path: str, state: str) -> None:
        """Write it down when the page is wider than the screen."""
        wide = "document.documentElement.scrollWidth > innerWidth"
        self.note(path, not self.page.evaluate(wide), f"{state}: wider than the screen")
        for words in self.page.evaluate(HIDDEN):
            self.note(path, False, f"{state}: out of sight: {words}")

    def at(
        self,
        path: str,
        *,
        status: int = 200,
        phone: bool = False,
        before: Callable[[], None] = lambda: None,
        opened: Callable[[], None] | None = None,
    ) -> None:
        """Look at a page in all its forms.

        With `phone`, axe looks at all of it on a phone too, not only at its colours. `before` puts
        something on it, `opened` opens what stands in front of it.
        """
        self.page.set_viewport_size(DESKTOP)
        self.page.emulate_media(color_scheme="light")
        self.load(path, status=status)
        taken = self.page.evaluate(TAKEN)
        self.note(path, 10_000 < taken < MOST_BYTES, f"takes {taken} bytes")
        before()
        self.note(path, self.page.locator("h1:visible").count() == 1, "has not one h1")
        self.axe(path, "light")
        self.page.emulate_media(color_scheme="dark")
        if not phone:
            self.axe(path, "dark", runOnly=["color-contrast"])
        self.page.set_viewport_size(PHONE)
        if phone:
            self.axe(path, "dark, phone")
        self.fits(path, "en")
        if opened is not None:
            opened()
            self.axe(path, "opened")
        self.load(path, "es", status)
        self.note(path, self.page.locator("html").get_attribute("lang") == "es", "is not Spanish")
        self.fits(path, "es")


@pytest.fixture
def look(page: Page, site: AppServer) -> Iterator[Look]:
    """Look at pages; the test fails with all that is wrong with all of them."""
    looks = Look(page, site.origin)
    yield looks
    if looks.wrong:
        words = (f"{path}: {one}" for path, found in looks.wrong.items() for one in found)
        pytest.fail("\n".join(words))


# --- The pages ----------------------------------------------------------------------------------


def test_axe_is_at_work(page: Page) -> None:
    looks = Look(page, "")
    page.set_content("<main><h1>Hello</h1><p style='color: #ccc'>Pale</p><img src='data:,'></main>")
    looks.axe("it")
    assert {"color-contrast", "image-alt"} <= {one.split(": ")[2] for one in looks.wrong["it"]}


def test_work(look: Look, page: Page, login: Callable[[User], None], things: Things) -> None:
    login(things.owner)

    def draw() -> None:
        page.get_by_label("Prompt").fill("a red kite over the sea")
        for box in page.locator("input[name=models]").all():
            box.set_checked(box.get_attribute("value") in THREE)
        page.get_by_label("Sandbox: free").check()
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("article[data-state=succeeded]")).to_have_count(3)
        expect(page.locator("#code pre").first).to_be_visible()

    def revoke() -> None:
        page.get_by_role("button", name="Revoke").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()

    def enlarge() -> None:
        page.locator("a.frame").first.click()
        expect(page.get_by_role("dialog", name="Image")).to_be_visible()

    for name in WORK:
        before = draw if name == "playground" else lambda: None
        opened = {"keys": revoke, "gallery": enlarge}.get(name)
        look.at(things.url(name), phone=name in MAIN, before=before, opened=opened)
    # A key, shown once: it has no address of its own.
    page.set_viewport_size(DESKTOP)
    look.load("/dashboard/keys/new")
    page.get_by_label("Name").fill("fresh")
    page.get_by_role("button", name="Create key").click()
    expect(page.locator("#secret")).to_be_visible()
    look.axe("a new key")


def test_settings(look: Look, page: Page, login: Callable[[User], None], things: Things) -> None:
    login(things.owner)

    def menus() -> None:
        page.locator(".nav-open").click()
        page.locator("summary", has_text="Your account").click()
        expect(page.get_by_role("button", name="Log out")).to_be_visible()

    for name in SETTINGS:
        opened = menus if name == "settings" else None
        look.at(things.url(name), phone=name in MAIN, opened=opened)


def test_an_organization_without_anything(
    look: Look, login: Callable[[User], None], acme: Organization
) -> None:
    login(owner_of(acme))
    for name in ("dashboard", "usage", "gallery", "keys", "billing", "billing_invoices"):
        look.at(reverse(name))


def test_billing(
    look: Look,
    login: Callable[[User], None],
    stripe_account: StripeEmulator,
    stripe: Stripe,
    things: Things,
    live_key: NewKey,
) -> None:
    buyer = Buyer(stripe_account, sell(Shop(stripe_account), [FLUX]), live_key.row)
    BillingAccount.objects.filter(pk=buyer.organization.pk).update(
        card_brand="visa", card_last4="4242"
    )
    for entry in LedgerEntry.objects.filter(kind="consumption"):
        buyer.meter(entry)
    buyer.subscribed(period_end=buyer.now + timedelta(days=9))
    buyer.end_month()
    buyer.collect()
    invoice = invoices.mirror(stripe, buyer.latest()["id"], now=buyer.now)
    assert invoice is not None
    price = buyer.sold[FLUX].price
    line = next(one["id"] for one in invoice.lines if one["price"] == price)
    things.places["billing_invoice"] = [invoice.stripe_id]
    things.places["billing_line"] = [invoice.stripe_id, line]
    login(things.owner)
    for name in BILLING:
        look.at(things.url(name), phone=name in MAIN)


def by_password(page: Page, user: User, leads_to: str = "**/dashboard") -> None:
    """Log in by the page, which the pages of one's own account ask for."""
    page.goto("/login")
    page.locator("input[name=login]").fill(user.email)
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("input[name=password]").press("Enter")
    page.wait_for_url(leads_to)


def prove_again(page: Page) -> None:
    """Give the password once more, which the pages of factors ask for."""
    page.goto("/accounts/reauthenticate/?next=/dashboard")
    page.locator("main input[name=password]").fill(PASSWORD)
    page.locator("main input[name=password]").press("Enter")
    page.wait_for_url("**/dashboard")


def test_ones_own_account(look: Look, page: Page, things: Things) -> None:
    by_password(page, things.owner)
    prove_again(page)
    for name in ACCOUNT:
        look.at(things.url(name))


def test_the_pages_of_two_factors(
    look: Look, page: Page, context: BrowserContext, acme: Organization
) -> None:
    owner = owner_of(acme)
    by_password(page, owner)
    prove_again(page)
    TOTP.activate(owner, "JBSWY3DPEHPK3PXP")
    RecoveryCodes.activate(owner)
    passkey = Authenticator.objects.create(
        user=owner, type=Authenticator.Type.WEBAUTHN, data={"name": "Phone", "credential": {}}
    )
    for name in sorted(FACTORS):
        look.at(reverse(name, args=[passkey.pk] if "webauthn" in name else None))
    look.at(reverse("mfa_index"))
    look.at(reverse("mfa_list_webauthn"))
    passkey.delete()
    context.clear_cookies()
    by_password(page, owner, "**/accounts/2fa/authenticate/**")
    look.axe("the second factor")


def test_the_entrance(look: Look, things: Things) -> None:
    key = f"{user_pk_to_url_str(things.owner)}-{default_token_generator.make_token(things.owner)}"
    # The mail's link leads on to a form, with its secret in the session.
    look.page.goto(f"/accounts/password/reset/key/{key}/")
    form = look.path
    assert form.endswith("-set-password/")
    for name in ENTRANCE:
        path = form if name == "account_reset_password_from_key" else things.url(name)
        look.at(path, phone=name in MAIN)


def test_staff(look: Look, page: Page, login: Callable[[User], None], things: Things) -> None:
    login(staff())
    names = (f"{model._meta.app_label}_{model._meta.model_name}" for model, _ in PAGES)
    organization = things.owner.organizations.get()
    change = reverse("admin:accounts_organization_change", args=[organization.pk])
    lists = [reverse(f"admin:{name}_changelist") for name in names]
    for path in ("/staff/", *lists, change, change.replace("change", "refund")):
        page.emulate_media(color_scheme="light")
        look.load(path)
        look.axe(path, "light")
        page.emulate_media(color_scheme="dark")
        look.axe(path, "dark", runOnly=["color-contrast"])


def test_errors(
    look: Look, page: Page, watched: Watched, login: Callable[[User], None], things: Things
) -> None:
    watched.expect("status of 4", "status of 5", "500:")
    look.at(reverse("socialaccount_login_error"), status=401)
    look.at("/nothing-here", status=404)
    look.at("/invitations/nothing", status=410)
    login(things.viewer)
    look.at("/dashboard/settings/audit", status=403)
    look.at("/dashboard/nothing", status=404)
    # Nobody comes to these by an address.
    for template, status in (("403_csrf.html", 403), ("429.html", 429), ("500.html", 500)):
        answer(page, f"/{template}", status, render_to_string(template))
        page.set_viewport_size(PHONE)
        look.load(f"/{template}", status=status)
        look.axe(template)
        look.fits(template, "phone")


def answer(page: Page, path: str, status: int, text: str) -> None:
    """Let the browser find a text at a path."""
    html = "text/html; charset=utf-8"
    page.route(
        f"**{path}", lambda route: route.fulfill(status=status, body=text, content_type=html)
    )
