"""The alerts: when to warn, who is told, where else they are sent, and what became of them."""

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from accounts.access import MemberRequest, Permission, form_on, member
from accounts.models import Organization
from billing.alerts import endpoints, raising
from billing.alerts.delivery import READERS
from billing.alerts.endpoints import EndpointRefused
from billing.alerts.raising import PERCENTS
from billing.models import AlertEndpoint, Budget, Notification
from billing.pages import words
from billing.pages.forms import EndpointForm, WarningForm
from billing.spending import ledger, limits

LATEST = 50


@require_safe
@member(Permission.VIEW_BILLING)
def index(request: MemberRequest) -> HttpResponse:
    """Show what is told to whom, and what was told lately."""
    return _page(request)


def _page(
    request: MemberRequest,
    warning: WarningForm | None = None,
    endpoint: EndpointForm | None = None,
) -> HttpResponse:
    organization = request.access.organization
    account = ledger.balance(organization)
    found = AlertEndpoint.objects.filter(organization=organization).first()
    told = organization.memberships.filter(role__in=READERS, user__is_active=True)
    context = {
        "account": account,
        "warning": warning or WarningForm(initial={"below": account.alert_below_micro}),
        "endpoint": found,
        "endpoint_form": endpoint or EndpointForm(initial={"url": found.url if found else ""}),
        "readers": told.select_related("user").order_by("user__email"),
        "percents": sorted(PERCENTS),
        "rows": _rows(organization),
        "zone": timezone.get_current_timezone_name(),
    }
    status = 400 if warning or endpoint else 200
    return render(request, "billing/alerts.html", context, status=status)


def _rows(organization: Organization) -> list[dict[str, Any]]:
    told = Notification.objects.filter(organization=organization).order_by("-created_at", "pk")
    rows = list(told[:LATEST])
    numbers = {row.details.get("budget") for row in rows if row.kind == "budget"}
    whose = limits.all_called(Budget.objects.filter(organization=organization, pk__in=numbers))
    return [
        {
            "row": row,
            "text": words.alert(row, whose.get(row.details.get("budget", 0))),
            "delivery": words.delivery(row),
        }
        for row in rows
    ]


@member(Permission.MANAGE_BILLING)
@form_on("billing_alerts")
def warning(request: MemberRequest) -> HttpResponse:
    """Set when to warn that little is left."""
    form = WarningForm(request.POST)
    if not form.is_valid():
        return _page(request, warning=form)
    limits.set_warning(
        request.access.organization, form.cleaned_data["below"], actor=request.access.user
    )
    messages.success(request, _("Warning saved."))
    return redirect("billing_alerts")


@never_cache
@member(Permission.MANAGE_BILLING)
@form_on("billing_alerts")
def endpoint(request: MemberRequest) -> HttpResponse:
    """Set where alerts are sent as well, and show the new secret this once."""
    access, form = request.access, EndpointForm(request.POST)
    if not form.is_valid():
        return _page(request, endpoint=form)
    url = form.cleaned_data["url"]
    try:
        secret = endpoints.set_endpoint(access.organization, url, access.user)
    except EndpointRefused as error:
        form.add_error("url", str(error))
        return _page(request, endpoint=form)
    return render(request, "billing/endpoint_set.html", {"url": url, "secret": secret})


@require_POST
@member(Permission.MANAGE_BILLING)
def test(request: MemberRequest) -> HttpResponse:
    """Send an alert that says that alerts arrive."""
    access = request.access
    if raising.send_test(access.organization, access.user, now=timezone.now()):
        messages.success(request, _("Test alert sent."))
    else:
        messages.warning(request, _("A test was sent less than a minute ago. Try again shortly."))
    return redirect("billing_alerts")


@require_POST
@member(Permission.MANAGE_BILLING)
def endpoint_remove(request: MemberRequest) -> HttpResponse:
    """Send alerts by e-mail only."""
    endpoints.remove_endpoint(request.access.organization, request.access.user)
    messages.success(request, _("Webhook removed. Alerts are sent by email only."))
    return redirect("billing_alerts")
