"""THE story of one request: check, hold, draw, keep, capture. Told once, top to bottom.

begin()      one short transaction: the Generation row and the hold exist before anybody draws
complete()   draw and keep, nothing open meanwhile; then one short transaction: pictures,
             charge and result together, or the hold released and the error written down
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, InterfaceError, OperationalError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from accounts.models import ApiKey
from billing import holds
from billing.budgets import BudgetExceeded
from billing.holds import InsufficientBalance
from billing.models import Hold
from images import routing
from images.gateway import Gateway
from images.models import Generation, GenerationStatus, Image
from images.pictures import transcode
from images.providers.base import (
    PartialImage,
    ProviderError,
    ProviderImage,
    Shortfall,
    unavailable,
)
from images.requests import GenerationRequest
from images.routing import Candidate

log = logging.getLogger(__name__)

# What is left of the deadline for keeping and charging once the drawing must be over.
RESERVE = 0.1
LEASE_BEYOND_DEADLINE = timedelta(seconds=30)


RESULT_FIELDS = [
    "status",
    "model",
    "provider",
    "delivered",
    "filtered",
    "cost_micro",
    "attempts",
    "adjusted",
    "error_code",
    "error_message",
    "finished_at",
    "latency_ms",
]


class IdempotencyKeyInUse(Exception):
    """The request with this Idempotency-Key is still running."""


class IdempotencyKeyReused(Exception):
    """The Idempotency-Key was used for another body."""


class AllCandidatesFailed(Exception):
    """Every model of a list was tried or left out."""

    def __init__(self, attempts: list["Attempt"], *, charged: bool) -> None:
        super().__init__("; ".join(f"{one.model}: {one.error}" for one in attempts))
        self.attempts = attempts
        self.charged = charged


class StoreFailed(Exception):
    """The pictures came but could not be kept; nothing is charged."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One candidate that was called, and the code of its error if it failed."""

    model: str
    error: str | None


@dataclass(slots=True)
class Started:
    """A request that has been let in; `started` and `deadline` are monotonic seconds."""

    generation: Generation
    hold: Hold | None
    candidates: list[Candidate]
    sandbox: bool
    started: float
    deadline: float
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that delivered: its pictures' rows, and their bytes if they were drawn just now."""

    generation: Generation
    images: list[Image]
    data: list[bytes]


@dataclass(frozen=True, slots=True)
class Priced:
    """The answer to a dry run: what would be drawn, and what it would cost at most."""

    candidate: Candidate
    unit_micro: int
    skipped: list[routing.Skipped]


@dataclass(frozen=True, slots=True)
class _Drawn:
    candidate: Candidate
    images: list[ProviderImage]
    filtered: int


@dataclass(frozen=True, slots=True)
class _Kept:
    images: list[Image]
    data: list[bytes]


def begin(
    gateway: Gateway,
    key: ApiKey,
    request: GenerationRequest,
    *,
    request_id: str,
    idempotency_key: str | None,
) -> Started | Finished | Priced:
    """Let a request in: one database hop, one short transaction.

    Returns what an earlier request with the same Idempotency-Key came to, or Priced for a dry run.
    Raises the errors of routing and holds, IdempotencyKeyInUse and IdempotencyKeyReused; then
    nothing is held and nothing was written.
    """
    if idempotency_key is not None:
        earlier = _earlier(key, request, idempotency_key)
        if earlier is not None:
            return earlier
    quotes = gateway.prices.current([model.id for model in routing.named(request)])
    candidates, skipped = routing.candidates(
        request,
        allowed=key.allowed_models,
        off=lambda model: gateway.why_off(model, sandbox=key.sandbox),
        prices={model: quote.unit_micro for model, quote in quotes.items()},
    )
    if request.dry_run:
        dearest = max(candidates, key=lambda one: quotes[one.model.id].unit_micro)
        return Priced(dearest, quotes[dearest.model.id].unit_micro, skipped)
    seconds = settings.REQUEST_DEADLINE_SECONDS
    now = timezone.now()
    try:
        with transaction.atomic():
            hold = None
            if not key.sandbox:
                hold = holds.authorize(
                    key=key,
                    request_id=request_id,
                    quotes=[quotes[one.model.id] for one in candidates],
                    quantity=request.n,
                    owner=gateway.presence.owner,
                    lease=timedelta(seconds=seconds) + LEASE_BEYOND_DEADLINE,
                )
            generation = Generation.objects.create(
                request_id=request_id,
                organization_id=key.organization_id,
                api_key=key,
                sandbox=key.sandbox,
                hold=hold,
                owner=gateway.presence.owner,
                requested=list(request.models),
                parameters=request.parameters(),
                prompt=request.prompt if key.organization.keeps_prompts else "",
                tags=list(request.tags),
                n=request.n,
                idempotency_key=idempotency_key,
                fingerprint=request.fingerprint(),
                skipped=[asdict(one) for one in skipped],
                created_at=now,
                deadline_at=now + timedelta(seconds=seconds),
            )
    except (IntegrityError, InsufficientBalance, BudgetExceeded):
        # The same Idempotency-Key may have come in beside us and hold the money, or the row.
        if idempotency_key is not None:
            earlier = _earlier(key, request, idempotency_key)
            if earlier is not None:
                return earlier
        raise
    started = time.monotonic()
    return Started(generation, hold, candidates, key.sandbox, started, started + seconds)


