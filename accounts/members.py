"""Organizations and who belongs to them."""

import secrets

from django.db import transaction
from django.utils.text import slugify

from accounts import audit
from accounts.models import Membership, Organization, Role, User


def found(name: str, *, owner: User) -> Organization:
    """Return a new organization owned by `owner`."""
    with transaction.atomic():
        organization = Organization.objects.create(name=name, slug=_free_slug(name))
        Membership.objects.create(organization=organization, user=owner, role=Role.OWNER)
        audit.record(
            "organization.created",
            organization=organization,
            actor=owner,
            subject=organization.slug,
        )
    return organization


def _free_slug(name: str) -> str:
    slug = slugify(name)[:50] or "organization"
    if Organization.objects.filter(slug=slug).exists():
        return f"{slug}-{secrets.token_hex(3)}"
    return slug
