"""Staff looking at the pages as a customer sees them: read-only, for an hour, written down.

It is kept in the staff member's session. While it lasts, every page shows the customer's
organization, no prompt, and nothing can be changed: not there, and not elsewhere either.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, cast

from allauth.mfa.models import Authenticator
from allauth.mfa.utils import is_mfa_enabled
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from accounts import audit
from accounts.models import Organization, User

SESSION = "viewing"
LASTS = timedelta(minutes=60)
# Recovery codes are for people who have lost one of these.
FACTORS = [Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN]
SAFE = ("GET", "HEAD", "OPTIONS")
# What is still possible: to stop, to log out, to switch the language.
STILL = ("stop_viewing", "logout", "account_logout", "set_language")


def is_staff(user: User | AnonymousUser) -> bool:
    """Return whether somebody is staff, with or without a second factor."""
    return isinstance(user, User) and user.is_active and user.is_staff


def may_enter(user: User | AnonymousUser) -> bool:
    """Return whether somebody is staff with a second factor set up."""
    return is_staff(user) and bool(is_mfa_enabled(user, types=FACTORS))


def start(request: HttpRequest, organization: Organization, reason: str) -> None:
    """Show the organization in this session from now on; raises ValueError without a reason."""
    if not reason.strip():
        raise ValueError("A reason says why you look.")
    stop(request)
    until = timezone.now() + LASTS
    request.session[SESSION] = {"organization": str(organization.pk), "until": until.timestamp()}
    audit.record(
        "staff.view_started",
        organization=organization,
        actor=cast(User, request.user),
        subject=organization.slug,
        reason=reason.strip(),
        until=until.isoformat(timespec="seconds"),
    )


def stop(request: HttpRequest, *, ran_out: bool = False) -> bool:
    """End it; return whether there was anything to end."""
    kept = request.session.pop(SESSION, None)
    if kept is None:
        return False
    organization = Organization.objects.filter(pk=kept["organization"]).first()
    if organization is not None:
        why = {"why": "the hour was over"} if ran_out else {}
        audit.record(
            "staff.view_stopped",
            organization=organization,
            actor=cast(User, request.user),
            subject=organization.slug,
            **why,
        )
    return True


def looked_at(request: HttpRequest) -> tuple[Organization, datetime] | None:
    """Return what staff look at in this session and until when; None when they do not.

    It ends when the hour is over, and with the person's being staff.
    """
    kept = request.session.get(SESSION)
    if kept is None:
        return None
    until = datetime.fromtimestamp(kept["until"], tz=timezone.get_current_timezone())
    organization = Organization.objects.filter(pk=kept["organization"]).first()
    if organization is None or not may_enter(request.user) or until <= timezone.now():
        stop(request, ran_out=until <= timezone.now())
        return None
    return organization, until


class OnlyLooking:
    """Refuses every change while staff view a customer's pages."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass the request on."""
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Return the refusal, or None to continue; a logout ends the viewing first."""
        if request.method in SAFE or SESSION not in request.session:
            return None
        name = request.resolver_match.url_name if request.resolver_match else None
        if name in ("logout", "account_logout"):
            stop(request)
        if name in STILL or looked_at(request) is None:
            return None
        return render(request, "accounts/only_looking.html", status=403)
