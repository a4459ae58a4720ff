"""Signing up, logging in, invitations by link, members and settings as pages."""

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, format_hotp_value, hotp_value
from django.core import mail
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts import members
from accounts.models import AuditEvent, Invitation, Membership, Organization, Role, User
from billing.models import LedgerEntry
from tests.billing import race
from tests.factories import OrganizationFactory, UserFactory
from tests.pages import log_in, member_of, owner_of

PASSWORD = "correct horse battery"
NEW = {"email": "nina@new.test", "password1": PASSWORD, "organization": "New Pictures"}


@pytest.fixture(autouse=True)
def _open(settings: Settings) -> None:
    settings.OPEN_FOR_SIGNUP = True


@pytest.fixture
def with_mail(settings: Settings) -> None:
    """As production is: mail goes out, and an address must answer."""
    settings.SENDS_MAIL = True
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    settings.ACCOUNT_EMAIL_VERIFICATION_BY_CODE_ENABLED = True


# --- Signing up -------------------------------------------------------------------------------


def test_signing_up_opens_an_organization_with_its_bonus(
    client: Client, published: None, settings: Settings
) -> None:
    settings.SIGNUP_BONUS_MICRO = 2_500_000
    answer = client.post("/accounts/signup/", NEW)
    assert (answer.status_code, answer["location"]) == (302, "/dashboard/welcome")
    user = User.objects.get()
    organization = user.organizations.get()
    assert (user.email, organization.name) == ("nina@new.test", "New Pictures")
    assert Membership.objects.get().role == Role.OWNER
    assert organization.billing_account.balance_micro == 2_500_000
    assert LedgerEntry.objects.get().kind == "bonus"
    text = client.get("/dashboard/welcome").content.decode()
    assert "New Pictures is ready" in text
    assert "$2.50" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("organization", ""),
        ("organization", "x" * 101),
        ("email", "nina"),
        ("password1", "12345678"),
        ("password1", "short"),
    ],
)
def test_what_is_wrong_makes_nobody(
    client: Client, published: None, field: str, value: str
) -> None:
    answer = client.post("/accounts/signup/", {**NEW, field: value})
    assert answer.status_code == 200
    assert answer.context["form"].errors[field]
    assert not User.objects.exists()
    assert not Organization.objects.exists()


def test_a_known_address_is_told_by_mail_and_not_on_the_page(
    client: Client, published: None, with_mail: None
) -> None:
    UserFactory(email="nina@new.test")
    known = client.post("/accounts/signup/", NEW)
    fresh = Client().post("/accounts/signup/", {**NEW, "email": "other@new.test"})
    assert (known.status_code, known["location"]) == (fresh.status_code, fresh["location"])
    assert Organization.objects.count() == 1
    assert User.objects.count() == 2
    assert {"nina@new.test", "other@new.test"} == {one for sent in mail.outbox for one in sent.to}


@pytest.mark.django_db(transaction=True)
def test_a_form_that_is_sent_twice_at_once_signs_up_one_person(
    client: Client, published: None
) -> None:
    browsers = [client, Client()]
    answers = race(2, lambda number: browsers[number].post("/accounts/signup/", NEW))
    statuses = [answer.status_code for answer in answers if not isinstance(answer, Exception)]
    assert statuses in ([302, 302], [302, 200], [200, 302])
    assert User.objects.get().email == "nina@new.test"
    assert Organization.objects.get().name == "New Pictures"


def test_an_address_must_answer_where_mail_is_sent(
    client: Client, published: None, with_mail: None
) -> None:
    answer = client.post("/accounts/signup/", NEW)
    assert answer["location"] == "/accounts/confirm-email/"
    assert client.get("/dashboard").status_code == 302
    (message,) = mail.outbox
    assert "Geek Hub" in str(message.body)
    assert "testserver" not in str(message.body)
    code = re.search(r"^([A-Z0-9-]{6,9})$", str(message.body), re.MULTILINE)
    assert code
    wrong = client.post("/accounts/confirm-email/", {"code": "WRONG1"})
    assert wrong.status_code == 200
    assert client.get("/dashboard").status_code == 302
    right = client.post("/accounts/confirm-email/", {"code": code[1]})
    assert (right.status_code, right["location"]) == (302, "/dashboard/welcome")
    assert client.get("/dashboard").status_code == 200
    assert EmailAddress.objects.get().verified


