"""A new customer: an organization with an account, and the sign-up bonus once per person.

Anyone who could found organizations without end could have the bonus without end. So a person has
it once, known by their account and by every address they have proved, whatever is renamed or
deleted afterwards; and the organizations a person founds are limited.
"""

import hashlib
from collections.abc import Iterable
from datetime import timedelta

from allauth.account.models import EmailAddress
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from accounts import members
from accounts.mailboxes import person_of
from accounts.members import MembersError
from accounts.models import Organization, User
from billing.models import BonusClaim, EntryKind
from billing.spending import ledger

DAY = timedelta(days=1)


class TooManyOrganizations(MembersError):
    """The person has founded as many as one may, altogether or within a day."""


def check_may_found(person: User) -> None:
    """Raise TooManyOrganizations when the person may found no other organization now.

    Staff may found any number.
    """
    if person.is_staff:
        return
    founded = members.founded(person)
    most, a_day = settings.ORGANIZATIONS_PER_PERSON, settings.ORGANIZATIONS_PER_DAY
    if founded.count() >= most:
        raise TooManyOrganizations(
            _(
                "You have created %(most)d organizations, the most one person can have. "
                "Contact us for more."
            )
            % {"most": most}
        )
    if founded.filter(created_at__gt=timezone.now() - DAY).count() >= a_day:
        raise TooManyOrganizations(
            _("You can create up to %(most)d organizations in 24 hours. Try again tomorrow.")
            % {"most": a_day}
        )


def found_organization(name: str, owner: User) -> Organization:
    """Return a new organization of the owner, its account opened with the bonus if it is due.

    Raises TooManyOrganizations.
    """
    with transaction.atomic():
        # One after the other: each must see what the others founded.
        User.objects.select_for_update(no_key=True).get(pk=owner.pk)
        check_may_found(owner)
        organization = members.found(name, owner=owner)
        ledger.open_account(
            organization,
            bonus_micro=settings.SIGNUP_BONUS_MICRO if _has_proved(owner) and claim(owner) else 0,
            credit_limit_micro=settings.DEFAULT_CREDIT_LIMIT_MICRO,
        )
    return organization


def address_proved(person: User) -> None:
    """Give the bonus to the organization that was founded before its founder proved an address."""
    with transaction.atomic():
        first = members.founded(person).exclude(organization=None).order_by("pk").first()
        if first is None or first.organization is None or not claim(person):
            return
        ledger.record(
            first.organization,
            EntryKind.BONUS,
            settings.SIGNUP_BONUS_MICRO,
            entry_key=f"bonus:{first.organization.pk}",
            note="Sign-up bonus",
        )


def bonus_micro(person: User) -> int:
    """Return the bonus, in micro-USD, that an organization the person founds now would have."""
    taken = BonusClaim.objects.filter(digest__in=_digests(person)).exists()
    return 0 if taken or not _has_proved(person) else settings.SIGNUP_BONUS_MICRO


def claim(person: User) -> bool:
    """Take the person's one bonus; return False when there is none, or none any more.

    Call it inside the transaction that gives the bonus, so that both are done or neither.
    """
    if not settings.SIGNUP_BONUS_MICRO:
        return False
    claims = [BonusClaim(digest=digest) for digest in _digests(person)]
    try:
        with transaction.atomic():
            BonusClaim.objects.bulk_create(claims)
    except IntegrityError:
        # An address that came later belongs to the same person from now on.
        BonusClaim.objects.bulk_create(claims, ignore_conflicts=True)
        return False
    return True


def _has_proved(person: User) -> bool:
    """Return whether an address of theirs answered; where no mail is sent, none can."""
    if settings.ACCOUNT_EMAIL_VERIFICATION != "mandatory":
        return True
    return bool(EmailAddress.objects.filter(user=person, verified=True).exists())


def _digests(person: User) -> list[str]:
    proved = EmailAddress.objects.filter(user=person, verified=True)
    return digests(person.pk, [person.email, *proved.values_list("email", flat=True)])


def digests(person_id: int, addresses: Iterable[str]) -> list[str]:
    """Return what a person is known by, without saying who it is, in a fixed order."""
    names = {f"person:{person_id}", *(f"address:{person_of(one)}" for one in addresses)}
    return sorted(hashlib.sha256(name.encode()).hexdigest() for name in names)
