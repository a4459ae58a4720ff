"""The pages for staff under /staff/: who gets in, what is there, the figures of the platform."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

from allauth.account import views as account
from django.conf import settings
from django.contrib import messages
from django.db.models import Count, Min
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csp import csp_override
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST
from unfold.sites import UnfoldAdminSite

from accounts import admin as accounts
from accounts import viewing
from accounts.access import to_login
from accounts.models import ApiKey, AuditEvent, Organization, User
from accounts.staff import StaffAdmin, usd
from billing import admin as billing
from billing import jobs, reconciliation
from billing.models import (
    Difference,
    Hold,
    Invoice,
    JobRun,
    LedgerEntry,
    MeterEvent,
    MeterState,
    PriceVersion,
    Reconciliation,
    StripeEvent,
    StripeOperation,
)
from billing.prices import PriceBook
from billing.stripe_client import is_connected
from geekhub.lib import money
from images import admin as images
from images import platform
from images.catalog import CATALOG, OWNERS
from images.gateway import gateway_of
from images.jobs import current
from images.models import Generation
from images.pages.charts import daily
from images.rollups import closed_until

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

# Unfold's pages run on Alpine, which writes code and styles into them. Nowhere else is this let in.
RELAXED = {
    "script-src": ["'self'", "'unsafe-inline'", "'unsafe-eval'"],
    "style-src": ["'self'", "'unsafe-inline'"],
}
# A job may wait for its turn, and for a long one before it.
PATIENCE = timedelta(minutes=2)

# What runs in the background, by the names of billing.jobs.
JOBS: Mapping[str, "StrPromise"] = {
    "alerts noticed": _("alerts noticed"),
    "alerts delivered": _("alerts delivered"),
    "accounts moved": _("accounts suspended and resumed"),
    "differences in older books": _("older books compared"),
    "differences in our books": _("our books compared"),
    "events from Stripe": _("events from Stripe taken in"),
    "writes to Stripe": _("writes sent to Stripe"),
    "prices brought to Stripe": _("prices brought to Stripe"),
    "subscriptions repaired": _("subscriptions repaired"),
    "usage frozen": _("usage closed for billing"),
    "usage sent": _("usage sent to Stripe"),
    "uncertain usage decided": _("uncertain usage decided"),
    "automatic recharges": _("automatic recharges"),
    "invoices compared": _("invoices compared"),
    "differences in usage": _("usage compared with Stripe"),
    "changes swept": _("changes at Stripe looked for"),
    "prices retired": _("old prices taken out of Stripe"),
}
CIRCUITS: Mapping[str, "StrPromise"] = {
    "closed": _("closed"),
    "open": _("open"),
    "half-open": _("half open"),
}

type View = Callable[..., HttpResponseBase]


class StaffSite(UnfoldAdminSite):  # type: ignore[misc] # unfold ships no types
    """Pages for whoever is staff and logs in with a second factor."""

    site_title = site_header = "Geek Hub"
    index_title = _("Platform")
    index_template = "staff/index.html"
    enable_nav_sidebar = True
    # What is not there is the 404 of every page, which knows of slashes.
    final_catch_all_view = False

    def has_permission(self, request: HttpRequest) -> bool:
        """Tell whether somebody gets in."""
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
            _now("Staff log in with a second factor. Set one up here, then come back to /staff/."),
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


# --- The figures --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobHealth:
    """When a background job was last begun, on whichever host."""

    name: str
    every: timedelta
    begun: datetime | None
    late: bool

    @property
    def title(self) -> "StrPromise | str":
        """Return what the job does, in words."""
        return JOBS.get(self.name, self.name)

    @property
    def interval(self) -> str:
        """Return how often, in the largest unit that divides it."""
        return interval(self.every)


@dataclass(frozen=True, slots=True)
class Line:
    """A model or a provider in the table of what it earned."""

    name: str
    earned: platform.Earned
    unit_price: str = ""
    unit_cost: str = ""

    @property
    def revenue(self) -> str:
        """Return what was earned."""
        return usd(self.earned.revenue_micro)

    @property
    def cost(self) -> str:
        """Return what it cost us."""
        return usd(self.earned.cost_micro) if self.earned.is_known else _now("unknown")

    @property
    def margin(self) -> str:
        """Return what is left."""
        return usd(self.earned.margin_micro) if self.earned.is_known else _now("unknown")

    @property
    def margin_part(self) -> str:
        """Return what is left, in percent."""
        return tenths(self.earned.margin_tenths)

    @property
    def failed_part(self) -> str:
        """Return how many requests failed, in percent."""
        return tenths(self.earned.failed_tenths)


def interval(time: timedelta) -> str:
    """Return a time of whole seconds in the largest unit that divides it: `10 min`."""
    seconds = int(time.total_seconds())
    units = ((86400, _now("d")), (3600, _now("h")), (60, _now("min")), (1, _now("s")))
    for size, unit in units:
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    raise ValueError("a time of whole seconds")


def tenths(value: int | None) -> str:
    """Return tenths of a percent as percent; a dash for None."""
    if value is None:
        return "–"
    sign = "-" if value < 0 else ""
    return f"{sign}{abs(value) // 10}.{abs(value) % 10} %"


def figures(request: HttpRequest) -> dict[str, Any]:
    """Return what the first page shows."""
    month = platform.month()
    days = [(day, earned) for day, earned in month.days.items()]
    gateway = gateway_of(request)
    return {
        "total": Line(_now("All"), month.total),
        "today": Line(_now("Today"), days[-1][1]),
        "revenue_chart": daily([(day, one.revenue_micro) for day, one in days], _dollars),
        "pictures_chart": daily([(day, one.images) for day, one in days], str),
        "days": [Line(day.isoformat(), earned) for day, earned in reversed(days)],
        "models": _models(month),
        "providers": [
            Line(str(OWNERS.get(name, name)), earned)
            for name, earned in sorted(month.providers.items())
        ],
        "errors": sorted(
            (
                (str(OWNERS.get(provider, provider)), code, count)
                for (provider, code), count in month.errors.items()
            ),
            key=lambda one: (-one[2], one),
        ),
        "circuits": [
            (str(OWNERS.get(name, name)), state, CIRCUITS[state])
            for name, provider in gateway.providers.items()
            for state in [provider.circuit.state]
        ]
        if gateway is not None
        else None,
        "jobs": job_health(timezone.now()),
        "closed_until": closed_until(),
        "connected": is_connected(),
        "open_differences": reconciliation.open_differences().count(),
        "unsent": MeterEvent.objects.filter(
            state__in=[MeterState.PENDING, MeterState.SENDING]
        ).aggregate(many=Count("pk"), oldest=Min("hour")),
        "uncertain": MeterEvent.objects.filter(state=MeterState.UNCERTAIN).count(),
        "looking": viewing.looked_at(request),
    }


def job_health(now: datetime) -> list[JobHealth]:
    """Return how each job that should run here does."""
    begun = dict(JobRun.objects.values_list("name", "started_at"))
    found = []
    for job in current():
        at = begun.get(job.name)
        late = at is None or at < now - job.every - PATIENCE
        found.append(JobHealth(job.name, job.every, at if at != jobs.LONG_AGO else None, late))
    return found


def _models(month: platform.Month) -> list[Line]:
    found = []
    quotes = PriceBook().offered(month.models, None)
    for model, earned in month.models.items():
        row = CATALOG.get(model)
        cost = row.cost_micro if row else None
        found.append(
            Line(
                model,
                earned,
                usd(quotes[model].unit_micro) if model in quotes else "–",
                _now("unknown") if cost is None else usd(cost),
            )
        )
    return sorted(found, key=lambda one: (-one.earned.revenue_micro, one.name))


def _dollars(micro: int) -> str:
    return f"${money.to_usd(micro)}"


# --- What is there ------------------------------------------------------------------------------

site = StaffSite(name="admin")

PAGES: tuple[tuple[type[Any], type[StaffAdmin]], ...] = (
    (User, accounts.PersonAdmin),
    (ApiKey, accounts.KeyAdmin),
    (AuditEvent, accounts.AuditAdmin),
    (Organization, images.OrganizationAdmin),
    (Generation, images.GenerationAdmin),
    (LedgerEntry, billing.LedgerAdmin),
    (Hold, billing.HoldAdmin),
    (PriceVersion, billing.PriceAdmin),
    (Invoice, billing.InvoiceAdmin),
    (MeterEvent, billing.MeterAdmin),
    (StripeOperation, billing.OperationAdmin),
    (StripeEvent, billing.EventAdmin),
    (Difference, billing.DifferenceAdmin),
    (Reconciliation, billing.ReconciliationAdmin),
)
for _model, _admin in PAGES:
    site.register(_model, _admin)
