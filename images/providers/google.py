"""Google's Gemini API: Imagen's `:predict` and the Gemini image models' `:generateContent`.

Sources, read 2026-11-22 unless a comment says otherwise: google-genai 3.4.0 from PyPI, and of
ai.google.dev/gemini-api/docs the pages `imagen`, `image-generation`, `pricing` and `deprecations`.

All answers are base64. A refusal is usually a 200 without a picture, and a wrong key is a 400.
Calls are not idempotent: one whose answer is lost may have been billed.
"""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from images.providers.base import ImageRequest, Item, ProviderImage, settled
from images.providers.errors import ProviderError, gone, refused, rejected, unavailable
from images.providers.http import Answer, HttpProvider, decode, picture, retry_after, words
from images.providers.ratios import edges, nearest

IMAGEN_RATIOS = ("1:1", "3:4", "4:3", "9:16", "16:9")
# Every Gemini image model takes these; nano-banana-2.1 has 14 (google-genai 3.6.1, 2026-11-28).
GEMINI_RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
# The longest edge of a tier's pictures; larger sizes use the last tier.
IMAGEN_TIERS = ((1408, "1K"), (None, "2K"))
GEMINI_TIERS = ((1584, "1K"), (3168, "2K"), (None, "4K"))
MAX_SEED = 2**31

REFUSALS = {
    "SAFETY",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "RECITATION",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "ESCALATION",
}
# Our account is limited or disabled for its requests (google-genai 3.6.1, FinishReason).
DISABLED = "PUP_LIMITED_DISABLED"
# A refused prompt has no code of its own; the wording is from reports, not the documentation.
REFUSED_PROMPT = re.compile(r"prompt could not be submitted|responsible ai|support codes?", re.I)
# Money, not speed, worded like a rate limit or a bad request; waiting does not help.
UNPAID = re.compile(r"prepay|credits are depleted|spending cap|accessible to billed users", re.I)


def headers(key: str) -> dict[str, str]:
    """Return what authorizes a call; the key is never in a URL, which would be logged."""
    return {"x-goog-api-key": key}


class Google(HttpProvider):
    """Draws with Imagen 4 and the Gemini image models."""

    name = "google"

    async def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        imagen = request.upstream_id.startswith("imagen-")
        url = f"models/{request.upstream_id}:{'predict' if imagen else 'generateContent'}"
        body = (imagen_body if imagen else gemini_body)(request)
        answer = await self.post(url, body, images=request.n)
        if answer.status != 200:
            raise error(answer)
        content = answer.json()
        if not isinstance(content, dict):
            raise unavailable(charged=True, detail="200 without JSON")
        if not imagen:
            yield generated(content)
            return
        for item in settled(predicted(content, request.n)):
            yield item


def imagen_body(request: ImageRequest) -> dict[str, Any]:
    """Return the JSON for `:predict`; the count is always sent, because it defaults to four."""
    parameters: dict[str, Any] = {
        "sampleCount": request.n,
        "aspectRatio": nearest(request.size, IMAGEN_RATIOS),
        "sampleImageSize": tier(request, IMAGEN_TIERS),
        "includeRaiReason": True,
    }
    if request.output_format in ("png", "jpeg"):
        options: dict[str, Any] = {"mimeType": f"image/{request.output_format}"}
        if request.output_format == "jpeg" and request.output_compression is not None:
            options["compressionQuality"] = request.output_compression
        parameters["outputOptions"] = options
    return {"instances": [{"prompt": request.prompt}], "parameters": parameters}


def gemini_body(request: ImageRequest) -> dict[str, Any]:
    """Return the JSON for `:generateContent`, which draws one picture a call."""
    config: dict[str, Any] = {
        "responseModalities": ["IMAGE"],
        "imageConfig": {
            "aspectRatio": nearest(request.size, GEMINI_RATIOS),
            "imageSize": tier(request, GEMINI_TIERS),
        },
    }
    if request.seed is not None:
        config["seed"] = request.seed % MAX_SEED  # the field has 32 bits and a sign
    return {
        "contents": [{"role": "user", "parts": [{"text": request.prompt}]}],
        "generationConfig": config,
    }


