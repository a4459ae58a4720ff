"""A new person's first page, and the page that makes an organization."""

from typing import cast

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from accounts.access import SESSION, MemberRequest, Permission, member
from accounts.models import User
from accounts.pages.forms import OrganizationForm
from billing.spending import ledger, onboarding
from billing.spending.onboarding import TooManyOrganizations


@require_safe
@member(Permission.VIEW)
def welcome(request: MemberRequest) -> HttpResponse:
    """Show the first steps."""
    account = ledger.balance(request.access.organization)
    return render(request, "images/welcome.html", {"account": account})


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def new_organization(request: HttpRequest) -> HttpResponse:
    """Make an organization, and go there."""
    person = cast(User, request.user)
    form = OrganizationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            organization = onboarding.found_organization(form.cleaned_data["name"], person)
        except TooManyOrganizations as error:
            form.add_error(None, str(error))
        else:
            request.session[SESSION] = str(organization.pk)
            return redirect("welcome")
    context = {
        "form": form,
        "bonus_micro": onboarding.bonus_micro(person),
        "has_bonus": settings.SIGNUP_BONUS_MICRO > 0,
    }
    return render(request, "images/new_organization.html", context)
