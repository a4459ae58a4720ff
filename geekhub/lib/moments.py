"""Moments in UTC: the hour one lies in, and what a number of seconds means."""

from datetime import UTC, datetime

# Before anything of ours happened: where a cursor begins.
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def hour_of(moment: datetime) -> datetime:
    """Return the start of its hour in UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def from_epoch(seconds: int) -> datetime:
    """Return the moment so many seconds after 1970 began, in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
