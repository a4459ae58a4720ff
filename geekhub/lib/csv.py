"""Files that are written while they are sent, so that any length needs little memory."""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse


def csv_file(request: HttpRequest, name: str, parts: Iterator[str]) -> StreamingHttpResponse:
    """Return an answer that is the file; the parts are made one after another as it is sent.

    It begins with a byte order mark, by which Excel knows UTF-8. Of programs that read it, some
    have to be told: Python's `utf-8-sig`, csv-parse's `bom`.
    """
    parts = _marked(parts)
    return StreamingHttpResponse(
        _in_the_loop(parts) if isinstance(request, ASGIRequest) else parts,
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
    )


def _marked(parts: Iterator[str]) -> Iterator[str]:
    yield "\ufeff" + next(parts, "")
    yield from parts


def csv_text(columns: Sequence[str], pages: Iterable[Iterable[Iterable[object]]]) -> Iterator[str]:
    """Yield rows as CSV, a part for each page of them; the columns come before the first."""
    text = io.StringIO(newline="")
    write = csv.writer(text).writerow
    write(columns)
    for page in pages:
        for row in page:
            write(row)
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    if left := text.getvalue():
        yield left


def safe(text: str) -> str:
    """Return text that no spreadsheet runs as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


async def _in_the_loop(parts: Iterator[str]) -> AsyncIterator[str]:
    """Yield the same in the event loop; the database is read in the request's thread."""
    try:
        while (part := await sync_to_async(_next)(parts)) is not None:
            yield part
    finally:
        # Who leaves in the middle leaves a cursor open, which is its thread's to close.
        await sync_to_async(_close)(parts)


def _next(parts: Iterator[str]) -> str | None:
    # Not the built-in itself: no StopIteration may pass through a coroutine.
    return next(parts, None)


def _close(parts: Iterator[str]) -> None:
    if close := getattr(parts, "close", None):
        close()
