"""What does not agree: found, seen again, resolved, gone."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q, QuerySet

from accounts import audit
from accounts.models import User
from billing.models import Difference, DifferenceState, Reconciliation

# Sums lag, so one that differs says nothing until it is read alike so much later.
BETWEEN_READS = timedelta(minutes=30)


class AlreadyResolved(Exception):
    """The difference is no longer open."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Two numbers that should be equal. `hour` is when the thing happened, if it did at a time."""

    kind: str
    about: str
    expected: int
    found: int
    organization_id: uuid.UUID | None = None
    price_version_id: int | None = None
    hour: datetime | None = None
    stripe_invoice: str = ""
    subject: str = ""

    @property
    def key(self) -> str:
        """What tells it from every other, and is the same when it is found again."""
        return f"{self.kind}:{self.about}"


def resolve(difference: Difference, note: str, actor: User | None) -> None:
    """Accept a difference by a person's word; it comes back only if its numbers change.

    Raises ValueError without a note and AlreadyResolved when it is no longer open.
    """
    if not note.strip():
        raise ValueError("A note says why the difference is accepted.")
    with transaction.atomic():
        opened = Difference.objects.filter(pk=difference.pk, state=DifferenceState.OPEN)
        if not opened.update(state=DifferenceState.ACCEPTED, note=note.strip()[:500]):
            raise AlreadyResolved(difference.key)
        audit.record(
            "billing.difference_accepted",
            organization=difference.organization,
            actor=actor,
            subject=difference.key,
            note=note.strip(),
            expected=difference.expected,
            found=difference.found,
        )


def open_differences() -> QuerySet[Difference]:
    """Return what needs a person, by organization, sku and hour."""
    found = Difference.objects.filter(state=DifferenceState.OPEN)
    return found.select_related("organization", "price_version").order_by(
        "organization__name", "price_version__sku", "hour", "key"
    )


def note(findings: Iterable[Finding], compared: Q, now: datetime) -> list[Difference]:
    """Open or renew a difference for each finding; close what was `compared` and agrees now."""
    by_key = {finding.key: finding for finding in findings}
    _drop_accepted(by_key)
    Difference.objects.filter(compared, state=DifferenceState.OPEN).exclude(key__in=by_key).update(
        state=DifferenceState.CLOSED, note="They agree now.", last_seen_at=now
    )
    Difference.objects.bulk_create(
        [_difference(finding, now) for finding in by_key.values()], ignore_conflicts=True
    )
    opened = list(Difference.objects.filter(key__in=by_key, state=DifferenceState.OPEN))
    for row in opened:
        _see_again(row, by_key[row.key], now)
    return opened


def _drop_accepted(by_key: dict[str, Finding]) -> None:
    accepted = Difference.objects.filter(key__in=by_key, state=DifferenceState.ACCEPTED)
    for key, expected, found in list(accepted.values_list("key", "expected", "found")):
        if key in by_key and (by_key[key].expected, by_key[key].found) == (expected, found):
            del by_key[key]


def _difference(finding: Finding, now: datetime) -> Difference:
    return Difference(
        key=finding.key,
        kind=finding.kind,
        organization_id=finding.organization_id,
        price_version_id=finding.price_version_id,
        hour=finding.hour,
        stripe_invoice=finding.stripe_invoice,
        subject=finding.subject[:200],
        expected=finding.expected,
        found=finding.found,
        first_seen_at=now,
        last_seen_at=now,
    )


def _see_again(row: Difference, finding: Finding, now: datetime) -> None:
    """Count a read that is alike and late enough; begin anew when the numbers are others."""
    alike = (row.expected, row.found) == (finding.expected, finding.found)
    if alike and now - row.last_seen_at < BETWEEN_READS:
        return
    # Of two hosts at once, one counts.
    mine = Difference.objects.filter(
        pk=row.pk, state=DifferenceState.OPEN, seen=row.seen, last_seen_at=row.last_seen_at
    )
    row.seen = row.seen + 1 if alike else 1
    row.expected, row.found, row.last_seen_at = finding.expected, finding.found, now
    row.subject = finding.subject[:200]
    mine.update(
        seen=row.seen,
        expected=row.expected,
        found=row.found,
        last_seen_at=now,
        subject=row.subject,
    )


def finish(run: Reconciliation, checked: int, opened: int, now: datetime) -> Reconciliation:
    run.finished_at, run.checked, run.differences = now, checked, opened
    run.save(update_fields=["finished_at", "checked", "differences"])
    return run


def lane_hour(organization_id: uuid.UUID, price_version_id: int, hour: datetime) -> str:
    """Return what names an hour of a lane in the keys of findings."""
    return f"{organization_id}:{price_version_id}:{hour:%Y-%m-%dT%H}"
