"""The sign-up bonus comes once per person, and nobody founds organizations without end."""

import re
from datetime import timedelta

import pytest
from allauth.account.models import EmailAddress
from django.core import mail
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import AuditEvent, Organization, User
from billing.models import BonusClaim, LedgerEntry
from billing.spending import onboarding
from billing.spending.onboarding import TooManyOrganizations, found_organization
from tests.billing import race
from tests.factories import UserFactory
from tests.pages import log_in

BONUS = 2_500_000
NEW = "/dashboard/organizations/new"
SIGNUP = {
    "email": "nina@new.test",
    "password1": "correct horse battery",
    "organization": "New Pictures",
}


@pytest.fixture(autouse=True)
def _limits(settings: Settings) -> None:
    settings.SIGNUP_BONUS_MICRO = BONUS
    settings.OPEN_FOR_SIGNUP = True
    settings.ORGANIZATIONS_PER_PERSON, settings.ORGANIZATIONS_PER_DAY = 5, 3


@pytest.fixture
def with_mail(settings: Settings) -> None:
    """As production is: an address must answer."""
    settings.SENDS_MAIL = True
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    settings.ACCOUNT_EMAIL_VERIFICATION_BY_CODE_ENABLED = True


def balances() -> list[int]:
    """Return every balance in the order of founding; each is what the ledger says."""
    given = LedgerEntry.objects.filter(kind="bonus")
    found = []
    for one in Organization.objects.order_by("created_at", "name"):
        entries = given.filter(organization=one).values_list("amount_micro", flat=True)
        found.append(one.billing_account.balance_micro)
        assert found[-1] == sum(entries)
    return found


def sign_up(**changes: str) -> Client:
    client = Client()
    assert client.post("/accounts/signup/", SIGNUP | changes).status_code == 302
    return client


def test_only_the_first_organization_has_the_bonus_and_the_page_says_so(
    client: Client, db: None
) -> None:
    person = UserFactory()
    log_in(client, person)
    assert "It starts with a $2.50 bonus." in client.get(NEW).content.decode()
    for name in ("First", "Second", "Third"):
        assert client.post(NEW, {"name": name}).status_code == 302
        text = client.get(NEW).content.decode()
        assert "once per person, so the balance starts at $0.00" in text
        assert "It starts with a $" not in text
    assert balances() == [BONUS, 0, 0]


def test_without_a_bonus_nothing_is_said_or_taken(
    client: Client, db: None, settings: Settings
) -> None:
    settings.SIGNUP_BONUS_MICRO = 0
    person = UserFactory()
    log_in(client, person)
    assert "bonus" not in client.get(NEW).content.decode()
    client.post(NEW, {"name": "First"})
    assert not BonusClaim.objects.exists()
    settings.SIGNUP_BONUS_MICRO = BONUS
    assert onboarding.bonus_micro(person) == BONUS


@pytest.mark.parametrize("again", ["nina@new.test", "NINA@New.test", "nina+2@new.test"])
def test_a_deleted_account_that_comes_back_has_had_its_bonus(db: None, again: str) -> None:
    sign_up()
    User.objects.get().delete()
    sign_up(email=again, organization="Newer Pictures")
    assert balances() == [BONUS, 0]
    sign_up(email="otto@new.test", organization="Others")
    assert balances() == [BONUS, 0, BONUS]


def test_another_address_is_the_same_person_and_so_is_who_comes_back_with_it(db: None) -> None:
    sign_up()
    person = User.objects.get()
    EmailAddress.objects.filter(user=person).delete()
    EmailAddress.objects.create(user=person, email="new@name.test", verified=True, primary=True)
    User.objects.update(email="new@name.test")
    found_organization("Second", User.objects.get())
    User.objects.get().delete()
    sign_up(email="new@name.test", organization="Third")
    assert balances() == [BONUS, 0, 0]


