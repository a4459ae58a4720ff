"""THE story of one request: check, hold, draw, keep, capture. Told once, top to bottom.

begin()      one short transaction: the Generation row and the hold exist before anybody draws
complete()   draw and keep, nothing open meanwhile; then one short transaction: pictures,
             charge and result together, or the hold released and the error written down

What a row says is put there only by the transaction that commits it: each works on a copy, and
`Started` gets the copy when it is committed. Where that broke, the database is asked what it has.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import zip_longest
from typing import Protocol

from django.conf import settings
from django.db import Error as DatabaseTrouble
from django.db import IntegrityError, InterfaceError, OperationalError, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from accounts.models import MAX_TAG, ApiKey
from billing import holds
from billing.budgets import BudgetExceeded
from billing.holds import InsufficientBalance
from billing.models import Hold
from geekhub.lib import db
from geekhub.lib.tasks import to_its_end
from images import private, repeats, routing
from images.gateway import Gateway
from images.models import Generation, GenerationStatus, Image
from images.pictures import NotAPicture, Picture, transcode
from images.pixels import Turns
from images.providers.base import (
    REFUSAL,
    PartialImage,
    ProviderError,
    ProviderImage,
    Shortfall,
    unavailable,
)
from images.repeats import Finished, Running, Sent
from images.requests import AUTO, GenerationRequest
from images.routing import Candidate

log = logging.getLogger(__name__)

# What is left of the deadline for keeping and charging once the drawing must be over.
RESERVE = 0.1
SMALL_BYTES = 64 * 1024
LEASE_BEYOND_DEADLINE = timedelta(seconds=30)
# The connection broke: what was under way may have been committed or not.
BROKEN = (OperationalError, InterfaceError)
# Of a process that died, and of a database that broke: the row does not know which.
INTERRUPTED = "The request was interrupted on our side and ended later. Nothing was charged."

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


class AllCandidatesFailed(Exception):
    """Every model of a list was tried or left out."""

    def __init__(
        self, attempts: list["Attempt"], skipped: list[routing.Skipped], *, charged: bool
    ) -> None:
        super().__init__("; ".join(f"{one.model}: {one.error}" for one in attempts))
        self.attempts = attempts
        self.skipped = skipped
        self.charged = charged


class StoreFailed(Exception):
    """The pictures came but could not be kept, or not be charged; nothing is charged."""


class OutcomeUnknown(Exception):
    """The database broke while a result was written, and cannot say yet which.

    The request is settled when its lease is over, as one of a dead process is.
    """


@dataclass(frozen=True, slots=True)
class Attempt:
    """One candidate that was called, and the code of its error if it failed."""

    model: str
    error: str | None


@dataclass(slots=True, kw_only=True)
class Started:
    """A request that has been let in; `started` and `deadline` are monotonic seconds."""

    generation: Generation
    hold: Hold | None
    candidates: list[Candidate]
    skipped: list[routing.Skipped]
    sandbox: bool
    turns: Turns
    private: bool
    keeps_prompts: bool
    on_refusal: str
    started: float
    deadline: float
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Priced:
    """The answer to a dry run: who would be asked first, and what it would cost at most."""

    candidate: Candidate
    unit_micro: int
    most_micro: int
    skipped: list[routing.Skipped]


@dataclass(frozen=True, slots=True)
class _Drawn:
    candidate: Candidate
    images: list[ProviderImage]
    filtered: int
    ms: int


@dataclass(frozen=True, slots=True)
class _Kept:
    row: Image
    picture: Picture


def begin(
    gateway: Gateway,
    key: ApiKey,
    request: GenerationRequest,
    *,
    request_id: str,
    sent: Sent,
) -> Started | Finished | Running | Priced:
    """Let a request in: one database hop, one short transaction.

    Returns what the request that this one repeats came to, Running when it is to be waited for, or
    Priced for a dry run. Raises the errors of routing and holds, IdempotencyKeyInUse and
    IdempotencyKeyReused; then nothing is held and nothing was written.
    """
    # Waiting for the database is part of the request's time.
    started, now = time.monotonic(), timezone.now()
    seconds = settings.REQUEST_DEADLINE_SECONDS
    deadline = started + seconds
    if sent.may_repeat:
        earlier = repeats.earlier(key, request, sent)
        if earlier is not None:
            return earlier
    quotes = gateway.prices.current(
        [model.id for _, model in routing.named(request)], key.organization_id
    )
    timed = request.strategy != "cheapest"
    candidates, skipped = routing.candidates(
        request,
        allowed=key.allowed_models,
        off=lambda model: gateway.why_off(
            model, sandbox=key.sandbox, caller=str(key.organization_id)
        ),
        prices={model: quote.unit_micro for model, quote in quotes.items()},
        latencies=gateway.latencies.current() if timed else {},
    )
    if request.dry_run:
        dearest = max(quotes[one.model.id].unit_micro for one in candidates)
        first = candidates[0]
        return Priced(first, quotes[first.model.id].unit_micro, dearest * request.n, skipped)
    generation = Generation(
        request_id=request_id,
        organization_id=key.organization_id,
        api_key=key,
        sandbox=key.sandbox,
        owner=gateway.presence.owner,
        requested=list(request.models),
        parameters=request.parameters(),
        prompt=request.prompt if key.organization.keeps_prompts else "",
        tags=_tags(key, request),
        n=request.n,
        idempotency_key=sent.idempotency_key,
        retry=sent.retry or 0,
        fingerprint=request.fingerprint(),
        skipped=[asdict(one) for one in skipped],
        created_at=now,
        deadline_at=now + timedelta(seconds=seconds),
    )
    authorize = partial(
        holds.authorize,
        key=key,
        request_id=request_id,
        quotes=[quotes[one.model.id] for one in candidates],
        quantity=request.n,
        owner=gateway.presence.owner,
        lease=timedelta(seconds=seconds) + LEASE_BEYOND_DEADLINE,
    )
    try:
        meanwhile = partial(repeats.meanwhile, key, request, sent)
        begun = _let_in(generation, None if key.sandbox else authorize, meanwhile, deadline)
    except (IntegrityError, InsufficientBalance, BudgetExceeded):
        # The same order may have come in beside us and hold the money, or the row.
        if sent.may_repeat:
            earlier = repeats.earlier(key, request, sent)
            if earlier is not None:
                return earlier
        raise
    if not isinstance(begun, Generation):
        return begun
    return Started(
        generation=begun,
        hold=begun.hold,
        candidates=candidates,
        skipped=skipped,
        sandbox=key.sandbox,
        turns=gateway.turns(key),
        private=key.private,
        keeps_prompts=key.organization.keeps_prompts,
        on_refusal=request.on_refusal or key.on_refusal or key.organization.on_refusal,
        started=started,
        deadline=deadline,
    )


def _tags(key: ApiKey, request: GenerationRequest) -> list[str]:
    """Return the key's own tags and then the request's, each once; at most twice MAX_TAGS."""
    # Keys had longer ones once, and the rollups have room for these only.
    own = (tag[:MAX_TAG] for tag in key.tags)
    return list(dict.fromkeys([*own, *request.tags]))


def _let_in(
    generation: Generation,
    authorize: Callable[[], Hold] | None,
    meanwhile: Callable[[], Finished | Running | None],
    deadline: float,
) -> Generation | Finished | Running:
    """Write the request and its hold in one transaction; return the row, with the hold on it.

    Writes nothing when the same order was let in `meanwhile`, and returns that. When the connection
    breaks before the deadline, in monotonic seconds, it is tried a second time, unless the first
    was committed after all.
    """

    def write() -> Generation | Finished | Running:
        row = copy(generation)
        with transaction.atomic():
            row.hold = authorize() if authorize is not None else None
            if same := meanwhile():
                transaction.set_rollback(True)
                return same
            db.insert(row)
        return row

    try:
        return write()
    except BROKEN:
        if time.monotonic() >= deadline:
            raise
        log.warning("a request is let in again", exc_info=True)
        connection.close_if_unusable_or_obsolete()
        earlier = Generation.objects.select_related("hold").filter(pk=generation.pk).first()
        return earlier or write()


class Listener(Protocol):
    """Hears of pictures as they come; what it raises or how long it takes is its caller's loss."""

    async def partial(self, picture: Picture, index: int) -> None:
        """An early view of a picture."""

    async def completed(self, image: Image, picture: Picture, model: str) -> None:
        """A picture that is kept and charged."""


