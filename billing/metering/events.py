"""The states of an event, and a guarded change from one to another."""

import uuid
from datetime import timedelta
from typing import Any

from billing.models import MeterEvent, MeterState

PAUSE = timedelta(minutes=5)
UNKNOWN = (MeterState.SENDING, MeterState.UNCERTAIN)
IN_FLIGHT = (MeterState.PENDING, *UNKNOWN)
COUNTED = (MeterState.ACCEPTED, MeterState.CONFIRMED)


def change(event: MeterEvent, **changes: Any) -> bool:
    """Change a row that is still as we know it, and say whether it was."""
    mine = MeterEvent.objects.filter(pk=event.pk, state=event.state, attempts=event.attempts)
    if not mine.update(**changes):
        return False
    for name, value in changes.items():
        setattr(event, name, value)
    return True


def lane_of(event: MeterEvent) -> tuple[uuid.UUID, int]:
    return event.organization_id, event.price_version_id