async def complete(gateway: Gateway, started: Started) -> Finished:
    """Draw, keep and charge.

    Raises ProviderError, AllCandidatesFailed or StoreFailed; nothing is charged then. The caller
    must not be cancelled: it runs this to the end whether or not anybody still listens.
    """
    try:
        drawn = await _draw(gateway, started)
        kept = await _keep(gateway, started, drawn)
    except (ProviderError, AllCandidatesFailed, StoreFailed) as error:
        await gateway.db.run(_fail, started, error)
        raise
    except BaseException as error:
        log.exception("request %s failed", started.generation.request_id)
        await gateway.db.run(_fail, started, error)
        raise
    for last_try in (False, True):
        try:
            generation = await gateway.db.run(_capture, started, drawn, kept.images)
            break
        except (OperationalError, InterfaceError):
            # The connection broke; the transaction may or may not have been committed. Doing it
            # again finds out: what is no longer held was captured by us.
            if last_try:
                raise
    return Finished(generation, kept.images, kept.data)


async def _draw(gateway: Gateway, started: Started) -> _Drawn:
    """Return the pictures of the first candidate that delivers any."""
    seconds = started.deadline - time.monotonic()
    deadline = asyncio.get_running_loop().time() + seconds * (1 - RESERVE)
    charged = False
    for candidate in started.candidates:
        try:
            images, filtered = await _draw_with(gateway, candidate, started.sandbox, deadline)
        except ProviderError as error:
            started.attempts.append(Attempt(candidate.model.id, error.code))
            charged = charged or error.charged
            wanted = candidate.request
            refused = error.code == "content_policy_violation"
            if not wanted.listed or (refused and wanted.on_refusal == "stop"):
                raise
            continue
        started.attempts.append(Attempt(candidate.model.id, None))
        return _Drawn(candidate, images, filtered)
    raise AllCandidatesFailed(started.attempts, charged=charged)


async def _draw_with(
    gateway: Gateway, candidate: Candidate, sandbox: bool, deadline: float
) -> tuple[list[ProviderImage], int]:
    """Return the candidate's pictures and how many were refused; raises ProviderError if none."""
    provider = gateway.provider_for(candidate.model, sandbox=sandbox)
    if provider is None:
        raise unavailable(detail="not configured")
    images: list[ProviderImage] = []
    missing: list[Shortfall] = []
    request = candidate.for_provider(deadline=deadline, sandbox=sandbox)
    items = provider.generate(request)
    try:
        async with asyncio.timeout_at(deadline):
            async for item in items:
                match item:
                    case ProviderImage():
                        images.append(item)
                    case Shortfall():
                        missing.append(item)
                    case PartialImage():
                        pass
    except TimeoutError:
        # The upstream may still finish, and bill, what nobody waits for.
        missing.append(Shortfall(unavailable(charged=True, detail="too slow"), request.n))
    finally:
        await items.aclose()
    if not images:
        raise _most_telling(missing)
    filtered = sum(one.count for one in missing if one.error.code == "content_policy_violation")
    return sorted(images, key=lambda image: image.index), filtered


def _most_telling(missing: Sequence[Shortfall]) -> ProviderError:
    """Return the error to tell of several: a refusal before a rejection before an outage."""
    order = ["content_policy_violation", "invalid_request_error", "model_not_found"]
    errors = [one.error for one in missing] or [unavailable(charged=True, detail="no pictures")]
    return min(errors, key=lambda one: order.index(one.code) if one.code in order else len(order))


async def _keep(gateway: Gateway, started: Started, drawn: _Drawn) -> _Kept:
    """Store the pictures side by side; raises StoreFailed when none could be stored."""
    folder = f"{started.generation.organization_id}/{started.generation.pk}"
    deadline = asyncio.get_running_loop().time() + max(1.0, started.deadline - time.monotonic())
    asked = drawn.candidate.request

    async def keep(index: int, image: ProviderImage) -> tuple[Image, bytes]:
        picture = image.picture
        if asked.output_format is not None and not picture.is_a(asked.output_format):
            picture = await asyncio.to_thread(
                transcode, picture, asked.output_format, asked.output_compression
            )
        name = f"{folder}/{index}.{picture.extension}"
        await gateway.store.asave(name, picture.data, picture.mime_type, deadline)
        row = Image(
            generation=started.generation,
            index=index,
            name=name,
            mime_type=picture.mime_type,
            width=picture.width,
            height=picture.height,
            bytes=len(picture.data),
            sha256=await asyncio.to_thread(_sha256, picture.data),
            revised_prompt=image.revised_prompt or "",
        )
        return row, picture.data

    results = await asyncio.gather(
        *(keep(index, image) for index, image in enumerate(drawn.images)), return_exceptions=True
    )
    kept = [result for result in results if not isinstance(result, BaseException)]
    for result in results:
        if isinstance(result, BaseException):
            log.error("a picture of %s was not kept", folder, exc_info=result)
    if not kept:
        raise StoreFailed
    return _Kept([row for row, _ in kept], [data for _, data in kept])


