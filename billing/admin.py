"""For staff: organizations and their accounts, and everything that tells where money is.

Registered in geekhub/staff.py. Amounts are read only; what moves them is a service.
"""

from collections.abc import Iterable
from typing import Any, cast

from django import forms
from django.contrib.admin import SimpleListFilter, display
from django.contrib.admin.views.main import ChangeList
from django.db.models import Count, IntegerField, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts import viewing
from accounts.audit_words import Told
from accounts.models import ApiKey, AuditEvent, Membership, Organization, User
from accounts.staff import (
    ChoiceField,
    RatesForm,
    ReasonForm,
    StaffAdmin,
    StaffList,
    UsdField,
    as_uuid,
    change_rate_limits,
    on_row,
    organizations_named,
    usd,
)
from billing import corrections, reconciliation, standing
from billing.models import (
    AccountStatus,
    BillingAccount,
    Comparison,
    Difference,
    DifferenceState,
    Hold,
    HoldState,
    Invoice,
    LedgerEntry,
    MeterEvent,
    MeterState,
    PriceVersion,
    Reconciliation,
    StripeEvent,
    StripeOperation,
)
from billing.pages.words import InvoiceState
from billing.staff import change_credit_limit
from geekhub.lib import money

KEYS, ENTRIES, EVENTS = 50, 20, 20


class LimitForm(ReasonForm):
    """How far below zero a balance may go."""

    limit = UsdField(label=_("Credit limit, USD"))

    def __init__(self, *args: Any, row: Organization, **kwargs: Any) -> None:
        super().__init__(*args, row=row, **kwargs)
        account = BillingAccount.objects.get(organization=row)
        self.initial = {"limit": money.to_usd(account.credit_limit_micro)}


class AdjustmentForm(ReasonForm):
    """An amount, and the ticket by which it happens once."""

    amount = UsdField(label=_("Amount, USD"), help_text=_("-5 takes 5 dollars off the balance."))
    ticket = forms.CharField(
        label=_("Ticket"),
        max_length=corrections.TICKET_LENGTH,
        help_text=_("A ticket corrects once: sent again, nothing more happens."),
        widget=UnfoldAdminTextInputWidget(),
    )


class RefundForm(AdjustmentForm):
    """An amount to give back, perhaps as the credit note of an invoice."""

    amount = UsdField(label=_("Amount, USD"), help_text=_("Added to the balance."))
    invoice = ChoiceField(
        label=_("Invoice"),
        queryset=Invoice.objects.none(),
        required=False,
        help_text=_("If it is for a final invoice, the refund becomes a credit note of it."),
    )
    field_order = ["amount", "ticket", "invoice"]

    def __init__(self, *args: Any, row: Organization, **kwargs: Any) -> None:
        super().__init__(*args, row=row, **kwargs)
        final = Invoice.objects.filter(organization=row, status__in=corrections.FINAL)
        cast(ChoiceField, self.fields["invoice"]).queryset = final.order_by("-created")


