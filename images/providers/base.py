"""What every provider shares: the request, its items, fan-out and retries.

A provider is one file with one class that turns an ImageRequest into upstream calls.
"""

import asyncio
import contextlib
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from images.pixels.pictures import Picture, Upload
from images.pixels.turns import ALONE, Turns
from images.providers.circuit import Circuit
from images.providers.errors import ProviderError, unavailable, understood

log = logging.getLogger(__name__)
FAILURES_PER_REQUEST = 3
# Of a wide fan-out the first few calls go ahead, so that a dead provider is asked no oftener.
FIRST_WAVE = 3
LONGEST_PAUSE = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What may be asked of any model. None means: not asked for.

    With `images` it is an edit of them, where the `mask`, if there is one, is transparent.
    """

    prompt: str
    n: int = 1
    size: str | None = None
    quality: str | None = None
    style: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    background: str | None = None
    moderation: str | None = None
    seed: int | None = None
    user: str | None = None
    partial_images: int = 0
    input_fidelity: str | None = None
    images: tuple[Upload, ...] = ()
    mask: Upload | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest(Drawing):
    """What one model is asked to draw, checked against its catalogue row.

    `size` is `WIDTHxHEIGHT` in pixels or None for the model's default; `quality` is already in the
    provider's own words; `per_call` is the most pictures one upstream call returns;
    `deadline` is the event loop's time at which nobody waits any more. `caller` stands for the
    customer who asks; it is compared, and means nothing. What takes a core takes one of its
    `turns`.
    """

    model: str
    upstream_id: str
    deadline: float
    per_call: int = 1
    caller: str = ""
    turns: Turns = ALONE

    def seconds_left(self) -> float:
        """Return the seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


