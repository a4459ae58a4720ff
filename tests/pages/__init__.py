"""What the tests of pages share."""

from django.test import Client

from accounts.models import Membership, Organization, Role, User
from tests.factories import UserFactory

BACKEND = "django.contrib.auth.backends.ModelBackend"


def log_in(client: Client, user: User) -> Client:
    """Return the client, with the person's session."""
    client.force_login(user, backend=BACKEND)
    return client


def member_of(organization: Organization, role: Role) -> User:
    """Return a new person with a role in the organization."""
    user = UserFactory()
    Membership.objects.create(organization=organization, user=user, role=role)
    return user


def owner_of(organization: Organization) -> User:
    """Return the organization's first owner."""
    return organization.memberships.filter(role=Role.OWNER).earliest("pk").user
