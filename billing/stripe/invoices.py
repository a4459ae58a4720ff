"""Our copies of Stripe's invoices, what a payment means, and each line back to its ledger entries.

A copy is always made of the invoice as it is fetched now, never of what an event says; so events
may come twice, late, or in any order. What is final (paid, void) stays so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import batched
from typing import Any, TypedDict

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum

from accounts.models import Organization
from billing.metering.events import COUNTED
from billing.models import (
    BillingAccount,
    EntryKind,
    Invoice,
    LedgerEntry,
    MeterEvent,
    MeterState,
    Period,
)
from billing.spending import ledger
from billing.spending.budgets import period_start
from billing.spending.ledger import SkuSpend
from billing.stripe import standing
from billing.stripe.client import Stripe, StripeRefused, plain
from geekhub.lib import money
from geekhub.lib.csv import csv_text
from geekhub.lib.moments import from_epoch
from geekhub.lib.money import MICRO_PER_CENT

# Nothing leads out of these.
FINAL = ("paid", "void")
# What is still owed when an attempt to collect it has failed.
OWED = ("open", "uncollectible")

CSV_COLUMNS = ("time", "request", "model", "images", "unit_usd", "amount_usd", "key", "entry")
CSV_CHUNK = 2_000


class UnknownCustomer(Exception):
    """An object of a Stripe customer who is no organization of ours (yet)."""


class Line(TypedDict):
    """A line of an invoice as we keep it; `price` is Stripe's id of it, or empty.

    What was used at one of our prices has it here, also where Stripe bills it as an invoice item
    because the subscription lost the price within the period. `quantity` and `unit_cents` are
    decimals as text, `start` and `end` epoch seconds.
    """

    id: str
    price: str
    description: str
    quantity: str
    unit_cents: str
    amount_cents: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Links:
    """Where Stripe shows an invoice, and its PDF: for whoever holds them, so never keep them."""

    page: str
    pdf: str


@dataclass(frozen=True, slots=True)
class LineTotal:
    """What the ledger has for a line: units, and their price in micro-USD."""

    units: int
    micro: int

    def agrees(self, line: Line) -> bool:
        """Whether the line bills just this, counted in units or, on the shared item, in money.

        Stripe rounds a line to a cent.
        """
        off = line["amount_cents"] * MICRO_PER_CENT - self.micro
        counted = Decimal(line["quantity"]) * Decimal(line["unit_cents"] or 0) * MICRO_PER_CENT
        return counted == self.micro and abs(off) <= MICRO_PER_CENT


def owner(customer: str) -> Organization:
    """Return whose Stripe customer it is; raises UnknownCustomer."""
    account = BillingAccount.objects.filter(stripe_customer=customer).exclude(stripe_customer="")
    if (found := account.select_related("organization").first()) is None:
        raise UnknownCustomer(f"no organization has the Stripe customer {customer!r}")
    return found.organization


def mirror(stripe: Stripe, stripe_id: str, *, now: datetime) -> Invoice | None:
    """Fetch an invoice, copy it, and do what its state asks for; None when Stripe deleted it.

    `now` is when the fetch begins, and what keeps an older fetch from undoing a newer one. A
    payment moves the balance once. Raises UnknownCustomer, and StripeFailure.
    """
    try:
        fetched = plain(stripe.call(stripe.v1.invoices.retrieve, stripe_id))
        lines = _lines(stripe, fetched)
    except StripeRefused as error:
        # Only a draft can be deleted.
        drafts = Invoice.objects.filter(stripe_id=stripe_id, status="draft")
        if error.missing and drafts.delete()[0]:
            return None
        raise
    organization = owner(fetched["customer"])
    row = _row(organization, fetched, lines, now)
    # One transaction: a copy that says "paid" is not fetched again, so the money must be in it.
    with transaction.atomic():
        _keep(row)
        if row.status == "paid":
            _credit(row)
        if row.status in FINAL:
            standing.paid(organization)
        elif row.payment_failed:
            standing.payment_failed(organization, now=now)
    return Invoice.objects.get(stripe_id=stripe_id)


def links(stripe: Stripe, invoice: Invoice) -> Links:
    """Fetch where the invoice can be seen now; both are empty for a draft. Raises StripeFailure."""
    fetched = plain(stripe.call(stripe.v1.invoices.retrieve, invoice.stripe_id))
    return Links(fetched.get("hosted_invoice_url") or "", fetched.get("invoice_pdf") or "")


def month_to_date(organization: Organization, *, now: datetime) -> list[SkuSpend]:
    """Return what each sku came to since the month began, in UTC, by our ledger."""
    return ledger.spend_by_sku(organization, since=period_start(Period.MONTH, now))


def entries_of_line(invoice: Invoice, line: Line) -> QuerySet[LedgerEntry]:
    """Return the ledger entries whose units a line bills, in order; none if it bills no units.

    They are found through the meter events that Stripe counted in the line's period. Of an event
    that Stripe refused, the one that was sent in its place tells when it counts.
    """
    if not line["price"]:
        return LedgerEntry.objects.none()
    counted = Q(
        state__in=COUNTED,
        timestamp__gte=from_epoch(line["start"]),
        timestamp__lt=from_epoch(line["end"]),
    )
    instead = MeterEvent.objects.filter(counted, reissue_of=OuterRef("pk"))
    events = MeterEvent.objects.filter(
        counted | Q(Exists(instead), state=MeterState.REJECTED),
        organization_id=invoice.organization_id,
        price_version__stripe_price=line["price"],
    )
    return LedgerEntry.objects.filter(
        organization_id=invoice.organization_id, metered__meter_event__in=events
    ).order_by("pk")


def line_total(invoice: Invoice, line: Line) -> LineTotal:
    """Return what the entries of a line come to."""
    sums = entries_of_line(invoice, line).aggregate(Sum("quantity"), Sum("amount_micro"))
    return LineTotal(sums["quantity__sum"] or 0, -(sums["amount_micro__sum"] or 0))


def line_spend(invoice: Invoice, line: Line) -> list[SkuSpend]:
    """Return what the entries of a line come to by sku: the shared item's line has many."""
    return ledger.by_sku(entries_of_line(invoice, line))


