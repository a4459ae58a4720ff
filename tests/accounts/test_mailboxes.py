"""An address has one spelling, wherever it is typed; and one mailbox is one person."""

import re
from typing import Any

import pytest
from allauth.account.internal.emailkit import valid_email_or_none
from django.core import mail
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from accounts import mailboxes, members
from accounts.models import Invitation, Organization, Role, User
from billing.models import BonusClaim, LedgerEntry
from billing.spending.onboarding import digests
from tests.factories import UserFactory
from tests.pages import log_in, owner_of

PASSWORD = "correct horse battery"
SIGNUP = {"email": "eve@gmail.com", "password1": PASSWORD, "organization": "Pictures"}
# Eve's mailbox, as Django sends to it.
SAME = [
    "EVE@Gmail.COM",
    "eve@ｇmail.com",
    "eve@gmaｉl.com",
    "eve@ＧＭＡＩＬ.com",
    "eve@gm\u00adail.com",
    "eve@g\u200dmail.com",
    "eve@gmail.com\u3002",
    "eve@gmail.com\uff0e",
    "eve@gmail.com\uff61",
]
REFUSED = [
    '"eve"@gmail.com',
    '"e\\ve"@gmail.com',
    '"eve smith"@gmail.com',
    "eve@[127.0.0.1]",
    "eve@evil＠gmail.com",
    "eve@gmail／x.com",
    "eve@gmail\u3002\u3002x.com",
    "eve@\u00ad.com",
    "eve@\u05d0a.com",
    "eve@ａ" + "a" * 62 + "b.com",
    "ıeve@gmail.com",
    "ſeve@gmail.com",
    "e" * 245 + "@gmail.com",
]
UNUSUAL = "This form of address is not supported."


@pytest.fixture
def with_mail(settings: Settings) -> None:
    """As production is: mail goes out, an address must answer, and there is a bonus."""
    settings.OPEN_FOR_SIGNUP = settings.SENDS_MAIL = True
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    settings.ACCOUNT_EMAIL_VERIFICATION_BY_CODE_ENABLED = True
    settings.SIGNUP_BONUS_MICRO = 2_500_000


def bonuses() -> int:
    return LedgerEntry.objects.filter(kind="bonus").count()


def prove(client: Client) -> None:
    code = re.search(r"^([A-Z0-9-]{6,9})$", str(mail.outbox[-1].body), re.MULTILINE)
    assert code
    assert client.post("/accounts/confirm-email/", {"code": code[1]}).status_code == 302


# --- The spelling -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", SAME)
def test_every_spelling_of_a_mailbox_is_one(address: str) -> None:
    assert mailboxes.spelled(address) == "eve@gmail.com"


@pytest.mark.parametrize("address", REFUSED)
def test_what_hides_where_mail_goes_is_refused(address: str) -> None:
    with pytest.raises(ValidationError):
        mailboxes.spelled(address)


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("ana@münchen.de", "ana@münchen.de"),
        ("ana@xn--mnchen-3ya.de", "ana@münchen.de"),
        ("ana@MÜNCHEN.de", "ana@münchen.de"),
        ("ana@mu\u0308nchen.de", "ana@münchen.de"),
        # Another domain than fass.de, which IDNA 2003 cannot write in its own letters.
        ("ana@xn--fa-hia.de", "ana@xn--fa-hia.de"),
        ("o'brien+x@acme.test", "o'brien+x@acme.test"),
    ],
)
def test_a_domain_stays_readable(address: str, kept: str) -> None:
    assert mailboxes.spelled(address) == kept == mailboxes.spelled(kept)


@pytest.mark.parametrize(
    ("address", "person"),
    [
        ("E.v.e+1@GoogleMail.com", "eve@gmail.com"),
        ("eve@ｇoogleｍail.com", "eve@gmail.com"),
        ("e.v.e+1@acme.test", "e.v.e@acme.test"),
        # Of a row that no form would take today.
        ('"Eve"@gmail.com', '"eve"@gmail.com'),
    ],
)
def test_who_is_the_same_person(address: str, person: str) -> None:
    assert mailboxes.person_of(address) == person


def sent_to(address: str) -> tuple[str, str] | None:
    """Return local part and domain of where Django sends; None when it cannot."""
    try:
        (one,) = EmailMessage(to=[address]).message()["To"].addresses
    except (UnicodeError, ValueError):
        return None
    return one.username.lower(), one.domain.lower().removesuffix(".")


WIDE = {chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)}
INVISIBLE = ["", "\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufe0f"]


@st.composite
def spellings(draw: Any) -> str:
    """Draw how somebody may write eve@gmail.com or a neighbour of it."""
    local = draw(st.sampled_from(["eve", "EVE", '"eve"', '"e\\ve"', "ｅve", "ev\u00ade", "ＥＶＥ"]))
    written = ""
    for sign in draw(
        st.sampled_from(["gmail.com", "gmail.com.", "mail.gmail.com", "kiss.example"])
    ):
        others = [sign, sign.upper(), WIDE[sign]]
        if sign == ".":
            others += ["\u3002", "\uff0e", "\uff61"]
        others += {"k": ["\u212a"], "s": ["\u017f"], "i": ["\u2170"]}.get(sign, [])
        written += draw(st.sampled_from(others)) + draw(st.sampled_from(INVISIBLE))
    return f"{local}@{written}"


@settings(max_examples=300, deadline=None)
@given(spellings())
def test_what_is_sent_to_one_mailbox_is_one_person_or_refused(address: str) -> None:
    try:
        kept = mailboxes.spelled(address)
    except ValidationError:
        return
    target = sent_to(address)
    assert target is not None
    assert sent_to(kept) == target
    assert mailboxes.spelled(kept) == kept
    assert digests(1, [address]) == digests(1, ["@".join(target)])


