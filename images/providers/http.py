"""A provider behind an HTTP API, and how its answers are read."""

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pybase64

from geekhub.lib import foreign, sse
from geekhub.lib.http import BodyTooLarge, read_at_most
from images.pixels import pictures
from images.providers.base import Provider, ProviderImage
from images.providers.downloads import DownloadRefused, Downloads
from images.providers.errors import ProviderError, lost, unavailable

# Base64 adds a third; the rest of an answer is small.
ANSWER_BYTES_PER_PICTURE = pictures.MAX_BYTES * 4 // 3 + 64 * 1024
# The longest prompt that any of the models takes; what they make of one may be as long.
MAX_WORDS = 32_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What an upstream answered: status, headers (lower case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the parsed body, or None if it is not JSON."""
        try:
            return foreign.parse(self.body)
        except ValueError:
            return None


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