def _capture(started: Started, drawn: _Drawn, rows: list[Image]) -> Generation:
    """Write pictures, charge and result in one transaction; raises HoldLost and writes nothing."""
    generation, candidate = started.generation, drawn.candidate
    adjusted = [asdict(one) for one in candidate.adjusted]
    sizes = {f"{row.width}x{row.height}" for row in rows}
    asked = candidate.request.size
    if (
        asked not in (None, "auto")
        and sizes != {asked}
        and not any(one["param"] == "size" for one in adjusted)
    ):
        why = f"{candidate.model.id} drew another size than it was asked for."
        adjusted.append(
            {"param": "size", "asked": asked, "used": ", ".join(sorted(sizes)), "why": why}
        )
    generation.model = candidate.model.id
    generation.provider = candidate.model.provider
    generation.delivered = len(rows)
    generation.filtered = drawn.filtered
    generation.adjusted = adjusted
    try:
        with transaction.atomic():
            if started.hold is not None:
                entry = holds.capture(started.hold, model=candidate.model.id, delivered=len(rows))
                generation.cost_micro = -entry.amount_micro
            _finish(started, GenerationStatus.SUCCEEDED)
            Image.objects.bulk_create(rows)
    except holds.HoldLost:
        generation.refresh_from_db()
        if generation.status != GenerationStatus.SUCCEEDED:
            raise
    return generation


def _fail(started: Started, error: BaseException) -> None:
    """Release the hold and write the error down."""
    generation = started.generation
    code = error.code if isinstance(error, ProviderError) else "internal_error"
    if isinstance(error, AllCandidatesFailed):
        code = "provider_unavailable"
    generation.error_code = code
    generation.error_message = str(error)[:500] if code != "internal_error" else ""
    with transaction.atomic():
        if started.hold is not None:
            holds.release(started.hold)
        _finish(started, GenerationStatus.FAILED)


def _finish(started: Started, status: GenerationStatus) -> None:
    """Write the end of a request; raises HoldLost when somebody else has ended it."""
    generation = started.generation
    generation.status = status
    generation.attempts = [asdict(one) for one in started.attempts]
    generation.finished_at = timezone.now()
    generation.latency_ms = round((time.monotonic() - started.started) * 1000)
    running = Generation.objects.filter(pk=generation.pk, status=GenerationStatus.RUNNING)
    if not running.update(**{name: getattr(generation, name) for name in RESULT_FIELDS}):
        raise holds.HoldLost(generation.request_id)


def expire_abandoned(owners: Sequence[uuid.UUID]) -> int:
    """Settle what dead processes left: release the money, fail the request. Return how many.

    `owners` are processes known to be dead; whatever is past its lease is taken as well.
    """
    abandoned = 0
    for hold in holds.expirable(owners):
        with transaction.atomic():
            try:
                holds.expire(hold)
            except holds.HoldLost:
                continue
            _abandon(Generation.objects.filter(hold=hold))
        abandoned += 1
    overdue = timezone.now() - LEASE_BEYOND_DEADLINE
    free = Generation.objects.filter(status=GenerationStatus.RUNNING, hold=None)
    return (
        abandoned
        + _abandon(free.filter(owner__in=owners))
        + _abandon(free.filter(deadline_at__lt=overdue))
    )


def _abandon(generations: QuerySet[Generation]) -> int:
    return generations.filter(status=GenerationStatus.RUNNING).update(
        status=GenerationStatus.FAILED,
        error_code="internal_error",
        error_message="The server stopped while the request was running. Nothing was charged.",
        finished_at=timezone.now(),
    )


def _earlier(key: ApiKey, request: GenerationRequest, idempotency_key: str) -> Finished | None:
    """Return what the request with this Idempotency-Key came to; None if it failed or never was."""
    earlier = (
        Generation.objects.filter(
            organization_id=key.organization_id,
            sandbox=key.sandbox,
            idempotency_key=idempotency_key,
        )
        .exclude(status=GenerationStatus.FAILED)
        .first()
    )
    if earlier is None:
        return None
    if earlier.fingerprint != request.fingerprint():
        raise IdempotencyKeyReused
    if earlier.status == GenerationStatus.RUNNING:
        raise IdempotencyKeyInUse
    return Finished(earlier, list(earlier.images.all()), [])


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