class StatusFilter(SimpleListFilter):
    """By whether an organization may spend."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the standings."""
        return AccountStatus.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return those of that standing."""
        return queryset.filter(billing_account__status=self.value()) if self.value() else queryset


class OrganizationAdmin(StaffAdmin):
    """Customers: what they have, what they may, and what staff can do about it."""

    list_display = (
        "name",
        "slug",
        "balance",
        "spent_lately",
        "held",
        "limit",
        "status",
        "member_count",
        "created_at",
    )
    list_filter = (StatusFilter,)
    list_select_related = ("billing_account",)
    ordering = ("-created_at", "pk")
    search_fields = ("name",)
    search_help_text = _("Name, slug, UUID, or the address of a member")
    fields = (
        ("name", "slug", "id"),
        ("balance", "held", "limit", "available"),
        ("status", "status_reason", "grace_until"),
        ("spent_lately", "spent", "card", "stripe_customer"),
        ("rate_limit_rpm", "max_in_flight", "on_refusal"),
        ("keeps_prompts", "retention_days", "prompts_days", "created_at"),
    )
    readonly_fields = (
        "balance",
        "held",
        "limit",
        "available",
        "status",
        "status_reason",
        "grace_until",
        "spent",
        "spent_lately",
        "card",
        "stripe_customer",
    )
    change_form_after_template = "staff/organization.html"
    actions_detail = (
        "view_as",
        "credit_limit",
        "refund",
        "adjust",
        "rates",
        "suspend",
        "resume",
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that adds what was spent."""
        return StaffList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Organization]:
        """Return organizations with their accounts and how many members each has."""
        members = (
            Membership.objects.filter(organization=OuterRef("pk"))
            .order_by()
            .values("organization")
            .annotate(many=Count("pk"))
        )
        many = Coalesce(Subquery(members.values("many"), output_field=IntegerField()), 0)
        found: QuerySet[Organization] = super().get_queryset(request)
        return found.select_related("billing_account").annotate(members_many=many)

    def found(self, queryset: QuerySet[Organization], term: str) -> QuerySet[Organization]:
        """Return those that the words name."""
        return queryset.filter(pk__in=organizations_named(term))

    def complete(self, rows: list[Organization]) -> None:
        """Give rows their `spent_micro` of thirty days; here nothing is known of it."""

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show an organization with its members, keys, last movements and last events."""
        key = as_uuid(object_id)
        if key is None:
            return cast(HttpResponse, super().change_view(request, object_id, form_url))
        keys = ApiKey.objects.filter(organization=key).order_by("-created_at")
        events = AuditEvent.objects.filter(organization=key).select_related("actor")
        context = {
            "members": Membership.objects.filter(organization=key)
            .select_related("user")
            .order_by("pk"),
            "keys": keys[:KEYS],
            "entries": LedgerEntry.objects.filter(organization=key).order_by("-pk")[:ENTRIES],
            "events": [Told(one) for one in events.order_by("-created_at", "-pk")[:EVENTS]],
            "invoices": [
                (invoice, InvoiceState(invoice))
                for invoice in Invoice.objects.filter(organization=key).order_by("-created")[
                    :ENTRIES
                ]
            ],
        }
        return cast(HttpResponse, super().change_view(request, object_id, form_url, context))

    # --- Columns ------------------------------------------------------------------------------

    @display(description=_("Balance"), ordering="billing_account__balance_micro")
    def balance(self, row: Organization) -> str:
        """Return the balance."""
        return usd(row.billing_account.balance_micro)

    @display(description=_("Held"), ordering="billing_account__held_micro")
    def held(self, row: Organization) -> str:
        """Return what requests that run have set aside."""
        return usd(row.billing_account.held_micro)

    @display(description=_("Credit limit"), ordering="billing_account__credit_limit_micro")
    def limit(self, row: Organization) -> str:
        """Return how far below zero it may go."""
        return usd(row.billing_account.credit_limit_micro)

    @display(description=_("May still spend"))
    def available(self, row: Organization) -> str:
        """Return what is left."""
        account = row.billing_account
        return usd(account.available_micro)

    @display(description=_("Spent in all"))
    def spent(self, row: Organization) -> str:
        """Return what was ever spent."""
        return usd(row.billing_account.spent_micro)

    @display(description=_("Spent in 30 days"))
    def spent_lately(self, row: Organization) -> str:
        """Return what was spent in thirty days."""
        if not hasattr(row, "spent_micro"):
            self.complete([row])
        return usd(getattr(row, "spent_micro", None))

    @display(description=_("Status"), ordering="billing_account__status")
    def status(self, row: Organization) -> str:
        """Return whether it may spend."""
        account = row.billing_account
        status = account.get_status_display()
        if not account.suspended_by_staff:
            return status
        return _now("%(status)s (by staff)") % {"status": status}

    @display(description=_("Why"))
    def status_reason(self, row: Organization) -> str:
        """Return why it stands so."""
        return row.billing_account.status_reason or "–"

    @display(description=_("Grace until"))
    def grace_until(self, row: Organization) -> Any:
        """Return when the grace is over."""
        until = row.billing_account.grace_until
        return "–" if until is None else date_format(localtime(until), "Y-m-d H:i")

    @display(description=_("Card"))
    def card(self, row: Organization) -> str:
        """Return the card on file, in words."""
        return row.billing_account.card or "–"

    @display(description=_("Stripe customer"))
    def stripe_customer(self, row: Organization) -> str:
        """Return its id in Stripe."""
        return row.billing_account.stripe_customer or "–"

    @display(description=_("Members"), ordering="members_many")
    def member_count(self, row: Organization) -> int:
        """Return how many members it has."""
        return int(getattr(row, "members_many", 0))

    # --- What staff can do --------------------------------------------------------------------

    @on_row(description=_("View as customer…"), url_path="view-as")
    def view_as(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Look at the pages as the organization's members do."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            viewing.start(request, row, data["reason"])
            return _now("You look at the pages as a customer now, read-only.")

        answer = self.act(
            request,
            object_id,
            ReasonForm,
            title=_("View as customer"),
            text=_(
                "For 60 minutes every page is this organization's, read-only and without "
                "prompts. Its members read in their audit log that you looked, and why."
            ),
            do=do,
        )
        return redirect("dashboard") if answer.status_code == 302 else answer

    @on_row(description=_("Credit limit…"), url_path="credit-limit")
    def credit_limit(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Change how far below zero the balance may go."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            changed = change_credit_limit(
                row, data["limit"], data["reason"], cast(User, request.user)
            )
            return _now("The credit limit is changed.") if changed else _now("It was so already.")

        return self.act(
            request,
            object_id,
            LimitForm,
            title=_("Change the credit limit"),
            text=_("The balance may go so far below zero. It counts from the next request on."),
            do=do,
            refused=(ValueError,),
        )

    @on_row(description=_("Rate limits…"), url_path="rates")
    def rates(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Change how fast the organization may ask."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            changed = change_rate_limits(
                row,
                data["rate_limit_rpm"],
                data["max_in_flight"],
                data["reason"],
                cast(User, request.user),
            )
            return _now("The limits are changed.") if changed else _now("It was so already.")

        return self.act(
            request,
            object_id,
            RatesForm,
            title=_("Change the rate limits"),
            text=_("They count from the next request on."),
            do=do,
        )

    @on_row(description=_("Suspend…"), url_path="suspend")
    def suspend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Refuse new requests."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            if standing.suspend(row, data["reason"], cast(User, request.user)):
                return _now("The organization is suspended.")
            return _now("Staff had suspended it already.")

        return self.act(
            request,
            object_id,
            ReasonForm,
            title=_("Suspend the organization"),
            text=_(
                "New requests are refused until staff resume; a payment does not. Requests that "
                "run are finished. Its owners are told, with the reason."
            ),
            do=do,
        )

    @on_row(description=_("Resume…"), url_path="resume")
    def resume(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """End a suspension."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            user = cast(User, request.user)
            if not standing.resume(row, user, data["reason"]):
                return _now("It was not suspended.")
            return _now("The organization may draw again.")

        return self.act(
            request,
            object_id,
            ReasonForm,
            title=_("Resume the organization"),
            text=_("If invoices are still owed, a new grace period begins."),
            do=do,
        )

    @on_row(description=_("Refund…"), url_path="refund")
    def refund(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Give money back."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            entry = corrections.refund(
                row,
                data["amount"],
                data["reason"],
                cast(User, request.user),
                data["ticket"],
                data["invoice"],
            )
            return _now("%(amount)s is on the balance.") % {"amount": usd(entry.amount_micro)}

        return self.act(
            request,
            object_id,
            RefundForm,
            title=_("Refund"),
            text=_("Money for pictures that were paid goes back onto the balance."),
            do=do,
            refused=(corrections.CorrectionRefused,),
        )

    @on_row(description=_("Adjustment…"), url_path="adjust")
    def adjust(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Move the balance, up or down."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            entry = corrections.adjust(
                row, data["amount"], data["reason"], cast(User, request.user), data["ticket"]
            )
            return _now("The balance moved by %(amount)s.") % {"amount": usd(entry.amount_micro)}

        return self.act(
            request,
            object_id,
            AdjustmentForm,
            title=_("Adjustment"),
            text=_("It moves the balance, up or down. What is taken is on the next invoice, too."),
            do=do,
            refused=(corrections.CorrectionRefused,),
        )


