"""begin(): let a request in. One database hop, one short transaction."""

import logging
import time
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from accounts.models import MAX_TAG, ApiKey
from billing.models import Hold
from billing.spending import holds
from billing.spending.budgets import BudgetExceeded
from billing.spending.holds import InsufficientBalance
from geekhub.lib import db
from images.drawing import repeats, routing
from images.drawing.gateway import Gateway
from images.drawing.repeats import Finished, Running, Sent
from images.drawing.request import GenerationRequest
from images.drawing.routing import Candidate
from images.drawing.started import BROKEN, LEASE_BEYOND_DEADLINE, Started
from images.models import Generation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Priced:
    """The answer to a dry run: who would be asked first, and what it would cost at most."""

    candidate: Candidate
    unit_micro: int
    most_micro: int
    skipped: list[routing.Skipped]


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
    if request.dry_run:
        dearest = max(quotes[one.sku].unit_micro for one in candidates)
        first = candidates[0]
        return Priced(first, quotes[first.sku].unit_micro, dearest * request.n, skipped)
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
        quotes=[quotes[one.sku] for one in candidates],
        quantity=request.n,
        tags=request.tags,
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