@dataclass(slots=True)
class _Stream:
    """The pictures of a stream, kept in order; of the first `told` the listener has heard."""

    listener: Listener
    kept: list[_Kept] = field(default_factory=list)
    told: int = 0

    async def tell(self, row: Generation) -> None:
        """Let the listener hear of each picture that the row counts."""
        for one in self.kept[self.told : row.delivered]:
            self.told += 1
            try:
                await self.listener.completed(one.row, one.picture, row.model)
            except Exception:
                # It is charged, whether or not its listener could be told.
                log.exception("a picture of %s was not told", row.request_id)


async def complete(
    gateway: Gateway, started: Started, listener: Listener | None = None
) -> Finished:
    """Draw, keep and charge; with a listener, picture by picture as they come.

    Raises ProviderError, AllCandidatesFailed, StoreFailed or HoldLost, and nothing is charged then,
    or OutcomeUnknown. Whatever broke: what the database has as delivered is returned. The caller
    must not be cancelled: it runs this to the end whether or not anybody still listens.
    """
    stream = None if listener is None else _Stream(listener)
    kept = [] if stream is None else stream.kept
    try:
        if stream is None:
            drawn = await _draw(gateway, started, _listen_to_none)
            kept += await _keep(gateway, started, drawn)
            row = await _committed(gateway, _capture, started, drawn, kept)
        else:
            drawn = await _draw(gateway, started, partial(_deliver, gateway, started, stream))
            if not kept:
                raise StoreFailed
            row = await _committed(gateway, _close, started, drawn, kept)
    except Exception as error:
        row = started.generation = await _ended(gateway, started, error)
        if row.status != GenerationStatus.SUCCEEDED:
            if isinstance(error, DatabaseTrouble):
                raise StoreFailed from error
            raise
        if stream is not None:
            await stream.tell(row)
    started.generation = row
    del kept[row.delivered :]
    return Finished(row, [one.row for one in kept], [one.picture.data for one in kept])


