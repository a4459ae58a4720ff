"""No mail server takes anything: what was asked for is said not to be sent, and can be again."""

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.core import mail as outbox
from django.core.cache import cache
from django.test import Client
from pytest_django.fixtures import Settings

from accounts.models import Invitation, Organization, User
from geekhub.lib.mail import mailer
from tests.away.conftest import People
from tests.lib import dead_port
from tests.pages import log_in, owner_of

NEW = {"email": "nina@new.test", "password1": "correct horse 7", "organization": "New Pictures"}
NO_CODE = (
    "The email with your code could not be sent. Log in again in a few minutes to get a new one."
)
NO_MAIL = "The email could not be sent. Try again in a few minutes."


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(params=["refused", "hanging"])
def no_mail(request: pytest.FixtureRequest, settings: Settings) -> dict[str, Any]:
    """Mail goes out as in production, and no server takes it; return the row that works."""
    port = dead_port() if request.param == "refused" else request.getfixturevalue("silent")
    row = mailer(f"smtp://127.0.0.1:{port}", printed=False)
    # As long as the machine is slow, and no longer.
    row["OPTIONS"]["timeout"] = 0.3
    works = settings.MAILERS
    settings.MAILERS = {"default": row}
    settings.SENDS_MAIL = settings.OPEN_FOR_SIGNUP = True
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    settings.ACCOUNT_EMAIL_VERIFICATION_BY_CODE_ENABLED = True
    return works


def test_signing_up_says_that_no_code_was_sent_and_a_login_sends_one(
    client: Client, published: None, no_mail: dict[str, Any], settings: Settings
) -> None:
    signed_up = client.post("/accounts/signup/", NEW, follow=True)
    assert signed_up.redirect_chain == [("/login", 302)]
    assert NO_CODE in signed_up.content.decode()
    assert "sent to" not in signed_up.content.decode()
    assert User.objects.get().organizations.get().name == "New Pictures"
    again = {"login": NEW["email"], "password": NEW["password1"]}
    cache.clear()  # a code is sent at most every ten seconds
    assert NO_CODE in client.post("/login", again, follow=True).content.decode()
    assert client.get("/dashboard").status_code == 302, "nobody is in without a proven address"

    settings.MAILERS = no_mail
    cache.clear()
    assert client.post("/login", again)["location"] == "/accounts/confirm-email/"
    (message,) = outbox.outbox
    code = re.search(r"^\s*([A-Z0-9-]{6,9})\s*$", str(message.body), re.MULTILINE)
    assert code
    client.post("/accounts/confirm-email/", {"code": code[1]})
    assert EmailAddress.objects.get().verified
    assert client.get("/dashboard").status_code == 200


def test_a_stranger_does_not_learn_who_has_an_account(
    published: None, acme: Organization, client: Client, no_mail: dict[str, Any]
) -> None:
    def asked(path: str, **data: str) -> tuple[Any, str]:
        answer = Client().post(path, data, follow=True)
        said = re.search(r'<p class="message error">(.*?)</p>', answer.content.decode())
        return answer.redirect_chain, said[1] if said else ""

    assert (
        asked("/accounts/signup/", **{**NEW, "email": "alice@acme.test"})
        == asked("/accounts/signup/", **NEW)
        == ([("/login", 302)], NO_CODE)
    )
    assert (
        asked("/accounts/password/reset/", email="alice@acme.test")
        == asked("/accounts/password/reset/", email="nobody@acme.test")
        == ([("/accounts/password/reset/", 302)], NO_MAIL)
    )
    assert User.objects.filter(email="alice@acme.test").count() == 1


def test_an_invitation_that_no_mail_brings_is_shown_to_who_invites(
    acme: Organization, people: People, no_mail: dict[str, Any]
) -> None:
    answer = people.owner.post(
        "/dashboard/settings/members", {"email": "bob@acme.test", "role": "viewer"}
    )
    text = answer.content.decode()
    assert answer.status_code == 200
    assert "No email was sent. Send this link to the person yourself" in text
    link = re.search(r"http://testserver(/invitations/[^<]+)", text)
    assert link
    assert "Join Acme" in Client().get(link[1]).content.decode()
    assert Invitation.objects.get().revoked_at is None


def test_what_a_mail_only_tells_of_is_done_without_it(
    acme: Organization, people: People, no_mail: dict[str, Any]
) -> None:
    alice = owner_of(acme)
    alice.set_password("correct horse 7")
    alice.save()
    EmailAddress.objects.create(user=alice, email=alice.email, verified=True, primary=True)
    log_in(people.owner, alice)
    new = {"oldpassword": "correct horse 7", "password1": "battery staple 9"}
    answer = people.owner.post("/accounts/password/change/", {**new, "password2": new["password1"]})
    assert answer.status_code == 302
    alice.refresh_from_db()
    assert alice.check_password("battery staple 9")
    assert NO_MAIL not in people.owner.get("/dashboard").content.decode()

    added = people.owner.post(
        "/accounts/email/", {"email": "other@acme.test", "action_add": ""}, follow=True
    )
    assert NO_MAIL in added.content.decode()
    assert not EmailAddress.objects.filter(email="other@acme.test").exists()