def test_where_mail_is_sent_the_bonus_comes_when_the_address_answers(
    client: Client, db: None, with_mail: None
) -> None:
    client.post("/accounts/signup/", SIGNUP)
    assert balances() == [0]
    code = re.search(r"^([A-Z0-9-]{6,9})$", str(mail.outbox[0].body), re.MULTILINE)
    assert code
    client.post("/accounts/confirm-email/", {"code": "WRONG1"})
    assert balances() == [0]
    assert client.post("/accounts/confirm-email/", {"code": code[1]}).status_code == 302
    assert balances() == [BONUS]
    assert "$2.50" in client.get("/dashboard/welcome").content.decode()
    # A second address that answers brings nothing.
    onboarding.address_proved(User.objects.get())
    assert balances() == [BONUS]


def test_who_never_answers_takes_nobodys_bonus(db: None, with_mail: None) -> None:
    sign_up(email="nina+stolen@new.test")
    assert not BonusClaim.objects.exists()
    person = UserFactory(email="nina@new.test")
    assert onboarding.bonus_micro(person) == 0
    EmailAddress.objects.create(user=person, email=person.email, verified=True, primary=True)
    assert onboarding.bonus_micro(person) == BONUS
    found_organization("Hers", person)
    assert balances() == [0, BONUS]


def test_the_limits_are_said_on_the_form_and_nothing_is_made(client: Client, db: None) -> None:
    person = UserFactory()
    log_in(client, person)
    for number in range(3):
        assert client.post(NEW, {"name": f"Number {number}"}).status_code == 302
    refused = client.post(NEW, {"name": "One more"})
    assert refused.status_code == 200
    assert "You can create up to 3 organizations in 24 hours." in refused.content.decode()
    assert 'value="One more"' in refused.content.decode()
    AuditEvent.objects.update(created_at=timezone.now() - timedelta(days=1))
    for number in range(2):
        assert client.post(NEW, {"name": f"Later {number}"}).status_code == 302
    refused = client.post(NEW, {"name": "One more"})
    assert (
        "You have created 5 organizations, the most one person can have."
        in refused.content.decode()
    )
    # Handing them over or leaving makes no room.
    person.memberships.all().delete()
    with pytest.raises(TooManyOrganizations):
        found_organization("One more", person)
    assert Organization.objects.count() == 5
    assert balances() == [BONUS, 0, 0, 0, 0]


def test_staff_and_the_command_are_not_limited(db: None, settings: Settings) -> None:
    settings.ORGANIZATIONS_PER_PERSON = settings.ORGANIZATIONS_PER_DAY = 0
    staff = UserFactory(is_staff=True)
    for number in range(2):
        found_organization(f"Staff {number}", staff)
    assert balances() == [BONUS, 0]
    for number in range(2):
        call_command("create_organization", f"Made {number}", "--owner", "owner@made.test")
    assert balances() == [BONUS, 0, BONUS, BONUS]
    settings.ORGANIZATIONS_PER_PERSON = settings.ORGANIZATIONS_PER_DAY = 10
    found_organization("Own", User.objects.get(email="owner@made.test"))
    assert balances() == [BONUS, 0, BONUS, BONUS, 0]


@pytest.mark.django_db(transaction=True)
def test_many_forms_at_once_give_one_bonus_and_keep_the_limit() -> None:
    person = UserFactory()
    done = race(
        6, lambda number: found_organization(f"N {number}", person), losing=TooManyOrganizations
    )
    assert sum(isinstance(one, Organization) for one in done) == 3 == Organization.objects.count()
    assert sorted(balances()) == [0, 0, BONUS]


@pytest.mark.django_db(transaction=True)
def test_two_accounts_of_one_mailbox_at_once_have_one_bonus() -> None:
    people = [UserFactory(email=f"nina+{number}@new.test") for number in range(4)]
    race(4, lambda number: found_organization(f"N {number}", people[number]))
    assert sorted(balances()) == [0, 0, 0, BONUS]
