"""The requests as CSV, of any number: written page by page while it is sent."""

from collections.abc import Iterator
from datetime import tzinfo

from accounts.models import Organization
from geekhub.lib import money
from geekhub.lib.csv import csv_text, safe
from images.models import Generation
from images.usage import requests
from images.usage.span import Place, Wanted

COLUMNS = (
    "request_id", "time", "key", "key_prefix", "sandbox", "model_asked", "model", "n", "delivered",
    "size", "cost_usd", "latency_ms", "status", "error", "tags",
)  # fmt: skip
PAGE = 1000


def lines(organization: Organization, wanted: Wanted, zone: tzinfo) -> Iterator[str]:
    """Return the file: its head, then the requests from new to old; times are of `zone`."""
    pages = _pages(organization, wanted)
    return csv_text(COLUMNS, ((_fields(row, zone) for row in page) for page in pages))


def _pages(organization: Organization, wanted: Wanted) -> Iterator[list[Generation]]:
    before: Place | None = None
    while True:
        page = requests.page(organization, wanted, before=before, size=PAGE)
        yield page
        if len(page) < PAGE:
            return
        before = Place(page[-1].created_at, page[-1].request_id)


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
    return [safe(one) if isinstance(one, str) else "" if one is None else one for one in fields]
