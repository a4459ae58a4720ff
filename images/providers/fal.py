"""fal.ai's queue.

Sources, read 2026-11-22 unless a comment says otherwise: docs.fal.ai (`documentation/model-apis`:
`queue`, `errors`, `pricing`), fal-client 1.0.3 from PyPI, @fal-ai/client 1.10.1 from npm
(`endpoints.d.ts`, for the inputs of the models).

Each request is a job: submitted once, polled until it is complete, then fetched. The queue is used
for every picture, because an answer that is lost on the way can be fetched again; only a lost
submit can leave a job behind that nobody sees. The pictures are public URLs.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx
import orjson

from images.providers.base import ImageRequest, Item, ProviderImage, settled
from images.providers.errors import ProviderError, gone, refused, rejected, unavailable
from images.providers.http import Answer, HttpProvider, retry_after, words
from images.providers.ratios import edges, nearest

log = logging.getLogger(__name__)

SECONDS_PER_POLL = 15.0
SECONDS_TO_CANCEL = 2.0
KEEP_SECONDS = 3600
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Model(StrEnum):
    """The endpoints whose input is known here."""

    FLUX = "fal-ai/flux-pro/v1.1"
    ULTRA = "fal-ai/flux-pro/v1.1-ultra"
    RECRAFT = "fal-ai/recraft/v3/text-to-image"
    IDEOGRAM = "fal-ai/ideogram/v2"
    STABLE = "fal-ai/stable-diffusion-v35-large"


# fmt: off
ULTRA_RATIOS = ("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21")
IDEOGRAM_RATIOS = (
    "1:1", "10:16", "16:10", "9:16", "16:9", "4:3", "3:4", "1:3", "3:1", "3:2", "2:3",
)
POLICY = "content_policy_violation"
# Errors that come as a 4xx although the request is valid (page `errors`).
NOT_THE_REQUEST = {"downstream_service_error", "client_cancelled", "client_disconnected"}
# Our words for the fields that a model may find wrong.
PARAMS = {
    "prompt": "prompt", "image_size": "size", "aspect_ratio": "size", "num_images": "n",
    "seed": "seed", "output_format": "output_format", "style": "style", "raw": "style",
    "safety_tolerance": "moderation", "num_inference_steps": "quality",
}
# fmt: on


def headers(key: str) -> dict[str, str]:
    """Return what authorizes a call; the scheme is `Key`, not `Bearer`."""
    return {"Authorization": f"Key {key}"}


@dataclass(frozen=True, slots=True)
class Job:
    """The queue's answer about a job: its id and the URLs to follow, which only it can make."""

    id: str
    status_url: str
    response_url: str
    cancel_url: str


