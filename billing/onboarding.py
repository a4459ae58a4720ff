"""A new customer: an organization with the account that its bonus is on."""

from django.conf import settings
from django.db import transaction

from accounts import members
from accounts.models import Organization, User
from billing import ledger


def found_organization(name: str, owner: User) -> Organization:
    """Return a new organization of the owner, its account opened with the sign-up bonus."""
    with transaction.atomic():
        organization = members.found(name, owner=owner)
        ledger.open_account(
            organization,
            bonus_micro=settings.SIGNUP_BONUS_MICRO,
            credit_limit_micro=settings.DEFAULT_CREDIT_LIMIT_MICRO,
        )
    return organization
