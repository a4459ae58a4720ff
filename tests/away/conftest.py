"""The database away, and an organization with somebody of each kind."""

from dataclasses import dataclass

import pytest
from django.test import Client

from accounts.models import Organization, User
from tests.pages import log_in, owner_of
from tests.pages.staff import staff


@dataclass(frozen=True)
class People:
    """A browser of each kind of visitor."""

    anonymous: Client
    owner: Client
    staff: Client
    users: tuple[User, User]

    def for_whom(self, path: str) -> Client:
        """Return the browser of who has most to see there."""
        if path.startswith("/staff"):
            return self.staff
        return self.owner if path.startswith("/dashboard") else self.anonymous

    def log_in_again(self) -> None:
        """Undo a logout."""
        log_in(self.owner, self.users[0])
        log_in(self.staff, self.users[1])

    def all(self) -> list[Client]:
        """Return everybody's."""
        return [self.anonymous, self.owner, self.staff]


@pytest.fixture
def people(client: Client, acme: Organization) -> People:
    """Acme's owner, a member of staff, and a stranger; `client` is for its settings only."""
    found = People(Client(), Client(), Client(), (owner_of(acme), staff()))
    found.log_in_again()
    for one in found.all():
        one.raise_request_exception = False
    return found
