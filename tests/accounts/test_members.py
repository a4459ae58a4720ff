"""Organizations are founded by somebody, have a free slug, and leave a trace."""

import pytest
from django.db import IntegrityError, transaction

from accounts import members
from accounts.models import AuditEvent, Membership, Organization, Role, User
from tests.billing import race
from tests.factories import UserFactory


@pytest.fixture
def alice(db: None) -> User:
    return UserFactory(email="alice@acme.test")


def test_the_founder_is_the_owner_and_it_is_audited(alice: User) -> None:
    acme = members.found("Acme Inc.", owner=alice)
    assert (acme.name, acme.slug) == ("Acme Inc.", "acme-inc")
    membership = Membership.objects.get()
    assert (membership.organization, membership.user, membership.role) == (
        acme,
        alice,
        Role.OWNER,
    )
    event = AuditEvent.objects.get()
    assert (event.action, event.subject) == ("organization.created", "acme-inc")
    assert (event.organization, event.actor) == (acme, alice)


def test_names_may_be_alike_and_slugs_may_not(alice: User) -> None:
    slugs = [members.found("Acme", owner=alice).slug for _ in range(3)]
    assert slugs[0] == "acme"
    assert all(slug.startswith("acme-") for slug in slugs[1:])
    assert len(set(slugs)) == 3


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Ünïcödé GmbH", "unicode-gmbh"),
        ("Señor Piñata", "senor-pinata"),
        ("画像", "organization"),
        ("🎨🖼", "organization"),
        ("---", "organization"),
        ("a" * 100, "a" * 50),
    ],
)
def test_every_name_has_a_slug(alice: User, name: str, slug: str) -> None:
    organization = members.found(name, owner=alice)
    organization.refresh_from_db()
    assert (organization.name, organization.slug) == (name, slug)
    again = members.found(name, owner=alice).slug
    assert again.startswith(f"{slug}-")
    assert len(again) <= 60


def test_organizations_of_one_name_founded_at_once_are_all_founded(
    transactional_db: None,
) -> None:
    alice = UserFactory()
    founded = race(8, lambda _: members.found("Acme", owner=alice))
    assert len(founded) == Organization.objects.count() == 8
    assert len(set(Organization.objects.values_list("slug", flat=True))) == 8
    assert Membership.objects.filter(user=alice, role=Role.OWNER).count() == 8
    assert AuditEvent.objects.count() == 8


def test_an_organization_without_a_name_is_not_founded(transactional_db: None) -> None:
    alice = UserFactory()
    with pytest.raises(IntegrityError, match="organization_has_a_name"):
        members.found("", owner=alice)
    assert not Organization.objects.exists()
    assert not AuditEvent.objects.exists()


def test_one_person_is_a_member_once_and_in_a_known_role(alice: User) -> None:
    acme = members.found("Acme", owner=alice)
    with pytest.raises(IntegrityError), transaction.atomic():
        Membership.objects.create(organization=acme, user=alice, role=Role.VIEWER)
    with pytest.raises(IntegrityError, match="membership_role_is_known"), transaction.atomic():
        Membership.objects.update(role="emperor")


def test_an_address_belongs_to_one_person_whatever_its_case(alice: User) -> None:
    assert User.objects.get_by_natural_key("ALICE@acme.TEST") == alice
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.create_user("Alice@Acme.test")
    bob = User.objects.create_user("Bob@GLOBEX.test", "a password")
    assert (bob.email, bob.is_staff) == ("bob@globex.test", False)
    assert bob.check_password("a password")
    assert not bob.check_password("A password")
    assert not User.objects.create_user("carol@acme.test").has_usable_password()
    root = User.objects.create_superuser("root@acme.test", "a password")
    assert (root.is_staff, root.is_superuser) == (True, True)


def test_the_audit_log_outlives_what_it_names(alice: User) -> None:
    acme = members.found("Acme", owner=alice)
    acme.delete()
    alice.delete()
    event = AuditEvent.objects.get()
    assert (event.organization, event.actor, event.subject) == (None, None, "acme")
