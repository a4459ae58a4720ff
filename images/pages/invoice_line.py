"""A line of an invoice, down to the pictures it bills."""

from collections import defaultdict
from dataclasses import dataclass

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from accounts.access import MemberRequest, Permission, member
from accounts.models import Organization
from billing.models import LedgerEntry
from billing.pages.invoices import file_name, find, find_line
from billing.pages.movements import number
from billing.stripe import invoices
from geekhub.lib.csv import csv_file
from images.models import Image

PAGE = 50
SHOWN = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A charge with the pictures it is for; `deleted` of them are no longer kept."""

    entry: LedgerEntry
    images: list[Image]
    more: int
    deleted: int
    is_known: bool

    @property
    def amount_micro(self) -> int:
        """Return what was charged."""
        return -self.entry.amount_micro


@require_safe
@member(Permission.VIEW_BILLING)
def index(request: MemberRequest, invoice_id: str, line_id: str) -> HttpResponse:
    """Show a page of the line's charges in order, and what all of them come to."""
    organization = request.access.organization
    invoice = find(organization, invoice_id)
    row = find_line(invoice, line_id)
    after = number(request.GET["after"]) if "after" in request.GET else 0
    entries = invoices.entries_of_line(invoice, row.line).filter(pk__gt=after)
    found = list(entries.select_related("api_key")[: PAGE + 1])
    total = invoices.line_total(invoice, row.line)
    context = {
        "invoice": invoice,
        "row": row,
        "total": total,
        "agrees": total.agrees(row.line),
        "charges": _rows(organization, found[:PAGE]),
        "after": after,
        "further": found[PAGE - 1].pk if len(found) > PAGE else None,
        "zone": timezone.get_current_timezone_name(),
    }
    return render(request, "images/invoice_line.html", context)


@require_safe
@member(Permission.VIEW_BILLING)
def export(request: MemberRequest, invoice_id: str, line_id: str) -> HttpResponseBase:
    """Return the line's charges as CSV."""
    invoice = find(request.access.organization, invoice_id)
    row = find_line(invoice, line_id)
    name = f"{file_name(invoice)}-{row.model.rpartition('/')[2]}"
    return csv_file(request, name, invoices.all_csv(invoices.entries_of_line(invoice, row.line)))


def _rows(organization: Organization, entries: list[LedgerEntry]) -> list[Row]:
    known = dict(
        organization.generations.filter(
            request_id__in={entry.request_id for entry in entries}
        ).values_list("request_id", "pk")
    )
    pictures: dict[str, dict[int, Image]] = defaultdict(dict)
    images = Image.objects.filter(generation__in=known.values(), deleted_at=None)
    for image in images.select_related("generation"):
        pictures[image.generation.request_id][image.index] = image
    mine = {entry.pk: _pictures(entry, pictures[entry.request_id]) for entry in entries}
    return [
        Row(
            entry=entry,
            images=mine[entry.pk][:SHOWN],
            more=max(0, len(mine[entry.pk]) - SHOWN),
            deleted=entry.quantity - len(mine[entry.pk]),
            is_known=entry.request_id in known,
        )
        for entry in entries
    ]


def _pictures(entry: LedgerEntry, pictures: dict[int, Image]) -> list[Image]:
    """Return the pictures of a charge; one that was streamed is charged individually.

    A charge is named by the first picture it is for, see `billing.spending.holds`.
    """
    first = entry.entry_key.rpartition(":")[2]
    start = int(first) if first.isdigit() else 0
    return [pictures[index] for index in range(start, start + entry.quantity) if index in pictures]