@dataclass(slots=True, kw_only=True)
class Fal(HttpProvider):
    """Draws with the models that fal.ai hosts.

    All calls go to `queue_url`, whatever the base URL of `http`. `poll_seconds` is the first wait
    for a picture; later ones grow to four times that.
    """

    name = "fal"

    queue_url: str
    poll_seconds: float = 0.5
    _cancelling: set[asyncio.Task[None]] = field(default_factory=set)

    async def aclose(self) -> None:
        await asyncio.gather(*self._cancelling)
        await HttpProvider.aclose(self)  # super() does not know a class remade with slots

    async def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        content = await self._draw(request)
        for item in settled(await self._collect(content, request)):
            yield item

    async def _draw(self, request: ImageRequest) -> Any:
        """Return what the model put out."""
        answer = await self.post(
            f"{self.queue_url}/{request.upstream_id}",
            body(request),
            images=1,
            headers=submit_headers(request.seconds_left()),
        )
        if answer.status != 200:
            raise error(answer)
        job = submitted(answer, self.queue_url, request.upstream_id)
        try:
            async with asyncio.timeout_at(request.deadline):
                answer = await self._finish(job)
        except TimeoutError:
            await self._cancel(job)
            raise unavailable(
                charged=True, detail=f"fal job {job.id} missed the deadline"
            ) from None
        except BaseException:
            # Nobody waits any longer. A job that has not started is then neither run nor billed.
            await self._cancel(job)
            raise
        if answer.status != 200:
            raise error(answer)
        return answer.json()

    async def _finish(self, job: Job) -> Answer:
        """Return the model's own answer; a job that is complete need not have succeeded.

        A lost or broken answer on the way is not a failure: the job continues, and is billed.
        """
        pause = self.poll_seconds
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, self.poll_seconds * 4)
            answer = await self._get(job, job.status_url)
            content = answer.json() if answer else None
            if isinstance(content, dict) and content.get("status") == "COMPLETED":
                answer = await self._get(job, job.response_url)
                if answer:
                    return answer

    async def _get(self, job: Job, url: str) -> Answer | None:
        """Return what is known of a job now, None when the queue could not say."""
        limits = httpx.Timeout(SECONDS_PER_POLL, connect=5)
        try:
            answer = await self.exchange(self.http.build_request("GET", url, timeout=limits), 1)
        except ProviderError as lost:
            log.info("fal job %s: asking again after: %s", job.id, lost.detail)
            return None
        if answer.status in (401, 403, 404):
            failure = error(answer)
            raise unavailable(account=failure.account, charged=True, detail=failure.detail)
        if answer.status >= 500:
            # From the model itself it is the result, and final.
            return None if url == job.status_url or from_ingress(answer) else answer
        passing = answer.status in (408, 429) or (answer.status == 200 and answer.json() is None)
        return None if passing or early(answer) else answer

    async def _cancel(self, job: Job) -> None:
        """Ask the queue to drop a job; continues if the caller is cancelled once more."""

        async def ask() -> None:
            try:
                async with asyncio.timeout(SECONDS_TO_CANCEL):
                    async with self.http.stream("PUT", job.cancel_url) as answer:
                        log.info("fal job %s: cancel answered %s", job.id, answer.status_code)
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as failure:
                log.warning("fal job %s was not cancelled: %r", job.id, failure)

        task = asyncio.create_task(ask())
        # The loop keeps no strong reference to a task.
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)
        await asyncio.shield(task)

    async def _collect(
        self, content: Any, request: ImageRequest
    ) -> list[ProviderImage | ProviderError]:
        """Return what became of each of `n` pictures; a flagged one is black and not fetched."""
        content = content if isinstance(content, dict) else {}
        rows, flags, prompt = (content.get(k) for k in ("images", "has_nsfw_concepts", "prompt"))
        rows = rows if isinstance(rows, list) else []
        flags = flags if isinstance(flags, list) else []
        # Models that rewrite the prompt return the new one, the others the one they were given.
        revised = prompt if isinstance(prompt, str) and prompt != request.prompt else None

        async def take(index: int) -> ProviderImage | ProviderError:
            if index < len(flags) and flags[index]:
                # The documentation does not say whether it is billed.
                return refused("output", charged=True, detail="has_nsfw_concepts")
            row = rows[index] if index < len(rows) else None
            try:
                url = row.get("url") if isinstance(row, dict) else None
                return await self.fetch(url, revised_prompt=revised)
            except ProviderError as failure:
                return failure

        return await asyncio.gather(*map(take, range(request.n)))


def submit_headers(seconds_left: float) -> dict[str, str]:
    """Return how a job is to be treated.

    It is not started if it could only miss our deadline, and it is run by the requested model or
    not at all. Input and output are not kept for long, since we store the pictures ourselves: fal
    still has the result for six minutes, enough to fetch it again.
    """
    lifecycle = {"expiration_duration_seconds": KEEP_SECONDS}
    return {
        "X-Fal-Request-Timeout": str(max(1, int(seconds_left))),
        "x-app-fal-disable-fallback": "true",
        "X-Fal-Store-IO": "0",
        "X-Fal-Object-Lifecycle-Preference": orjson.dumps(lifecycle).decode(),
    }


def body(request: ImageRequest) -> dict[str, Any]:
    """Return the model's own input; the defaults that would surprise (4:3, 16:9) are never used."""
    natural = request.style == "natural"
    # WebP is made from PNG, which loses nothing.
    output = "png" if request.output_format == "webp" else request.output_format
    # 1 is the strictest of 6. A caller's "low" still keeps the provider's filter on.
    tolerance = "5" if request.moderation == "low" else "2"
    fields: dict[str, Any] = {"prompt": request.prompt}
    match request.upstream_id:
        case Model.FLUX:
            fields |= {
                "image_size": image_size(request.size),
                "num_images": request.n,
                "seed": request.seed,
                "output_format": output,
                "safety_tolerance": tolerance,
            }
        case Model.ULTRA:
            fields |= {
                "aspect_ratio": nearest(request.size, ULTRA_RATIOS),
                "num_images": request.n,
                "seed": request.seed,
                "output_format": output,
                "safety_tolerance": tolerance,
                "raw": natural if request.style else None,
            }
        case Model.RECRAFT:
            style = "realistic_image" if natural else "digital_illustration"
            fields |= {
                "image_size": image_size(request.size),
                "style": style if request.style else None,
                "enable_safety_checker": True,
            }
        case Model.IDEOGRAM:
            fields |= {
                "aspect_ratio": nearest(request.size, IDEOGRAM_RATIOS),
                "seed": request.seed,
                "style": "realistic" if natural else "auto",
            }
        case Model.STABLE:
            fields |= {
                "image_size": image_size(request.size),
                "num_images": request.n,
                "seed": request.seed,
                "output_format": output,
                "num_inference_steps": int(request.quality) if request.quality else None,
                "enable_safety_checker": True,
            }
        case upstream:
            raise LookupError(f"no input is known for {upstream}")
    return {name: value for name, value in fields.items() if value is not None}


