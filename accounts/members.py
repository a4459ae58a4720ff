"""Organizations and who belongs to them: found, invite, accept, change, hand over, leave.

A change of an organization's owners holds the lock on its row, so that two changes at once see
each other: an organization always has an owner.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.text import slugify
from django.utils.translation import gettext as _

from accounts import audit
from accounts.access import MAY, Permission
from accounts.mailboxes import as_kept
from accounts.models import AuditEvent, Invitation, Membership, Organization, Role, User

INVITATION_DAYS = 7
# Where a session keeps the token of the link that was opened, until its person has an account.
SESSION = "invitation"


class MembersError(Exception):
    """It was not done. The message is a sentence for the person who asked."""


class LastOwner(MembersError):
    """The organization would have no owner."""


class NotAllowed(MembersError):
    """The actor's role does not allow it."""


class NotAMember(MembersError):
    """The person does not belong to the organization, or no longer."""


class AlreadyAMember(MembersError):
    """The person already belongs to the organization."""


class InvitationOver(MembersError):
    """The invitation does not exist, was used or revoked, or has expired."""


class WrongAddress(MembersError):
    """The invitation is for another address."""


@dataclass(frozen=True, slots=True)
class NewInvitation:
    """An invitation and its token, which goes into the link and is stored nowhere."""

    row: Invitation
    token: str


def found(name: str, *, owner: User) -> Organization:
    """Return a new organization owned by `owner`."""
    with transaction.atomic():
        organization = _create(name)
        Membership.objects.create(organization=organization, user=owner, role=Role.OWNER)
        audit.record(
            "organization.created",
            organization=organization,
            actor=owner,
            subject=organization.slug,
        )
    return organization


def founded(person: User) -> QuerySet[AuditEvent]:
    """Return the records of the organizations that a person founded and may have handed over."""
    return AuditEvent.objects.filter(actor=person, action="organization.created")


def change_settings(organization: Organization, *, actor: User, **changes: Any) -> None:
    """Write settings of the organization, such as `name` or `keeps_prompts`; audit what differs."""
    with transaction.atomic():
        row = _locked(organization)
        _require(row, actor, Permission.MANAGE_ORGANIZATION)
        differs = {name: value for name, value in changes.items() if getattr(row, name) != value}
        if not differs:
            return
        before = {name: getattr(row, name) for name in differs}
        for name, value in differs.items():
            setattr(row, name, value)
        row.save(update_fields=list(differs))
        audit.record(
            "organization.changed",
            organization=row,
            actor=actor,
            subject=row.slug,
            before=before,
            after=differs,
        )


# --- Invitations ------------------------------------------------------------------------------


def invite(organization: Organization, email: str, role: Role, *, actor: User) -> NewInvitation:
    """Return a new invitation for an address; an open one for the same address ends.

    Raises NotAllowed (owners are made by owners only) and AlreadyAMember.
    """
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        row = _locked(organization)
        _require(row, actor, Permission.MANAGE_MEMBERS, role)
        if row.memberships.filter(user__email__iexact=email).exists():
            raise AlreadyAMember(_("%(email)s is already a member.") % {"email": email})
        _open(row).filter(email__iexact=email).update(revoked_at=timezone.now())
        invitation = Invitation.objects.create(
            organization=row,
            email=email,
            role=role,
            digest=_digest(token),
            invited_by=actor,
            expires_at=timezone.now() + timedelta(days=INVITATION_DAYS),
        )
        audit.record("member.invited", organization=row, actor=actor, subject=email, role=role)
    return NewInvitation(invitation, token)


def revoke_invitation(invitation: Invitation, *, actor: User) -> None:
    """End an invitation; raises InvitationOver when it has ended already."""
    with transaction.atomic():
        organization = _locked(invitation.organization)
        _require(organization, actor, Permission.MANAGE_MEMBERS)
        if not _open(organization).filter(pk=invitation.pk).update(revoked_at=timezone.now()):
            raise InvitationOver(_("This invitation is no longer valid."))
        audit.record(
            "member.uninvited", organization=organization, actor=actor, subject=invitation.email
        )


def open_invitations(organization: Organization) -> list[Invitation]:
    """Return the invitations that can still be accepted, newest first."""
    found = _open(organization).filter(expires_at__gt=timezone.now())
    return list(found.select_related("invited_by").order_by("-created_at"))


def find_invitation(token: str) -> Invitation:
    """Return the invitation that a link opens, its organization loaded; raises InvitationOver."""
    invitation = (
        Invitation.objects.filter(
            digest=_digest(token),
            accepted_at=None,
            revoked_at=None,
            expires_at__gt=timezone.now(),
        )
        .select_related("organization", "invited_by")
        .first()
    )
    if invitation is None:
        raise InvitationOver(
            _("This invitation was used or withdrawn, or it has expired. Ask for a new one.")
        )
    return invitation