def test_a_closed_house_lets_in_who_is_invited(
    client: Client, acme: Organization, settings: Settings
) -> None:
    settings.OPEN_FOR_SIGNUP = False
    client.post("/accounts/signup/", NEW)
    assert not User.objects.filter(email="nina@new.test").exists()
    new = members.invite(acme, "nina@new.test", Role.VIEWER, actor=owner_of(acme))
    client.get(f"/invitations/{new.token}")
    client.post("/accounts/signup/", {"password1": PASSWORD})
    assert User.objects.get(email="nina@new.test").organizations.get() == acme


# --- Logging in -------------------------------------------------------------------------------


def test_logging_in_and_out(client: Client, acme: Organization) -> None:
    wrong = client.post("/login", {"login": "alice@acme.test", "password": "wrong"})
    assert wrong.status_code == 200
    assert "_auth_user_id" not in client.session
    right = client.post(
        "/login?next=/dashboard/keys", {"login": "Alice@Acme.test", "password": PASSWORD}
    )
    assert (right.status_code, right["location"]) == (302, "/dashboard/keys")
    assert client.get("/dashboard").status_code == 200
    assert client.get("/accounts/sessions/").status_code == 200
    out = client.post("/logout")
    assert (out.status_code, out["location"]) == (302, "/login")
    assert client.get("/dashboard").status_code == 302


def test_guessing_is_slowed_down(client: Client, acme: Organization) -> None:
    for _ in range(5):
        client.post("/login", {"login": "alice@acme.test", "password": "guess"})
    answer = client.post("/login", {"login": "alice@acme.test", "password": PASSWORD})
    assert "_auth_user_id" not in client.session
    assert answer.status_code in (200, 429)


def test_a_forgotten_password(client: Client, acme: Organization) -> None:
    client.post("/accounts/password/reset/", {"email": "alice@acme.test"})
    (message,) = mail.outbox
    link = re.search(r"https?://[^/]+(/accounts/password/reset/key/\S+)", str(message.body))
    assert link
    form = client.get(link[1], follow=True)
    client.post(
        form.redirect_chain[-1][0],
        {"password1": "another good horse", "password2": "another good horse"},
    )
    assert User.objects.get().check_password("another good horse")
    again = Client().get(link[1], follow=True)
    assert not User.objects.get().check_password(PASSWORD)
    assert "password1" not in again.content.decode()


