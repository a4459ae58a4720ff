"""Organizations and who belongs to them."""

import secrets

from django.db import IntegrityError, transaction
from django.utils.text import slugify

from accounts import audit
from accounts.models import Membership, Organization, Role, User


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


def _create(name: str) -> Organization:
    slug = slugify(name)[:50] or "organization"
    try:
        with transaction.atomic():
            return Organization.objects.create(name=name, slug=slug)
    except IntegrityError:
        if not Organization.objects.filter(slug=slug).exists():
            raise
        # Taken, perhaps this very moment: asking first would not have told.
        return Organization.objects.create(name=name, slug=f"{slug}-{secrets.token_hex(3)}")
