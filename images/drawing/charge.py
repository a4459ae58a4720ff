"""The short transactions that end a request: pictures, charge and result together, or nothing."""

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import asdict

from django.db import Error as DatabaseTrouble
from django.db import transaction
from django.utils import timezone

from billing.spending import holds
from geekhub.lib import db
from images.catalog.parameters import AUTO
from images.drawing.errors import AllCandidatesFailed, StoreFailed
from images.drawing.gateway import Gateway
from images.drawing.routing import Candidate
from images.drawing.started import BROKEN, Drawn, Kept, Started
from images.models import Generation, GenerationStatus, Image
from images.providers.errors import ProviderError

log = logging.getLogger(__name__)
# Written with each charge, and with nothing else.
NUMBERS = ("delivered", "cost_micro")
RESULT_FIELDS = (
    "status",
    "model",
    "provider",
    "filtered",
    "attempts",
    "adjusted",
    "error_code",
    "error_message",
    "finished_at",
    "draw_ms",
    "latency_ms",
)


async def committed[**P](
    gateway: Gateway, work: Callable[P, Generation], *args: P.args, **kwargs: P.kwargs
) -> Generation:
    """Return the row as `work` wrote it, trying a second time when the connection broke.

    The first transaction may or may not have been committed; the guard of the second finds out, and
    HoldLost sends us to the database's own row.
    """
    try:
        return await gateway.db.run(work, *args, **kwargs)
    except BROKEN:
        log.warning("a result is written again", exc_info=True)
        return await gateway.db.run(work, *args, **kwargs)


def capture(started: Started, drawn: Drawn, kept: list[Kept]) -> Generation:
    """Write pictures, charge and result in one transaction; raises HoldLost and writes nothing."""
    row = _described(started, drawn, kept)
    row.delivered = len(kept)
    with transaction.atomic():
        if started.hold is not None:
            sku = drawn.candidate.sku
            entry = holds.capture(started.hold, sku=sku, delivered=row.delivered)
            row.cost_micro = -entry.amount_micro
        _finish(started, row, GenerationStatus.SUCCEEDED, *NUMBERS)
        for one in kept:
            _insert(started, one.row)
    return row


def capture_one(started: Started, candidate: Candidate, one: Kept) -> Generation:
    """Write one picture and its charge in one transaction, or find that it was committed before.

    Raises HoldLost and writes nothing.
    """
    row, hold = copy(started.generation), started.hold
    row.model, row.provider = candidate.model.id, candidate.model.provider
    try:
        with transaction.atomic():
            if hold is not None:
                row.cost_micro -= holds.capture_one(hold, sku=candidate.sku).amount_micro
            running = Generation.objects.filter(
                pk=row.pk, status=GenerationStatus.RUNNING, delivered=row.delivered
            )
            row.delivered += 1
            if not running.update(
                model=row.model,
                provider=row.provider,
                delivered=row.delivered,
                cost_micro=row.cost_micro,
            ):
                raise holds.HoldLost(row.request_id)
            _insert(started, one.row)
    except holds.HoldLost:
        row = Generation.objects.get(pk=row.pk)
        if row.delivered != one.row.index + 1:
            raise
    if hold is not None:
        hold.captured = row.delivered
    return row


def _insert(started: Started, row: Image) -> None:
    """Insert a picture; the words that its model made of a prompt are kept only if prompts are.

    The caller still receives them.
    """
    if not started.keeps_prompts:
        row = copy(row)
        row.revised_prompt = ""
    db.insert(row)


def close(started: Started, drawn: Drawn, kept: list[Kept]) -> Generation:
    """Give back what was not captured and write the result, after pictures came one by one."""
    row = _described(started, drawn, kept)
    with transaction.atomic():
        if started.hold is not None:
            holds.release(started.hold)
        _finish(started, row, GenerationStatus.SUCCEEDED)
    return row


def _described(started: Started, drawn: Drawn, kept: list[Kept]) -> Generation:
    """Return a copy of the row with who drew, and what came out differently; nothing is saved."""
    row = copy(started.generation)
    model, asked = drawn.candidate.model, started.request.size
    adjusted = [asdict(one) for one in drawn.candidate.adjusted]
    sizes = sorted({f"{one.row.width}x{one.row.height}" for one in kept})
    told = next((one for one in adjusted if one["param"] == "size"), None)
    if told is not None:
        told["used"] = ", ".join(sizes)
    elif asked not in (None, AUTO) and sizes != [asked]:
        why = f"{model.id} returned a different size than requested."
        adjusted.append({"param": "size", "asked": asked, "used": ", ".join(sizes), "why": why})
    row.model = model.id
    row.provider = model.provider
    row.filtered = drawn.filtered
    row.adjusted = adjusted
    row.draw_ms = drawn.ms
    return row


def fail(started: Started, error: Exception) -> Generation:
    """Release the hold and write the error down; what the database has as delivered stays.

    Returns the row, which may have been ended before. Raises HoldLost if it changes meanwhile and
    runs on.
    """
    row = Generation.objects.select_related("hold").get(pk=started.generation.pk)
    if row.status != GenerationStatus.RUNNING:
        return row
    status = GenerationStatus.SUCCEEDED
    if not row.delivered:
        status = GenerationStatus.FAILED
        row.error_code, message = _reason(error)
        row.error_message = message[:500]
    try:
        with transaction.atomic():
            if row.hold is not None:
                holds.release(row.hold)
            _finish(started, row, status)
    except holds.HoldLost:
        row.refresh_from_db()
        if row.status == GenerationStatus.RUNNING:
            raise
    return row


def _reason(error: Exception) -> tuple[str, str]:
    """Return the public code of what broke a request, and what may be said of it."""
    match error:
        case ProviderError():
            return error.code, error.message
        case AllCandidatesFailed():
            return "provider_unavailable", str(error)
        case StoreFailed() | DatabaseTrouble():
            return "service_unavailable", ""
        case _:
            return "internal_error", ""


def _finish(started: Started, row: Generation, status: GenerationStatus, *numbers: str) -> None:
    """Write the end of a request; raises HoldLost when somebody else has ended it."""
    row.status = status
    row.attempts = [asdict(one) for one in started.attempts]
    row.finished_at = timezone.now()
    row.latency_ms = round(started.clock.elapsed() * 1000)
    if not db.update(row, (*RESULT_FIELDS, *numbers), where="status = 'running'"):
        raise holds.HoldLost(row.request_id)