def test_the_second_factor(
    client: Client, acme: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time is frozen: a code is valid for its half minute only, which may be over immediately.
    counter = 4711
    monkeypatch.setattr(
        "allauth.mfa.totp.internal.auth.yield_hotp_counters_from_time", lambda: iter([counter])
    )
    alice = owner_of(acme)
    secret = "JBSWY3DPEHPK3PXP"
    TOTP.activate(alice, secret)
    codes = RecoveryCodes.activate(alice).get_unused_codes()
    client.post("/login", {"login": "alice@acme.test", "password": PASSWORD})
    assert client.get("/dashboard").status_code == 302
    assert client.post("/accounts/2fa/authenticate/", {"code": "000000"}).status_code == 200
    assert client.get("/dashboard").status_code == 302
    code = format_hotp_value(hotp_value(secret, counter))
    client.post("/accounts/2fa/authenticate/", {"code": code})
    assert client.get("/dashboard").status_code == 200
    # A recovery code opens once.
    for expected in (200, 302):
        other = Client()
        other.post("/login", {"login": "alice@acme.test", "password": PASSWORD})
        other.post("/accounts/2fa/authenticate/", {"code": codes[0]})
        assert other.get("/dashboard").status_code == expected


# --- Settings that only a start reads -----------------------------------------------------------


def start(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a service that is started with these settings."""
    begin = "import django; django.setup(); from django.test import Client; "
    kept = {name: value for name, value in os.environ.items() if "LOGIN" not in name}
    kept |= {"DJANGO_SETTINGS_MODULE": "geekhub.settings", "ENV_FILE": "", "DEBUG": "true"}
    kept |= {"DATA_DIR": str(tmp_path), "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3"}
    return subprocess.run(
        [sys.executable, "-c", begin + code],
        env=kept | environment,
        cwd=Path(__file__).resolve().parent.parent.parent,
        capture_output=True,
        text=True,
    )


SHOW = (
    "from django.core.management import call_command; call_command('migrate', verbosity=0); "
    "answer = Client(headers={'host': 'localhost'}).get('/login'); "
    "print(answer.headers['content-security-policy'], answer.content.decode())"
)


@pytest.mark.slow
def test_google_and_github_are_offered_when_they_are_set(tmp_path: Path) -> None:
    without = start(tmp_path, SHOW).stdout
    assert "geekhub.css" in without
    assert "/accounts/google/login/" not in without
    assert "form-action 'self';" in without
    google = {"GOOGLE_LOGIN_CLIENT_ID": "id", "GOOGLE_LOGIN_CLIENT_SECRET": "not-for-pages"}
    github = {"GITHUB_LOGIN_CLIENT_ID": "id", "GITHUB_LOGIN_CLIENT_SECRET": "not-for-pages"}
    both = start(tmp_path, SHOW, **google, **github).stdout
    assert "/accounts/google/login/" in both
    assert "/accounts/github/login/" in both
    assert "form-action 'self' https://accounts.google.com https://github.com;" in both
    assert "not-for-pages" not in both


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"GOOGLE_LOGIN_CLIENT_ID": "id"}, "google's login has a client id and a secret"),
        ({"GITHUB_LOGIN_CLIENT_SECRET": "x"}, "github's login has a client id and a secret"),
        ({"EMAIL_URL": "mail.acme.test"}, "EMAIL_URL: is smtp://"),
        ({"TRUSTED_PROXIES": "-1"}, "TRUSTED_PROXIES is 0 or more"),
    ],
)
def test_what_is_half_set_does_not_start(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    failed = start(tmp_path, "", **environment)
    assert failed.returncode == 1
    assert words in failed.stderr


PAGES = [
    "/login",
    "/accounts/signup/",
    "/accounts/password/reset/",
    "/accounts/email/",
    "/accounts/password/change/",
    "/accounts/2fa/",
    "/accounts/2fa/totp/activate/",
    "/accounts/2fa/webauthn/",
    "/accounts/2fa/webauthn/add/",
    "/accounts/sessions/",
    "/dashboard",
    "/dashboard/welcome",
    "/dashboard/keys",
    "/dashboard/keys/new",
    "/dashboard/organizations/new",
    "/dashboard/settings",
    "/dashboard/settings/members",
    "/dashboard/settings/audit",
    "/nothing",
]
ANONYMOUS = PAGES[:3]


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_ours_and_runs_nothing_inline(
    path: str, language: str, client: Client, acme: Organization
) -> None:
    if path not in ANONYMOUS:
        client.post("/login", {"login": "alice@acme.test", "password": PASSWORD})
        client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    client.cookies["django_language"] = language
    answer = client.get(path)
    assert answer.status_code == (404 if path == "/nothing" else 200)
    policy = answer["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    text = answer.content.decode()
    assert f'<html lang="{language}">' in text
    assert "/static/geekhub.css" in text
    assert len(text) < 150_000
    inline = [one for one in re.findall(r"<script\b[^>]*>", text) if "src=" not in one]
    assert all('type="application/json"' in one for one in inline)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=\"|javascript:", text)
    assert not re.search(r"(?:src|href)=\"https?://", text)


# --- Invitations ------------------------------------------------------------------------------


def test_an_invitation_goes_by_mail_and_its_link_is_shown_to_nobody_else(
    client: Client, acme: Organization, with_mail: None
) -> None:
    log_in(client, owner_of(acme))
    page = "/dashboard/settings/members"
    answer = client.post(page, {"email": "bob@acme.test", "role": "developer"}, follow=True)
    (message,) = mail.outbox
    assert (message.to, message.subject) == (
        ["bob@acme.test"],
        "Invitation to join Acme on Geek Hub",
    )
    link = re.search(r"http://testserver(/invitations/\S+)", str(message.body))
    assert link
    assert link[1] not in answer.content.decode()
    bob = Client()
    shown = bob.get(link[1])
    assert "Join Acme" in shown.content.decode()
    # Signing up with another address is not possible on the way.
    form = bob.get("/accounts/signup/").context["form"]
    assert "organization" not in form.fields
    done = bob.post("/accounts/signup/", {**NEW, "email": "eve@evil.test"})
    assert (done.status_code, done["location"]) == (302, "/dashboard/welcome")
    user = User.objects.get(email="bob@acme.test")
    assert Membership.objects.get(user=user).role == Role.DEVELOPER
    # Who has the link reads the mail of the address.
    assert EmailAddress.objects.get(user=user).verified
    assert Organization.objects.count() == 1
    assert bob.get(link[1]).status_code == 410


def test_without_mail_the_link_is_shown_once(client: Client, acme: Organization) -> None:
    log_in(client, owner_of(acme))
    page = "/dashboard/settings/members"
    answer = client.post(page, {"email": "bob@acme.test", "role": "viewer"})
    link = re.search(r"http://testserver(/invitations/[^<]+)", answer.content.decode())
    assert link
    assert members.find_invitation(link[1].removeprefix("/invitations/")).email == "bob@acme.test"
    assert link[1] not in client.get(page).content.decode()
    assert mail.outbox == []


def test_accepting_while_logged_in(client: Client, acme: Organization) -> None:
    bob = OrganizationFactory(name="Bobs", owner__email="bob@acme.test").members.get()
    new = members.invite(acme, "bob@acme.test", Role.ADMIN, actor=owner_of(acme))
    path = f"/invitations/{new.token}"
    log_in(client, bob)
    assert not acme.members.filter(pk=bob.pk).exists()
    client.get(path)
    assert not acme.members.filter(pk=bob.pk).exists()
    answer = client.post(path)
    assert answer["location"] == "/dashboard"
    assert acme.memberships.get(user=bob).role == Role.ADMIN
    assert client.get("/dashboard").context["access"].organization == acme
    assert client.post(path).status_code == 410


def test_somebody_elses_or_an_old_invitation_is_a_clear_page(
    client: Client, acme: Organization
) -> None:
    new = members.invite(acme, "bob@acme.test", Role.ADMIN, actor=owner_of(acme))
    eve = UserFactory(email="eve@evil.test")
    log_in(client, eve)
    path = f"/invitations/{new.token}"
    assert "Log out, then open the link again" in client.get(path).content.decode()
    answer = client.post(path)
    assert answer.status_code == 409
    assert "is for bob@acme.test" in answer.content.decode()
    Invitation.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert client.get(path).status_code == 410
    assert client.get("/invitations/nothing").status_code == 410
    assert not acme.members.filter(pk=eve.pk).exists()
    # Nor does an expired one help an anonymous person in.
    assert Client().post(path).status_code == 410


# --- Members and settings ---------------------------------------------------------------------


def test_members_are_changed_and_a_refusal_is_said(client: Client, acme: Organization) -> None:
    bob = member_of(acme, Role.VIEWER)
    alice = owner_of(acme)
    log_in(client, alice)
    base = f"/dashboard/settings/members/{bob.pk}"
    client.post(f"{base}/role", {"role": "admin"})
    assert acme.memberships.get(user=bob).role == Role.ADMIN
    assert client.post(f"{base}/role", {"role": "emperor"}).status_code == 404
    refused = client.post("/dashboard/settings/members/leave", follow=True)
    assert "needs an owner" in refused.content.decode()
    client.post(f"{base}/owner")
    assert acme.memberships.get(user=alice).role == Role.ADMIN
    back = client.post(f"{base}/remove", follow=True)
    assert "Only an owner" in back.content.decode()
    left = client.post("/dashboard/settings/members/leave")
    assert left["location"] == "/dashboard"
    assert list(acme.members.all()) == [bob]
    assert client.get("/dashboard")["location"] == "/dashboard/organizations/new"


def test_who_was_removed_is_out_at_the_next_click(client: Client, acme: Organization) -> None:
    bob = member_of(acme, Role.ADMIN)
    log_in(client, bob)
    assert client.get("/dashboard/keys").status_code == 200
    members.remove(acme, bob, actor=owner_of(acme))
    assert client.get("/dashboard/keys?organization=acme").status_code == 404
    assert client.post("/dashboard/settings?organization=acme", {"name": "x"}).status_code == 404


def test_settings(client: Client, acme: Organization) -> None:
    log_in(client, owner_of(acme))
    sent = {"name": "Acme 2", "retention_days": "30", "on_refusal": "stop"}
    client.post("/dashboard/settings", sent)
    acme.refresh_from_db()
    assert (acme.name, acme.keeps_prompts, acme.retention_days, acme.on_refusal) == (
        "Acme 2",
        False,
        30,
        "stop",
    )
    assert client.post("/dashboard/settings", {**sent, "name": ""}).status_code == 200
    assert client.post("/dashboard/settings", {**sent, "retention_days": "0"}).status_code == 200
    acme.refresh_from_db()
    assert (acme.name, acme.retention_days) == ("Acme 2", 30)
    viewer = log_in(Client(), member_of(acme, Role.VIEWER))
    assert viewer.post("/dashboard/settings", sent).status_code == 403


def test_the_audit_log_says_who_what_when_and_from_where(
    client: Client, acme: Organization, globex: Organization, settings: Settings
) -> None:
    settings.TRUSTED_PROXIES = 1
    log_in(client, owner_of(acme))
    sent = {"name": "Acme 2", "keeps_prompts": "on", "on_refusal": "next"}
    client.post("/dashboard/settings", sent, headers={"x-forwarded-for": "1.1.1.1, 203.0.113.9"})
    event = AuditEvent.objects.latest("pk")
    assert (event.action, event.actor, event.ip) == (
        "organization.changed",
        owner_of(acme),
        "203.0.113.9",
    )
    text = client.get("/dashboard/settings/audit").content.decode()
    assert "203.0.113.9" in text
    assert "Changed the organization&#x27;s settings" in text
    assert "globex" not in text


def test_a_new_organization(client: Client, acme: Organization, settings: Settings) -> None:
    settings.SIGNUP_BONUS_MICRO = 0
    alice = owner_of(acme)
    log_in(client, alice)
    assert client.post("/dashboard/organizations/new", {"name": ""}).status_code == 200
    answer = client.post("/dashboard/organizations/new", {"name": "Second"})
    assert answer["location"] == "/dashboard/welcome"
    assert client.get("/dashboard").context["access"].organization.name == "Second"
    assert alice.organizations.count() == 2


# --- What a browser found -----------------------------------------------------------------------


def test_the_first_steps_are_shown_wherever_the_sign_up_was_opened_from(
    client: Client, published: None
) -> None:
    # The front door: to the dashboard, so to the log-in, whose link to the sign-up carries it on.
    log_in_page = client.get("/", follow=True)
    link = re.search(r'href="(/accounts/signup/[^"]*)"', log_in_page.text)
    assert link
    assert "next=" in link[1]
    answer = client.post(link[1], {**NEW, "next": "/dashboard"})
    assert answer["location"] == "/dashboard/welcome"


@pytest.mark.parametrize("closed", [True, False], ids=["another browser", "the same browser"])
def test_who_has_just_signed_up_can_log_in_at_once(
    closed: bool, client: Client, published: None, with_mail: None
) -> None:
    assert client.post("/accounts/signup/", NEW).status_code == 302
    browser = Client() if closed else client
    answer = browser.post("/login", {"login": NEW["email"], "password": PASSWORD})
    assert (answer.status_code, answer["location"]) == (302, "/accounts/confirm-email/")
    codes = [re.search(r"^([A-Z0-9-]{6,9})$", str(one.body), re.MULTILINE) for one in mail.outbox]
    assert codes[-1] is not None
    right = browser.post("/accounts/confirm-email/", {"code": codes[-1][1]})
    assert right.status_code == 302
    assert browser.get("/dashboard").status_code == 200


def test_the_mails_of_one_address_are_limited_all_the_same(
    client: Client, published: None, with_mail: None
) -> None:
    client.post("/accounts/signup/", NEW)
    for _ in range(6):
        Client().post("/login", {"login": NEW["email"], "password": PASSWORD})
    assert len(mail.outbox) == 3


def test_the_sessions_of_a_person_are_shown(client: Client, acme: Organization) -> None:
    form = {"login": "alice@acme.test", "password": PASSWORD}
    for address, browser in (("198.51.100.7", "Firefox"), ("203.0.113.9", "Chrome")):
        other = Client(REMOTE_ADDR=address, headers={"user-agent": browser})
        other.post("/login", form)
    text = other.get("/accounts/sessions/").text
    table = re.search(r"<tbody.*?</tbody>", text, re.DOTALL)
    assert table
    rows = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in table[0].split("</tr>")[:-1]]
    assert len(rows) == 2
    for address, browser in (("198.51.100.7", "Firefox"), ("203.0.113.9", "Chrome")):
        assert any(address in row and browser in row for row in rows)
    assert sum("Current" in row for row in rows) == 1


def test_what_a_layout_names_cannot_be_what_a_view_named() -> None:
    layouts = [
        path
        for path in (Path(__file__).parents[2] / "templates").rglob("*.html")
        if "{% block main %}" in path.read_text() and "{% block content %}" in path.read_text()
    ]
    assert {"manage.html", "settings_base.html"} <= {path.name for path in layouts}
    for path in layouts:
        named = re.findall(r" as (\w+) %}", path.read_text())
        allowed = {"LANGUAGE_CODE", "LANGUAGES", "language", "providers"}
        assert {one for one in named if not one.endswith("_url")} <= allowed, path


def test_times_of_people_are_written_as_everywhere_with_their_zone(
    client: Client, acme: Organization
) -> None:
    owner = owner_of(acme)
    row = members.invite(acme, "nina@new.test", Role.VIEWER, actor=owner).row
    since = acme.memberships.get(user=owner).created_at
    moment = AuditEvent.objects.filter(organization=acme).latest("pk").created_at
    person = log_in(client, owner)
    client.cookies["timezone"] = "America/Mexico_City"
    zone = ZoneInfo("America/Mexico_City")
    text = person.get("/dashboard/settings/members").text
    assert f">{row.expires_at.astimezone(zone):%Y-%m-%d %H:%M}</time>" in text
    assert f">{since.astimezone(zone):%Y-%m-%d}</time>" in text
    assert "America/Mexico_City" in text
    text = person.get("/dashboard/settings/audit").text
    assert f">{moment.astimezone(zone):%Y-%m-%d %H:%M:%S}</time>" in text
    assert "Times are in America/Mexico_City." in text
