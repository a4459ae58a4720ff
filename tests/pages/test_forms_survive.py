"""A form whose session has ended or whose token is old: back to its page, and nothing is done.

What was typed is kept by the browser, see static/drafts.js and tests/browser/test_drafts.py.
"""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from django.conf import settings as django_settings
from django.test import Client

from accounts.models import AuditEvent, Organization
from tests.pages import log_in, owner_of
from tests.pages.test_walk import GATED, address

ORIGIN = "http://testserver"


def test_a_form_of_an_ended_session_leads_back_to_where_it_was(
    acme: Organization, client: Client
) -> None:
    forms = 0
    before = AuditEvent.objects.count()
    for route, _one in GATED:
        path = address(route, acme)
        answer = client.post(path, headers={"referer": f"{ORIGIN}/dashboard/keys?a=1"})
        if answer.status_code == 405:
            continue  # no form
        forms += 1
        where = urlsplit(answer["location"])
        assert (answer.status_code, where.path) == (302, "/login"), path
        assert parse_qs(where.query) == {"next": ["/dashboard/keys?a=1"]}, path
        # Of nowhere, or of elsewhere, to a page that can be read.
        for headers in ({}, {"referer": "https://evil.test/dashboard/keys"}, {"referer": "//evil"}):
            answer = client.post(path, headers=headers)
            assert answer["location"] == "/login?next=/dashboard", path
    assert forms > 25
    # What the walk itself needs is made once; nothing else is done.
    made = AuditEvent.objects.exclude(action__in=("key.created", "member.invited")).count()
    assert made == before


def test_a_page_that_shows_a_form_can_be_read_again(acme: Organization, client: Client) -> None:
    """Such a page may be what a log-in leads back to, or where the language is changed."""
    log_in(client, owner_of(acme))
    shown = 0
    for route, _one in GATED:
        if "leave" in route:
            continue
        path = address(route, acme)
        answer = client.post(path)
        if answer.status_code in (200, 400, 422) and b'<main id="main"' in answer.content:
            shown += 1
            assert client.get(path).status_code in (200, 302), path
    assert shown > 5


# --- A token of an earlier log-in ---------------------------------------------------------------


@pytest.fixture
def strict(acme: Organization, client: Client) -> Client:
    """Acme's owner in a browser, whose tokens are looked at."""
    browser = Client(enforce_csrf_checks=True)
    log_in(browser, owner_of(acme))
    browser.get("/dashboard/settings")
    return browser


def stale(
    client: Client, origin: str, referer: str = f"{ORIGIN}/dashboard/settings?a=1"
) -> tuple[int, str]:
    answer = client.post(
        "/dashboard/settings",
        {"name": "Else", "on_refusal": "next", "csrfmiddlewaretoken": "x" * 64},
        headers={"origin": origin, "referer": referer},
    )
    return answer.status_code, answer.get("location", "")


def test_a_stale_form_is_opened_again(strict: Client, acme: Organization) -> None:
    assert stale(strict, ORIGIN) == (302, "/dashboard/settings?a=1#unsent")
    assert "The form had expired. Nothing was changed." in strict.get("/dashboard").text
    acme.refresh_from_db()
    assert acme.name == "Acme"


@pytest.mark.parametrize(
    ("origin", "referer"),
    [
        ("https://evil.test", f"{ORIGIN}/dashboard/settings"),
        ("null", f"{ORIGIN}/dashboard/settings"),
        ("", f"{ORIGIN}/dashboard/settings"),
        (ORIGIN, "https://evil.test/dashboard/settings"),
        (ORIGIN, "//evil.test/"),
        (ORIGIN, ""),
        (ORIGIN, f"{ORIGIN}.evil.test/"),
    ],
)
def test_a_form_of_elsewhere_is_refused(
    origin: str, referer: str, strict: Client, acme: Organization
) -> None:
    assert stale(strict, origin, referer) == (403, "")
    acme.refresh_from_db()
    assert acme.name == "Acme"


def test_an_address_of_ours_leads_nowhere_else(strict: Client) -> None:
    assert stale(strict, ORIGIN, f"{ORIGIN}//evil.test/x") == (302, "/%2Fevil.test/x#unsent")


def test_who_blocks_cookies_is_not_led_in_circles(acme: Organization, client: Client) -> None:
    browser = Client(enforce_csrf_checks=True)
    page = browser.get("/login")
    assert django_settings.CSRF_COOKIE_NAME in page.cookies
    browser.cookies.clear()
    sent = browser.post(
        "/login", {"login": "a@b.test"}, headers={"origin": ORIGIN, "referer": f"{ORIGIN}/login"}
    )
    assert sent.status_code == 403
    assert "your browser blocks cookies" in sent.text
    assert 'href="/login#unsent"' in sent.text
    # The person sees the form, and sends it or not; the page itself sends nothing.
    assert not re.search(r"http-equiv|\.submit\(", sent.text)
