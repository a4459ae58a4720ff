"""What every provider shares: the request, the answer, the errors, and how to call out.

A provider is one file with one class that turns an ImageRequest into upstream calls. Fan-out,
retries, the circuit, time and size limits, and safe downloads live here, once.
"""

import asyncio
import contextlib
import logging
import math
import random
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import httpx
import orjson
import pybase64

from geekhub.lib import foreign, sse
from geekhub.lib.http import BodyTooLarge, read_at_most
from images import pictures
from images.pictures import Picture, Upload
from images.pixels import ALONE, Turns
from images.providers.downloads import DownloadRefused, Downloads

log = logging.getLogger(__name__)

FAILURES_PER_REQUEST = 3
# Of a wide fan-out the first few calls go ahead, so that a dead provider is asked no oftener.
FIRST_WAVE = 3
REFUSAL = "content_policy_violation"
LONGEST_PAUSE = 20.0
# Base64 adds a third; the rest of an answer is small.
ANSWER_BYTES_PER_PICTURE = pictures.MAX_BYTES * 4 // 3 + 64 * 1024
# The longest prompt that any of the models takes; what they make of one may be as long.
MAX_WORDS = 32_000
MAX_DETAIL = 1000
# How a provider may name a field of ours.
PARAM = re.compile(r"[A-Za-z_][\w.\[\]-]{0,63}", re.ASCII)

