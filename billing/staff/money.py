"""Ledger, holds and prices, for staff."""

from collections.abc import Iterable
from typing import Any

from django.contrib.admin import SimpleListFilter, display
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from accounts.staff.lists import StaffAdmin, as_uuid
from accounts.staff.show import usd
from billing.models import Hold, HoldState, LedgerEntry, PriceVersion


class LedgerAdmin(StaffAdmin):
    """Every movement of every balance. A trigger of the database keeps it from being changed."""

    list_display = (
        "created_at",
        "organization",
        "kind",
        "amount",
        "quantity",
        "sku",
        "request_id",
        "note",
        "payment_id",
    )
    list_filter = ("kind",)
    list_select_related = ("organization",)
    ordering = ("-pk",)
    newest = 200_000
    search_fields = ("entry_key", "payment_id")
    search_help_text = _(
        "An organization's name, slug or UUID, a member's address, an entry key, or Stripe's "
        "id of a payment. Without a search: the newest 200,000 entries"
    )
    fields = (
        ("created_at", "organization", "kind"),
        ("amount", "quantity", "first_unit", "sku", "price_version"),
        ("request_id", "hold", "api_key"),
        ("entry_key", "payment_id", "invoice", "note"),
    )
    readonly_fields = ("amount",)

    def found(self, queryset: QuerySet[LedgerEntry], term: str) -> QuerySet[LedgerEntry]:
        """Return an entry by its key or Stripe's id of its payment, or those of organizations."""
        of_payment = queryset.filter(~Q(payment_id=""), payment_id=term)
        for named in (queryset.filter(entry_key=term), of_payment):
            if named.exists():
                return named
        return super().found(queryset, term)

    @display(description=_("Amount"))
    def amount(self, row: LedgerEntry) -> str:
        """Return the amount."""
        return usd(row.amount_micro)


class HoldFilter(SimpleListFilter):
    """Open holds, unless others are asked for: of those there are few."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the states that an index finds."""
        return [(HoldState.HELD, _("held")), (HoldState.CAPTURED, _("captured"))]

    def choices(self, changelist: Any) -> Any:
        """Return the choices; no state means `held` while nothing is looked for."""
        first, *others = super().choices(changelist)
        yield first | {"display": _("held, or any when searching")}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return holds of the state."""
        if self.value() == HoldState.CAPTURED:
            return queryset.filter(state=HoldState.CAPTURED).order_by("-settled_at")
        if self.value() or not request.GET.get("q"):
            return queryset.filter(state=HoldState.HELD)
        return queryset


class HoldAdmin(StaffAdmin):
    """Money set aside for requests that run."""

    list_display = (
        "request_id",
        "organization",
        "state",
        "amount",
        "captured",
        "quantity",
        "since",
    )
    list_filter = (HoldFilter,)
    list_select_related = ("organization",)
    sortable_by = ()
    search_fields = ("request_id",)
    search_help_text = _("An organization's name, slug or UUID, or the UUID of a hold")
    fields = (
        ("request_id", "organization", "api_key"),
        ("state", "amount", "captured", "quantity"),
        ("created_at", "settled_at", "lease_until"),
        ("quotes", "budget_periods", "owner"),
    )
    readonly_fields = ("amount",)

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order that an index has."""
        if request.GET.get("state") == HoldState.CAPTURED:
            return ("-settled_at",)
        return ("organization", "request_id") if request.GET.get("q") else ("lease_until",)

    def found(self, queryset: QuerySet[Hold], term: str) -> QuerySet[Hold]:
        """Return a hold by its UUID, or those of organizations."""
        key = as_uuid(term)
        if key is not None and queryset.filter(pk=key).exists():
            return queryset.filter(pk=key)
        return super().found(queryset, term)

    @display(description=_("Amount"))
    def amount(self, row: Hold) -> str:
        """Return the amount."""
        return usd(row.amount_micro)

    @display(description=_("Since"))
    def since(self, row: Hold) -> Any:
        """Return when it was set aside."""
        return row.created_at


class PriceAdmin(StaffAdmin):
    """What a picture costs, from a moment on."""

    list_display = ("sku", "version", "price", "effective_from", "state", "stripe_price")
    list_filter = ("state",)
    ordering = ("sku", "-version")
    search_fields = ("sku",)
    fields = (
        ("sku", "version", "price"),
        ("effective_from", "state", "livemode"),
        ("stripe_product", "stripe_meter", "stripe_price"),
        ("unit", "counted_in"),
    )
    readonly_fields = ("price",)

    def found(self, queryset: QuerySet[PriceVersion], term: str) -> QuerySet[PriceVersion]:
        """Return versions of skus."""
        return queryset.filter(sku__icontains=term)

    @display(description=_("USD per image"), ordering="unit_micro")
    def price(self, row: PriceVersion) -> str:
        """Return the price."""
        return usd(row.unit_micro)