def all_csv(entries: QuerySet[LedgerEntry]) -> Iterator[str]:
    """Return consumption as CSV in chunks of some thousand rows, CSV_COLUMNS first.

    It is read from the database as it is written, so any number of entries needs little memory.
    """
    rows = entries.select_related("api_key").iterator(chunk_size=CSV_CHUNK)
    return csv_text(CSV_COLUMNS, batched(map(_cells, rows), CSV_CHUNK))


def _cells(entry: LedgerEntry) -> tuple[str | int, ...]:
    amount = -entry.amount_micro
    return (
        entry.created_at.astimezone(UTC).isoformat(timespec="seconds"),
        entry.request_id,
        entry.sku,
        entry.quantity,
        money.to_usd(amount // entry.quantity) if entry.quantity else "",
        money.to_usd(amount),
        entry.api_key.prefix if entry.api_key else "",
        entry.pk,
    )


def _lines(stripe: Stripe, fetched: dict[str, Any]) -> list[Line]:
    """Return all lines: with the invoice itself come only the first few."""
    shown = fetched["lines"]
    if not shown["has_more"]:
        return [_line(line) for line in shown["data"]]
    every = stripe.each(stripe.v1.invoices.line_items.list, fetched["id"])
    return [_line(plain(line)) for line in every]


def _line(line: dict[str, Any]) -> Line:
    pricing = line.get("pricing") or {}
    return {
        "id": line["id"],
        "price": (pricing.get("price_details") or {}).get("price") or "",
        "description": line.get("description") or "",
        "quantity": _text(line.get("quantity_decimal")),
        "unit_cents": _text(pricing.get("unit_amount_decimal")),
        "amount_cents": line["amount"],
        "start": line["period"]["start"],
        "end": line["period"]["end"],
    }


def _text(number: Any) -> str:
    """Return a decimal without exponent and without zeros that say nothing; "" for none."""
    return "" if number is None else f"{Decimal(number).normalize():f}"


def _row(
    organization: Organization, fetched: dict[str, Any], lines: list[Line], now: datetime
) -> Invoice:
    status = fetched["status"] or "draft"
    finalized = fetched["status_transitions"]["finalized_at"]
    return Invoice(
        stripe_id=fetched["id"],
        organization=organization,
        number=fetched["number"] or "",
        status=status,
        billing_reason=fetched["billing_reason"] or "",
        currency=fetched["currency"],
        period_start=from_epoch(fetched["period_start"]),
        period_end=from_epoch(fetched["period_end"]),
        subtotal_cents=fetched["subtotal"],
        tax_cents=sum(tax["amount"] for tax in fetched["total_taxes"] or []),
        total_cents=fetched["total"],
        amount_due_cents=fetched["amount_due"],
        amount_paid_cents=fetched["amount_paid"],
        payment_failed=status in OWED and bool(fetched["attempted"]),
        lines=lines,
        created=from_epoch(fetched["created"]),
        finalized_at=None if finalized is None else from_epoch(finalized),
        fetched_at=now,
    )


def _keep(row: Invoice) -> None:
    """Insert or update in guarded steps: never from final to open, nor from newer to older."""
    Invoice.objects.bulk_create([row], ignore_conflicts=True)
    older, open_ = Q(fetched_at__lte=row.fetched_at), ~Q(status__in=FINAL)
    # The clocks of two hosts may differ; that an invoice became final is newer by itself.
    allowed = older | open_ if row.status in FINAL else older & open_
    fixed = {"id", "stripe_id", "organization"}
    fields = {field.name for field in Invoice._meta.concrete_fields} - fixed
    kept = Invoice.objects.filter(stripe_id=row.stripe_id)
    kept.filter(allowed).update(**{name: getattr(row, name) for name in fields})
    row.pk = kept.get().pk  # another process may have inserted it


def _credit(row: Invoice) -> None:
    """Put what was paid, without tax, on the balance: once, whoever sees it first."""
    if row.amount_paid_cents <= 0 or row.total_cents <= 0:
        return  # credit covered it, and that was put on the balance when it was bought or given
    # Of an invoice that a credit note paid in part, the tax was paid in the same part.
    paid, untaxed = row.amount_paid_cents * MICRO_PER_CENT, row.total_cents - row.tax_cents
    if micro := paid * untaxed // row.total_cents:
        ledger.record(
            row.organization,
            EntryKind.RECHARGE,
            micro,
            entry_key=f"topup:{row.stripe_id}",
            invoice=row,
            note=f"Payment of invoice {row.number or row.stripe_id}",
        )
