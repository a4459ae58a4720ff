"""The terms of a query: a span of time, filters, and the place in a list."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db.models import Q

from geekhub.lib.ids import REQUEST_ID

NAMES = {"key": "api_key_id"}
EVER = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which requests a query selects: those received from `start` to before `end`, and so on.

    `status` is a GenerationStatus or the code of an error; None and empty mean any.
    """

    start: datetime
    end: datetime
    key: UUID | None = None
    model: str = ""
    status: str = ""
    tag: str = ""
    sandbox: bool | None = None

    @property
    def is_picky(self) -> bool:
        """Return whether anything but the time filters."""
        return bool(self.key or self.model or self.status or self.tag)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the list of requests, which goes from new to old."""

    created_at: datetime
    request_id: str

    def __str__(self) -> str:
        return f"{math.floor(self.created_at.timestamp() * 1_000_000)}-{self.request_id}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Return the place that `str` made the text of; raises ValueError."""
        micro, _, request_id = text.partition("-")
        if not (micro.isascii() and micro.isdigit() and len(micro) < 17):
            raise ValueError(text)
        if not REQUEST_ID.fullmatch(request_id):
            raise ValueError(text)
        return cls(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(micro)), request_id)


def between(start: datetime, end: datetime) -> Q:
    return Q(created_at__gte=start, created_at__lt=end)
