"""Meter events, operations, events and invoices, for staff."""

from collections.abc import Iterable
from typing import Any

from django.contrib.admin import SimpleListFilter, display
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from accounts.staff.lists import StaffAdmin, organizations_named
from accounts.staff.show import usd
from billing.models import Invoice, MeterEvent, MeterState, StripeEvent, StripeOperation


class MeterFilter(SimpleListFilter):
    """What is not settled, unless more is asked for."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the states, and all of them together."""
        return [*MeterState.choices, ("all", _("all"))]

    def choices(self, changelist: Any) -> Any:
        """Return the choices; no state means what is under way."""
        first, *others = super().choices(changelist)
        yield first | {"display": _("unfinished, or any when searching")}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return events of the state."""
        if self.value() == "all":
            return queryset
        if self.value():
            return queryset.filter(state=self.value())
        return queryset if request.GET.get("q") else queryset.filter(state__in=UNDER_WAY)


UNDER_WAY = (MeterState.PENDING, MeterState.SENDING, MeterState.UNCERTAIN)


class MeterAdmin(StaffAdmin):
    """Usage on its way to Stripe's meters."""

    list_display = (
        "identifier",
        "organization",
        "price_version",
        "hour",
        "quantity",
        "state",
        "attempts",
        "last_error",
    )
    list_filter = (MeterFilter,)
    list_select_related = ("organization", "price_version")
    sortable_by = ()
    ordering = ("-timestamp", "pk")
    search_fields = ("identifier",)
    search_help_text = _("An identifier, or an organization's name, slug or UUID")
    fields = (
        ("identifier", "organization", "price_version"),
        ("hour", "quantity", "timestamp", "restamped_from"),
        ("state", "attempts", "first_attempt_at", "accepted_at"),
        ("next_at", "lease_until", "created_at"),
        ("reissue_of", "last_error"),
    )

    def found(self, queryset: QuerySet[MeterEvent], term: str) -> QuerySet[MeterEvent]:
        """Return an event by its identifier, or those of organizations."""
        if queryset.filter(pk=term).exists():
            return queryset.filter(pk=term)
        return super().found(queryset, term)


class OperationAdmin(StaffAdmin):
    """Every other write to Stripe."""

    list_display = (
        "key",
        "kind",
        "organization",
        "state",
        "attempts",
        "result",
        "last_error",
        "created_at",
    )
    list_filter = ("state", "kind")
    list_select_related = ("organization",)
    ordering = ("-pk",)
    search_fields = ("key",)
    search_help_text = _("A key, a Stripe id, or an organization's name, slug or UUID")
    fields = (
        ("key", "kind", "organization"),
        ("state", "result", "attempts"),
        ("created_at", "next_at", "done_at"),
        ("parameters", "last_error"),
    )

    def found(self, queryset: QuerySet[StripeOperation], term: str) -> QuerySet[StripeOperation]:
        """Return an operation by its key or what it made, or those of organizations."""
        meant = Q(key=term) | Q(result=term) | Q(organization__in=organizations_named(term))
        return queryset.filter(meant)


class EventAdmin(StaffAdmin):
    """Events from Stripe. Their content is the customer's and is not shown."""

    list_display = ("id", "type", "object_id", "received_at", "processed_at", "attempts", "error")
    list_filter = ("thin", "livemode")
    sortable_by = ()
    ordering = ("-received_at", "pk")
    search_fields = ("id",)
    search_help_text = _("The id of an event or of its object, or a type")
    fields = (
        ("id", "type", "object_id"),
        ("created", "received_at", "processed_at"),
        ("thin", "livemode", "attempts", "next_at"),
        "error",
    )

    def found(self, queryset: QuerySet[StripeEvent], term: str) -> QuerySet[StripeEvent]:
        """Return events by id, by object or by type."""
        return queryset.filter(Q(pk=term) | Q(object_id=term) | Q(type=term))


class InvoiceAdmin(StaffAdmin):
    """Our copies of Stripe's invoices."""

    list_display = ("number_or_id", "organization", "status", "total", "due", "owed", "created")
    list_filter = ("status", "payment_failed")
    list_select_related = ("organization",)
    ordering = ("-pk",)
    search_fields = ("number",)
    search_help_text = _("A number, a Stripe id, or an organization's name, slug or UUID")
    fields = (
        ("number", "stripe_id", "organization"),
        ("status", "billing_reason", "owed", "currency"),
        ("period_start", "period_end"),
        ("subtotal_cents", "tax_cents", "total_cents"),
        ("amount_due_cents", "amount_paid_cents"),
        ("created", "finalized_at", "fetched_at"),
        "lines",
    )
    readonly_fields = ("owed",)

    def found(self, queryset: QuerySet[Invoice], term: str) -> QuerySet[Invoice]:
        """Return an invoice by number or id, or those of organizations."""
        meant = Q(number=term) | Q(stripe_id=term) | Q(organization__in=organizations_named(term))
        return queryset.filter(meant)

    @display(description=_("Invoice"))
    def number_or_id(self, row: Invoice) -> str:
        """Return its number, or Stripe's id while it has none."""
        return row.number or row.stripe_id

    @display(description=_("Total"))
    def total(self, row: Invoice) -> str:
        """Return the total."""
        return usd(row.total_cents * 10_000)

    @display(description=_("Due"))
    def due(self, row: Invoice) -> str:
        """Return what is due."""
        return usd(row.amount_due_cents * 10_000)

    @display(description=_("Unpaid"), boolean=True)
    def owed(self, row: Invoice) -> bool:
        """Return whether Stripe could not collect it."""
        return row.payment_failed