@dataclass(frozen=True, slots=True)
class ProviderImage:
    """One finished picture; `index` is its place among those asked for."""

    picture: Picture
    index: int = 0
    revised_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An early view of a picture that is still being drawn."""

    picture: Picture
    index: int


@dataclass(frozen=True, slots=True)
class Shortfall:
    """`count` pictures that will not be delivered, and why."""

    error: ProviderError
    count: int


type Item = ProviderImage | PartialImage | Shortfall


@dataclass(slots=True)
class _Patience:
    """How many failures one request tolerates from a provider, over all its calls."""

    failures_left: int = FAILURES_PER_REQUEST
    last: ProviderError | None = None
    # Set once the first call shows how the provider is: it succeeded, or the wait is over.
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, error: ProviderError | None) -> None:
        """Note how a call ended."""
        if error is not None and error.code == "provider_unavailable":
            self.failures_left -= 1
            self.last = error
        if error is None or self.failures_left <= 0:
            self.told.set()


@dataclass(slots=True, kw_only=True)
class Provider(ABC):
    """A source of images: fan-out, retries and the circuit around `call()`."""

    name: ClassVar[str]
    #: Upstream calls at the same time for one request.
    parallel: ClassVar[int] = 8

    circuit: Circuit = field(default_factory=Circuit)
    #: Seconds that the first wave of a wide fan-out has to show how the provider is.
    head_start: float = 0.5

    @abstractmethod
    def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        """Make one upstream call for `request.n` (at most `per_call`) pictures.

        Yields its items as they come, indexed from 0; raises ProviderError when there are none.
        """

    async def aclose(self) -> None:  # noqa: B027 - nothing to close unless a provider says so
        """Close what the provider holds open."""

    async def generate(self, request: ImageRequest) -> AsyncGenerator[Item]:
        """Yield pictures and shortfalls in the order of arrival; together they make `n`."""
        patience = _Patience()
        if request.n <= request.per_call:
            # One call needs no tasks to wait side by side.
            async with contextlib.aclosing(self._insist(request, patience)) as only:
                async for one in only:
                    yield one
            return
        arrived: asyncio.Queue[Item | None] = asyncio.Queue()
        gate = asyncio.Semaphore(self.parallel)

        async def work(number: int, offset: int, part: ImageRequest) -> None:
            try:
                async with gate:
                    if number >= FIRST_WAVE:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(patience.told.wait(), self.head_start)
                    async for item in self._insist(part, patience):
                        # An early view is numbered within its picture.
                        if isinstance(item, ProviderImage):
                            item = replace(item, index=offset + item.index)
                        arrived.put_nowait(item)
            finally:
                arrived.put_nowait(None)

        tasks = [
            asyncio.create_task(work(number, offset, part))
            for number, (offset, part) in enumerate(split(request))
        ]
        try:
            running = len(tasks)
            while running:
                item = await arrived.get()
                if item is None:
                    running -= 1
                else:
                    yield item
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _insist(self, request: ImageRequest, patience: _Patience) -> AsyncGenerator[Item]:
        """Call once, and again where that is safe and there is time; yield all items of it."""
        while True:
            delivered = 0
            if patience.failures_left <= 0 or not self.circuit.admit(request.caller):
                yield Shortfall(patience.last or unavailable(detail="circuit open"), request.n)
                return
            began = self.circuit.clock()
            try:
                async for item in self.call(request):
                    delivered += not isinstance(item, PartialImage)
                    yield item
                self.circuit.succeeded(request.caller, began=began)
                patience.note(None)
                return
            except Exception as caught:
                error = understood(caught)
                self._judge(error, request.caller, began)
                patience.note(error)
                pause = self._pause(error, request, patience) if not delivered else None
                if pause is None:
                    yield Shortfall(error, request.n - delivered)
                    return
            except BaseException:
                if request.seconds_left() > 0:
                    self.circuit.abandoned(began=began)
                else:
                    late = unavailable(charged=True, detail="no answer by the deadline")
                    self._judge(late, request.caller, began)
                raise
            await asyncio.sleep(pause)

    def _judge(self, error: ProviderError, caller: str, began: float) -> None:
        if error.code != "provider_unavailable":
            self.circuit.succeeded(caller, began=began)
        elif self.circuit.failed(caller, began=began, at_once=error.account) or error.account:
            # Worth a person's attention: nothing else will mend it.
            log.error("provider %s is cut off: %s", self.name, error.detail)
        else:
            log.warning("provider %s failed: %s", self.name, error.detail)

    def _pause(
        self, error: ProviderError, request: ImageRequest, patience: _Patience
    ) -> float | None:
        """Return the seconds to wait before the same call is made again, None if it must not be."""
        if not error.retryable or error.charged or patience.failures_left <= 0:
            return None
        step = 0.125 * 2.0 ** (FAILURES_PER_REQUEST - patience.failures_left)
        pause = error.retry_after if error.retry_after is not None else step * random.uniform(1, 2)
        # A retry that leaves no time to draw only costs money.
        fits = pause <= min(LONGEST_PAUSE, request.seconds_left() / 2)
        return pause if fits else None


def split(request: ImageRequest) -> list[tuple[int, ImageRequest]]:
    """Return the upstream calls for a request as (index of the first picture, request).

    Each call has the seed of its first picture, so that n pictures differ and can be reproduced.
    """
    return [
        (
            start,
            replace(
                request,
                n=min(request.per_call, request.n - start),
                seed=None if request.seed is None else request.seed + start,
            ),
        )
        for start in range(0, request.n, request.per_call)
    ]


def settled(outcomes: Iterable[ProviderImage | ProviderError]) -> Iterator[Item]:
    """Yield the pictures of one call, then why others will not come; raise if there are none."""
    failed: list[ProviderError] = []
    drawn = 0
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ProviderError):
            failed.append(outcome)
        else:
            drawn += 1
            yield replace(outcome, index=index)
    if failed and not drawn:
        raise failed[0]
    for reason in failed:
        yield Shortfall(reason, 1)
