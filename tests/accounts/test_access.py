"""The one table of roles, and the gate in front of every page."""

from typing import Any

import pytest
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from accounts import members
from accounts.access import MAY, SESSION, Access, MemberRequest, Permission, current, member
from accounts.models import Membership, Organization, Role, User
from tests.factories import OrganizationFactory, UserFactory

# Written out a second time on purpose: a change of the table is a change of this one.
TABLE = {
    #                      owner admin developer billing viewer
    Permission.VIEW: "yes yes yes yes yes",
    Permission.DRAW: "yes yes yes no no",
    Permission.MANAGE_KEYS: "yes yes yes no no",
    Permission.VIEW_BILLING: "yes yes no yes no",
    Permission.MANAGE_BILLING: "yes no no yes no",
    Permission.MANAGE_MEMBERS: "yes yes no no no",
    Permission.MANAGE_ORGANIZATION: "yes yes no no no",
    Permission.VIEW_AUDIT: "yes yes no no no",
}


def test_the_table() -> None:
    assert set(TABLE) == set(Permission)
    assert set(MAY) == set(Role)
    for permission, row in TABLE.items():
        for role, word in zip(Role, row.split(), strict=True):
            assert (permission in MAY[role]) is (word == "yes"), (permission, role)


@pytest.fixture
def acme(db: None) -> Organization:
    return OrganizationFactory(name="Acme", owner__email="alice@acme.test")


@pytest.fixture
def alice(acme: Organization) -> User:
    return acme.members.get()


def ask(user: Any, path: str = "/", session: dict[str, Any] | None = None) -> HttpRequest:
    """Return a request as the middleware leaves it."""
    request = RequestFactory().get(path)
    request.user = user
    request.session = {} if session is None else session  # type: ignore[assignment]
    return request


def test_access_tells_what_the_role_may(acme: Organization, alice: User) -> None:
    membership = Membership.objects.get()
    assert Access(alice, acme, membership).may(Permission.MANAGE_BILLING)
    membership.role = Role.ADMIN
    access = Access(alice, acme, membership)
    assert not access.may(Permission.MANAGE_BILLING)
    assert access.can == {each.value: each != Permission.MANAGE_BILLING for each in Permission}


def test_the_first_organization_is_shown_until_another_is_chosen(
    acme: Organization, alice: User
) -> None:
    other = members.found("Other", owner=alice)
    session: dict[str, Any] = {}
    assert current(ask(alice, "/", session)).organization == acme
    assert session == {SESSION: str(acme.pk)}
    # The URL's slug stays, so that the links on the page lead where the page is.
    assert current(ask(alice, f"/?organization={other.slug}", session)).organization == other
    assert current(ask(alice, "/", session)).organization == other


def test_another_organizations_slug_is_not_found_and_not_kept(
    acme: Organization, alice: User
) -> None:
    OrganizationFactory(name="Globex")
    session: dict[str, Any] = {}
    for slug in ("globex", "nobody", ""):
        with pytest.raises(Http404):
            current(ask(alice, f"/?organization={slug}", session))
    assert session == {}


def test_a_membership_that_ended_is_forgotten(acme: Organization, alice: User) -> None:
    globex = OrganizationFactory(name="Globex")
    Membership.objects.create(organization=globex, user=alice)
    session: dict[str, Any] = {SESSION: str(globex.pk)}
    assert current(ask(alice, "/", session)).organization == globex
    Membership.objects.filter(organization=globex, user=alice).delete()
    assert current(ask(alice, "/", session)).organization == acme


def page(request: MemberRequest) -> HttpResponse:
    return HttpResponse(f"{request.access.organization.name} {request.access.role}")


def test_the_gate(acme: Organization, alice: User, client: Client) -> None:
    gate = member(Permission.VIEW_AUDIT)(page)
    assert gate(ask(alice)).content == b"Acme owner"
    Membership.objects.update(role=Role.VIEWER)
    refused = gate(ask(alice))
    assert refused.status_code == 403
    text = refused.content.decode()
    assert "Viewer" in text
    assert "Owner" in text
    assert "Developer" not in text
    assert "Acme viewer" not in text


def test_anonymous_goes_to_the_login_and_comes_back(client: Client, db: None) -> None:
    answer = client.get("/dashboard/keys?organization=acme")
    assert (answer.status_code, answer["location"]) == (
        302,
        "/login?next=/dashboard/keys%3Forganization%3Dacme",
    )


def test_who_belongs_nowhere_can_make_an_organization(client: Client, db: None) -> None:
    client.force_login(UserFactory())
    answer = client.get("/dashboard")
    assert (answer.status_code, answer["location"]) == (302, "/dashboard/organizations/new")
    assert client.get("/dashboard/organizations/new").status_code == 200


def test_who_is_shut_out_is_anonymous(acme: Organization, alice: User, client: Client) -> None:
    client.force_login(alice, backend="django.contrib.auth.backends.ModelBackend")
    assert client.get("/dashboard").status_code == 200
    User.objects.update(is_active=False)
    assert client.get("/dashboard").status_code == 302


def test_the_switcher(acme: Organization, alice: User, client: Client) -> None:
    other = members.found("Other", owner=alice)
    OrganizationFactory(name="Globex")
    client.force_login(alice, backend="django.contrib.auth.backends.ModelBackend")
    assert client.get("/dashboard/switch").status_code == 405
    assert client.post("/dashboard/switch", {"organization": "globex"}).status_code == 404
    assert client.session[SESSION] == str(acme.pk)
    answer = client.post(
        "/dashboard/switch", {"organization": other.slug, "next": "/dashboard/keys"}
    )
    assert answer["location"] == "/dashboard/keys"
    assert client.session[SESSION] == str(other.pk)
    away = {"organization": "acme", "next": "https://evil.test/"}
    assert client.post("/dashboard/switch", away)["location"] == "/dashboard"
