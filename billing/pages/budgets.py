"""The budgets: how much of each is used, and what may be changed by whom.

Anyone who sees the bills sees the budgets. They are set by those who manage the billing; a key's
also by those who manage the keys, who could make one without a budget anyway.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from accounts.access import Access, MemberRequest, Permission, denied, member
from billing.models import Budget, Period
from billing.models.scopes import SCOPES, Called, Holder, Scope
from billing.pages.forms import PERIODS, BudgetForm, LimitsForm
from billing.spending import budgets, limits
from billing.spending.limits import NoSuchHolder, Use

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise


@dataclass(frozen=True, slots=True)
class Row:
    """A budget with what is used of it."""

    budget: Budget
    called: Called
    uses: list[Use]
    ends_at: datetime
    may_change: bool

    @property
    def period(self) -> "StrPromise":
        """Return its period in words."""
        return PERIODS[Period(self.budget.period)]


def _settable(access: Access) -> list[Scope]:
    """Return the scopes of which the person may change budgets."""
    return [
        scope
        for scope in SCOPES.values()
        if access.may(Permission.MANAGE_BILLING)
        or (scope.by_key_managers and access.may(Permission.MANAGE_KEYS))
    ]


def rows_of(organization_id: uuid.UUID, settable: Sequence[Scope] = ()) -> list[Row]:
    """Return an organization's budgets by scope, name and period; those `settable` may change."""
    found = budgets.running(Budget.objects.filter(organization=organization_id))
    names = limits.all_called(budget for budget, _running in found)
    made = [
        Row(
            budget=budget,
            called=names[budget.pk],
            uses=limits.uses(budget, running),
            ends_at=limits.ends_at(Period(budget.period), running.starts_at),
            may_change=names[budget.pk].scope in settable,
        )
        for budget, running in found
    ]
    kinds, periods = list(SCOPES), list(Period)
    return sorted(
        made,
        key=lambda row: (
            kinds.index(row.budget.scope),
            row.called.label.lower(),
            periods.index(Period(row.budget.period)),
        ),
    )


def _form(access: Access, data: object = None) -> BudgetForm:
    return BudgetForm(data, organization=access.organization, settable=_settable(access))


@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.VIEW_BILLING)
def index(request: MemberRequest) -> HttpResponse:
    """Show the budgets; a POST sets one."""
    access = request.access
    form = _form(access, request.POST or None)
    if request.method == "POST":
        if not _settable(access):
            return denied(request, Permission.MANAGE_BILLING)
        if form.is_valid():
            holder, period = form.chosen, Period(form.cleaned_data["period"])
            return _set(request, holder, period, form)
    rows = rows_of(access.organization.pk, _settable(access))
    context = {"rows": rows, "form": form, "may_add": bool(_settable(access))}
    status = 400 if form.is_bound else 200
    return render(request, "billing/budgets.html", context, status=status)


def _set(request: MemberRequest, holder: Holder, period: Period, form: LimitsForm) -> HttpResponse:
    """Set a budget as a form that is valid says, and go back to the list."""
    try:
        limits.set_budget(
            request.access.organization,
            holder,
            period,
            limit_micro=form.cleaned_data["usd"],
            limit_images=form.cleaned_data["images"],
            actor=request.access.user,
        )
    except NoSuchHolder:
        messages.error(
            request, _("The key or member of this budget no longer exists. You can only remove it.")
        )
    else:
        messages.success(request, _("Budget saved."))
    return redirect("billing_budgets")


@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.VIEW_BILLING)
def change(request: MemberRequest, budget_id: int) -> HttpResponse:
    """Change the limits of a budget."""
    budget = get_object_or_404(Budget, organization=request.access.organization, pk=budget_id)
    if budget.holder.scope not in _settable(request.access):
        return denied(request, Permission.MANAGE_BILLING)
    initial = {"usd": budget.limit_micro, "images": budget.limit_images}
    form = LimitsForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        return _set(request, budget.holder, Period(budget.period), form)
    context = {
        "budget": budget,
        "name": limits.called(budget).label,
        "period": PERIODS[Period(budget.period)],
        "form": form,
    }
    status = 400 if form.is_bound else 200
    return render(request, "billing/budget.html", context, status=status)


@require_POST
@member(Permission.VIEW_BILLING)
def remove(request: MemberRequest, budget_id: int) -> HttpResponse:
    """End a budget."""
    budget = get_object_or_404(Budget, organization=request.access.organization, pk=budget_id)
    if budget.holder.scope not in _settable(request.access):
        return denied(request, Permission.MANAGE_BILLING)
    limits.remove_budget(budget, actor=request.access.user)
    messages.success(request, _("Budget removed."))
    return redirect("billing_budgets")
