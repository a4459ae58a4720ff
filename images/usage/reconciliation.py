"""Requests compared with their charges and their pictures.

A picture, its charge and the request's own numbers are written in one transaction, so that they
are equal at any time, also while a request runs.
"""

from collections.abc import Iterator
from datetime import datetime

from django.db.models import BigIntegerField, Count, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

from billing.models import Comparison, EntryKind, Hold, HoldState, LedgerEntry, Reconciliation
from billing.reconciliation import MOST_FINDINGS, RECENT, Check, Finding, compare
from images.models import Generation, Image


def requests(*, now: datetime, since: datetime | None = None) -> Reconciliation:
    """Compare the requests received since `since` (three days ago)."""
    since = since or now - RECENT
    looked_at = Generation.objects.filter(created_at__gte=since).count()
    return compare(Comparison.REQUESTS, CHECKS, looked_at, now=now, since=since)


def _requests(now: datetime, since: datetime) -> Iterator[Finding]:
    entries = LedgerEntry.objects.filter(hold=OuterRef("hold"), kind=EntryKind.CONSUMPTION)
    pictures = Image.objects.filter(generation=OuterRef("pk"))
    rows = Generation.objects.filter(created_at__gte=since).annotate(
        charged=_sum(entries, "hold", Sum("quantity")),
        charged_micro=_sum(entries, "hold", -Sum("amount_micro")),
        pictures=_sum(pictures, "generation", Count("pk")),
    )
    # What the sandbox draws costs nothing.
    differing = (
        (Q(sandbox=False) & ~Q(charged=F("delivered")))
        | ~Q(charged_micro=F("cost_micro"))
        | ~Q(pictures=F("delivered"))
    )
    for row in rows.filter(differing).order_by("created_at")[: MOST_FINDINGS // 3]:
        pairs = {
            "request_images": (row.charged, 0 if row.sandbox else row.delivered),
            "request_cost": (row.charged_micro, row.cost_micro),
            "request_pictures": (row.delivered, row.pictures),
        }
        for kind, (expected, found) in pairs.items():
            if expected != found:
                yield Finding(
                    kind,
                    row.request_id,
                    expected,
                    found,
                    row.organization_id,
                    hour=row.created_at,
                    subject=f"{row.request_id} {row.status}",
                )


def _sum(rows: QuerySet[LedgerEntry] | QuerySet[Image], of: str, total: Combinable) -> Coalesce:
    grouped = rows.order_by().values(of).annotate(total=total).values("total")
    return Coalesce(Subquery(grouped), 0, output_field=BigIntegerField())


def _without_a_request(now: datetime, since: datetime) -> Iterator[Finding]:
    stray = Hold.objects.filter(
        state=HoldState.CAPTURED, settled_at__gte=since, generation=None
    ).order_by("settled_at")
    for hold in stray[:MOST_FINDINGS]:
        yield Finding(
            "charge_without_request",
            str(hold.pk),
            0,
            hold.captured,
            hold.organization_id,
            hour=hold.settled_at,
            subject=hold.request_id,
        )


CHECKS = (
    Check(_requests, ("request_images", "request_cost", "request_pictures")),
    Check(_without_a_request, ("charge_without_request",)),
)
