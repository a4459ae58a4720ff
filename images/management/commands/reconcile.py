import json
import sys
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from billing import reconciliation
from billing.models import Difference
from billing.stripe.client import connect, is_connected
from images.usage.reconciliation import requests

# A month and the longest grace of its invoice.
USUAL = timedelta(days=35)
COLUMNS = ("organization", "model", "hour", "kind", "expected", "found", "subject")


class Command(BaseCommand):
    help = (
        "Compare the books with each other, with the requests and their images, with Stripe's "
        "usage and with its invoices, now. Prints differences that are not accepted; exits 1 "
        "if there is any."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--since", metavar="DATE", help="UTC; default: 35 days ago")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        since = _since(options["since"], now)
        reconciliation.recount()
        checked = reconciliation.internal(now=now, since=since).checked
        checked += requests(now=now, since=since).checked
        if is_connected():
            stripe = connect()
            checked += reconciliation.usage(stripe, now=now, since=since).checked
            checked += reconciliation.invoices_since(stripe, now=now, since=since)
        else:
            self.stderr.write("Stripe is not connected: compared our own books only.")
        rows = [_row(difference) for difference in reconciliation.open_differences()]
        if options["json"]:
            self.stdout.write(json.dumps({"checked": checked, "differences": rows}))
        else:
            self._print(rows)
            self.stderr.write(f"{checked} compared, {len(rows)} differences.")
        if rows:
            sys.exit(1)

    def _print(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        table = [
            list(COLUMNS),
            *(
                ["-" if row[column] is None else str(row[column]) for column in COLUMNS]
                for row in rows
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.stdout.write("  ".join(cells).rstrip())


def _since(text: str | None, now: datetime) -> datetime:
    if text is None:
        return now - USUAL
    try:
        since = datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError as error:
        raise CommandError(f"{text!r} is not a date such as 2026-11-01.") from error
    if since > now:
        raise CommandError(f"{text} is in the future.")
    return since


def _row(difference: Difference) -> dict[str, Any]:
    version = difference.price_version
    return {
        "organization": difference.organization.name if difference.organization else None,
        "model": str(version) if version else None,
        "hour": difference.hour.strftime("%Y-%m-%d %H:%M") if difference.hour else None,
        "kind": difference.kind,
        "expected": difference.expected,
        "found": difference.found,
        "subject": difference.subject or difference.key,
        "seen": difference.seen,
    }
