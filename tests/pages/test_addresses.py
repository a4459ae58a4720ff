"""Every page has one address; what differs by a slash, or is old, leads there. And filters."""

import re

import pytest
from django.test import Client
from django.urls import get_resolver, reverse

from accounts.models import Organization, Role
from tests.pages import log_in, member_of, owner_of
from tests.pages.rich import fill
from tests.pages.staff import staff
from tests.pages.test_walk import address, walk

PAGES = [
    (route, one)
    for route, one in walk(get_resolver().url_patterns)
    if one.name and route.startswith(("dashboard", "accounts/", "login", "logout", "staff/"))
]
# What leads on under another name.
ALIASES = {"accounts/login/": "/login", "accounts/logout/": "/logout"}


def test_each_page_is_found_with_a_slash_and_without(acme: Organization, client: Client) -> None:
    log_in(client, owner_of(acme))
    found: dict[str, str] = {}
    for route, _ in PAGES:
        path = re.sub(r"<[^>]+>", "1", address(route, acme))
        if route.endswith("$") or "(?P" in route:
            continue
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        answer = client.get(f"{other}?a=1&b=%2F")
        if (answer.status_code, answer.get("location")) != (301, f"{path}?a=1&b=%2F"):
            found[other] = f"{answer.status_code} {answer.get('location')}"
        # A form is not sent on: it would arrive empty.
        if client.post(other).status_code != 404:
            found[f"POST {other}"] = "is not 404"
    assert found == {}
    assert len(PAGES) > 100


@pytest.mark.parametrize(
    ("old", "page"),
    [
        ("/dashboard/", "/dashboard"),
        ("/login/", "/login"),
        ("/accounts/login/", "/login"),
        ("/accounts/login/?next=/dashboard/keys", "/login?next=/dashboard/keys"),
        ("/accounts/logout/", "/logout"),
        ("/accounts/signup", "/accounts/signup/"),
        ("/signup", "/accounts/signup/"),
        ("/signup/", "/signup"),
        ("/staff/accounts/organization", "/staff/accounts/organization/"),
    ],
)
@pytest.mark.django_db
def test_an_old_address_leads_to_the_page(old: str, page: str, client: Client) -> None:
    for answer in (client.get(old), client.head(old)):
        assert (answer.status_code, answer["location"]) == (301, page)


@pytest.mark.django_db
def test_the_log_in_has_one_address(client: Client) -> None:
    assert reverse("account_login") == reverse("login") == "/login"
    assert reverse("account_logout") == reverse("logout") == "/logout"
    assert 'action="/login"' in client.get("/login").text


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path", ["/nothing", "/nothing/", "//evil.test/", "//login/", "/dashboard//", "/login//x"]
)
def test_nobody_is_led_to_what_is_not_there(path: str, client: Client) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 or answer["location"] in ("/dashboard", "/login")


# --- The end of a log-in ------------------------------------------------------------------------


def test_staff_without_an_organization_land_on_their_pages(
    acme: Organization, client: Client
) -> None:
    log_in(client, staff())
    assert client.get("/dashboard")["location"] == "/staff/"
    assert 'href="/staff/"' in client.get("/accounts/email/").text
    log_in(client, owner_of(acme))
    assert 'href="/staff/"' not in client.get("/dashboard").text


# --- Filters ------------------------------------------------------------------------------------

DAYS = ("0001-01-01", "0001-01-02", "1999-12-31", "9998-12-31", "9999-12-31", "0000-00-00")
OTHERS = (
    "-1", "0", "1e400", "9" * 23, "%00", "%ED%A0%80", "' OR 1=1", "x" * 5000, "%D9%A3",
)  # fmt: skip
# The pages with filters, pages or places, and what is asked of them.
FILTERS = {
    "": ("kind",),
    "/usage": ("since", "until", "key", "model", "status", "tag", "q", "before"),
    "/usage/export.csv": ("since", "until", "key", "model", "status", "tag"),
    "/gallery": ("q", "model", "key", "since", "until", "after"),
    "/gallery/zip": ("picture",),
    "/gallery/delete": ("picture",),
    "/playground": ("model",),
    "/playground/results": ("id",),
    "/settings/audit": ("page",),
    "/billing/movements": ("kind", "before"),
    "/billing/movements.csv": ("kind",),
    "/billing/invoices": ("page",),
    "/billing/return": ("session", "left"),
}


def asked_of(text: str) -> set[str]:
    """Return what the filters of a page are called, and the parameters of its links."""
    forms = re.findall(r"<form[^>]*method=\"get\".*?</form>", text, re.DOTALL)
    fields = {name for form in forms for name in re.findall(r'name="(\w+)"', form)}
    return (fields | set(re.findall(r"[?&;](\w+)=", text))) - {"organization"}


def test_every_filter_is_known(acme: Organization, client: Client) -> None:
    fill(acme)
    log_in(client, owner_of(acme))
    for path in FILTERS:
        answer = client.get(f"/dashboard{path}")
        if answer.status_code == 200 and not answer.streaming:
            everywhere = {name for names in FILTERS.values() for name in names}
            assert asked_of(answer.text) - everywhere == set(), path


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_no_filter_is_too_extreme(zone: str, acme: Organization, client: Client) -> None:
    log_in(client, owner_of(acme))
    client.cookies["timezone"] = zone
    failed = []
    for page, names in FILTERS.items():
        for name in names:
            queries = [f"{name}={value}" for value in DAYS]
            if name in ("since", "until"):
                queries += [f"{one}&q=x" for one in queries]
            if zone == "Etc/GMT+12":
                queries += [f"{name}={value}" for value in OTHERS]
            for query in queries:
                answer = client.get(f"/dashboard{page}?{query}")
                if answer.status_code >= 500:
                    failed.append(f"{page}?{query}")
                elif answer.streaming:
                    answer.getvalue()
    assert failed == []


@pytest.mark.parametrize("query", ["until=9999-12-31", "q=x&until=0001-01-02", "since=1999-12-31"])
def test_a_day_nobody_can_reckon_with_is_said_to_be_one(
    query: str, acme: Organization, client: Client
) -> None:
    log_in(client, owner_of(acme))
    for path in ("gallery", "usage"):
        assert "Choose a day in 2000 or later." in client.get(f"/dashboard/{path}?{query}").text


def test_a_key_does_not_outlive_the_calendar(acme: Organization, client: Client) -> None:
    log_in(client, member_of(acme, Role.DEVELOPER))
    form = client.get("/dashboard/keys/new").context["form"]
    once = form["once"].value()
    sent = {"once": once, "name": "x", "kind": "test", "budget_period": "month"}
    answer = client.post("/dashboard/keys/new", {**sent, "expires_on": "9999-12-31"})
    assert "Choose a day in 2000 or later." in answer.text
    assert acme.api_keys.count() == 0
