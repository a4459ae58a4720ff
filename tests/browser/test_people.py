"""People in a browser: from the sign-up to a picture, passkeys, colours, the keyboard."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from playwright.sync_api import BrowserContext, Page, expect
from pytest_django.fixtures import Settings

from accounts.models import Organization, User
from tests.factories import KeyFactory
from tests.pages import owner_of
from tests.server import AppServer

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def _localhost(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    settings.MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = True
    settings.OPEN_FOR_SIGNUP = True


def test_from_the_sign_up_to_a_picture_by_the_official_sdk(
    page: Page, context: BrowserContext, site: AppServer, published: None
) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.origin)
    page.goto("/accounts/signup/")
    page.get_by_label("Organization").fill("New Pictures")
    page.get_by_label("Email").fill("nina@new.test")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("heading", name="Welcome to Geek Hub")).to_be_visible()
    page.get_by_role("link", name="Create key").click()
    page.get_by_label("Name").fill("first")
    page.get_by_role("button", name="Create key").click()
    page.locator(".secret").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    secret = page.evaluate("navigator.clipboard.readText()")
    assert secret == page.locator("#secret").text_content()
    with OpenAI(base_url=f"{site.origin}/v1", api_key=secret, max_retries=0) as client:
        images = client.images.generate(model="fal/flux-1.1-pro", prompt="A red kite")
    assert images.data
    page.goto("/dashboard")
    picture = page.get_by_role("img", name="A red kite")
    picture.scroll_into_view_if_needed()  # it loads when it comes into sight
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 0


def test_a_passkey_is_added_and_opens_the_door(
    page: Page, context: BrowserContext, site: AppServer, acme: Organization
) -> None:
    # A passkey belongs to a name, and an address is none.
    origin = site.origin.replace("127.0.0.1", "localhost")
    devtools = context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    options = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True}
    verified = {"hasUserVerification": True, "isUserVerified": True}
    automatic = {"automaticPresenceSimulation": True}
    devtools.send(
        "WebAuthn.addVirtualAuthenticator", {"options": {**options, **verified, **automatic}}
    )
    page.goto(f"{origin}/login")
    page.get_by_label("Email").fill("alice@acme.test")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign In", exact=True).click()
    page.wait_for_url("**/dashboard")
    page.goto(f"{origin}/accounts/2fa/webauthn/add/")
    page.locator("input[type=password]").fill(PASSWORD)
    page.locator("main button[type=submit]").first.click()
    page.get_by_label("Passwordless").check()
    page.get_by_role("button", name="Add").click()
    page.wait_for_url("**/accounts/2fa/recovery-codes/**")
    context.clear_cookies()
    page.goto(f"{origin}/login")
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_url("**/dashboard")
    expect(page.get_by_text("Acme").first).to_be_visible()


def test_the_chosen_colours_stay(
    page: Page, login: Callable[[User], None], acme: Organization
) -> None:
    login(owner_of(acme))
    page.emulate_media(color_scheme="light")
    page.goto("/dashboard/keys")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.goto("/dashboard/settings")
    assert page.evaluate(ground) == dark


def test_the_keyboard_is_enough(
    page: Page, login: Callable[[User], None], acme: Organization
) -> None:
    key = KeyFactory(organization=acme)
    login(owner_of(acme))
    page.goto("/dashboard/keys")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Revoke").focus()
    page.keyboard.press("Enter")
    dialog: Any = page.get_by_role("dialog", name="Revoke prod-web?")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    key.row.refresh_from_db()
    assert key.row.revoked_at is None
    page.get_by_role("button", name="Revoke").click()
    dialog.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("Key prod-web revoked.")).to_be_visible()
