"""The invoices: our copies of Stripe's, their lines, and the way to Stripe's own page and PDF."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts.access import MemberRequest, Permission, member
from accounts.models import Organization
from billing.models import Invoice, LedgerEntry, PriceVersion
from billing.models.prices import SHARED_SKU
from billing.pages.words import InvoiceState
from billing.stripe import invoices
from billing.stripe.client import NotConnected, StripeFailure, connect, is_connected
from billing.stripe.invoices import Line, Links
from geekhub.lib.csv import csv_file
from geekhub.lib.moments import from_epoch
from geekhub.lib.money import MICRO_PER_CENT

log = logging.getLogger("geekhub.billing")

PAGE = 24
# What Stripe makes when a subscription begins: of nothing, paid at once. Its address works.
NOTHING = Q(status="paid", billing_reason="subscription_create", subtotal_cents=0, total_cents=0)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of an invoice as the page shows it."""

    line: Line
    sku: str

    @property
    def is_shared(self) -> bool:
        """Return whether it bills money of several skus, in units of 0.0001 USD."""
        return self.sku == SHARED_SKU

    @property
    def title(self) -> str:
        """Return what it is for."""
        return _("Other models") if self.is_shared else self.sku

    @property
    def unit_micro(self) -> int | None:
        """Return the price of one picture in micro-USD, None where the line tells none."""
        unit = self.line["unit_cents"]
        return int(Decimal(unit) * MICRO_PER_CENT) if unit else None

    @property
    def start(self) -> datetime:
        """Return when its period begins."""
        return from_epoch(self.line["start"])

    @property
    def end(self) -> datetime:
        """Return when its period is over."""
        return from_epoch(self.line["end"])


def rows(invoice: Invoice) -> list[Row]:
    """Return the lines, each with the sku it bills, if it bills one."""
    prices = {line["price"] for line in invoice.lines} - {""}
    versions = PriceVersion.objects.filter(stripe_price__in=prices)
    skus = {version.stripe_price: version.sku for version in versions}
    return [Row(line, skus.get(line["price"], "")) for line in invoice.lines]


def find(organization: Organization, invoice_id: str) -> Invoice:
    """Return the organization's invoice of this Stripe id; 404 when it has none."""
    return get_object_or_404(Invoice, organization=organization, stripe_id=invoice_id)


def find_line(invoice: Invoice, line_id: str) -> Row:
    """Return a line that bills pictures; 404 when the invoice has none of this id."""
    for row in rows(invoice):
        if row.line["id"] == line_id and row.sku:
            return row
    raise Http404


def file_name(invoice: Invoice) -> str:
    """Return what its files are called."""
    return f"invoice-{invoice.number or invoice.stripe_id}"


@require_safe
@member(Permission.VIEW_BILLING)
def index(request: MemberRequest) -> HttpResponse:
    """Show the invoices, newest first."""
    found = Invoice.objects.filter(organization=request.access.organization).exclude(NOTHING)
    page = Paginator(found.defer("lines").order_by("-created", "-pk"), PAGE).get_page(
        request.GET.get("page")
    )
    context = {
        "page": page,
        "rows": [(invoice, InvoiceState(invoice)) for invoice in page],
        "connected": is_connected(),
    }
    return render(request, "billing/invoices.html", context)


@require_safe
@member(Permission.VIEW_BILLING)
def one(request: MemberRequest, invoice_id: str) -> HttpResponse:
    """Show an invoice with its lines."""
    invoice = find(request.access.organization, invoice_id)
    context = {
        "invoice": invoice,
        "state": InvoiceState(invoice),
        # Stripe has a line for each sku, also for those that drew nothing.
        "rows": [row for row in rows(invoice) if row.line["quantity"] or row.line["amount_cents"]],
        # What was paid or given in advance is in the total, and in no line.
        "credit_cents": max(0, invoice.subtotal_cents + invoice.tax_cents - invoice.total_cents),
        "connected": is_connected(),
    }
    return render(request, "billing/invoice.html", context)


@require_safe
@member(Permission.VIEW_BILLING)
def export(request: MemberRequest, invoice_id: str) -> HttpResponseBase:
    """Return every charge in the invoice as CSV, line by line."""
    invoice = find(request.access.organization, invoice_id)
    return csv_file(request, file_name(invoice), _all_lines(invoice))


def _all_lines(invoice: Invoice) -> Iterator[str]:
    yield from invoices.all_csv(LedgerEntry.objects.none())  # the names of the columns
    for line in invoice.lines:
        parts = invoices.all_csv(invoices.entries_of_line(invoice, line))
        yield next(parts).partition("\r\n")[2]
        yield from parts


@require_safe
@never_cache
@member(Permission.VIEW_BILLING)
def pdf(request: MemberRequest, invoice_id: str) -> HttpResponse:
    """Lead to the PDF."""
    return _to_stripe(request, invoice_id, lambda links: links.pdf)


@require_safe
@never_cache
@member(Permission.VIEW_BILLING)
def stripe_page(request: MemberRequest, invoice_id: str) -> HttpResponse:
    """Lead to Stripe's page of the invoice, where it can be paid."""
    return _to_stripe(request, invoice_id, lambda links: links.page)


def _to_stripe(
    request: MemberRequest, invoice_id: str, which: Callable[[Links], str]
) -> HttpResponse:
    """Lead to an address that is asked for now: whoever has it sees the invoice."""
    invoice = find(request.access.organization, invoice_id)
    try:
        if url := which(invoices.links(connect(), invoice)):
            return redirect(url)
        messages.info(request, _("A draft has no page or PDF yet."))
    except NotConnected as error:
        raise Http404 from error
    except StripeFailure as error:
        log.warning("Stripe does not show %s: %s", invoice.stripe_id, error)
        messages.error(request, _("Stripe did not respond. Try again in a moment."))
    return redirect("billing_invoice", invoice_id=invoice.stripe_id)
