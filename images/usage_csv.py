"""The requests as CSV, of any number: written page by page while it is sent."""

import csv
from collections.abc import AsyncIterator, Iterator
from datetime import tzinfo

from asgiref.sync import sync_to_async

from accounts.models import Organization
from geekhub.lib import money
from images import usage
from images.models import Generation
from images.usage import Place, Wanted

COLUMNS = (
    "request_id", "time", "key", "key_prefix", "sandbox", "model_asked", "model", "n", "delivered",
    "size", "cost_usd", "latency_ms", "status", "error", "tags",
)  # fmt: skip
PAGE = 1000


class _Line:
    """A file that csv writes to: it keeps what was written until it is taken."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def write(self, text: str) -> None:
        self._text.append(text)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        text, self._text = "".join(self._text), []
        return text.encode()


def lines(organization: Organization, wanted: Wanted, zone: tzinfo) -> Iterator[bytes]:
    """Yield the file: its head, then the requests from new to old; times are of `zone`."""
    line = _Line()
    writer = csv.writer(line)
    writer.writerow(COLUMNS)
    before: Place | None = None
    while True:
        page = usage.page(organization, wanted, before=before, size=PAGE)
        for row in page:
            writer.writerow(_fields(row, zone))
        yield line.take()
        if len(page) < PAGE:
            return
        before = Place(page[-1].created_at, page[-1].request_id)


async def alines(organization: Organization, wanted: Wanted, zone: tzinfo) -> AsyncIterator[bytes]:
    """Yield the same in the event loop; the database is read in the request's thread."""
    inner = lines(organization, wanted, zone)
    while (part := await sync_to_async(_next)(inner)) is not None:
        yield part


def _next(parts: Iterator[bytes]) -> bytes | None:
    # Not the built-in itself: no StopIteration may pass through a coroutine.
    return next(parts, None)


def size(row: Generation) -> str:
    """Return the size of the first picture, or the one asked for; its pictures are loaded."""
    for image in row.images.all():
        return f"{image.width}x{image.height}"
    return str(row.parameters.get("size", ""))


def _fields(row: Generation, zone: tzinfo) -> list[str | int]:
    fields: list[str | int | None] = [
        row.request_id,
        row.created_at.astimezone(zone).isoformat(),
        row.api_key.name,
        row.api_key.prefix,
        "yes" if row.sandbox else "no",
        " ".join(row.requested),
        row.model,
        row.n,
        row.delivered,
        size(row),
        money.to_usd(row.cost_micro),
        row.latency_ms,
        row.status,
        row.error_code,
        " ".join(row.tags),
    ]
    return [_safe(one) if isinstance(one, str) else "" if one is None else one for one in fields]


def _safe(text: str) -> str:
    # A spreadsheet runs what begins like this, and a tag may be anybody's words.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
