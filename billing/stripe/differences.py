"""What only a person can settle is opened on the staff's page."""

from datetime import datetime

from django.db.models import F

from accounts.models import Organization
from billing.models import Difference, DifferenceState


def open_difference(
    kind: str,
    key: str,
    subject: str,
    found: int,
    now: datetime,
    *,
    note: str = "",
    organization: Organization | None = None,
) -> None:
    """Open a difference on the staff's page, or count it once more on the open one."""
    told = Difference.objects.filter(key=key[:200], state=DifferenceState.OPEN)
    if not told.update(seen=F("seen") + 1, found=found, last_seen_at=now):
        difference = Difference(
            key=key[:200],
            kind=kind,
            organization=organization,
            subject=subject[:200],
            expected=0,
            found=found,
            note=note[:500],
            last_seen_at=now,
        )
        Difference.objects.bulk_create([difference], ignore_conflicts=True)
