"""A Chromium, the whole application on a socket, and pages that may not complain.

`page` fails its test when the browser reports a console error, an uncaught exception, a violation
of the Content-Security-Policy or an answer of 500 and more. Where there is no Chromium, every test
with it is skipped and says so. On PostgreSQL all are skipped: what pages do with a database has its
tests in tests/pages, on both, and what a browser makes of them is the same on either.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from pytest_django.fixtures import Settings

from accounts.models import User
from tests.browser.chromium import DESKTOP, NAMES, chromium
from tests.server import AppServer

# A machine of CI has two slow cores, and each of them runs a suite.
# Long: two suites share two cores, and a passing test does not wait.
SECONDS = 60
expect.set_options(timeout=SECONDS * 1000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder, whatever its author remembered."""
    here = Path(__file__).parent
    once = pytest.mark.skip(reason="tests in a browser run on SQLite")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(300))
            if connection.vendor == "postgresql":
                item.add_marker(once)


@pytest.fixture(scope="package")
def _allow_synchronous_orm() -> Iterator[None]:
    # Playwright's synchronous API runs an event loop in the test's thread, under which Django
    # refuses its ORM. Nothing else runs in that loop, so nothing is blocked. For this folder only:
    # other tests start loops of their own, which one that runs already would forbid.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    yield
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
    else:
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = before


@pytest.fixture(scope="package")
def browser(_allow_synchronous_orm: None) -> Iterator[Browser]:
    """The one Chromium of these tests."""
    program = chromium()
    if program is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is installed, nor playwright's own")
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chrome
        chrome.close()


@pytest.fixture
def site(
    browser: Browser, serve: Callable[[], AppServer], settings: Settings, tmp_path: Path
) -> AppServer:
    """The whole application; its pictures come from its own origin, as in a deployment.

    It starts before the browser's pages and stops after them.
    """
    settings.WHITENOISE_USE_FINDERS = True
    settings.STORAGES = {
        **settings.STORAGES,
        **{
            alias: {
                "BACKEND": "images.stores.local.LocalStorage",
                "OPTIONS": {
                    "location": tmp_path / folder,
                    "base_url": f"/storage/v1/object/{kind}/{bucket}/",
                    "expires_in": expires_in,
                },
            }
            for alias, folder, kind, bucket, expires_in in (
                ("images", "images", "public", settings.SUPABASE_BUCKET, None),
                (
                    *("private_images", "private-images", "sign"),
                    *(settings.SUPABASE_PRIVATE_BUCKET, 3600),
                ),
            )
        },
    }
    return serve()


class Watched:
    """What a browser complained of; `expect` lets through what a test provokes."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._expected: list[str] = []

    def expect(self, *fragments: str) -> None:
        """Let complaints through that contain one of these."""
        self._expected += fragments

    def watch(self, page: Page) -> None:
        """Write down what the page complains of."""
        page.on("console", lambda message: self._console(message))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("response", lambda answer: self._response(answer))

    def _console(self, message: Any) -> None:
        # A violation of the Content-Security-Policy is an error of the console, too.
        if message.type == "error":
            where = message.location.get("url", "")
            self.complaints.append(f"console: {message.text} ({where})")

    def _response(self, answer: Any) -> None:
        if answer.status >= 500:
            self.complaints.append(f"{answer.status}: {answer.url}")

    @property
    def unexpected(self) -> list[str]:
        """Return what nobody expected."""
        return [one for one in self.complaints if not any(part in one for part in self._expected)]


@pytest.fixture
def watched() -> Watched:
    """What the browser complained of in this test."""
    return Watched()


@pytest.fixture
def context(browser: Browser, site: AppServer) -> Iterator[BrowserContext]:
    """A browser profile of its own: no cookie of another test."""
    profile = browser.new_context(
        base_url=site.origin, viewport=DESKTOP, locale="en-US", timezone_id="UTC"
    )
    profile.set_default_timeout(SECONDS * 1000)
    yield profile
    profile.close()


@pytest.fixture
def page(context: BrowserContext, watched: Watched) -> Iterator[Page]:
    """A tab. The test fails when the browser complains of anything in it."""
    tab = context.new_page()
    watched.watch(tab)
    yield tab
    tab.close()
    assert watched.unexpected == []


@pytest.fixture
def login(context: BrowserContext, site: AppServer) -> Callable[[User], None]:
    """Let a person be logged in, without the login page."""

    def enter(user: User) -> None:
        session = SessionStore()
        session[SESSION_KEY] = str(user.pk)
        session[BACKEND_SESSION_KEY] = django_settings.AUTHENTICATION_BACKENDS[0]
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
        session.save()
        context.add_cookies(
            [
                {
                    "name": django_settings.SESSION_COOKIE_NAME,
                    "value": str(session.session_key),
                    "url": site.origin,
                }
            ]
        )

    return enter
