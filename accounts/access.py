"""Who can do what: one table of roles, and the one gate in front of every page of an organization.

A page is `@member(Permission.…)` and reads `request.access`. Not yours is a 404, as if it did not
exist; yours, but not for your role, is a 403 that says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import wraps
from typing import Any, Concatenate, cast
from urllib.parse import urlsplit

from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import escape_leading_slashes, url_has_allowed_host_and_scheme

from accounts.models import Membership, Organization, Role, User
from accounts.staff import viewing

SESSION = "organization"


class Permission(StrEnum):
    """Something a member can do."""

    VIEW = "view"
    DRAW = "draw"
    MANAGE_KEYS = "manage_keys"
    VIEW_BILLING = "view_billing"
    MANAGE_BILLING = "manage_billing"
    MANAGE_MEMBERS = "manage_members"
    MANAGE_ORGANIZATION = "manage_organization"
    VIEW_AUDIT = "view_audit"


MAY: Mapping[Role, frozenset[Permission]] = {
    Role.OWNER: frozenset(Permission),
    Role.ADMIN: frozenset(Permission) - {Permission.MANAGE_BILLING},
    Role.DEVELOPER: frozenset({Permission.VIEW, Permission.DRAW, Permission.MANAGE_KEYS}),
    Role.BILLING: frozenset({Permission.VIEW, Permission.VIEW_BILLING, Permission.MANAGE_BILLING}),
    Role.VIEWER: frozenset({Permission.VIEW}),
}


# What staff can do in the customer view; accounts/staff/viewing.py refuses the rest.
LOOKING = frozenset({Permission.VIEW, Permission.VIEW_BILLING, Permission.VIEW_AUDIT})


class NoOrganization(Exception):
    """The person belongs to no organization."""


@dataclass(frozen=True, slots=True)
class Access:
    """A person looking at one of their organizations; with `viewing_until`, staff at another's.

    Staff have a membership that is stored nowhere. They see no prompts.
    """

    user: User
    organization: Organization
    membership: Membership
    viewing_until: datetime | None = None

    @property
    def role(self) -> Role:
        """Return the person's role here."""
        return Role(self.membership.role)

    def may(self, permission: Permission) -> bool:
        """Return whether the person's role allows it."""
        return permission in (MAY[self.role] if self.viewing_until is None else LOOKING)

    @property
    def can(self) -> dict[str, bool]:
        """Return every permission by name, for templates: `access.can.manage_keys`."""
        return {permission.value: self.may(permission) for permission in Permission}


class MemberRequest(HttpRequest):
    """A request that has passed `member`."""

    access: Access


def memberships(user: User) -> list[Membership]:
    """Return the person's memberships, oldest first, their organizations loaded."""
    found = Membership.objects.filter(user=user).select_related("organization")
    return list(found.order_by("created_at", "pk"))


def current(request: HttpRequest) -> Access:
    """Return whom the request is for: `?organization=SLUG`, else the session's, else the first.

    A slug in the URL becomes the session's, so that the links on the page stay with it. Raises
    Http404 for a slug that is not the person's, NoOrganization when there is none at all.
    """
    user = cast(User, request.user)
    slug = request.GET.get("organization")
    if (looked := viewing.looked_at(request)) is not None:
        organization, until = looked
        if slug not in (None, organization.slug):
            raise Http404
        return Access(user, organization, _spectator(user, organization), until)
    found = memberships(user)
    if slug is not None:
        chosen = next((one for one in found if one.organization.slug == slug), None)
        if chosen is None:
            raise Http404
    elif not found:
        raise NoOrganization
    else:
        # A membership that ended leaves its organization behind in the session.
        kept = request.session.get(SESSION)
        chosen = next((one for one in found if str(one.organization_id) == kept), found[0])
    if request.session.get(SESSION) != str(chosen.organization_id):
        request.session[SESSION] = str(chosen.organization_id)
    return Access(user, chosen.organization, chosen)


def _spectator(user: User, organization: Organization) -> Membership:
    return Membership(user=user, organization=organization, role=Role.VIEWER)


def member[**P](
    permission: Permission,
) -> Callable[
    [Callable[Concatenate[MemberRequest, P], HttpResponseBase]],
    Callable[Concatenate[HttpRequest, P], HttpResponseBase],
]:
    """Make a view callable by members with a permission; `request.access` is their Access.

    Anonymous: the login. No organization: the page that creates one, for staff their
    own pages. Another's: 404.
    """

    def decorate(
        view: Callable[Concatenate[MemberRequest, P], HttpResponseBase],
    ) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
        def checked(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return to_login(request)
            try:
                access = current(request)
            except NoOrganization:
                # Staff belong to no customer.
                at_home = "admin:index" if viewing.is_staff(request.user) else "organization_new"
                return redirect(at_home)
            allowed = cast(MemberRequest, request)
            allowed.access = access
            if not access.may(permission):
                return denied(allowed, permission)
            return view(allowed, *args, **kwargs)

        wraps(view)(checked)
        # What the walk over the URL map asks each page for.
        cast(Any, checked).permission = permission
        return checked

    return decorate


def form_on[**P](
    page: str,
) -> Callable[
    [Callable[Concatenate[MemberRequest, P], HttpResponseBase]],
    Callable[Concatenate[MemberRequest, P], HttpResponseBase],
]:
    """Let a view take a form that is on another page, `page` by name, and lead readers there.

    Such a view shows that page again when something is wrong with the form, so its own address is
    one that people reload, switch the language on, or come back to after a login.
    """

    def decorate(
        view: Callable[Concatenate[MemberRequest, P], HttpResponseBase],
    ) -> Callable[Concatenate[MemberRequest, P], HttpResponseBase]:
        @wraps(view)
        def sent(request: MemberRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if request.method in viewing.SAFE:
                return redirect(page)
            return view(request, *args, **kwargs)

        return sent

    return decorate


def to_login(request: HttpRequest) -> HttpResponse:
    """Redirect to the login, and afterwards back to the page; for a form, to the page it was on."""
    if request.method in viewing.SAFE:
        return redirect_to_login(request.get_full_path())
    return redirect_to_login(came_from(request) or reverse("dashboard"))


def came_from(request: HttpRequest) -> str:
    """Return the page of ours that a request was sent from, as path and query; empty if unknown."""
    referer = request.headers.get("Referer", "")
    if not url_has_allowed_host_and_scheme(referer, {request.get_host()}, request.is_secure()):
        return ""
    page = urlsplit(referer)
    path = escape_leading_slashes(page.path)
    return f"{path}?{page.query}" if page.query else path


def denied(request: MemberRequest, permission: Permission) -> HttpResponse:
    """Return the page that says which roles can do it; 403."""
    roles = [role for role in Role if permission in MAY[role]]
    return render(request, "accounts/denied.html", {"roles": roles}, status=403)