# --- Books --------------------------------------------------------------------------------------


class LedgerAdmin(StaffAdmin):
    """Every movement of every balance. A trigger of the database keeps it from being changed."""

    list_display = (
        "created_at",
        "organization",
        "kind",
        "amount",
        "quantity",
        "model",
        "request_id",
        "note",
    )
    list_filter = ("kind",)
    list_select_related = ("organization",)
    ordering = ("-pk",)
    newest = 200_000
    search_fields = ("entry_key",)
    search_help_text = _(
        "An organization's name, slug or UUID, a member's address, the key of an entry. Without "
        "words: the newest 200,000 entries"
    )
    fields = (
        ("created_at", "organization", "kind"),
        ("amount", "quantity", "model", "price_version"),
        ("request_id", "hold", "api_key"),
        ("entry_key", "note"),
    )
    readonly_fields = ("amount",)

    def found(self, queryset: QuerySet[LedgerEntry], term: str) -> QuerySet[LedgerEntry]:
        """Return an entry by its key, or those of organizations."""
        if queryset.filter(entry_key=term).exists():
            return queryset.filter(entry_key=term)
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
        yield first | {"display": _("held, or what the words find")}
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

    list_display = ("model", "version", "price", "effective_from", "state", "stripe_price")
    list_filter = ("state",)
    ordering = ("model", "-version")
    search_fields = ("model",)
    fields = (
        ("model", "version", "price"),
        ("effective_from", "state", "livemode"),
        ("stripe_product", "stripe_meter", "stripe_price"),
    )
    readonly_fields = ("price",)

    def found(self, queryset: QuerySet[PriceVersion], term: str) -> QuerySet[PriceVersion]:
        """Return versions of models."""
        return queryset.filter(model__icontains=term)

    @display(description=_("USD per picture"), ordering="unit_micro")
    def price(self, row: PriceVersion) -> str:
        """Return the price."""
        return usd(row.unit_micro)


