"""The ways people go through the pages: invited, a key's life, an export, the other language."""

import csv
import gettext
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from django.core.cache import cache
from playwright.sync_api import BrowserContext, Page, expect
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization, Role, User
from images.models import Generation
from images.policies.fuse import blow_fuses
from tests.browser.conftest import Watched
from tests.pages import owner_of
from tests.pages.test_fuse import USD, spend, used, usual
from tests.server import Api, AppServer

FLUX = "fal/flux-1.1-pro"
SPANISH = Path(__file__).resolve().parents[2] / "locale" / "es" / "LC_MESSAGES" / "django.mo"


def draws(site: AppServer, secret: str, prompt: str = "a red kite") -> int:
    """Return the status of a request with the key."""
    with (api := Api(site.origin, secret)).http:
        return api.draw(model=FLUX, prompt=prompt).status_code


def test_who_is_invited_comes_in_and_the_role_denies(
    page: Page,
    context: BrowserContext,
    watched: Watched,
    login: Callable[[User], None],
    acme: Organization,
) -> None:
    login(owner_of(acme))
    page.goto("/dashboard/settings/members")
    page.get_by_label("Email").fill("vera@new.test")
    page.get_by_label("Role", exact=True).select_option("viewer")
    page.get_by_role("button", name="Invite").click()
    link = urlsplit(page.locator("#invitation-link").inner_text()).path

    context.clear_cookies()
    page.goto(link)
    expect(page.get_by_role("heading", level=1)).to_have_text("Join Acme")
    page.get_by_role("link", name="Sign up").click()
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign up").click()
    page.wait_for_url("**/dashboard/welcome")
    member = acme.memberships.get(user__email="vera@new.test")
    assert member.role == Role.VIEWER

    page.goto("/dashboard/keys")
    expect(page.get_by_role("heading", level=1)).to_have_text("API keys")
    expect(page.get_by_role("link", name="Create key")).to_have_count(0)
    watched.expect("status of 403")
    for path in ("/dashboard/keys/new", "/dashboard/settings/audit", "/dashboard/billing"):
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == 403
        expect(page.get_by_role("heading", level=1)).to_have_text("You don't have access")
        expect(page.get_by_text("Your role in Acme is Viewer.")).to_be_visible()
    assert not acme.api_keys.exists()


def test_a_key_is_rotated_with_an_overlap_and_without(
    page: Page,
    site: AppServer,
    login: Callable[[User], None],
    acme: Organization,
    test_key: NewKey,
) -> None:
    login(owner_of(acme))

    def rotate(overlap: str) -> str:
        page.goto("/dashboard/keys")
        page.get_by_role("link", name="Rotate").first.click()
        page.get_by_label(overlap).check()
        page.get_by_role("button", name="Rotate").click()
        return page.locator("#secret").inner_text()

    second = rotate("one hour")
    expect(page.get_by_text("The old key works until")).to_be_visible()
    assert second != test_key.secret
    assert [draws(site, one) for one in (test_key.secret, second)] == [200, 200]
    page.goto("/dashboard/keys")
    rows = page.get_by_role("row").filter(has_text="ci-bot")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="until")).to_have_count(1)

    test_key.row.refresh_from_db()
    acme.api_keys.filter(pk=test_key.row.pk).update(revoked_at=test_key.row.created_at)
    third = rotate("not at all")
    assert [draws(site, one) for one in (second, third)] == [401, 200]


def test_a_fuse_pauses_and_one_click_resumes(
    page: Page,
    site: AppServer,
    login: Callable[[User], None],
    acme: Organization,
    live_key: NewKey,
) -> None:
    cache.clear()
    key = used(live_key.row)
    usual(key)
    spend(key, 2 * USD, hours_ago=0.5)
    assert blow_fuses() == 1
    assert draws(site, live_key.secret) == 403
    login(owner_of(acme))
    page.goto("/dashboard/keys")
    expect(page.get_by_role("heading", name="prod-web was paused automatically")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("Key prod-web resumed.")).to_be_visible()
    expect(page.get_by_role("heading", name="prod-web was paused automatically")).to_have_count(0)
    assert draws(site, live_key.secret) == 200


def test_the_export_has_what_the_filters_show(
    page: Page,
    site: AppServer,
    login: Callable[[User], None],
    acme: Organization,
    live_key: NewKey,
    test_key: NewKey,
) -> None:
    assert draws(site, live_key.secret) == 200
    assert draws(site, test_key.secret) == 200
    assert draws(site, test_key.secret, "sandbox:refuse of a kite") == 400
    login(owner_of(acme))
    page.goto("/dashboard/usage")
    expect(page.locator("table.requests tbody tr")).to_have_count(3)

    def export() -> list[dict[str, str]]:
        with page.expect_download() as download:
            page.get_by_role("link", name="Export as CSV").click()
        assert download.value.suggested_filename == "usage.csv"
        with Path(download.value.path()).open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    all_of_it = Generation.objects.order_by("-created_at", "-pk")
    assert [row["request_id"] for row in export()] == [one.request_id for one in all_of_it]
    page.get_by_label("Key").select_option(str(live_key.row.pk))
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.locator("table.requests tbody tr")).to_have_count(1)
    (row,) = export()
    assert row["request_id"] == Generation.objects.get(api_key=live_key.row).request_id


# Each text of its own, and what only a screen reader says.
TEXTS = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) found.push(walker.currentNode.data.replace(/\\s+/g, " ").trim());
    for (const name of ["aria-label", "title", "placeholder"])
        for (const one of document.querySelectorAll(`[${name}]`))
            found.push(one.getAttribute(name));
    return [...found, document.title.split(" · ")[0]];
}"""


def english(page: Page) -> set[str]:
    """Return the texts of the page that the Spanish catalogue says otherwise."""
    with SPANISH.open("rb") as file:
        catalog = gettext.GNUTranslations(file)
    return {text for text in page.evaluate(TEXTS) if text and catalog.gettext(text) != text}


def test_the_pages_in_both_languages(
    page: Page,
    site: AppServer,
    login: Callable[[User], None],
    acme: Organization,
    live_key: NewKey,
    settings: Settings,
) -> None:
    assert draws(site, live_key.secret) == 200
    login(owner_of(acme))
    headings = {"/dashboard": "Resumen", "/dashboard/keys": "Claves de API"}
    headings["/dashboard/usage"] = "Uso"
    page.goto("/dashboard")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    assert len(english(page)) > 20
    page.get_by_role("button", name="Español").click()
    for path, heading in headings.items():
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        expect(page.locator("html")).to_have_attribute("lang", "es")
        assert english(page) == set()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Usage")
