"""What stands in an account, for people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import gettext_noop

from billing.models import (
    AccountStatus,
    BillingAccount,
    EntryKind,
    Invoice,
    LedgerEntry,
    Notification,
    scopes,
)
from billing.models.scopes import Called
from billing.pages.forms import KINDS, PERIODS
from billing.spending.movements import Movement
from billing.stripe.client import is_connected

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

INVOICE_STATES: Mapping[str, tuple["StrPromise", str]] = {
    "draft": (_("Draft"), ""),
    "open": (_("Open"), "accent"),
    "paid": (_("Paid"), "good"),
    "void": (_("Void"), ""),
    "uncollectible": (_("Uncollectible"), "wrong"),
}
# What our own movements say of themselves, in the ledger's English; of others staff say why. The
# payment of an invoice is named by the invoice.
NOTES = frozenset(
    {
        gettext_noop("Sign-up bonus"),
        gettext_noop("Opening credit"),
        gettext_noop("Recharge by card"),
        gettext_noop("Automatic recharge"),
    }
)
BRANDS = {
    "visa": "Visa",
    "mastercard": "Mastercard",
    "amex": "American Express",
    "discover": "Discover",
    "diners": "Diners Club",
    "jcb": "JCB",
    "unionpay": "UnionPay",
}


def card(brand: str, last4: str) -> str:
    """Return "Visa •••• 4242", another means of payment as it is called, or nothing for none."""
    name = BRANDS.get(brand, brand.replace("_", " ").capitalize())
    return f"{name} •••• {last4}" if last4 else name


@dataclass(frozen=True, slots=True)
class Standing:
    """Why an organization may soon, or already, spend nothing."""

    status: str
    reason: str
    until: datetime | None
    by_staff: bool
    owed: list[Invoice]
    has_customer: bool
    connected: bool

    @property
    def is_over(self) -> bool:
        """Tell whether requests are refused."""
        return self.status == AccountStatus.SUSPENDED


def standing(account: BillingAccount) -> Standing | None:
    """Return what is wrong with the account; None when nothing is."""
    if account.status == AccountStatus.OK:
        return None
    owed = Invoice.objects.filter(organization=account.organization, payment_failed=True)
    return Standing(
        status=account.status,
        reason=account.status_reason,
        until=account.grace_until,
        by_staff=account.suspended_by_staff,
        owed=list(owed.order_by("created", "pk")),
        has_customer=bool(account.stripe_customer),
        connected=is_connected(),
    )


@dataclass(frozen=True, slots=True)
class InvoiceState:
    """How an invoice stands, and the tone of that."""

    invoice: Invoice

    @property
    def text(self) -> "StrPromise | str":
        """Return it in words."""
        if self.invoice.payment_failed:
            return _("Payment failed")
        return INVOICE_STATES.get(self.invoice.status, (self.invoice.status, ""))[0]

    @property
    def tone(self) -> str:
        """Return the tone of its badge."""
        if self.invoice.payment_failed:
            return "wrong"
        return INVOICE_STATES.get(self.invoice.status, ("", ""))[1]


@dataclass(frozen=True, slots=True)
class MovementRow:
    """A movement as a list shows it."""

    movement: Movement

    @property
    def entry(self) -> LedgerEntry:
        """Return its entry of the ledger."""
        return self.movement.entry

    @property
    def kind(self) -> "StrPromise":
        """Return its kind in words."""
        return KINDS[EntryKind(self.entry.kind)]

    @property
    def note(self) -> str:
        """Return why."""
        if (invoice := self.entry.invoice) is not None:
            return _now("Payment of invoice %s") % (invoice.number or invoice.stripe_id)
        note = self.entry.note
        return _now(note) if note in NOTES else note


# --- Alerts ---------------------------------------------------------------------------------------


type Details = dict[str, Any]


def _budget(details: Details, budget: Called | None) -> str:
    period = PERIODS.get(details["period"], details["period"])
    whose = details.get("member") or (budget or scopes.called_in(details)).phrase
    text = _now("%(percent)s%% of the budget of %(whose)s for this %(period)s is used.")
    return text % {"percent": details["percent"], "whose": whose, "period": period}


def _low_balance(details: Details, budget: Called | None) -> str:
    text = _now("Only $%(left)s is available, less than $%(below)s.")
    return text % {"left": details["available_usd"], "below": details["below_usd"]}


def _recharge_failed(details: Details, budget: Called | None) -> str:
    text = _now("An automatic recharge of $%(usd)s failed: %(why)s")
    return text % {"usd": details["amount_usd"], "why": details["reason"]}


def _payment_failed(details: Details, budget: Called | None) -> str:
    return _now("Payment of invoice %(number)s failed.") % {"number": details["invoice"]}


def _suspended(details: Details, budget: Called | None) -> str:
    return _now("The organization was suspended.")


def _resumed(details: Details, budget: Called | None) -> str:
    return _now("The organization was resumed.")


def _test(details: Details, budget: Called | None) -> str:
    return _now("A test requested by %(by)s.") % {"by": details["by"]}


# Every kind of alert, and what it says on the page; what it says by e-mail is the template of that
# name in `templates/emails`.
ALERTS: Mapping[str, Callable[[Details, Called | None], str]] = {
    "budget": _budget,
    "low_balance": _low_balance,
    "recharge_failed": _recharge_failed,
    "payment_failed": _payment_failed,
    "suspended": _suspended,
    "resumed": _resumed,
    "test": _test,
}


def alert(row: Notification, budget: Called | None) -> str:
    """Return what an alert says, in a sentence; `budget` is the one it is about, unless removed.

    One that a newer version raised is called by its kind.
    """
    words = ALERTS.get(row.kind)
    return row.kind if words is None else words(row.details, budget)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an alert, and the tone of that."""

    text: str
    tone: str
    problem: str = ""


def delivery(row: Notification) -> Delivery:
    """Return whether people and the organization's software were told."""
    if row.settled_at and not row.attempts:
        # A lower threshold that was passed in the same moment.
        return Delivery(_now("Included in a later alert"), "")
    # What our mail server says is of no use to anybody outside.
    problem = row.post_error
    if row.settled_at is None:
        if row.attempts:
            return Delivery(_now("Retrying"), "warning", problem)
        return Delivery(_now("Sending"), "")
    if not row.emailed_at and not row.posted_at:
        return Delivery(_now("Not delivered"), "wrong", problem)
    if not row.posted_at:
        return Delivery(_now("Email"), "warning" if problem else "good", problem)
    if not row.emailed_at:
        return Delivery(_now("Webhook"), "warning")
    return Delivery(_now("Email and webhook"), "good")
