"""Invitations, roles, and the owner that an organization always has."""

from datetime import timedelta

import pytest
from django.utils import timezone

from accounts import audit, members
from accounts.members import (
    AlreadyAMember,
    InvitationOver,
    LastOwner,
    MembersError,
    NotAllowed,
    NotAMember,
    WrongAddress,
)
from accounts.models import AuditEvent, Invitation, Membership, Organization, Role, User
from tests.billing import race
from tests.factories import OrganizationFactory, UserFactory


@pytest.fixture
def acme(db: None) -> Organization:
    return OrganizationFactory(name="Acme", owner__email="alice@acme.test")


@pytest.fixture
def alice(acme: Organization) -> User:
    return acme.members.get()


def join(organization: Organization, role: Role, email: str = "bob@acme.test") -> User:
    user = UserFactory(email=email)
    Membership.objects.create(organization=organization, user=user, role=role)
    return user


def roles(organization: Organization) -> dict[str, str]:
    return dict(organization.memberships.values_list("user__email", "role"))


def last_event() -> AuditEvent:
    return AuditEvent.objects.latest("pk")


# --- Invitations ------------------------------------------------------------------------------


def test_an_invitation_is_accepted_once_by_its_address(acme: Organization, alice: User) -> None:
    new = members.invite(acme, "Bob@acme.test", Role.DEVELOPER, actor=alice)
    assert new.token not in str(list(Invitation.objects.values()))
    assert last_event().action == "member.invited"
    assert new.token not in str(list(AuditEvent.objects.values()))
    bob, eve = UserFactory(email="bob@acme.test"), UserFactory(email="eve@evil.test")
    with pytest.raises(WrongAddress):
        members.accept(new.token, user=eve)
    membership = members.accept(new.token, user=bob)
    assert (membership.organization, membership.role) == (acme, Role.DEVELOPER)
    assert (last_event().action, last_event().actor) == ("member.joined", bob)
    Membership.objects.filter(user=bob).delete()
    with pytest.raises(InvitationOver):
        members.accept(new.token, user=bob)
    assert roles(acme) == {"alice@acme.test": Role.OWNER}


def test_an_invitation_ends(acme: Organization, alice: User) -> None:
    bob = UserFactory(email="bob@acme.test")
    late = members.invite(acme, bob.email, Role.VIEWER, actor=alice)
    seven = timezone.now() + timedelta(days=7)
    assert abs(late.row.expires_at - seven) < timedelta(minutes=1)
    Invitation.objects.update(expires_at=timezone.now())
    assert members.open_invitations(acme) == []
    with pytest.raises(InvitationOver):
        members.accept(late.token, user=bob)
    # A new one takes the place of the old one.
    first = members.invite(acme, bob.email, Role.VIEWER, actor=alice)
    second = members.invite(acme, "BOB@acme.test", Role.VIEWER, actor=alice)
    with pytest.raises(InvitationOver):
        members.accept(first.token, user=bob)
    members.revoke_invitation(second.row, actor=alice)
    with pytest.raises(InvitationOver):
        members.accept(second.token, user=bob)
    with pytest.raises(InvitationOver):
        members.revoke_invitation(second.row, actor=alice)
    for token in ("", "x", late.token[:-1]):
        with pytest.raises(InvitationOver):
            members.find_invitation(token)
    assert roles(acme) == {"alice@acme.test": Role.OWNER}


def test_who_belongs_already_is_not_invited_and_does_not_join_twice(
    acme: Organization, alice: User
) -> None:
    with pytest.raises(AlreadyAMember):
        members.invite(acme, "ALICE@acme.test", Role.VIEWER, actor=alice)
    new = members.invite(acme, "bob@acme.test", Role.OWNER, actor=alice)
    bob = join(acme, Role.VIEWER)
    with pytest.raises(AlreadyAMember):
        members.accept(new.token, user=bob)
    assert roles(acme)["bob@acme.test"] == Role.VIEWER


def test_an_invitation_accepted_many_times_at_once_counts_once(
    published: None, transactional_db: None
) -> None:
    acme = OrganizationFactory(owner__email="alice@acme.test")
    new = members.invite(acme, "bob@acme.test", Role.ADMIN, actor=acme.members.get())
    bob = UserFactory(email="bob@acme.test")
    results = race(6, lambda _: members.accept(new.token, user=bob), losing=MembersError)
    assert sum(isinstance(one, Membership) for one in results) == 1
    assert AuditEvent.objects.filter(action="member.joined").count() == 1


# --- Who may change whom ----------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.DEVELOPER, Role.BILLING, Role.VIEWER])
def test_who_may_not_manage_members_changes_nothing(
    acme: Organization, alice: User, role: Role
) -> None:
    bob, carol = join(acme, role), join(acme, Role.VIEWER, "carol@acme.test")
    before = roles(acme)
    for attempt in (
        lambda: members.invite(acme, "dave@acme.test", Role.VIEWER, actor=bob),
        lambda: members.change_role(acme, carol, Role.ADMIN, actor=bob),
        lambda: members.change_role(acme, bob, Role.ADMIN, actor=bob),
        lambda: members.remove(acme, carol, actor=bob),
        lambda: members.hand_over(acme, carol, actor=bob),
        lambda: members.change_settings(acme, actor=bob, name="Mine"),
    ):
        with pytest.raises(NotAllowed):
            attempt()  # type: ignore[no-untyped-call]
    assert roles(acme) == before
    assert not Invitation.objects.exists()