def tier(request: ImageRequest, tiers: tuple[tuple[int | None, str], ...]) -> str:
    """Return the larger of the tier the size needs and the tier the quality names."""
    longest = max(edges(request.size)) if request.size else 0
    needed = next(name for most, name in tiers if most is None or longest <= most)
    return max(needed, request.quality or needed)


def predicted(content: dict[str, Any], n: int) -> Iterator[ProviderImage | ProviderError]:
    """Yield what became of each of `n` pictures.

    One that is missing was filtered: Imagen says so with a reason, a shorter list or `{}`, and
    does not charge for it.
    """
    # "Positive Prompt" carries the safety scores of the prompt and no picture.
    rows = [
        row
        for row in objects(content.get("predictions"))
        if row.get("contentType") != "Positive Prompt"
    ]
    for row in [*rows, *[{}] * n][:n]:
        if "bytesBase64Encoded" in row:
            try:
                yield picture(decode(row["bytesBase64Encoded"]))
            except ProviderError as broken:
                yield broken
        else:
            yield refused("output", detail=words(row.get("raiFilteredReason")) or "filtered")


def generated(content: dict[str, Any]) -> ProviderImage:
    """Return the picture of a `:generateContent` answer, which may come between texts."""
    match content:
        case {"promptFeedback": {"blockReason": str(blocked)}} if blocked:
            raise refused("prompt", detail=f"blockReason {blocked}")
    candidate = next(iter(objects(content.get("candidates"))), {})
    reason = words(candidate.get("finishReason"))
    if reason == DISABLED:
        raise unavailable(account=True, detail=f"finishReason {reason}")
    if reason in REFUSALS:
        raise refused("output", detail=f"finishReason {reason}")
    spoken = candidate.get("content")
    for part in objects(spoken.get("parts")) if isinstance(spoken, dict) else []:
        match part:
            case {"thought": True}:
                continue  # a sketch on the way to the picture
            case {"inlineData": {"data": data}}:
                return picture(decode(data))
    # NO_IMAGE, IMAGE_OTHER, words alone: no picture was drawn, and the next try may draw one.
    raise unavailable(retryable=True, detail=f"200 without a picture, finishReason {reason}")


def error(answer: Answer) -> ProviderError:
    """Return what an error answer means; the reason of a 400 is in its details."""
    content = answer.json()
    told = content.get("error") if isinstance(content, dict) else None
    told = told if isinstance(told, dict) else {}
    details = objects(told.get("details"))
    reasons = [words(row.get("reason")) for row in details if "reason" in row]
    said, status = words(told.get("message")), words(told.get("status"))
    detail = f"HTTP {answer.status} {status} {' '.join(reasons)}: {said[:300]}"
    if answer.status in (400, 403, 429) and UNPAID.search(said):
        return unavailable(account=True, detail=detail)
    if any(reason.startswith("API_KEY_") for reason in reasons):
        return unavailable(account=True, detail=detail)
    match answer.status:
        case 401 | 403:
            return unavailable(account=True, detail=detail)
        case 400 if status == "FAILED_PRECONDITION":
            # Billing is off, or the API is not offered in this server's region.
            return unavailable(account=True, detail=detail)
        case 400 if REFUSED_PROMPT.search(said):
            return refused("prompt", detail=detail)
        case 400 | 413:
            return rejected("prompt" if "prompt" in said.lower() else None, detail=detail)
        case 404:
            return gone(detail=detail)
        case 429:
            # Tomorrow's quota is too far away to wait for.
            return unavailable(
                retryable=not daily(details), retry_after=wait(answer, details), detail=detail
            )
        case code if code >= 500 or code == 408:
            return unavailable(retryable=True, retry_after=wait(answer, details), detail=detail)
        case _:
            return unavailable(detail=detail)


def objects(rows: object) -> list[dict[str, Any]]:
    """Return the objects of a JSON array; none if it is not an array."""
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def daily(details: list[dict[str, Any]]) -> bool:
    """Return whether a quota counted by the day is used up."""
    return any(
        "PerDay" in words(violation.get("quotaId"))
        for row in details
        for violation in objects(row.get("violations"))
    )


def wait(answer: Answer, details: list[dict[str, Any]]) -> float | None:
    """Return the seconds to wait: from RetryInfo (`"41s"`), else from the headers."""
    for row in details:
        told = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)s", words(row.get("retryDelay")))
        if told:
            return float(told[1])
    return retry_after(answer.headers)
