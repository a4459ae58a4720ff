"""Whether our books agree with themselves, with what Stripe has counted, and with its invoices.

    internal      totals and ledger, holds and ledger, ledger and meter events; what is stuck
    usage         meter events and Stripe's sums of them, hour by hour
    draft, final  the lines of an invoice and the ledger
    compare       for the app that knows the requests: see images.usage.reconciliation

What does not agree is a Difference, one open row per key. It is closed when it agrees again, and
nothing is put right but what `usage` may: little, and seen alike twice.
"""

from billing.reconciliation.books import MOST_FINDINGS, RECENT, Check, compare, internal, recount
from billing.reconciliation.differences import AlreadyResolved, Finding, open_differences, resolve
from billing.reconciliation.invoiced import draft, final, invoices_due, invoices_since
from billing.reconciliation.metered import usage

__all__ = [
    "MOST_FINDINGS",
    "RECENT",
    "AlreadyResolved",
    "Check",
    "Finding",
    "compare",
    "draft",
    "final",
    "internal",
    "invoices_due",
    "invoices_since",
    "open_differences",
    "recount",
    "resolve",
    "usage",
]
