"""Organizations, for staff: their account, their standing and what may be done for them."""

from collections.abc import Iterable
from typing import Any, cast

from django import forms
from django.contrib.admin import SimpleListFilter, display
from django.contrib.admin.views.main import ChangeList
from django.db.models import Count, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.models import ApiKey, AuditEvent, Membership, Organization, User
from accounts.pages.audit_words import Told
from accounts.staff import viewing
from accounts.staff.forms import ChoiceField, RatesForm, ReasonForm, UsdField
from accounts.staff.lists import StaffAdmin, StaffList, as_uuid, on_row, organizations_named
from accounts.staff.rates import change_rate_limits
from accounts.staff.show import usd
from billing.models import AccountStatus, BillingAccount, Invoice, LedgerEntry
from billing.pages.budgets import rows_of
from billing.pages.words import InvoiceState
from billing.staff.credit_limits import change_credit_limit
from billing.stripe import corrections, standing
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

    amount = UsdField(label=_("Amount, USD"), help_text=_("-5 subtracts $5 from the balance."))
    ticket = forms.CharField(
        label=_("Ticket"),
        max_length=corrections.TICKET_LENGTH,
        help_text=_("Each ticket is applied once; sending it again changes nothing."),
        widget=UnfoldAdminTextInputWidget(),
    )


class RefundForm(AdjustmentForm):
    """An amount to give back, perhaps as the credit note of an invoice."""

    amount = UsdField(label=_("Amount, USD"), help_text=_("Added to the balance."))
    invoice = ChoiceField(
        label=_("Invoice"),
        queryset=Invoice.objects.none(),
        required=False,
        help_text=_("For a final invoice, the refund becomes a credit note on that invoice."),
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
        """Show an organization with its members, keys, budgets, last movements and last events."""
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
            "budgets": rows_of(key),
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

    @display(description=_("Available"))
    def available(self, row: Organization) -> str:
        """Return what is left."""
        account = row.billing_account
        return usd(account.available_micro)

    @display(description=_("Total spent"))
    def spent(self, row: Organization) -> str:
        """Return what was ever spent."""
        return usd(row.billing_account.spent_micro)

    @display(description=_("Spent, last 30 days"))
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
        account = row.billing_account
        return f"{account.card_brand} {account.card_last4}".strip() or "–"

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
            return _now("You are now viewing the pages as a customer, read-only.")

        answer = self.act(
            request,
            object_id,
            ReasonForm,
            title=_("View as customer"),
            text=_(
                "For 60 minutes you see every page as this organization does, read-only "
                "and without prompts. Its audit log shows its members that you looked, and "
                "why."
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
            return _now("Credit limit changed.") if changed else _now("Nothing to change.")

        return self.act(
            request,
            object_id,
            LimitForm,
            title=_("Change the credit limit"),
            text=_("How far below zero the balance can go. Applies from the next request."),
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
            return _now("Rate limits changed.") if changed else _now("Nothing to change.")

        return self.act(
            request,
            object_id,
            RatesForm,
            title=_("Change the rate limits"),
            text=_("They apply from the next request."),
            do=do,
        )

    @on_row(description=_("Suspend…"), url_path="suspend")
    def suspend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Refuse new requests."""

        def do(row: Organization, data: dict[str, Any]) -> str:
            if standing.suspend(row, data["reason"], cast(User, request.user)):
                return _now("Organization suspended.")
            return _now("Staff have already suspended it.")

        return self.act(
            request,
            object_id,
            ReasonForm,
            title=_("Suspend the organization"),
            text=_(
                "New requests are refused until staff resume it; a payment alone does not. "
                "Running requests are completed. Owners are notified of the reason."
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
            return _now("Organization resumed.")

        return self.act(
            request,
            object_id,
            ReasonForm,
            title=_("Resume the organization"),
            text=_("If invoices are still unpaid, a new grace period starts."),
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
            return _now("%(amount)s was added to the balance.") % {
                "amount": usd(entry.amount_micro)
            }

        return self.act(
            request,
            object_id,
            RefundForm,
            title=_("Refund"),
            text=_("Returns money for paid images to the balance."),
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
            return _now("Balance adjusted by %(amount)s.") % {"amount": usd(entry.amount_micro)}

        return self.act(
            request,
            object_id,
            AdjustmentForm,
            title=_("Adjustment"),
            text=_("Moves the balance up or down. A deduction also appears on the next invoice."),
            do=do,
            refused=(corrections.CorrectionRefused,),
        )
