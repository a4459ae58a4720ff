"""The lines of invoices compared with the ledger."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal

from django.db.models import Exists, OuterRef, Q, QuerySet, Sum

from billing.metering.events import COUNTED
from billing.models import Comparison, Invoice, MeterEvent, PriceVersion, Reconciliation
from billing.reconciliation.differences import BETWEEN_READS, Finding, finish, note
from billing.stripe import invoices
from billing.stripe.client import Stripe, StripeFailure, StripeUnknown
from geekhub.lib.money import MICRO_PER_CENT

# The events of the period's last hour are frozen and sent in the first minutes of a draft.
DRAFT, FINAL = Comparison.INVOICE_DRAFT, Comparison.INVOICE_FINAL
DRAFT_SETTLES = timedelta(minutes=10)
FINAL_FOR = timedelta(days=35)


def draft(stripe: Stripe, invoice: Invoice, *, now: datetime) -> Reconciliation:
    """Compare a draft as it is in Stripe now, while there is time to send what is missing.

    Raises StripeFailure.
    """
    fresh = invoices.mirror(stripe, invoice.stripe_id, now=now)
    if fresh is None:
        run = Reconciliation.objects.create(kind=DRAFT, subject=invoice.stripe_id, started_at=now)
        note([], _about(invoice, DRAFT), now)
        return finish(run, 0, 0, now)
    return _compare_invoice(DRAFT if fresh.status == "draft" else FINAL, fresh, now)


def final(invoice: Invoice, *, now: datetime) -> Reconciliation:
    """Compare an invoice that no usage is added to any more; a person decides what follows."""
    return _compare_invoice(FINAL, invoice, now)


def invoices_due(stripe: Stripe, *, now: datetime) -> int:
    """Compare drafts every half hour, and final invoices once, or until they agree."""
    done = Reconciliation.objects.filter(subject=OuterRef("stripe_id"))
    drafts = _drafts(now).exclude(
        Exists(done.filter(kind=DRAFT, started_at__gt=now - BETWEEN_READS))
    )
    finals = _finals(now - FINAL_FOR).exclude(
        Exists(done.filter(kind=FINAL, differences=0))
        | Exists(done.filter(kind=FINAL, started_at__gt=now - BETWEEN_READS))
    )
    return _compare_invoices(stripe, drafts, finals, now)


def invoices_since(stripe: Stripe, *, now: datetime, since: datetime) -> int:
    """Compare every draft, and every invoice that became final since then; return how many."""
    return _compare_invoices(stripe, _drafts(now), _finals(since), now)


def _drafts(now: datetime) -> QuerySet[Invoice]:
    return Invoice.objects.filter(
        status="draft", billing_reason__startswith="subscription", created__lte=now - DRAFT_SETTLES
    )


def _finals(since: datetime) -> QuerySet[Invoice]:
    final_ones = Invoice.objects.filter(finalized_at__gte=since)
    return final_ones.exclude(status__in=["draft", "void", "deleted"])


def _compare_invoices(
    stripe: Stripe, drafts: QuerySet[Invoice], finals: QuerySet[Invoice], now: datetime
) -> int:
    compared = 0
    for invoice in list(drafts):
        try:
            draft(stripe, invoice, now=now)
        except StripeUnknown:
            break  # Stripe is away
        except StripeFailure:
            continue
        compared += 1
    for invoice in finals.iterator():
        final(invoice, now=now)
        compared += 1
    return compared


def _compare_invoice(kind: Comparison, invoice: Invoice, now: datetime) -> Reconciliation:
    run = Reconciliation.objects.create(kind=kind, subject=invoice.stripe_id, started_at=now)
    versions = {
        version.stripe_price: version
        for version in PriceVersion.objects.filter(
            stripe_price__in=[line["price"] for line in invoice.lines if line.get("price")]
        )
    }
    lines = [(line, versions[line["price"]]) for line in invoice.lines if line["price"] in versions]
    findings = [
        *(one for line, version in lines if (one := _line(kind, invoice, line, version))),
        *_without_line(kind, invoice, {version.pk for _, version in lines}),
    ]
    # What the draft showed is on the final invoice, or it is gone.
    compared = (DRAFT, FINAL) if kind == FINAL else (kind,)
    opened = note(findings, _about(invoice, *compared), now)
    return finish(run, len(lines), len(opened), now)


def _about(invoice: Invoice, *kinds: Comparison) -> Q:
    """Return which differences a comparison of the invoice decides."""
    return Q(kind__in=kinds, stripe_invoice=invoice.stripe_id)


def _line(
    kind: str, invoice: Invoice, line: invoices.Line, version: PriceVersion
) -> Finding | None:
    """Find what a line has too much or too little: units, or else more than a cent."""
    ours = invoices.line_total(invoice, line)
    if ours.agrees(line):
        return None
    quantity = round(Decimal(line["quantity"]))
    counted = ours.micro // version.unit_micro
    pair, unit = (counted, quantity), "units"
    if counted == quantity:
        pair, unit = (ours.micro, line["amount_cents"] * MICRO_PER_CENT), "micro-USD"
    return Finding(
        kind,
        f"{invoice.stripe_id}:{line['id']}",
        *pair,
        invoice.organization_id,
        version.pk,
        stripe_invoice=invoice.stripe_id,
        subject=f"{unit} on {invoice.number or invoice.stripe_id}",
    )


def _without_line(kind: str, invoice: Invoice, billed: set[int]) -> Iterator[Finding]:
    """Find what Stripe counted in the invoice's period at a price that is not on it."""
    if not invoice.billing_reason.startswith("subscription"):
        return
    used = MeterEvent.objects.filter(
        organization_id=invoice.organization_id,
        timestamp__gte=invoice.period_start,
        timestamp__lt=invoice.period_end,
        state__in=COUNTED,
    ).exclude(price_version_id__in=billed)
    rows = used.values("price_version_id").annotate(units=Sum("quantity")).exclude(units=0)
    for row in rows.order_by("price_version_id"):
        yield Finding(
            kind,
            f"{invoice.stripe_id}:v{row['price_version_id']}",
            row["units"],
            0,
            invoice.organization_id,
            row["price_version_id"],
            stripe_invoice=invoice.stripe_id,
            subject=f"no line on {invoice.number or invoice.stripe_id}",
        )
