"""The site for staff under /staff/: who gets in, and which pages it has."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from allauth.account import views as account
from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csp import csp_override
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST
from unfold.sites import UnfoldAdminSite

from accounts.access import to_login
from accounts.models import ApiKey, AuditEvent, Organization, User
from accounts.staff import admin as accounts
from accounts.staff import viewing
from accounts.staff.lists import StaffAdmin
from billing.models import (
    Difference,
    Hold,
    Invoice,
    LedgerEntry,
    MeterEvent,
    PriceVersion,
    Reconciliation,
    StripeEvent,
    StripeOperation,
)
from billing.staff.money import HoldAdmin, LedgerAdmin, PriceAdmin
from billing.staff.reconciliation import DifferenceAdmin, ReconciliationAdmin
from billing.staff.stripe import EventAdmin, InvoiceAdmin, MeterAdmin, OperationAdmin
from geekhub.staff.figures import RELAXED, figures
from images.models import Generation
from images.staff import admin as images

type View = Callable[..., HttpResponseBase]


class StaffSite(UnfoldAdminSite):  # type: ignore[misc] # unfold ships no types
    """Pages for staff who logged in with a second factor."""

    site_title = site_header = "Geek Hub"
    index_title = _("Platform")
    index_template = "staff/index.html"
    enable_nav_sidebar = True
    # What is not there is the 404 of every page, which knows of slashes.
    final_catch_all_view = False

    def has_permission(self, request: HttpRequest) -> bool:
        """Return whether somebody gets in."""
        return viewing.may_enter(request.user)

    def admin_view(self, view: View, cacheable: bool = False) -> View:
        """Return the view behind the gate."""
        shown = csp_override({**settings.SECURE_CSP, **RELAXED})(view)
        if not cacheable:
            shown = never_cache(shown)
        if not getattr(view, "csrf_exempt", False):
            shown = csrf_protect(shown)

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            return turned_away(request) or shown(request, *args, **kwargs)

        return guarded

    def get_urls(self) -> list[URLResolver | URLPattern]:
        """Return Django's, and the way out of looking as a customer."""
        stop = path("stop-viewing", require_POST(stop_viewing), name="stop_viewing")
        return [stop, *super().get_urls()]

    def index(self, request: HttpRequest, extra_context: Any = None) -> TemplateResponse:
        """Show the figures of the platform."""
        answer: TemplateResponse = super().index(request, figures(request))
        return answer

    def login(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Send to our own login, which asks for the second factor and counts failures."""
        return turned_away(request) or redirect("admin:index")

    def logout(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Log out as everywhere."""
        answer: HttpResponse = account.logout(request)
        return answer

    def password_change(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Send to our own page for it."""
        return redirect("account_change_password")


def turned_away(request: HttpRequest) -> HttpResponse | None:
    """Return where somebody goes who may not come in, or None; raises Http404 for a customer."""
    if not request.user.is_authenticated:
        return to_login(request)
    if not viewing.is_staff(request.user):
        raise Http404
    if not viewing.may_enter(request.user):
        messages.warning(
            request,
            _now("Staff need two-factor authentication. Set it up here, then return to /staff/."),
        )
        return redirect("mfa_index")
    return None


def stop_viewing(request: HttpRequest) -> HttpResponse:
    """End looking as a customer."""
    refused = turned_away(request)
    if refused is not None:
        return refused
    looked = viewing.looked_at(request)
    viewing.stop(request)
    if looked is None:
        return redirect("admin:index")
    return redirect(reverse("admin:accounts_organization_change", args=[looked[0].pk]))


site = StaffSite(name="admin")
PAGES: tuple[tuple[type[Any], type[StaffAdmin]], ...] = (
    (User, accounts.PersonAdmin),
    (ApiKey, accounts.KeyAdmin),
    (AuditEvent, accounts.AuditAdmin),
    (Organization, images.OrganizationAdmin),
    (Generation, images.GenerationAdmin),
    (LedgerEntry, LedgerAdmin),
    (Hold, HoldAdmin),
    (PriceVersion, PriceAdmin),
    (Invoice, InvoiceAdmin),
    (MeterEvent, MeterAdmin),
    (StripeOperation, OperationAdmin),
    (StripeEvent, EventAdmin),
    (Difference, DifferenceAdmin),
    (Reconciliation, ReconciliationAdmin),
)
for _model, _admin in PAGES:
    site.register(_model, _admin)
