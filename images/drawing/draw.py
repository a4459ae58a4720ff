"""Ask one candidate after the other until one delivers; nothing is open meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import zip_longest

from images.drawing.errors import AllCandidatesFailed
from images.drawing.gateway import Gateway
from images.drawing.routing import Candidate
from images.drawing.started import Attempt, Drawn, Started
from images.providers.base import PartialImage, ProviderImage, Shortfall
from images.providers.errors import REFUSAL, ProviderError, unavailable

# What is left of the deadline for keeping and charging once the drawing must be over.
RESERVE = 0.1
type OnItem = Callable[[Candidate, ProviderImage | PartialImage], Awaitable[None]]


async def listen_to_none(candidate: Candidate, item: ProviderImage | PartialImage) -> None:
    """Let a picture pass: all are kept together at the end."""


async def first_that_delivers(gateway: Gateway, started: Started, on_item: OnItem) -> Drawn:
    """Return the pictures of the first candidate that delivers any."""
    deadline = started.clock.until(reserve=RESERVE)
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
            if error.code == "model_not_found" and candidate.model.successor:
                error.message += f" Use {candidate.model.successor} instead."
            if not started.request.listed or (error.refused and started.on_refusal == "stop"):
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
) -> Drawn:
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
        missing.append(Shortfall(late, started.request.n - len(images)))
    finally:
        await items.aclose()
    if not images:
        raise _most_telling(missing)
    filtered = sum(one.count for one in missing if one.error.refused)
    ms = round((time.monotonic() - began) * 1000)
    return Drawn(candidate, sorted(images, key=lambda image: image.index), filtered, ms)


def _most_telling(missing: Sequence[Shortfall]) -> ProviderError:
    """Return the error to tell of several: a refusal before a rejection before an outage."""
    order = [REFUSAL, "invalid_request_error", "model_not_found"]
    errors = [one.error for one in missing] or [unavailable(charged=True, detail="no pictures")]
    return min(errors, key=lambda one: order.index(one.code) if one.code in order else len(order))