# --- Stripe -------------------------------------------------------------------------------------


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
        yield first | {"display": _("under way, or what the words find")}
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
    """What Stripe told us. What an event holds is the customer's, and not shown."""

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

    @display(description=_("Owed"), boolean=True)
    def owed(self, row: Invoice) -> bool:
        """Return whether Stripe could not collect it."""
        return row.payment_failed


# --- Reconciliation -----------------------------------------------------------------------------


class OpenFilter(SimpleListFilter):
    """Open differences, unless others are asked for."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the other states."""
        others = [one for one in DifferenceState if one is not DifferenceState.OPEN]
        return [*((one.value, one.label) for one in others), ("all", _("all"))]

    def choices(self, changelist: Any) -> Any:
        """Return the choices; no state means open."""
        first, *others = super().choices(changelist)
        yield first | {"display": _("open")}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return differences of the state."""
        if self.value() == "all":
            return queryset
        return queryset.filter(state=self.value() or DifferenceState.OPEN)


class AcceptForm(ReasonForm):
    """Why a difference is as it should be."""

    def __init__(self, *args: Any, row: Difference, **kwargs: Any) -> None:
        super().__init__(*args, row=row, **kwargs)
        self.fields["reason"].help_text = _("Written beside the difference and into the audit log.")


class DifferenceAdmin(StaffAdmin):
    """What should be equal and is not. The list should be empty."""

    list_display = (
        "kind",
        "organization",
        "price_version",
        "hour",
        "expected",
        "found_number",
        "off_by",
        "seen",
        "last_seen_at",
        "state",
        "note",
    )
    list_filter = (OpenFilter,)
    list_select_related = ("organization", "price_version")
    ordering = ("state", "-last_seen_at")
    search_fields = ("key",)
    search_help_text = _("An organization's name, slug or UUID, or the key of a difference")
    fields = (
        ("kind", "subject", "key"),
        ("organization", "price_version", "hour"),
        ("expected", "found_number", "off_by"),
        ("state", "note", "seen"),
        ("first_seen_at", "last_seen_at"),
    )
    readonly_fields = ("found_number", "off_by")
    list_before_template = "staff/reconciliation.html"
    actions_detail = ("accept",)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the differences under the last run of each kind."""
        context = {
            "runs": last_runs(),
            "open_differences": reconciliation.open_differences().count(),
        }
        return cast(HttpResponse, super().changelist_view(request, context))

    def found(self, queryset: QuerySet[Difference], term: str) -> QuerySet[Difference]:
        """Return a difference by its key, or those of organizations."""
        return queryset.filter(Q(key=term) | Q(organization__in=organizations_named(term)))

    @display(description=_("Found"))
    def found_number(self, row: Difference) -> int:
        """Return the number that was found; `found` is what searches."""
        return row.found

    @display(description=_("Off by"))
    def off_by(self, row: Difference) -> int:
        """Return how far apart the two are."""
        return row.found - row.expected

    @on_row(description=_("Accept…"), url_path="accept")
    def accept(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Accept a difference."""

        def do(row: Difference, data: dict[str, Any]) -> str:
            reconciliation.resolve(row, data["reason"], cast(User, request.user))
            return _now("The difference is accepted; it comes back only if its numbers change.")

        return self.act(
            request,
            object_id,
            AcceptForm,
            title=_("Accept a difference"),
            text=_("Nothing is put right by it: it says that a person knows why the two differ."),
            do=do,
            refused=(ValueError, reconciliation.AlreadyResolved),
        )


class ReconciliationAdmin(StaffAdmin):
    """Every comparison that was made and is kept."""

    list_display = ("kind", "subject", "started_at", "finished_at", "checked", "differences")
    list_filter = ("kind",)
    sortable_by = ()
    ordering = ("-pk",)
    search_fields = ("subject",)
    search_help_text = _("An invoice, by Stripe's id")

    def found(self, queryset: QuerySet[Reconciliation], term: str) -> QuerySet[Reconciliation]:
        """Return the runs of an invoice."""
        return queryset.filter(subject=term)


def last_runs() -> list[Reconciliation]:
    """Return the last comparison of each kind."""
    runs = [Reconciliation.objects.filter(kind=kind).order_by("-pk").first() for kind in Comparison]
    return [run for run in runs if run is not None]
