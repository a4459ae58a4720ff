"""OpenAI's Images API.

Sources, read 2026-11-22 unless a comment says otherwise: openai 3.54.0 from PyPI (`types/image_*`,
`resources/images.py`), OpenAI's image generation guide and its page of error codes.

The GPT image models return base64 only and reject `response_format`; DALL-E 3 returns one picture
per call, as a URL that works for an hour. Unknown fields are a 400, so each model has its own list.
OpenAI has no idempotency for images: a call whose answer is lost may have been billed.
"""

from collections.abc import AsyncIterator
from typing import IO, Any, cast

import httpx

from geekhub.lib.sse import Event
from images.providers.base import (
    ImageRequest,
    Item,
    PartialImage,
    ProviderImage,
    Shortfall,
    settled,
)
from images.providers.errors import ProviderError, Stage, gone, refused, rejected, unavailable
from images.providers.http import Answer, HttpProvider, decode, picture, retry_after, words

# The first from the image generation guide; the second was reported for DALL-E.
REFUSALS = {"moderation_blocked", "content_policy_violation"}
# Money, not speed: waiting does not help. The first four from the page of error codes.
EXHAUSTED = {
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "billing_hard_limit_reached",
    "billing_not_active",
}
MAX_PARTIALS = 3


class OpenAI(HttpProvider):
    """Draws with the GPT image models and DALL-E 3."""

    name = "openai"

    async def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        if request.partial_images:
            async for item in self._streamed(request):
                yield item
            return
        answer = await self.exchange(self._request(request), request.n)
        if answer.status != 200:
            raise error(answer)
        content = answer.json()
        rows = content.get("data") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise unavailable(charged=True, detail="200 without pictures")
        for item in settled([await self._picture(rows, index) for index in range(request.n)]):
            yield item

    async def _streamed(self, request: ImageRequest) -> AsyncIterator[Item]:
        """Yield early views and the picture: a stream is of one, more are refused."""
        drawn = views = 0
        try:
            async for event in self.events(self._request(request), error=error):
                if failed(event):
                    # It came inside a 200: the picture may have been drawn.
                    reason = error(Answer(500, {}, b""), event.data)
                    reason.retryable, reason.charged = False, True
                    raise reason
                content = event.data
                match str(content.get("type")).removeprefix(event_prefix(request)):
                    case "partial_image":
                        view = picture(decode(content.get("b64_json"))).picture
                        place = content.get("partial_image_index")
                        if type(place) is not int or not 0 <= place < MAX_PARTIALS:
                            place = views
                        yield PartialImage(view, place)
                        views += 1
                    case "completed":
                        yield picture(decode(content.get("b64_json")), index=drawn)
                        drawn += 1
            if drawn < request.n:
                raise unavailable(charged=True, detail="the stream ended early")
        except ProviderError as lost:
            if not drawn:
                raise
            yield Shortfall(lost, request.n - drawn)

    def _request(self, request: ImageRequest) -> httpx.Request:
        """Return the upstream request: JSON, or multipart for an edit."""
        if not request.images:
            return self.http.build_request("POST", "images/generations", json=body(request))
        return self.http.build_request(
            "POST", "images/edits", data=form(request), files=files(request)
        )

    async def _picture(self, rows: list[Any], index: int) -> ProviderImage | ProviderError:
        """Return one picture of the answer, or why it is not there."""
        row = rows[index] if index < len(rows) and isinstance(rows[index], dict) else {}
        revised = row.get("revised_prompt")
        try:
            if "b64_json" in row:
                return picture(decode(row["b64_json"]), revised_prompt=revised)
            return await self.fetch(row.get("url"), revised_prompt=revised)
        except ProviderError as error:
            return error


def headers(key: str) -> dict[str, str]:
    """Return the headers that every call carries."""
    return {"Authorization": f"Bearer {key}"}


def body(request: ImageRequest) -> dict[str, Any]:
    """Return the JSON for one call; only fields the model knows, and none that is not set."""
    fields: dict[str, Any] = {
        "model": request.upstream_id,
        "prompt": request.prompt,
        "n": request.n,
        "size": request.size,
        "quality": request.quality,
        "user": request.user,
    }
    if request.upstream_id == "dall-e-3":
        fields |= {"style": request.style, "response_format": "url"}
    else:
        fields |= {
            "background": request.background,
            "output_format": request.output_format,
            "output_compression": request.output_compression,
            "moderation": request.moderation,
            # What `user` is being replaced by (openai 3.57.0, image_generate_params, 2026-11-28).
            "safety_identifier": request.user,
        }
        if request.partial_images:
            fields |= {"stream": True, "partial_images": request.partial_images}
    return {name: value for name, value in fields.items() if value is not None}


def event_prefix(request: ImageRequest) -> str:
    """Return what the names of a stream's events begin with."""
    return "image_edit." if request.images else "image_generation."


def form(request: ImageRequest) -> dict[str, str]:
    """Return the text parts of an edit; `moderation` is for generations only."""
    fields = {**body(request), "input_fidelity": request.input_fidelity}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None and name != "moderation"
    }


def files(request: ImageRequest) -> list[tuple[str, tuple[str, IO[bytes], str]]]:
    """Return the file parts of an edit, named as OpenAI's own SDKs name them."""
    name = "image" if len(request.images) == 1 else "image[]"
    named = [(name, image) for image in request.images]
    if request.mask is not None:
        named.append(("mask", request.mask))
    return [
        (name, (f"{number}.{one.extension}", cast(IO[bytes], one.reader()), one.mime_type))
        for number, (name, one) in enumerate(named)
    ]


def failed(event: Event) -> bool:
    """Return whether an event of a stream says that the drawing failed.

    OpenAI's SDK looks for an `error` in any event; what is in front of OpenAI may send it flat.
    """
    kind = str(event.data.get("type"))
    named = event.name == "error" or kind == "error" or kind.endswith(".failed")
    return named or bool(event.data.get("error"))


def error(answer: Answer, content: object = None) -> ProviderError:
    """Return what an error answer means; branches on `code`, as OpenAI advises.

    `content` is what it says when that did not come as its body.
    """
    content = answer.json() if content is None else content
    content = content if isinstance(content, dict) else {}
    inner = content.get("error")
    details = inner if isinstance(inner, dict) else {"message": inner, **content}
    code, kind, said = (words(details.get(name)) for name in ("code", "type", "message"))
    detail = f"HTTP {answer.status} {kind} {code}: {said[:300]}"
    if code in REFUSALS:
        return refused(stage(details), detail=detail)
    if {code, kind} & EXHAUSTED:
        return unavailable(account=True, detail=detail)
    match answer.status:
        case 401 | 403:
            return unavailable(account=True, detail=detail)
        case 404:
            return gone(detail=detail)
        case 400 if code == "model_not_found":
            return gone(detail=detail)
        case 400 | 413 | 415 | 422:
            return rejected(details.get("param"), detail=detail)
        case status:
            return unavailable(
                retryable=(status in (408, 409, 429) or status >= 500)
                and answer.headers.get("x-should-retry") != "false",
                retry_after=retry_after(answer.headers, said if status == 429 else ""),
                detail=detail,
            )


def stage(details: dict[str, Any]) -> Stage:
    """Return where a refusal was made."""
    match details.get("moderation_details"):
        case {"moderation_stage": "input"}:
            return "prompt"
        case {"moderation_stage": "output"}:
            return "output"
        case _:
            return "provider"
