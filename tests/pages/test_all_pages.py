"""Every page of the URL map as each person, in both languages: values for people, one lit entry."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.test import Client
from django.urls import get_resolver, reverse
from django.utils import translation
from pytest_django.fixtures import Settings

from accounts.models import Organization, Role, User
from geekhub.staff.site import PAGES
from tests.pages import log_in, member_of, owner_of
from tests.pages.rich import Rich, fill
from tests.pages.staff import staff
from tests.pages.test_walk import walk

ROUTES = [
    (route, one)
    for route, one in walk(get_resolver().url_patterns)
    if one.name and route.startswith(("dashboard", "accounts/", "invitations/", "login", "logout"))
]
# Of an organization that one does not belong to yet, and the way out.
UNLIT = {"invitation", "logout", "account_logout"}
# What takes rows that there are none of here, or is no page of a person's own.
ELSEWHERE = {
    *("settings_member_role", "settings_member_remove", "settings_member_owner"),
    *("settings_invitation_revoke", "key_revoke", "key_resume", "billing_budget_remove"),
    *("billing_invoice_pdf", "billing_invoice_stripe", "account_reset_password_from_key"),
    *("account_confirm_email", "mfa_edit_webauthn", "mfa_remove_webauthn"),
}
# What code prints and people do not write: as a whole text or as a value in one, and ISO times.
PYTHON = re.compile(
    r"(?:^|[:=(\[,→] ?)(?:True|False|None)(?:$|[,)\]])|\['|\{'|\[\]|datetime|<\w+ object"
    r"|object at 0x|Decimal\(|\d\dT\d\d:\d\d|\+00:00|__proxy__"
)
SHOWN = re.compile(r"\b(?:title|alt|aria-label|placeholder)=\"([^\"]*)\"")


def texts(page: str) -> Iterator[str]:
    """Yield what a page shows, piece by piece, also on hovering and to screen readers."""
    # What is in <pre> is a program.
    page = re.sub(r"<(script|style|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
    yield from SHOWN.findall(page)
    for part in re.split(r"<[^>]*>", page):
        if text := " ".join(part.split()):
            yield text.replace("&#x27;", "'").replace("&quot;", '"').replace("&lt;", "<")


def wrong(page: str) -> list[str]:
    """Return what only a program would say."""
    return [text for text in texts(page) if PYTHON.search(text)]


def test_what_only_a_program_would_say_is_found() -> None:
    for said in ("True", "listed: False", "['req_1-0']", "{'a': 1}", "a → None", "[]",
                 "2026-11-28T07:58:45", "2026-11-28 07:58:45+00:00", "Decimal('1')",
                 "<object object at 0x1>", "datetime.datetime(2026, 11, 28)"):  # fmt: skip
        assert wrong(f"<p>x</p><b title='y'>{said.replace('<', '&lt;')}</b>"), said
        assert wrong(f'<b title="{said}">y</b>'), said
    for said in ("Select none to allow all.", "None of the models delivered", "2026-11-28 07:58",
                 '{"model": true}', "[x]", "True colours"):  # fmt: skip
        assert wrong(f"<script>None</script><b>{said}</b>") == [], said


def lit(page: str) -> int:
    """Return how many entries around the page are lit; tabs on it are not looked at."""
    page = re.sub(r"<nav class=\"tabs\".*?</nav>", "", page, flags=re.DOTALL)
    return page.count('aria-current="page"')


def visit(client: Client, rich: Rich) -> Iterator[tuple[str, str]]:
    """Yield each page that opens, by its name, and its text."""
    for route, one in ROUTES:
        if one.name in ELSEWHERE:
            continue
        assert "<" not in route or one.name in rich.places, f"{one.name} needs a place in rich.py"
        path = reverse(one.name, args=rich.places.get(one.name)) + rich.queries.get(one.name, "")
        answer: Any = client.get(path)
        assert answer.status_code < 500, path
        if answer.status_code == 200 and answer["content-type"].startswith("text/html"):
            yield one.name, answer.text


PEOPLE = {"owner": Role.OWNER, "developer": Role.DEVELOPER, "viewer": Role.VIEWER}


@pytest.fixture
def rich(acme: Organization, client: Client, settings: Settings) -> Rich:
    settings.OPEN_FOR_SIGNUP = True
    settings.MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = True
    return fill(acme)


def person(client: Client, rich: Rich, who: str) -> User:
    """Log somebody in, with the password just given, which pages of factors ask for."""
    user = owner_of(rich.organization) if who == "owner" else None
    if user is None:
        user = staff() if who == "staff" else member_of(rich.organization, PEOPLE[who])
    log_in(client, user)
    client.post(reverse("account_reauthenticate"), {"password": "correct horse battery"})
    return user


@pytest.mark.parametrize(
    ("who", "language", "least"),
    [("owner", "en", 40), ("owner", "es", 40), ("developer", "es", 30), ("viewer", "en", 25),
     ("staff", "es", 10)],
)  # fmt: skip
def test_every_page_shows_values_for_people_and_one_lit_entry(
    who: str, language: str, least: int, client: Client, rich: Rich, settings: Settings
) -> None:
    found: dict[str, Any] = {}
    person(client, rich, who)
    client.cookies[settings.LANGUAGE_COOKIE_NAME] = language
    seen = 0
    for name, text in visit(client, rich):
        seen += 1
        if said := wrong(text):
            found[name] = said
        if lit(text) != 1 and name not in UNLIT | (
            {"organization_new"} if who == "staff" else set()
        ):
            found[name] = f"{lit(text)} lit"
    assert found == {}
    assert seen >= least


def test_the_pages_for_staff_show_values_for_people(
    client: Client, rich: Rich, settings: Settings
) -> None:
    log_in(client, staff())
    found: dict[tuple[str, str], Any] = {}
    for language in ("en", "es"):
        client.cookies[settings.LANGUAGE_COOKIE_NAME] = language
        for path in staff_pages():
            answer = client.get(path)
            assert answer.status_code == 200, path
            # Staff see lists as they are stored, JSON, also empty ones.
            if said := [one for one in wrong(answer.text) if one != "[]"]:
                found[(language, path)] = said
    assert found == {}


def staff_pages() -> Iterator[str]:
    """Yield every list and the page of a row of each."""
    yield reverse("admin:index")
    for model, _ in PAGES:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        yield reverse(f"{name}_changelist")
        row = model._default_manager.latest("pk")
        shown = getattr(row, "request_id", "") if model.__name__ == "Generation" else row.pk
        yield reverse(f"{name}_change", args=[quote(shown)])


# --- Staff in Spanish ---------------------------------------------------------------------------

HEADINGS = re.compile(
    r"<(?:h1|h2|h3|th|label|caption|summary|legend|option|button|a)\b[^>]*>(.*?)</"
    r"(?:h1|h2|h3|th|label|caption|summary|legend|option|button|a)>|"
    r"<title>(.*?)</title>|class=\"[^\"]*font-semibold[^\"]*\"[^>]*>([^<]+)<",
    re.DOTALL,
)


# The same in both languages.
SAME = {"id", "error", "subtotal", "n", "prompt", "playground", "sku"}


def english() -> set[str]:
    """Return what the models and their fields are called in English, as Django writes it."""
    found = set()
    for model, _ in PAGES:
        options = model._meta
        names = [options.model_name or "", options.verbose_name_raw]
        with translation.override("en"):
            names += [str(options.verbose_name_plural)]
            names += [str(getattr(one, "verbose_name", one.name)) for one in options.get_fields()]
        names += [one.name.replace("_", " ") for one in options.get_fields()]
        found |= {name[:1].upper() + name[1:] for name in names}
    found |= {"Accounts", "Billing", "Images"}
    return {one for one in found if one.lower() not in SAME}


def test_the_pages_for_staff_are_in_spanish(client: Client, rich: Rich, settings: Settings) -> None:
    log_in(client, staff())
    client.cookies[settings.LANGUAGE_COOKIE_NAME] = "es"
    found: dict[str, set[str]] = {}
    names = english()
    assert {"Created at", "Organization", "Slug", "Name"} <= names
    for path in staff_pages():
        text = client.get(path).text
        said = {
            " ".join(re.sub(r"<[^>]*>", " ", part).split())
            for match in HEADINGS.finditer(text)
            for part in match.groups()
            if part
        }
        if left := said & names:
            found[path] = left
    assert found == {}
