"""The budgets of keys and members: how much of each is used, and what may be changed by whom.

Whoever sees the bills sees the budgets. A member's is set by those who manage the billing; a key's
also by those who manage the keys, who could make one without a budget anyway.
"""

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
from billing.pages.forms import PERIODS, BudgetForm, LimitsForm
from billing.spending import budgets, limits
from billing.spending.limits import Holder, NoSuchHolder, Use

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise


@dataclass(frozen=True, slots=True)
class Row:
    """A budget with what is used of it."""

    budget: Budget
    name: str
    uses: list[Use]
    ends_at: datetime
    may_change: bool

    @property
    def period(self) -> "StrPromise":
        """Return its period in words."""
        return PERIODS[Period(self.budget.period)]


def _may(access: Access, *, member: bool) -> bool:
    """Tell whether the person may change a budget of a member, or of a key."""
    return access.may(Permission.MANAGE_BILLING) or (
        not member and access.may(Permission.MANAGE_KEYS)
    )


def _rows(access: Access) -> list[Row]:
    found = Budget.objects.filter(organization=access.organization).select_related("member")
    rows, names = list(found), limits.names(found)
    made = []
    for budget in rows:
        _budget, running = budgets.running(budget)
        made.append(
            Row(
                budget=budget,
                name=names[budget.pk],
                uses=limits.uses(budget, running),
                ends_at=limits.ends_at(Period(budget.period), running.starts_at),
                may_change=_may(access, member=budget.member_id is not None),
            )
        )
    order = list(Period)
    return sorted(
        made,
        key=lambda row: (
            row.budget.member_id is not None,
            row.name.lower(),
            order.index(Period(row.budget.period)),
        ),
    )


def _form(access: Access, data: object = None) -> BudgetForm:
    return BudgetForm(
        data,
        organization=access.organization,
        keys=_may(access, member=False),
        members=_may(access, member=True),
    )


@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.VIEW_BILLING)
def index(request: MemberRequest) -> HttpResponse:
    """Show the budgets; a POST sets one."""
    access = request.access
    form = _form(access, request.POST or None)
    if request.method == "POST":
        if not _may(access, member=False):
            return denied(request, Permission.MANAGE_BILLING)
        if form.is_valid():
            holder, period = form.chosen, Period(form.cleaned_data["period"])
            return _set(request, holder, period, form)
    context = {"rows": _rows(access), "form": form, "may_add": _may(access, member=False)}
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
    if not _may(request.access, member=budget.member_id is not None):
        return denied(request, Permission.MANAGE_BILLING)
    initial = {"usd": budget.limit_micro, "images": budget.limit_images}
    form = LimitsForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        holder = Holder(budget.key_family, budget.member)
        return _set(request, holder, Period(budget.period), form)
    context = {
        "budget": budget,
        "name": limits.name_of(budget),
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
    if not _may(request.access, member=budget.member_id is not None):
        return denied(request, Permission.MANAGE_BILLING)
    limits.remove_budget(budget, actor=request.access.user)
    messages.success(request, _("Budget removed."))
    return redirect("billing_budgets")
