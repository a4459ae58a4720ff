"""For staff: requests, organizations with what they spent. Registered in geekhub/staff/site.py."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib.admin import SimpleListFilter, display
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from accounts.models import Organization
from accounts.staff.lists import StaffAdmin
from accounts.staff.show import lines, usd
from billing.staff import organizations as billing_organizations
from geekhub.lib.ids import REQUEST_ID
from images.catalog.rows import CATALOG
from images.drawing.errors import ENDINGS
from images.models import Generation, GenerationStatus
from images.providers.registry import OWNERS
from images.usage import platform


class OrganizationAdmin(billing_organizations.OrganizationAdmin):
    """Organizations with what they spent in thirty days."""

    def complete(self, rows: list[Organization]) -> None:
        """Give rows their `spent_micro`."""
        spent = platform.spent_by(rows)
        for row in rows:
            row.spent_micro = spent[row.pk]  # type: ignore[attr-defined] # only shown


class WhenFilter(SimpleListFilter):
    """How far back. There is an index of moments, and none of what went wrong in them."""

    title = _("time")
    parameter_name = "when"
    SPANS = {
        "hour": (timedelta(hours=1), _("an hour")),
        "week": (timedelta(days=7), _("7 days")),
        "month": (timedelta(days=30), _("30 days")),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the spans."""
        return [(name, told) for name, (_span, told) in self.SPANS.items()]

    def choices(self, changelist: Any) -> Any:
        """Return the choices; without one it is a day, or any time when words are given."""
        first, *others = super().choices(changelist)
        yield first | {"display": _("a day, or any time when searching")}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return requests of the time."""
        chosen = self.value()
        if chosen in self.SPANS:
            span = self.SPANS[chosen][0]
        elif request.GET.get("q"):
            return queryset
        else:
            span = timedelta(days=1)
        return queryset.filter(created_at__gte=timezone.now() - span)


class FieldFilter(SimpleListFilter):
    """By a column, whose values are known without asking the table."""

    values: Iterable[tuple[str, Any]] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the values."""
        return self.values

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return requests with the value."""
        if not self.value():
            return queryset
        return queryset.filter(**{str(self.parameter_name): self.value()})


class StatusFilter(FieldFilter):
    """By what became of it."""

    title, parameter_name, values = _("status"), "status", GenerationStatus.choices


class ModelFilter(FieldFilter):
    """By who drew."""

    title, parameter_name = _("model"), "model"
    values = [(one, one) for one in CATALOG]


class ProviderFilter(FieldFilter):
    """By the provider of who drew."""

    title, parameter_name, values = _("provider"), "provider", list(OWNERS.items())


class ErrorFilter(FieldFilter):
    """By the code of the error."""

    title, parameter_name = _("error"), "error_code"
    values = [(one, one) for one in ENDINGS]


class RequestList(ChangeList):
    """Rows by their public name: the primary key is part of the pictures' addresses."""

    def url_for_result(self, result: Any) -> str:
        """Return the address of a request's page."""
        return reverse("admin:images_generation_change", args=[quote(result.request_id)])


class GenerationAdmin(StaffAdmin):
    """Requests, without their prompts: those are the customer's own."""

    list_display = (
        "request_id",
        "created_at",
        "organization",
        "status",
        "asked",
        "model",
        "n",
        "delivered",
        "cost",
        "latency_ms",
        "error_code",
    )
    list_filter = (WhenFilter, StatusFilter, ModelFilter, ProviderFilter, ErrorFilter)
    list_select_related = ("organization",)
    sortable_by = ()
    ordering = ("-created_at",)
    search_fields = ("request_id",)
    search_help_text = _("A request id, or an organization's name, slug or UUID")
    list_before_template = "staff/private.html"
    fields = (
        ("request_id", "organization", "api_key"),
        ("status", "error_code", "error_message"),
        ("created_at", "finished_at", "deadline_at"),
        ("asked", "model", "provider"),
        ("n", "delivered", "filtered"),
        ("cost", "latency_ms", "draw_ms"),
        ("attempts_told", "skipped_told", "adjusted"),
        ("parameters", "tags", "sandbox"),
        "prompt_told",
    )
    readonly_fields = ("cost", "asked", "attempts_told", "skipped_told", "prompt_told")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list with public names."""
        return RequestList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Generation]:
        """Return requests; the prompt does not even leave the database."""
        found: QuerySet[Generation] = super().get_queryset(request)
        return found.defer("prompt", "idempotency_key", "fingerprint")

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Return a request by its public name."""
        return super().get_object(request, object_id, "request_id")

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Show a request; by its name alone, or the way back to it would hold its key."""
        context["original"] = str(kwargs.get("obj"))
        return super().render_change_form(request, context, *args, **kwargs)

    def address(self, row: Model) -> str:
        """Return the address of a request's page."""
        return reverse("admin:images_generation_change", args=[quote(row.request_id)])  # type: ignore[attr-defined]

    def found(self, queryset: QuerySet[Generation], term: str) -> QuerySet[Generation]:
        """Return a request by its id, or those of organizations."""
        if REQUEST_ID.fullmatch(term):
            return queryset.filter(request_id=term)
        return super().found(queryset, term)

    @display(description=_("Cost"))
    def cost(self, row: Generation) -> str:
        """Return what the customer paid."""
        return usd(row.cost_micro)

    @display(description=_("Requested"))
    def asked(self, row: Generation) -> str:
        """Return the models that were asked for."""
        return ", ".join(row.requested)

    @display(description=_("Attempts"))
    def attempts_told(self, row: Generation) -> Any:
        """Return who was tried, and what came of it."""
        drew = _("delivered")
        return lines([f"{one['model']}: {one['error'] or drew}" for one in row.attempts])

    @display(description=_("Skipped"))
    def skipped_told(self, row: Generation) -> Any:
        """Return who was left out, and why."""
        return lines([": ".join(str(part) for part in one.values()) for one in row.skipped])

    @display(description=_("Prompt"))
    def prompt_told(self, row: Generation) -> Any:
        """Return why there is no prompt."""
        return _("Prompts are private and not shown to staff.")