type Stage = Literal["prompt", "output", "provider"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What one model is asked to draw, checked against its catalogue row.

    `size` is `WIDTHxHEIGHT` in pixels or None for the model's default; `quality` is already in the
    provider's own words; `per_call` is the most pictures one upstream call returns;
    `deadline` is the event loop's time at which nobody waits any more. With `images` it is an edit
    of them, where the `mask`, if there is one, is transparent. `caller` stands for the customer who
    asks; it is compared, and means nothing. What takes a core takes one of its `turns`.
    """

    model: str
    upstream_id: str
    prompt: str
    deadline: float
    n: int = 1
    per_call: int = 1
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
    images: tuple[Upload, ...] = ()
    mask: Upload | None = None
    input_fidelity: str | None = None
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


class ProviderError(Exception):
    """A provider did not draw.

    `code` is one of the public API's: `content_policy_violation`, `invalid_request_error`,
    `model_not_found` or `provider_unavailable` (the sandbox imitates others too).
    `message` may be shown to a customer, `detail` (what the upstream said) only to an operator.
    `retryable`: the same call may succeed soon. `charged`: the upstream may bill it all the same,
    so it is never repeated. `account`: our account there is at fault, and every call will fail.
    `retry_after`: seconds the upstream asked us to wait.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        charged: bool = False,
        stage: Stage | None = None,
        param: str | None = None,
        account: bool = False,
        retry_after: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.charged = charged
        self.stage: Stage | None = stage
        self.param = param
        self.account = account
        self.retry_after = retry_after
        self.detail = foreign.text(detail, MAX_DETAIL)

    @property
    def refused(self) -> bool:
        """Return whether a content policy is the reason."""
        return self.code == REFUSAL


def refused(stage: Stage, *, charged: bool = False, detail: str = "") -> ProviderError:
    """Return the error for a refusal: of the prompt, of the picture, or of one or the other."""
    what = {"prompt": "prompt", "output": "picture", "provider": "prompt or the picture"}[stage]
    return ProviderError(
        REFUSAL,
        f"The provider's content policy does not allow this {what}.",
        stage=stage,
        charged=charged,
        detail=detail,
    )


def unavailable(
    *,
    retryable: bool = False,
    charged: bool = False,
    account: bool = False,
    retry_after: float | None = None,
    detail: str = "",
) -> ProviderError:
    """Return the error for a provider that is down, overloaded, too slow or makes no sense."""
    return ProviderError(
        "provider_unavailable",
        "The provider did not deliver. Try again, or name another model as a fallback.",
        retryable=retryable,
        charged=charged,
        account=account,
        retry_after=retry_after,
        detail=detail,
    )


def rejected(param: object = None, *, detail: str = "") -> ProviderError:
    """Return the error for a value that the provider does not take.

    `param` is the provider's name for the field, shown only if it can be one.
    """
    param = param if isinstance(param, str) and PARAM.fullmatch(param) else None
    what = f"this value of {param!r}" if param else "this request"
    return ProviderError(
        "invalid_request_error",
        f"The provider does not accept {what}.",
        param=param,
        detail=detail,
    )


def gone(*, detail: str = "") -> ProviderError:
    """Return the error for a model that the provider no longer serves."""
    return ProviderError(
        "model_not_found", "The provider does not serve this model any more.", detail=detail
    )


@dataclass(frozen=True, slots=True)
class Shortfall:
    """`count` pictures that will not come, and why."""

    error: ProviderError
    count: int


type Item = ProviderImage | PartialImage | Shortfall


@dataclass(slots=True)
class Circuit:
    """Stops calling a provider that fails, and looks soon whether it is back.

    It opens when at least `LEAST` of the latest calls failed and these are `SHARE` of them or more.
    Open for `pause` seconds, then half-open: one call is let through, and its outcome closes the
    circuit or opens it again, for twice as long each time.

    When one caller alone had all the failures, what that one asks for may be at fault. Then it is
    open for that caller only, until another's call shows how the provider is.
    """

    RECENT: ClassVar[int] = 20
    RECENT_SECONDS: ClassVar[float] = 60.0
    LEAST: ClassVar[int] = 5
    SHARE: ClassVar[float] = 0.8
    SHORTEST: ClassVar[float] = 1.0
    LONGEST: ClassVar[float] = 30.0

    clock: Callable[[], float] = time.monotonic
    pause: float = SHORTEST
    opened_at: float | None = None
    probing: bool = False
    # Whom it is open for; None: everybody.
    blamed: str | None = None
    # When the latest calls ended, whose they were, and whether they failed.
    _recent: deque[tuple[float, str, bool]] = field(
        default_factory=lambda: deque(maxlen=Circuit.RECENT)
    )

    @property
    def failures(self) -> int:
        """Return how many of the latest calls failed."""
        return sum(failed for _, _, failed in self._recent)

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """Return what a call would meet now, of the blamed caller if there is one."""
        opened_at = self.opened_at  # other threads ask, too, while the event loop closes it
        if opened_at is None:
            return "closed"
        waited = self.clock() - opened_at
        return "half-open" if waited >= self.pause and not self.probing else "open"

    def is_open_for(self, caller: str) -> bool:
        """Return whether a call of that caller would not be made now."""
        return self.state == "open" and self.blamed in (None, caller)

    def admit(self, caller: str) -> bool:
        """Return whether a call may be made; in the half-open state only the first may."""
        if self.is_open_for(caller):
            return False
        self.probing = self.probing or self.state == "half-open"
        return True

    def succeeded(self, caller: str, *, began: float) -> None:
        """Note that the provider answered sensibly, a refusal included.

        `began` is the clock's time when the call was made: one from before the circuit opened says
        nothing about now.
        """
        if self.opened_at is not None:
            if began < self.opened_at:
                return
            self.close()
        self._recent.append((self.clock(), caller, False))

    def failed(self, caller: str, *, began: float, at_once: bool) -> bool:
        """Note a failure; return whether the circuit has just opened.

        `at_once`: our account is at fault for every caller, and no short pause mends it.
        """
        now = self.clock()
        if self.opened_at is None:
            self._recent.append((now, caller, True))
            latest = [one for one in self._recent if one[0] > now - self.RECENT_SECONDS]
            failed = [who for _, who, failed in latest if failed]
            if not at_once and len(failed) < max(self.LEAST, self.SHARE * len(latest)):
                return False
            self.pause = self.LONGEST if at_once else self.SHORTEST
            self.blamed = caller if len(set(failed)) == 1 and not at_once else None
            self.opened_at = now
            return True
        if began >= self.opened_at:
            if self.blamed not in (None, caller):
                self.blamed = None
            else:
                self.pause = min(self.LONGEST, self.pause * 2)
            self.opened_at, self.probing = now, False
        return False

    def abandoned(self, *, began: float) -> None:
        """Note that a call ended without telling anything about the provider."""
        if self.opened_at is not None and began >= self.opened_at:
            self.probing = False

    def close(self) -> None:
        """Begin anew."""
        self.pause, self.opened_at, self.probing, self.blamed = self.SHORTEST, None, False, None
        self._recent.clear()


@dataclass(frozen=True, slots=True)
class Answer:
    """What an upstream answered: status, headers (lower case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the parsed body, or None when it is no JSON."""
        try:
            return foreign.parse(self.body)
        except ValueError:
            return None


@dataclass(slots=True)
class _Patience:
    """What one request puts up with from a provider, all its calls together."""

    failures_left: int = FAILURES_PER_REQUEST
    last: ProviderError | None = None
    # Set when the first call has told something: it succeeded, or patience is at its end.
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
    """Whatever draws: fan-out, retries and the circuit around `call()`."""

    name: ClassVar[str]
    #: Upstream calls at the same time for one request.
    parallel: ClassVar[int] = 8

    circuit: Circuit = field(default_factory=Circuit)
    #: Seconds that the first wave of a wide fan-out has to tell how the provider is.
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


@dataclass(slots=True, kw_only=True)
class HttpProvider(Provider):
    """A provider behind an HTTP API. `http` carries its base URL and credentials."""

    http: httpx.AsyncClient
    downloads: Downloads
    # Bounds the memory of answers being read and decoded at the same time.
    _reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def post(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        images: int,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Return the answer to a JSON request; `images`, the pictures asked for, bounds its size.

        Raises ProviderError `provider_unavailable` when none arrives whole.
        """
        content = orjson.dumps(body)
        headers = {"Content-Type": "application/json", **(headers or {})}
        return await self.exchange(
            self.http.build_request("POST", url, content=content, headers=headers), images
        )

    async def events(
        self,
        request: httpx.Request,
        *,
        error: Callable[[Answer], ProviderError],
    ) -> AsyncIterator[sse.Event]:
        """Yield the server-sent events that answer a request.

        Raises what `error` makes of an answer that is none, and ProviderError
        `provider_unavailable` when the stream breaks.
        """
        try:
            response = await self.http.send(request, stream=True)
            try:
                if response.status_code != httpx.codes.OK:
                    content = await read_at_most(response, ANSWER_BYTES_PER_PICTURE)
                    raise error(Answer(response.status_code, dict(response.headers), content))
                async for event in sse.read(response.aiter_bytes(), most=ANSWER_BYTES_PER_PICTURE):
                    yield event
            finally:
                await response.aclose()
        except httpx.HTTPError as broken:
            raise lost(broken) from broken
        except (BodyTooLarge, sse.BadStream) as broken:
            raise unavailable(charged=True, detail=f"{type(broken).__name__} {broken}") from broken

    async def exchange(self, request: httpx.Request, images: int) -> Answer:
        """Send a request and return its whole answer; errors as in post()."""
        limit = images * ANSWER_BYTES_PER_PICTURE
        try:
            response = await self.http.send(request, stream=True)
            try:
                async with self._reading:
                    body = await read_at_most(response, limit)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise lost(error) from error
        except BodyTooLarge as error:
            raise unavailable(charged=True, detail=f"answer over {limit} bytes") from error
        return Answer(response.status_code, dict(response.headers), body)

    async def fetch(self, url: object, *, revised_prompt: object = None) -> ProviderImage:
        """Return the picture at a URL that the provider gave us."""
        if not isinstance(url, str):
            raise unavailable(charged=True, detail="no picture URL in the answer")
        try:
            data = await self.downloads.get(url)
        except DownloadRefused as error:
            raise unavailable(charged=True, detail=f"picture not fetched: {error}") from error
        return picture(data, revised_prompt=revised_prompt)


def split(request: ImageRequest) -> list[tuple[int, ImageRequest]]:
    """Return the upstream calls for a request as (index of the first picture, request).

    Each call has the seed of its first picture, so that n pictures differ and can be drawn again.
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


def understood(error: Exception) -> ProviderError:
    """Return what ended a call as a ProviderError.

    Whatever else is raised comes from an answer that nobody thought of. The picture may have been
    drawn, and the next candidate can still be asked.
    """
    if isinstance(error, ProviderError):
        return error
    log.error("an answer was not understood", exc_info=error)
    return unavailable(charged=True, detail=f"{type(error).__name__}: {error}")


def lost(error: httpx.HTTPError) -> ProviderError:
    """Return the error for a call without an answer: only if it was never sent is it safe again."""
    unsent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
    return unavailable(
        retryable=unsent, charged=not unsent, detail=f"{type(error).__name__}: {error}"
    )


def picture(data: bytes, *, index: int = 0, revised_prompt: object = None) -> ProviderImage:
    """Return the bytes as a picture; raises ProviderError when they are none.

    `revised_prompt` is what the provider has in its place, which is kept if it is text.
    """
    try:
        return ProviderImage(pictures.inspect(data), index, words(revised_prompt) or None)
    except pictures.NotAPicture as error:
        raise unavailable(charged=True, detail=f"not a picture: {error}") from error


def words(value: object) -> str:
    """Return what an answer has in the place of a text; empty when it is none."""
    return foreign.text(value, MAX_WORDS)


def decode(text: object) -> bytes:
    """Return the bytes of a base64 text; raises ProviderError when it is none."""
    try:
        if not isinstance(text, str):
            raise TypeError("no base64 text")
        return pybase64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise unavailable(charged=True, detail=f"picture is no base64: {error}") from error


def retry_after(headers: Mapping[str, str], text: str = "") -> float | None:
    """Return the seconds an upstream asks us to wait, from its headers or its message."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            wait = float(headers[name]) / unit
            if math.isfinite(wait):
                return max(0.0, wait)
    told = re.search(r"try again in (\d{1,9}(?:\.\d{1,9})?) ?(ms|s)", text)
    return float(told[1]) / (1000 if told[2] == "ms" else 1) if told else None
