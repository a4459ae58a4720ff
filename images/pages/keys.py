"""The key pages: list, create, rotate, revoke, resume. Secrets are shown once."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.contrib import messages
from django.db import IntegrityError, transaction
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import keys
from accounts.access import Access, MemberRequest, Permission, member
from accounts.keys import NewKey, RevokedKey
from accounts.models import ApiKey
from billing.models import Budget, BudgetPeriod, Period, scopes
from billing.spending import budgets, ledger
from images.catalog.rows import CATALOG
from images.pages.forms import KeyForm, RotateForm

IDLE = timedelta(days=30)
SPEND = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Row:
    """A key in the list; `spent_micro` in the last 30 days."""

    key: ApiKey
    spent_micro: int
    budgets: list[tuple[Budget, BudgetPeriod]]
    unused: bool
    ending: bool


@require_safe
@member(Permission.VIEW)
def index(request: MemberRequest) -> HttpResponse:
    """Show the organization's keys, those that ended last."""
    now = timezone.now()
    organization = request.access.organization
    spent = ledger.spend_by_key(organization, since=now - SPEND)
    own = Budget.objects.filter(organization=organization, scope=scopes.KEY.name).order_by("pk")
    limited = budgets.running(own)
    living, ended = [], []
    # A playground's key is nobody's to use; it is here only to be resumed.
    shown = organization.api_keys.exclude(playground=True, paused_at=None)
    for key in shown.select_related("created_by").order_by("-created_at"):
        if key.revoked_at or (key.expires_at and key.expires_at <= now):
            ended.append(key)
            continue
        living.append(
            Row(
                key=key,
                spent_micro=spent.get(key.pk, 0),
                budgets=[pair for pair in limited if pair[0].key_family == key.family],
                unused=(key.last_used_at or key.created_at) < now - IDLE,
                ending=key.expires_at is not None,
            )
        )
    return render(request, "images/keys.html", {"rows": living, "ended": ended})


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.MANAGE_KEYS)
def new(request: MemberRequest) -> HttpResponse:
    """Make a key, and show its secret this once."""
    form = KeyForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = _create(request.access, form)
        except IntegrityError:
            messages.warning(
                request, _("This form was already sent and its key shown. Create another key.")
            )
            return redirect("keys")
        return _shown_once(request, made)
    return render(request, "images/key_new.html", {"form": form})


def _create(access: Access, form: KeyForm) -> NewKey:
    data = form.cleaned_data
    with transaction.atomic():
        made = keys.create(
            access.organization,
            data["name"],
            sandbox=data["kind"] == "test",
            private=data["private"],
            expires_at=data["expires_on"],
            allowed_models=data["allowed_models"] or None,
            allowed_ips=data["allowed_ips"],
            tags=data["tags"],
            actor=access.user,
            key_id=data["once"],
        )
        if data["budget_usd"] is not None:
            budgets.set_budget(made.row, data["budget_usd"], Period(data["budget_period"]))
    return made


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.MANAGE_KEYS)
def rotate(request: MemberRequest, key_id: uuid.UUID) -> HttpResponse:
    """Make a successor, and show its secret this once; the old key works for the overlap."""
    key = get_object_or_404(request.access.organization.api_keys, pk=key_id)
    form = RotateForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = keys.rotate(key, overlap=form.cleaned_data["overlap"], actor=request.access.user)
        except RevokedKey:
            messages.error(request, _("This key has ended or was already rotated."))
            return redirect("keys")
        key.refresh_from_db()
        return _shown_once(request, made, old_ends_at=key.expires_at)
    return render(request, "images/key_rotate.html", {"form": form, "key": key})


@require_POST
@member(Permission.MANAGE_KEYS)
def revoke(request: MemberRequest, key_id: uuid.UUID) -> HttpResponse:
    """End a key at once."""
    key = get_object_or_404(request.access.organization.api_keys, pk=key_id)
    keys.revoke(key, actor=request.access.user)
    messages.success(request, _("Key %s revoked.") % key.name)
    return redirect("keys")


@require_POST
@member(Permission.MANAGE_KEYS)
def resume(request: MemberRequest, key_id: uuid.UUID) -> HttpResponse:
    """Let a paused key work again."""
    key = get_object_or_404(request.access.organization.api_keys, pk=key_id)
    keys.resume(key, actor=request.access.user)
    messages.success(request, _("Key %s resumed.") % key.name)
    return redirect("keys")


def _shown_once(
    request: MemberRequest, made: NewKey, old_ends_at: datetime | None = None
) -> HttpResponse:
    allowed = made.row.allowed_models or list(CATALOG)
    model = min(allowed, key=lambda one: CATALOG[one].price_micro)
    context = {
        "key": made.row,
        "secret": made.secret,
        "old_ends_at": old_ends_at,
        "model": model,
        "origin": settings.PUBLIC_URL,
    }
    return render(request, "images/key_made.html", context)
