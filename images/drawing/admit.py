"""admit(): let a request in, whichever face it came to. One database hop, one short transaction."""

import logging
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial

from django.db import IntegrityError, connection, transaction

from accounts.models import MAX_TAG, ApiKey
from billing.models import Hold
from billing.spending import holds
from billing.spending.budgets import BudgetExceeded
from billing.spending.holds import InsufficientBalance
from billing.spending.prices import Quote
from geekhub.lib import db
from images.drawing import repeats, routing
from images.drawing.clock import Clock, lease
from images.drawing.gateway import Gateway
from images.drawing.place import Place
from images.drawing.repeats import Finished, Running, Sent
from images.drawing.request import GenerationRequest
from images.drawing.routing import Candidate
from images.drawing.started import BROKEN, Started
from images.models import Generation
from images.policies import guardrails

log = logging.getLogger(__name__)

type Admitted = Started | Finished | Running | Priced


@dataclass(frozen=True, slots=True)
class Priced:
    """The answer to a dry run: who would be asked first, and what it would cost at most."""

    candidate: Candidate
    unit_micro: int
    most_micro: int
    skipped: list[routing.Skipped]


@dataclass(frozen=True, slots=True)
class Offer:
    """Who may draw a request, best first, each with a price, and who was left out."""

    candidates: list[Candidate]
    quotes: list[Quote]
    skipped: list[routing.Skipped]


def admit(
    gateway: Gateway, key: ApiKey, request: GenerationRequest, sent: Sent, place: Place
) -> Admitted:
    """Let a request in: limits, policies, replay, candidates, price, hold.

    Returns what the request that this one repeats came to, Running when it is to be waited for, or
    Priced for a dry run. Raises Blocked, RateLimited, the errors of routing and holds,
    IdempotencyKeyInUse and IdempotencyKeyReused; then no money is held and nothing was written.
    The place is the caller's to give back, whatever comes of it.
    """
    guardrails.check_paused(key)
    place.take(key, lease(deadlines=sent.deadlines))
    # Waiting for the database is part of the request's time.
    clock = Clock()
    if same := repeats.earlier(key, request, sent):
        return same
    offer = _offer(gateway, key, request)
    if request.dry_run:
        return _priced(offer, request)
    row = _row(gateway, key, request, sent, clock, offer)
    authorize = partial(
        holds.authorize,
        key=key,
        request_id=row.request_id,
        quotes=offer.quotes,
        quantity=request.n,
        tags=request.tags,
        owner=row.owner,
        lease=lease(),
    )
    try:
        meanwhile = partial(repeats.meanwhile, key, request, sent)
        begun = _let_in(row, None if key.sandbox else authorize, meanwhile, clock)
    except (IntegrityError, InsufficientBalance, BudgetExceeded):
        # The same order may have come in beside us and hold the money, or the row.
        if same := repeats.earlier(key, request, sent):
            return same
        raise
    if not isinstance(begun, Generation):
        return begun
    return Started(
        request=request,
        clock=clock,
        generation=begun,
        hold=begun.hold,
        candidates=offer.candidates,
        skipped=offer.skipped,
        sandbox=key.sandbox,
        turns=gateway.turns(key),
        private=key.private,
        keeps_prompts=key.organization.keeps_prompts,
        on_refusal=request.on_refusal or key.on_refusal or key.organization.on_refusal,
    )


async def join(
    gateway: Gateway,
    begun: Admitted,
    again: Callable[[GenerationRequest], Admitted],
    pause: Callable[[float], Awaitable[None]],
) -> Started | Finished | Priced:
    """Return what was let in; wait for what it repeats, a deadline at most, where that is running.

    When that has failed the request is let in `again`. Raises what admit() raises, and what `pause`
    does.
    """
    clock = Clock()
    while isinstance(begun, Running):
        ended = await repeats.wait(gateway, begun, clock=clock, pause=pause)
        begun = await gateway.db.run(again, begun.request) if ended is None else ended
    return begun


def _offer(gateway: Gateway, key: ApiKey, request: GenerationRequest) -> Offer:
    """Return who may draw; raises the errors of routing, and UnknownPrice."""
    skus = routing.skus(request)
    quotes = gateway.prices.current(skus.values(), key.organization_id)
    timed = request.strategy != "cheapest"
    candidates, skipped = routing.candidates(
        request,
        allowed=key.allowed_models,
        off=lambda model: gateway.why_off(
            model, sandbox=key.sandbox, caller=str(key.organization_id)
        ),
        prices={model: quotes[sku].unit_micro for model, sku in skus.items()},
        latencies=gateway.latencies.current() if timed else {},
    )
    return Offer(candidates, [quotes[one.sku] for one in candidates], skipped)


def _priced(offer: Offer, request: GenerationRequest) -> Priced:
    dearest = max(quote.unit_micro for quote in offer.quotes)
    first = offer.candidates[0]
    return Priced(first, offer.quotes[0].unit_micro, dearest * request.n, offer.skipped)


def _row(
    gateway: Gateway,
    key: ApiKey,
    request: GenerationRequest,
    sent: Sent,
    clock: Clock,
    offer: Offer,
) -> Generation:
    """Return the request's row, not saved yet."""
    return Generation(
        request_id=sent.request_id,
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
        skipped=[asdict(one) for one in offer.skipped],
        created_at=clock.started_at,
        deadline_at=clock.deadline_at,
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
    clock: Clock,
) -> Generation | Finished | Running:
    """Write the request and its hold in one transaction; return the row, with the hold on it.

    Writes nothing when the same order was let in `meanwhile`, and returns that. When the connection
    breaks before the deadline, it is tried a second time, unless the first was committed after all.
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
        if clock.left() <= 0:
            raise
        log.warning("a request is let in again", exc_info=True)
        connection.close_if_unusable_or_obsolete()
        earlier = Generation.objects.select_related("hold").filter(pk=generation.pk).first()
        return earlier or write()
