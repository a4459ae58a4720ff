"""The ledger for reading: page by page, each movement with the balance after it, and as CSV.

`ledger.movements` tells the same of a whole ledger at once; this reads only what a page shows, so
the first page of ten million rows costs what the first of ten costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC

from django.db.models import Sum

from accounts.models import Organization
from billing.models import EntryKind, LedgerEntry, LedgerTotal
from geekhub.lib import money
from geekhub.lib.csv import csv_text, safe

CSV_COLUMNS = (
    "time", "kind", "amount_usd", "balance_after_usd", "request", "model", "images", "key", "note",
    "entry",
)  # fmt: skip
CSV_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Movement:
    """An entry of the ledger, and the balance after it in micro-USD."""

    entry: LedgerEntry
    balance_micro: int


def page(
    organization: Organization, *, kind: EntryKind | None = None, before: int | None, size: int
) -> list[Movement]:
    """Return movements, newest first, of one kind if it is named, older than entry `before`."""
    entries = LedgerEntry.objects.filter(organization=organization)
    if kind is not None:
        entries = entries.filter(kind=kind)
    if before is not None:
        entries = entries.filter(pk__lt=before)
    rows = list(entries.select_related("api_key", "invoice").order_by("-pk")[:size])
    found: list[Movement] = []
    if not rows:
        return found
    balance = _balance_through(organization, rows[0].pk)
    for entry, older in zip(rows, [*rows[1:], None], strict=True):
        found.append(Movement(entry, balance))
        if older is not None:
            # What is not of this kind lies in between.
            between = 0 if kind is None else _sum(organization, older.pk, entry.pk - 1)
            balance -= entry.amount_micro + between
    return found


def all_csv(organization: Organization, kind: EntryKind | None = None) -> Iterator[str]:
    """Return all movements as CSV, newest first, in chunks of a thousand rows; times are UTC."""
    return csv_text(CSV_COLUMNS, (map(_cells, rows) for rows in _pages(organization, kind)))


def _pages(organization: Organization, kind: EntryKind | None) -> Iterator[list[Movement]]:
    before: int | None = None
    while True:
        rows = page(organization, kind=kind, before=before, size=CSV_PAGE)
        yield rows
        if len(rows) < CSV_PAGE:
            return
        before = rows[-1].entry.pk


def _balance_through(organization: Organization, pk: int) -> int:
    # What was added up once, every ten minutes, need not be read again.
    total = LedgerTotal.objects.filter(organization=organization).first()
    if total is None:
        return _sum(organization, 0, pk)
    if total.through <= pk:
        return total.balance_micro + _sum(organization, total.through, pk)
    return total.balance_micro - _sum(organization, pk, total.through)


def _sum(organization: Organization, after: int, through: int) -> int:
    entries = LedgerEntry.objects.filter(
        organization=organization, pk__gt=after, pk__lte=through
    ).aggregate(sum=Sum("amount_micro"))
    return entries["sum"] or 0


def _cells(row: Movement) -> tuple[str | int, ...]:
    entry = row.entry
    return (
        entry.created_at.astimezone(UTC).isoformat(timespec="seconds"),
        entry.kind,
        money.to_usd(entry.amount_micro),
        money.to_usd(row.balance_micro),
        entry.request_id,
        entry.sku,
        entry.quantity or "",
        entry.api_key.prefix if entry.api_key else "",
        safe(", ".join(filter(None, (entry.note, entry.payment_id)))),
        entry.pk,
    )
