"""For staff: people, keys and the audit log. Registered in geekhub/staff/site.py."""

from typing import Any, cast

from django.contrib.admin import display
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from accounts import keys
from accounts.models import ApiKey, AuditEvent, User
from accounts.pages.audit_words import Told
from accounts.staff.forms import ReasonForm
from accounts.staff.lists import StaffAdmin, on_row, organizations_named
from accounts.staff.show import lines, link


class PersonAdmin(StaffAdmin):
    """People, and where they belong."""

    list_display = ("email", "name", "is_active", "is_staff", "created_at")
    list_filter = ("is_staff", "is_active")
    ordering = ("-pk",)
    search_fields = ("email",)
    search_help_text = _("An address or part of one")
    fields = (
        ("email", "name"),
        ("is_active", "is_staff", "is_superuser"),
        ("created_at", "last_login"),
        "organizations_of",
    )
    readonly_fields = ("organizations_of",)

    def found(self, queryset: QuerySet[User], term: str) -> QuerySet[User]:
        """Return people by address or name."""
        return queryset.filter(Q(email__icontains=term) | Q(name__icontains=term))

    @display(description=_("Organizations"))
    def organizations_of(self, row: User) -> Any:
        """Return where the person belongs."""

        found = row.memberships.select_related("organization").order_by("pk")
        told = [(link(one.organization), one.get_role_display()) for one in found]
        return format_html_join("", "<div>{}: {}</div>", told) or "–"


class KeyAdmin(StaffAdmin):
    """Keys by their prefix. Their digests are on no page, their secrets nowhere."""

    list_display = ("prefix", "organization", "name", "sandbox", "state", "last_used_at")
    list_filter = ("sandbox", "private", "playground")
    list_select_related = ("organization",)
    ordering = ("-created_at",)
    search_fields = ("prefix",)
    search_help_text = _("A key prefix or its beginning; an organization's name, slug or UUID")
    fields = (
        ("prefix", "name", "organization"),
        ("state", "sandbox", "private", "playground"),
        ("created_at", "created_by", "last_used_at"),
        ("expires_at", "revoked_at"),
        ("paused_at", "paused_reason", "resumed_at"),
        ("allowed_models", "allowed_ips", "tags", "on_refusal"),
        "rotated_from",
    )
    readonly_fields = ("state",)
    actions_detail = ("revoke",)

    def found(self, queryset: QuerySet[ApiKey], term: str) -> QuerySet[ApiKey]:
        """Return keys by prefix; of a pasted whole key, only the prefix is used."""
        if term.startswith("ghub_sk_"):
            return queryset.filter(prefix__startswith=term[: keys.PREFIX_LENGTH])
        return queryset.filter(organization__in=organizations_named(term))

    @display(description=_("State"))
    def state(self, row: ApiKey) -> str:
        """Return whether it works."""
        if row.revoked_at is not None:
            return _now("revoked")
        if row.expires_at is not None and row.expires_at <= timezone.now():
            return _now("expired")
        return _now("paused") if row.paused_at is not None else _now("active")

    @on_row(description=_("Revoke…"), url_path="revoke")
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """End a key for good."""

        def do(key: ApiKey, data: dict[str, Any]) -> str:
            if key.revoked_at is not None:
                raise keys.RevokedKey(_now("The key is already revoked."))
            keys.revoke(key, actor=cast(User, request.user), reason=data["reason"])
            return _now("Key revoked on every host.")

        return self.act(
            request,
            object_id,
            ReasonForm,
            title=_("Revoke a key"),
            text=_("The key stops working with the next request. This cannot be undone."),
            do=do,
            refused=(keys.RevokedKey,),
        )


class AuditAdmin(StaffAdmin):
    """Who did what, when, from where."""

    list_display = ("created_at", "organization", "actor", "what", "subject", "ip")
    list_select_related = ("organization", "actor")
    ordering = ("-pk",)
    newest = 200_000
    search_fields = ("organization",)
    search_help_text = _("An organization's name, slug or UUID, or a member's address")
    fields = (("created_at", "ip"), ("organization", "actor"), ("what", "subject"), "details_of")
    readonly_fields = ("what", "details_of")

    @display(description=_("What"))
    def what(self, row: AuditEvent) -> Any:
        """Return what was done, in words."""
        return Told(row).label

    @display(description=_("Details"))
    def details_of(self, row: AuditEvent) -> Any:
        """Return its details, in words."""
        return lines([f"{name}: {value}" for name, value in Told(row).lines])