def test_an_admin_manages_all_but_owners(acme: Organization, alice: User) -> None:
    bob = join(acme, Role.ADMIN)
    carol = join(acme, Role.VIEWER, "carol@acme.test")
    for attempt in (
        lambda: members.invite(acme, "dave@acme.test", Role.OWNER, actor=bob),
        lambda: members.change_role(acme, carol, Role.OWNER, actor=bob),
        lambda: members.change_role(acme, bob, Role.OWNER, actor=bob),
        lambda: members.change_role(acme, alice, Role.VIEWER, actor=bob),
        lambda: members.remove(acme, alice, actor=bob),
        lambda: members.hand_over(acme, carol, actor=bob),
    ):
        with pytest.raises(NotAllowed):
            attempt()  # type: ignore[no-untyped-call]
    members.change_role(acme, carol, Role.DEVELOPER, actor=bob)
    event = last_event()
    assert (event.action, event.actor, event.subject) == ("member.role_changed", bob, carol.email)
    assert event.details == {"before": "viewer", "after": "developer"}
    members.remove(acme, carol, actor=bob)
    assert roles(acme) == {"alice@acme.test": Role.OWNER, "bob@acme.test": Role.ADMIN}


def test_a_stranger_is_no_member_and_no_actor(acme: Organization, alice: User) -> None:
    globex = OrganizationFactory(name="Globex", owner__email="gail@globex.test")
    gail = globex.members.get()
    with pytest.raises(NotAMember):
        members.change_role(acme, gail, Role.VIEWER, actor=alice)
    with pytest.raises(NotAMember):
        members.remove(acme, gail, actor=alice)
    with pytest.raises(NotAMember):
        members.hand_over(acme, gail, actor=alice)
    with pytest.raises(NotAMember):
        members.remove(acme, alice, actor=gail)
    with pytest.raises(NotAMember):
        members.leave(acme, gail)


# --- The last owner ---------------------------------------------------------------------------


def test_the_last_owner_stays(acme: Organization, alice: User) -> None:
    join(acme, Role.ADMIN)
    with pytest.raises(LastOwner):
        members.leave(acme, alice)
    with pytest.raises(LastOwner):
        members.change_role(acme, alice, Role.ADMIN, actor=alice)
    with pytest.raises(LastOwner):
        members.remove(acme, alice, actor=alice)
    assert roles(acme)["alice@acme.test"] == Role.OWNER
    # An owner who can no longer log in does not count.
    retired = join(acme, Role.OWNER, "rita@acme.test")
    User.objects.filter(pk=retired.pk).update(is_active=False)
    with pytest.raises(LastOwner):
        members.leave(acme, alice)


def test_after_handing_over_one_can_leave(acme: Organization, alice: User) -> None:
    bob = join(acme, Role.VIEWER)
    with pytest.raises(AlreadyAMember):
        members.hand_over(acme, alice, actor=alice)
    members.hand_over(acme, bob, actor=alice)
    assert roles(acme) == {"alice@acme.test": Role.ADMIN, "bob@acme.test": Role.OWNER}
    assert last_event().action == "organization.handed_over"
    members.leave(acme, alice)
    assert roles(acme) == {"bob@acme.test": Role.OWNER}
    assert (last_event().action, last_event().subject) == ("member.left", "alice@acme.test")


@pytest.mark.parametrize("way", ["leave", "demote", "remove each other"])
def test_two_owners_who_go_at_once_leave_one_behind(
    published: None, transactional_db: None, way: str
) -> None:
    for _ in range(5):
        acme = OrganizationFactory()
        owners = [acme.members.get(), UserFactory()]
        Membership.objects.create(organization=acme, user=owners[1], role=Role.OWNER)

        def go(number: int, acme: Organization = acme, owners: list[User] = owners) -> None:
            me, other = owners[number], owners[1 - number]
            match way:
                case "leave":
                    members.leave(acme, me)
                case "demote":
                    members.change_role(acme, me, Role.VIEWER, actor=me)
                case _:
                    members.remove(acme, other, actor=me)

        results = race(2, go, losing=MembersError)
        assert results.count(None) == 1
        assert acme.memberships.filter(role=Role.OWNER).count() == 1


# --- Settings and the log ---------------------------------------------------------------------


def test_settings_are_changed_and_the_difference_is_audited(
    acme: Organization, alice: User
) -> None:
    with audit.coming_from("203.0.113.9"):
        members.change_settings(acme, actor=alice, name="Acme 2", keeps_prompts=True)
    acme.refresh_from_db()
    assert (acme.name, acme.slug) == ("Acme 2", "acme")
    event = last_event()
    assert (event.action, event.ip) == ("organization.changed", "203.0.113.9")
    assert event.details == {"before": {"name": "Acme"}, "after": {"name": "Acme 2"}}
    count = AuditEvent.objects.count()
    members.change_settings(acme, actor=alice, name="Acme 2")
    assert AuditEvent.objects.count() == count


def test_an_address_is_not_carried_over(acme: Organization, alice: User) -> None:
    with audit.coming_from("203.0.113.9"):
        pass
    assert audit.record("key.created", organization=acme).ip is None
