"""Every URL of the pages: as anonymous, as an outsider, as each role."""

import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from accounts import members
from accounts.access import MAY, Permission
from accounts.models import Invitation, Organization, Role
from tests.factories import KeyFactory, UserFactory
from tests.pages import log_in, member_of


def walk(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for one in patterns:
        route = prefix + str(one.pattern)
        if isinstance(one, URLResolver):
            yield from walk(one.url_patterns, route)
        else:
            yield route, one


PAGES = [
    (route, one)
    for route, one in walk(get_resolver().url_patterns)
    if route.startswith("dashboard")
]
# Each page but the one for those without an organization asks the gate.
GATED = [(route, one) for route, one in PAGES if one.name != "organization_new"]
IDS = [route for route, _ in GATED]


def address(route: str, acme: Organization) -> str:
    """Return the URL of a page of Acme's own things."""
    key = acme.api_keys.first() or KeyFactory(organization=acme).row
    invitation = Invitation.objects.filter(organization=acme).first()
    if invitation is None:
        owner = acme.memberships.filter(role=Role.OWNER).earliest("pk").user
        invitation = members.invite(acme, "new@acme.test", Role.VIEWER, actor=owner).row
    filled = {
        "<uuid:key_id>": str(key.pk),
        "<int:user_id>": str(acme.memberships.earliest("pk").user_id),
        "<int:invitation_id>": str(invitation.pk),
        "<slug:request_id>": f"req_{'0' * 24}",
    }
    for part, value in filled.items():
        route = route.replace(part, value)
    # Of what has no row here, something that is not there.
    for kind, value in {"uuid": str(uuid.uuid4()), "int": "999999999"}.items():
        route = re.sub(rf"<{kind}:\w+>", value, route)
    return "/" + re.sub(r"<(?:\w+:)?\w+>", "nothing", route)


def test_the_walk_finds_the_pages() -> None:
    names = {one.name for _, one in PAGES}
    assert {"dashboard", "keys", "key_new", "settings_audit", "settings_member_role"} <= names


@pytest.mark.parametrize(("route", "one"), GATED, ids=IDS)
def test_a_page_names_its_permission(route: str, one: URLPattern) -> None:
    assert isinstance(getattr(one.callback, "permission", None), Permission)


@pytest.mark.parametrize(("route", "one"), GATED, ids=IDS)
def test_anonymous_is_sent_to_the_login(
    route: str, one: URLPattern, acme: Organization, client: Client
) -> None:
    path = address(route, acme)
    for answer in (client.get(path), client.post(path)):
        assert answer.status_code in (302, 405)
        if answer.status_code == 302:
            assert answer["location"].startswith("/login?next=/dashboard")


@pytest.mark.parametrize(("route", "one"), GATED, ids=IDS)
def test_an_outsider_finds_nothing_of_acme(
    route: str, one: URLPattern, acme: Organization, globex: Organization, client: Client
) -> None:
    acme.name = "Acme Pictures"  # with a space, which no random token on a page can hold
    acme.save()
    path = address(route, acme)
    log_in(client, globex.members.get())
    before = (acme.memberships.count(), acme.api_keys.filter(revoked_at=None).count())
    for answer in (
        client.get(f"{path}?organization={acme.slug}"),
        client.post(f"{path}?organization={acme.slug}"),
    ):
        assert answer.status_code in (404, 405)
    if "<" in route:
        for answer in (client.get(path), client.post(path)):
            assert answer.status_code in (404, 405)
    assert b"Acme Pictures" not in client.get("/dashboard").content
    assert (acme.memberships.count(), acme.api_keys.filter(revoked_at=None).count()) == before


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(("route", "one"), GATED, ids=IDS)
def test_a_role_opens_what_the_table_says(
    route: str, one: URLPattern, role: Role, acme: Organization, client: Client
) -> None:
    permission: Permission = one.callback.permission
    log_in(client, member_of(acme, role))
    answer = client.get(address(route, acme))
    if answer.status_code == 405:
        # An empty form: it gets past the gate and no further.
        answer = client.post(address(route, acme))
    if permission in MAY[role]:
        assert answer.status_code != 403
        assert answer.status_code < 500
    else:
        assert answer.status_code == 403
        assert b"You don't have access" in answer.content


def test_who_belongs_nowhere_is_sent_to_make_an_organization(
    acme: Organization, client: Client
) -> None:
    log_in(client, UserFactory())
    for route, _ in GATED:
        answer = client.get(address(route, acme))
        assert answer.status_code in (302, 405)
        if answer.status_code == 302:
            assert answer["location"] == "/dashboard/organizations/new"