def image_size(size: str | None) -> str | dict[str, int]:
    """Return a size as the models take it."""
    if size is None:
        return "square_hd"
    width, height = edges(size)
    return {"width": width, "height": height}


def submitted(answer: Answer, queue_url: str, endpoint: str) -> Job:
    """Return the new job, which is billed from now on.

    Our key is sent to its URLs, so they must be on the queue's origin. When they are not, because a
    proxy or a second domain of fal's is in between, they are made as fal's clients make them: of
    the endpoint's owner and application and the job's id.
    """
    content = answer.json()
    content = content if isinstance(content, dict) else {}
    job_id = words(content.get("request_id"))
    urls = [words(content.get(f"{step}_url")) for step in ("status", "response", "cancel")]
    own = [url for url in urls if same_origin(url, queue_url)]
    if len(own) == len(urls):
        return Job(job_id, *own)
    if not REQUEST_ID.fullmatch(job_id):
        raise unavailable(charged=True, detail="fal named no job")
    url = f"{queue_url}/{'/'.join(endpoint.split('/')[:2])}/requests/{job_id}"
    return Job(job_id, f"{url}/status", url, f"{url}/cancel")


def early(answer: Answer) -> bool:
    """Return whether a result was requested before it was ready."""
    content = answer.json() if answer.status == 400 else None
    said = words(content.get("detail")) if isinstance(content, dict) else ""
    return "still in progress" in said.lower()


def same_origin(url: str, base: str) -> bool:
    """Return whether a URL goes to the scheme, host and port of `base`, and nowhere by a trick."""
    try:
        one, other = httpx.URL(url), httpx.URL(base)
    except httpx.InvalidURL:
        return False
    return not one.userinfo and (one.scheme, one.netloc) == (other.scheme, other.netloc)


def from_ingress(answer: Answer) -> bool:
    """Return whether an error is the ingress's: no request was created, no work started."""
    return answer.status in (502, 503, 504) and "x-fal-request-id" not in answer.headers


def error(answer: Answer) -> ProviderError:
    """Return what an error answer means: of a model (`detail` is a list) or of the platform."""
    content = answer.json()
    content = content if isinstance(content, dict) else {}
    told = content.get("detail")
    entries = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    first = next((one for one in entries if one.get("type") == POLICY), next(iter(entries), {}))
    said = words(first.get("msg")) or words(told)
    kind = (
        words(first.get("type"))
        or words(content.get("error_type"))
        or answer.headers.get("x-fal-error-type", "")
    )
    detail = f"HTTP {answer.status} {kind}: {said[:300]}"
    says = answer.headers.get("x-fal-retryable", "").lower()
    match answer.status:
        case 401:
            return unavailable(account=True, detail=detail)
        case 403:
            # The lock is the whole account's; any other ban may be of one model.
            return unavailable(account="user is locked" in said.lower(), detail=detail)
        case 404:
            return gone(detail=detail)
        case 408 | 409 | 429:
            wait = retry_after(answer.headers)
            return unavailable(retryable=True, retry_after=wait, detail=detail)
        case 422 if kind == POLICY:
            # For the prompt or the image, and perhaps billed: the page `errors` leaves it open.
            return refused("provider", charged=True, detail=detail)
        case 422 if kind == "no_media_generated":
            return unavailable(retryable=True, detail=detail)
        case status if status < 500 and kind in NOT_THE_REQUEST:
            return unavailable(retryable=says == "true", detail=detail)
        case 400 | 413 | 422:
            return rejected(wrong_field(first), detail=detail)
        case status if status >= 500:
            # None of these is billed. What took too long will do so again, whichever limit it hit.
            slow = kind == "generation_timeout"
            slow = slow or answer.headers.get("x-fal-request-timeout-type") == "user"
            return unavailable(
                retryable=says != "false" and not slow,
                retry_after=retry_after(answer.headers),
                detail=detail,
            )
        case _:
            return unavailable(detail=detail)


def wrong_field(entry: dict[str, Any]) -> str | None:
    """Return our name for the field that a model found wrong (`loc` is like `body, prompt`)."""
    place = entry.get("loc")
    names = [PARAMS.get(words(name)) for name in place] if isinstance(place, list) else []
    return next((name for name in names if name), None)