def accept(token: str, *, user: User) -> Membership:
    """Make the person a member through an invitation for their address, once.

    Raises InvitationOver, WrongAddress, AlreadyAMember.
    """
    with transaction.atomic():
        invitation = find_invitation(token)
        organization = _locked(invitation.organization)
        if as_kept(invitation.email) != as_kept(user.email):
            raise WrongAddress(
                _("This invitation is for %(invited)s, but you are logged in as %(email)s.")
                % {"invited": invitation.email, "email": user.email}
            )
        if organization.memberships.filter(user=user).exists():
            raise AlreadyAMember(_("You are already a member of this organization."))
        # The guard decides between two clicks, and between a click and a withdrawal.
        taken = Invitation.objects.filter(
            pk=invitation.pk, accepted_at=None, revoked_at=None, expires_at__gt=timezone.now()
        ).update(accepted_at=timezone.now())
        if not taken:
            raise InvitationOver(
                _("This invitation was used or withdrawn, or it has expired. Ask for a new one.")
            )
        membership = Membership.objects.create(
            organization=organization, user=user, role=invitation.role
        )
        audit.record(
            "member.joined",
            organization=organization,
            actor=user,
            subject=user.email,
            role=invitation.role,
        )
    return membership


# --- Members ----------------------------------------------------------------------------------


def change_role(organization: Organization, user: User, role: Role, *, actor: User) -> None:
    """Give a member another role; raises NotAllowed, NotAMember, LastOwner."""
    with transaction.atomic():
        row = _locked(organization)
        membership = _membership(row, user)
        before = Role(membership.role)
        _require(row, actor, Permission.MANAGE_MEMBERS, before, role)
        if before == role:
            return
        if before == Role.OWNER:
            _keep_an_owner(row, without=user)
        membership.role = role
        membership.save(update_fields=["role"])
        audit.record(
            "member.role_changed",
            organization=row,
            actor=actor,
            subject=user.email,
            before=before,
            after=role,
        )


def hand_over(organization: Organization, user: User, *, actor: User) -> None:
    """Make a member the owner and the actor, until now an owner, an admin.

    Raises NotAllowed if the actor is not an owner, NotAMember.
    """
    with transaction.atomic():
        row = _locked(organization)
        _require(row, actor, Permission.MANAGE_MEMBERS, Role.OWNER)
        successor = _membership(row, user)
        if user == actor:
            raise AlreadyAMember(_("You are already the owner."))
        successor.role = Role.OWNER
        successor.save(update_fields=["role"])
        row.memberships.filter(user=actor).update(role=Role.ADMIN)
        audit.record("organization.handed_over", organization=row, actor=actor, subject=user.email)


def remove(organization: Organization, user: User, *, actor: User) -> None:
    """End somebody's membership; raises NotAllowed, NotAMember, LastOwner."""
    with transaction.atomic():
        row = _locked(organization)
        membership = _membership(row, user)
        _require(row, actor, Permission.MANAGE_MEMBERS, Role(membership.role))
        _end(row, membership, actor, "member.removed")


def leave(organization: Organization, user: User) -> None:
    """End one's own membership; raises NotAMember, LastOwner."""
    with transaction.atomic():
        row = _locked(organization)
        _end(row, _membership(row, user), user, "member.left")


def _end(organization: Organization, membership: Membership, actor: User, action: str) -> None:
    if membership.role == Role.OWNER:
        _keep_an_owner(organization, without=membership.user)
    subject = membership.user.email
    membership.delete()
    audit.record(action, organization=organization, actor=actor, subject=subject)


def _keep_an_owner(organization: Organization, *, without: User) -> None:
    owners = organization.memberships.filter(role=Role.OWNER, user__is_active=True)
    if not owners.exclude(user=without).exists():
        raise LastOwner(
            _("An organization needs an owner. Transfer ownership or add another owner first.")
        )


def _require(organization: Organization, actor: User, permission: Permission, *roles: Role) -> None:
    """Check that the actor has the permission; giving or taking the owner's role needs an owner."""
    role = Role(_membership(organization, actor).role)
    if permission not in MAY[role]:
        raise NotAllowed(_("Your role does not allow this."))
    if Role.OWNER in roles and role != Role.OWNER:
        raise NotAllowed(_("Only an owner can add, change or remove an owner."))


def _locked(organization: Organization) -> Organization:
    return Organization.objects.select_for_update().get(pk=organization.pk)


def _membership(organization: Organization, user: User) -> Membership:
    membership = organization.memberships.select_related("user").filter(user=user).first()
    if membership is None:
        raise NotAMember(_("This person is not a member of the organization."))
    return membership


def _open(organization: Organization) -> QuerySet[Invitation]:
    return Invitation.objects.filter(organization=organization, accepted_at=None, revoked_at=None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _create(name: str) -> Organization:
    slug = slugify(name)[:50] or "organization"
    try:
        with transaction.atomic():
            return Organization.objects.create(name=name, slug=slug)
    except IntegrityError:
        if not Organization.objects.filter(slug=slug).exists():
            raise
        # Taken, perhaps this very moment: asking first would not have shown it.
        return Organization.objects.create(name=name, slug=f"{slug}-{secrets.token_hex(3)}")