# --- Signing up again -------------------------------------------------------------------------


@pytest.mark.parametrize("address", SAME)
def test_a_second_spelling_is_the_same_account_and_brings_nothing(
    published: None, with_mail: None, address: str
) -> None:
    client = Client()
    client.post("/accounts/signup/", SIGNUP)
    prove(client)
    assert (bonuses(), BonusClaim.objects.count()) == (1, 2)
    answers, sent = [], []
    for written in ("eve@gmail.com", address):
        mail.outbox.clear()
        again = Client().post("/accounts/signup/", SIGNUP | {"email": written})
        answers.append((again.status_code, again["location"]))
        sent.append([(one.to, one.subject) for one in mail.outbox])
    assert answers[0] == answers[1]
    assert sent[0] == sent[1]
    assert sent[0][0][0] == ["eve@gmail.com"]
    assert User.objects.get().email == "eve@gmail.com"
    assert (Organization.objects.count(), bonuses(), BonusClaim.objects.count()) == (1, 1, 2)


def test_another_name_of_the_mailbox_is_an_account_without_a_bonus(
    published: None, with_mail: None
) -> None:
    for address in ("eve@gmail.com", "e.ve@gmail.com", "eve+2@ｇooglemail.com"):
        client = Client()
        client.post("/accounts/signup/", SIGNUP | {"email": address})
        prove(client)
    assert list(User.objects.order_by("pk").values_list("email", flat=True)) == [
        *("eve@gmail.com", "e.ve@gmail.com", "eve+2@googlemail.com")
    ]
    assert bonuses() == 1


# --- Every form -------------------------------------------------------------------------------

FORMS = {
    "/accounts/signup/": ("email", SIGNUP),
    "/login": ("login", {"password": PASSWORD}),
    "/accounts/password/reset/": ("email", {}),
    "/accounts/email/": ("email", {"action_add": ""}),
    "/dashboard/settings/members": ("email", {"role": "developer"}),
}
INSIDE = ("/accounts/email/", "/dashboard/settings/members")


@pytest.mark.parametrize(
    ("language", "words"), [("en", UNUSUAL), ("es", "No admitimos direcciones escritas así.")]
)
@pytest.mark.parametrize("path", FORMS)
def test_every_form_refuses_in_clear_words(
    client: Client, acme: Organization, with_mail: None, path: str, language: str, words: str
) -> None:
    if path in INSIDE:
        log_in(client, owner_of(acme))
    client.cookies["django_language"] = language
    field, rest = FORMS[path]
    for address in ('"alice"@acme.test', "alice@evil＠acme.test"):
        answer = client.post(path, rest | {field: address})
        assert answer.status_code == 200
        assert words in answer.content.decode()
    assert mail.outbox == []
    assert User.objects.count() == 1
    assert not Invitation.objects.exists()


def test_every_form_finds_the_account_by_another_spelling(
    client: Client, acme: Organization, with_mail: None
) -> None:
    written = "Alice@ａcme.test"
    Client().post("/accounts/password/reset/", {"email": written})
    assert mail.outbox.pop().to == ["alice@acme.test"]
    log_in(client, owner_of(acme))
    again = client.post("/accounts/email/", {"action_add": "", "email": written})
    assert "already associated with this account" in again.content.decode()
    invited = client.post(
        "/dashboard/settings/members", {"email": written, "role": "viewer"}, follow=True
    )
    assert "alice@acme.test is already a member." in invited.content.decode()
    client.post("/dashboard/settings/members", {"email": "Bob@ａcme.test", "role": "viewer"})
    assert Invitation.objects.get().email == "bob@acme.test"
    assert User.objects.get_by_natural_key(written) == owner_of(acme)


def test_logging_in_by_another_spelling_opens_and_counts_the_same_attempts(
    client: Client, acme: Organization
) -> None:
    right = {"login": "Alice@acｍe.test", "password": PASSWORD}
    assert Client().post("/login", right).status_code == 302
    for sign in "ａｃｍｅa":
        plain = chr(ord(sign) - 0xFEE0) if sign > "z" else sign
        written = f"alice@{'acme'.replace(plain, sign)}.test"
        client.post("/login", {"login": written, "password": "guess"})
    client.post("/login", right)
    assert "_auth_user_id" not in client.session
    # It was the account's limit, not that of the client's address.
    bob = UserFactory()
    assert client.post("/login", {"login": bob.email, "password": PASSWORD}).status_code == 302


def test_an_invitation_that_was_written_otherwise_is_still_theirs(
    client: Client, acme: Organization
) -> None:
    new = members.invite(acme, "Bob@ａcme.test", Role.VIEWER, actor=owner_of(acme))
    bob = UserFactory(email="bob@acme.test")
    page = log_in(client, bob).get(f"/invitations/{new.token}")
    assert page.context["mine"]
    assert members.accept(new.token, user=bob).role == Role.VIEWER


def test_what_google_or_github_name_is_spelled_too() -> None:
    assert valid_email_or_none("eve@ｇmail.com") == "eve@gmail.com"
    assert valid_email_or_none('"eve"@gmail.com') is None


def test_the_command_finds_its_owner_or_refuses(acme: Organization) -> None:
    call_command("create_organization", "Second", "--owner", "alice@ａcme.test")
    assert User.objects.count() == 1
    assert owner_of(acme).organizations.count() == 2
    with pytest.raises(CommandError, match=UNUSUAL):
        call_command("create_organization", "Third", "--owner", '"alice"@acme.test')
    with pytest.raises(ValidationError):
        User.objects.create_superuser('"root"@acme.test')
    assert (User.objects.count(), Organization.objects.count()) == (1, 2)
