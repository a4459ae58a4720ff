"""What stands in an account, for people."""

from collections.abc import Mapping
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
)
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
# What our own movements say of themselves, in the ledger's English; of others staff say why.
NOTES = frozenset(
    {
        gettext_noop("Sign-up bonus"),
        gettext_noop("Opening credit"),
        gettext_noop("Recharge by card"),
        gettext_noop("Automatic recharge"),
    }
)
OF_INVOICE = "Payment of invoice "
BRANDS = {
    "visa": "Visa",
    "mastercard": "Mastercard",
    "amex": "American Express",
    "discover": "Discover",
    "diners": "Diners Club",
    "jcb": "JCB",
    "unionpay": "UnionPay",
}


def card(words: str) -> str:
    """Return "Visa •••• 4242" for "visa 4242", another means of payment as it is called."""
    name, _space, last = words.partition(" ")
    name = BRANDS.get(name, name.replace("_", " ").capitalize())
    return f"{name} •••• {last}" if last else name


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
        """Return why, without the ids of Stripe's that staff look for."""
        note, _comma, name = self.entry.note.rpartition(", ")
        if not name.startswith(("pi_", "cs_")):
            note = self.entry.note
        if note.startswith(OF_INVOICE):
            return _now("Payment of invoice %s") % note.removeprefix(OF_INVOICE)
        return _now(note) if note in NOTES else note


# --- Alerts ---------------------------------------------------------------------------------------


def alert(row: Notification, budget: str) -> str:
    """Return what an alert says, in a sentence; `budget` is whose budget it is about, if known."""
    told: dict[str, Any] = row.details
    match row.kind:
        case "budget":
            period = PERIODS.get(told["period"], told["period"])
            whose = told.get("member") or budget or _now("a key")
            text = _now("%(whose)s: %(percent)s%% of the budget for this %(period)s is used.")
            return text % {"percent": told["percent"], "whose": whose, "period": period}
        case "low_balance":
            text = _now("Only $%(left)s is available, less than $%(below)s.")
            return text % {"left": told["available_usd"], "below": told["below_usd"]}
        case "recharge_failed":
            text = _now("An automatic recharge of $%(usd)s failed: %(why)s")
            return text % {"usd": told["amount_usd"], "why": told["reason"]}
        case "payment_failed":
            text = _now("Payment of invoice %(number)s failed.")
            return text % {"number": told["invoice"]}
        case "suspended":
            return _now("The organization was suspended.")
        case "resumed":
            return _now("The organization was resumed.")
        case "test":
            return _now("A test requested by %(by)s.") % {"by": told["by"]}
    return row.kind


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
    parts = [one for one in row.last_error.split("; ") if one.startswith("endpoint: ")]
    problem = parts[0].removeprefix("endpoint: ") if parts else ""
    if row.settled_at is None:
        if row.attempts:
            return Delivery(_now("Retrying"), "warning", problem)
        return Delivery(_now("Sending"), "")
    if not row.emailed_at and not row.posted_at:
        return Delivery(_now("Not delivered"), "wrong", problem)
    if not row.posted_at:
        return Delivery(_now("Email"), "warning" if row.last_error else "good", problem)
    if not row.emailed_at:
        return Delivery(_now("Webhook"), "warning")
    return Delivery(_now("Email and webhook"), "good")
