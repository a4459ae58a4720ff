"""xAI's images API.

Sources, read 2026-11-22 unless a comment says otherwise: docs.x.ai (`developers/
model-capabilities/images/generation`, `docs/api-reference`), xai-sdk 1.21.0 from PyPI, and for the
forms of errors vercel/ai ed857f5 and its issue 19168.

The path is OpenAI's, the fields are its own: `size` and `style` are a 400. Output is JPEG, always
requested as base64, which is available to every team. A refused picture is billed like any other.
Edits are JSON too, with the picture as a data URI.
Calls are not idempotent: one whose answer is lost may have been billed.
"""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pybase64

from images.providers.base import ImageRequest, Item, ProviderImage, settled
from images.providers.errors import ProviderError, gone, refused, rejected, unavailable
from images.providers.http import Answer, HttpProvider, decode, picture, retry_after, words
from images.providers.ratios import edges, nearest

# Every grok-imagine model has these; `auto` would let the model choose.
# fmt: off
RATIOS = (
    "1:1", "3:4", "4:3", "9:16", "16:9", "2:3", "3:2", "9:19.5", "19.5:9", "9:20", "20:9", "1:2",
    "2:1",
)
# fmt: on
LONGEST_1K = 1536
# The documentation has no code for these cases: words from reported answers.
REFUSED = re.compile(r"content moderation|moderation_blocked|usage guidelines", re.I)
RETIRED = re.compile(r"deprecated|no longer (available|supported)", re.I)
EXHAUSTED = re.compile(r"credits|spending limit", re.I)
UNKNOWN = re.compile(r"model not found", re.I)


def headers(key: str) -> dict[str, str]:
    """Return what authorizes a call."""
    return {"Authorization": f"Bearer {key}"}


class XAI(HttpProvider):
    """Draws with the Grok image models."""

    name = "xai"

    async def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        url, content = "images/generations", body(request)
        if request.images:
            url, content = "images/edits", content | await request.turns.run(source, request)
        answer = await self.post(url, content, images=request.n)
        if answer.status != 200:
            raise error(answer)
        content = answer.json()
        content = content if isinstance(content, dict) else {}
        rows, blocked = content.get("data"), words(content.get("block_reason"))
        if blocked and not rows:
            raise refused("output", charged=True, detail=blocked)
        if not isinstance(rows, list):
            raise unavailable(charged=True, detail="200 without pictures")
        for item in settled(outcomes(rows, request.n)):
            yield item


def body(request: ImageRequest) -> dict[str, Any]:
    """Return the JSON for one call; only fields the model knows, and none that is not set."""
    fields: dict[str, Any] = {
        "model": request.upstream_id,
        "prompt": request.prompt,
        "n": request.n,
        "response_format": "b64_json",
        "user": request.user,
        "quality": request.quality,
    }
    if request.upstream_id.startswith("grok-imagine-"):
        longest = max(edges(request.size)) if request.size else 0
        fields["resolution"] = "2k" if longest > LONGEST_1K else "1k"
        if not request.images:
            # An edit has the ratio of its picture: "do not set this" (xAI's OpenAPI, 2026-11-28).
            fields["aspect_ratio"] = nearest(request.size, RATIOS)
    return {name: value for name, value in fields.items() if value is not None}


def source(request: ImageRequest) -> dict[str, Any]:
    """Return what names the picture an edit starts from; reads and encodes it.

    The documentation does not settle several pictures or a mask, so neither is sent.
    """
    first = request.images[0]
    text = pybase64.b64encode(first.read()).decode()
    return {"image": {"type": "image_url", "url": f"data:{first.mime_type};base64,{text}"}}


def outcomes(rows: list[Any], n: int) -> Iterator[ProviderImage | ProviderError]:
    """Yield what became of each of `n` pictures; an empty list is how a refusal of all looks."""
    for row in [*rows, *[None] * n][:n]:
        row = row if isinstance(row, dict) else {}
        blocked = words(row.get("block_reason"))
        if not rows or row.get("respect_moderation") is False or blocked:
            yield refused("output", charged=True, detail=blocked or "filtered")
            continue
        text = row.get("b64_json")
        if isinstance(text, str) and text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            yield picture(decode(text), revised_prompt=row.get("revised_prompt"))
        except ProviderError as broken:
            yield broken


def error(answer: Answer) -> ProviderError:
    """Return what an error answer means.

    `{"code", "error": "text"}` as a rule; also seen nested as OpenAI has it, and without a code.
    """
    content = answer.json()
    content = content if isinstance(content, dict) else {}
    told = content.get("error")
    said = words(told.get("message") if isinstance(told, dict) else told)
    detail = f"HTTP {answer.status} {words(content.get('code'))}: {said[:300]}"
    if answer.status in (400, 403) and REFUSED.search(said):
        # The cost distinguishes a refused picture, which is billed, from a refused prompt.
        usage = content.get("usage")
        ticks = usage.get("cost_in_usd_ticks") if isinstance(usage, dict) else None
        charged = isinstance(ticks, int | float) and ticks > 0
        return refused("output" if charged else "provider", charged=charged, detail=detail)
    match answer.status:
        case 401 | 402 | 403:
            return unavailable(account=True, detail=detail)
        case 400 if "api key" in said.lower():
            return unavailable(account=True, detail=detail)
        case 404:
            return gone(detail=detail)
        case 400 if UNKNOWN.match(said):
            # Reported in August 2026 instead of the documented 404.
            return gone(detail=detail)
        case 429 if EXHAUSTED.search(said):
            return unavailable(account=True, detail=detail)
        case 429:
            wait = retry_after(answer.headers, said)
            return unavailable(retryable=True, retry_after=wait, detail=detail)
        case status if status >= 500 and RETIRED.search(said):
            # A retired model comes as a client or a server error; retrying does not help.
            return gone(detail=detail)
        case status if status >= 500:
            wait = retry_after(answer.headers)
            return unavailable(retryable=True, retry_after=wait, detail=detail)
        case 400 | 413 | 422:
            return rejected(detail=detail)
        case _:
            return unavailable(detail=detail)
