"""The movements: every entry of the ledger, with the balance after it."""

from typing import Any

from django.http import Http404, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from accounts.access import MemberRequest, Permission, member
from billing.pages.forms import MovementsForm
from billing.pages.words import MovementRow
from billing.spending import movements
from geekhub.lib.csv import csv_file

PAGE = 50
# Beyond what a database's number holds there is no entry.
MOST = 2**63 - 1


def number(text: str) -> int:
    """Return the number of a ledger entry; 404 when it is none."""
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 20 and int(text) <= MOST):
        raise Http404
    return int(text)


@require_safe
@member(Permission.VIEW_BILLING)
def index(request: MemberRequest) -> HttpResponse:
    """Show a page of movements, newest first."""
    form = MovementsForm(request.GET)
    kind = form.wanted()
    before = number(request.GET["before"]) if "before" in request.GET else None
    found = movements.page(request.access.organization, kind=kind, before=before, size=PAGE + 1)
    context: dict[str, Any] = {
        "form": form,
        "kind": kind,
        "rows": [MovementRow(one) for one in found[:PAGE]],
        "before": before,
        "older": found[PAGE - 1].entry.pk if len(found) > PAGE else None,
        "zone": timezone.get_current_timezone_name(),
    }
    return render(request, "billing/movements.html", context)


@require_safe
@member(Permission.VIEW_BILLING)
def export(request: MemberRequest) -> HttpResponseBase:
    """Return all movements, of one kind if it is named, as CSV."""
    kind = MovementsForm(request.GET).wanted()
    return csv_file(request, "movements", movements.all_csv(request.access.organization, kind))