async def _ended(gateway: Gateway, started: Started, error: Exception) -> Generation:
    """Return the row of a request that broke, ended; raises OutcomeUnknown, or what it broke on.

    The latter if the database cannot be asked, but there was nothing to charge.
    """
    request_id = started.generation.request_id
    before_charging = isinstance(error, (ProviderError, AllCandidatesFailed, StoreFailed))
    if not before_charging:
        log.error("request %s failed", request_id, exc_info=error)
    try:
        return await _committed(gateway, _fail, started, error)
    except (DatabaseTrouble, holds.HoldLost) as trouble:
        log.exception("request %s is settled when its lease is over", request_id)
        if before_charging:
            raise error from trouble
        raise OutcomeUnknown(request_id) from error


async def _committed[**P](
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


type OnItem = Callable[[Candidate, ProviderImage | PartialImage], Awaitable[None]]


async def _listen_to_none(candidate: Candidate, item: ProviderImage | PartialImage) -> None:
    """Let a picture pass: all are kept together at the end."""


async def _draw(gateway: Gateway, started: Started, on_item: OnItem) -> _Drawn:
    """Return the pictures of the first candidate that delivers any."""
    seconds = started.deadline - time.monotonic()
    deadline = asyncio.get_running_loop().time() + seconds * (1 - RESERVE)
    charged = False
    for candidate, after in zip_longest(started.candidates, started.candidates[1:]):
        if asyncio.get_running_loop().time() >= deadline:
            break
        until = _until(deadline, after)
        try:
            drawn = await _draw_with(gateway, started, candidate, until, on_item)
        except ProviderError as error:
            started.attempts.append(Attempt(candidate.model.id, error.code))
            charged = charged or error.charged
            wanted = candidate.request
            if error.code == "model_not_found" and candidate.model.successor:
                error.message += f" Use {candidate.model.successor} instead."
            if not wanted.listed or (error.refused and started.on_refusal == "stop"):
                raise
            continue
        started.attempts.append(Attempt(candidate.model.id, None))
        return drawn
    raise AllCandidatesFailed(started.attempts, started.skipped, charged=charged)


def _until(deadline: float, after: Candidate | None) -> float:
    """Return when a candidate is given up, so that one that hangs leaves time for the next.

    It leaves what the next usually takes, and keeps at least half for itself.
    """
    if after is None:
        return deadline
    now = asyncio.get_running_loop().time()
    return max(deadline - after.model.p50_seconds, now + (deadline - now) / 2)


async def _draw_with(
    gateway: Gateway, started: Started, candidate: Candidate, deadline: float, on_item: OnItem
) -> _Drawn:
    """Return the candidate's pictures and how many were refused; raises ProviderError if none."""
    provider = gateway.provider_for(candidate.model, sandbox=started.sandbox)
    if provider is None:
        raise unavailable(detail="not configured")
    images: list[ProviderImage] = []
    missing: list[Shortfall] = []
    request = candidate.for_provider(
        deadline=deadline,
        sandbox=started.sandbox,
        caller=str(started.generation.organization_id),
    )
    began = time.monotonic()
    items = provider.generate(replace(request, turns=started.turns))
    try:
        async with asyncio.timeout_at(deadline):
            async for item in items:
                if isinstance(item, Shortfall):
                    missing.append(item)
                    continue
                if isinstance(item, ProviderImage):
                    images.append(item)
                await on_item(candidate, item)
    except TimeoutError:
        # The upstream may still finish, and bill, what nobody waits for.
        late = unavailable(charged=True, detail="too slow")
        missing.append(Shortfall(late, candidate.request.n - len(images)))
    finally:
        await items.aclose()
    if not images:
        raise _most_telling(missing)
    filtered = sum(one.count for one in missing if one.error.refused)
    ms = round((time.monotonic() - began) * 1000)
    return _Drawn(candidate, sorted(images, key=lambda image: image.index), filtered, ms)


def _most_telling(missing: Sequence[Shortfall]) -> ProviderError:
    """Return the error to tell of several: a refusal before a rejection before an outage."""
    order = [REFUSAL, "invalid_request_error", "model_not_found"]
    errors = [one.error for one in missing] or [unavailable(charged=True, detail="no pictures")]
    return min(errors, key=lambda one: order.index(one.code) if one.code in order else len(order))


async def _keep(gateway: Gateway, started: Started, drawn: _Drawn) -> list[_Kept]:
    """Store the pictures side by side.

    When none could be stored, raises StoreFailed, or ProviderError for pixels that are broken.
    """
    results = await asyncio.gather(
        *(
            _keep_one(gateway, started, drawn.candidate, index, image)
            for index, image in enumerate(drawn.images)
        ),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException):
            request_id = started.generation.request_id
            log.error("a picture of %s was not kept", request_id, exc_info=result)
    kept = [result for result in results if isinstance(result, _Kept)]
    if not kept:
        raise next((one for one in results if isinstance(one, ProviderError)), StoreFailed())
    return kept


async def _keep_one(
    gateway: Gateway, started: Started, candidate: Candidate, index: int, image: ProviderImage
) -> _Kept:
    """Store one picture in the format asked for; return it with its row, not saved yet."""
    generation = started.generation
    picture, digest = await _finished(started, candidate, image.picture)
    name = f"{generation.organization_id}/{generation.pk}/{index}.{picture.extension}"
    if started.private:
        name = private.PREFIX + name
    deadline = asyncio.get_running_loop().time() + max(1.0, started.deadline - time.monotonic())
    await gateway.store.asave(name, picture.data, picture.mime_type, deadline)
    row = Image(
        generation=generation,
        index=index,
        name=name,
        mime_type=picture.mime_type,
        width=picture.width,
        height=picture.height,
        bytes=len(picture.data),
        sha256=digest,
        revised_prompt=image.revised_prompt or "",
    )
    # Asked for before the charge: who cannot be told where a picture is does not pay for it.
    row.link = await gateway.store.alink(name)
    return _Kept(row, picture)


async def _finished(
    started: Started, candidate: Candidate, picture: Picture
) -> tuple[Picture, str]:
    """Return a picture in the format asked for, and its digest in hex.

    Raises ProviderError when its pixels are broken.
    """
    asked = candidate.request
    # The sandbox compresses as it is asked to, whichever the model.
    compressed = candidate.compressed_here and not started.sandbox
    wanted = asked.output_format
    convert = wanted is not None and (compressed or not picture.is_a(wanted))

    def finish() -> tuple[Picture, str]:
        done = picture
        if wanted is not None and convert:
            done = transcode(picture, wanted, asked.output_compression)
        return done, hashlib.sha256(done.data).hexdigest()

    if not convert and len(picture.data) < SMALL_BYTES:
        return finish()
    try:
        return await started.turns.run(finish)
    except NotAPicture as error:
        raise unavailable(charged=True, detail=f"a picture is {error}") from error


async def _deliver(
    gateway: Gateway,
    started: Started,
    stream: _Stream,
    candidate: Candidate,
    item: ProviderImage | PartialImage,
) -> None:
    """Keep and charge one picture, then tell the listener of it."""
    if isinstance(item, PartialImage):
        await stream.listener.partial(item.picture, item.index)
        return
    try:
        one = await _keep_one(gateway, started, candidate, len(stream.kept), item)
    except Exception:
        log.exception("a picture of %s was not kept", started.generation.request_id)
        return

    async def charge() -> None:
        stream.kept.append(one)
        started.generation = await _committed(gateway, _capture_one, started, candidate, one)
        await stream.tell(started.generation)

    # The deadline may come while the database is at it: what is charged must be told.
    await to_its_end(charge())


def _capture(started: Started, drawn: _Drawn, kept: list[_Kept]) -> Generation:
    """Write pictures, charge and result in one transaction; raises HoldLost and writes nothing."""
    row = _described(started.generation, drawn, kept)
    row.delivered = len(kept)
    with transaction.atomic():
        if started.hold is not None:
            model = drawn.candidate.model.id
            entry = holds.capture(started.hold, model=model, delivered=row.delivered)
            row.cost_micro = -entry.amount_micro
        _finish(started, row, GenerationStatus.SUCCEEDED, *NUMBERS)
        for one in kept:
            _insert(started, one.row)
    return row


def _capture_one(started: Started, candidate: Candidate, one: _Kept) -> Generation:
    """Write one picture and its charge in one transaction, or find that it was committed before.

    Raises HoldLost and writes nothing.
    """
    row, hold = copy(started.generation), started.hold
    row.model, row.provider = candidate.model.id, candidate.model.provider
    try:
        with transaction.atomic():
            if hold is not None:
                row.cost_micro -= holds.capture_one(hold, model=row.model).amount_micro
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


def _close(started: Started, drawn: _Drawn, kept: list[_Kept]) -> Generation:
    """Give back what was not captured and write the result, after pictures came one by one."""
    row = _described(started.generation, drawn, kept)
    with transaction.atomic():
        if started.hold is not None:
            holds.release(started.hold)
        _finish(started, row, GenerationStatus.SUCCEEDED)
    return row


def _described(generation: Generation, drawn: _Drawn, kept: list[_Kept]) -> Generation:
    """Return a copy of the row with who drew, and what came out differently; nothing is saved."""
    row = copy(generation)
    model, asked = drawn.candidate.model, drawn.candidate.request.size
    adjusted = [asdict(one) for one in drawn.candidate.adjusted]
    sizes = sorted({f"{one.row.width}x{one.row.height}" for one in kept})
    told = next((one for one in adjusted if one["param"] == "size"), None)
    if told is not None:
        told["used"] = ", ".join(sizes)
    elif asked not in (None, AUTO) and sizes != [asked]:
        why = f"{model.id} drew another size than it was asked for."
        adjusted.append({"param": "size", "asked": asked, "used": ", ".join(sizes), "why": why})
    row.model = model.id
    row.provider = model.provider
    row.filtered = drawn.filtered
    row.adjusted = adjusted
    row.draw_ms = drawn.ms
    return row


def _fail(started: Started, error: Exception) -> Generation:
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
    row.latency_ms = round((time.monotonic() - started.started) * 1000)
    if not db.update(row, (*RESULT_FIELDS, *numbers), where="status = 'running'"):
        raise holds.HoldLost(row.request_id)


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
    """End running requests: with the pictures they delivered, or as failed; return how many."""
    running = generations.filter(status=GenerationStatus.RUNNING)
    now = timezone.now()
    return running.filter(delivered__gt=0).update(
        status=GenerationStatus.SUCCEEDED, finished_at=now
    ) + running.filter(delivered=0).update(
        status=GenerationStatus.FAILED,
        error_code="internal_error",
        error_message=INTERRUPTED,
        finished_at=now,
    )
