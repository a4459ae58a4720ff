"""`stream: true`: partial and finished pictures as server-sent events.

What can be refused is refused before the first byte, as a plain HTTP error that SDKs map and
retry; later failures are an error event. A picture is charged and kept before its event is sent.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pybase64
from django.http import StreamingHttpResponse

from geekhub.lib import money, sse
from images.api import answers
from images.api.errors import answer_to
from images.api.requests import ApiRequest
from images.drawing import story
from images.drawing.repeats import Finished
from images.drawing.started import Started
from images.models import Generation, Image
from images.pixels.pictures import Picture

FIRST_EVENT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 10.0
# Upstreams other than OpenAI count no tokens, and the SDKs want the key.
NO_USAGE = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}

type Event = bytes | Exception | None


class Events:
    """The events of one request, in the order they happen; None is the end.

    `deleted` are the indexes of pictures that no event comes of.
    """

    def __init__(
        self, request: ApiRequest, row: Generation, name: str, deleted: Sequence[int] = ()
    ) -> None:
        self._request = request
        self._row = row
        self._name = name
        self._missing = {"deleted": list(deleted)} if deleted else {}
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def partial(self, picture: Picture, index: int) -> None:
        """Send an early view."""
        self._put("partial_image", self._fields(picture), partial_image_index=index)

    async def completed(self, image: Image, picture: Picture, model: str) -> None:
        """Send a picture that is kept and charged."""
        self._put(
            "completed",
            self._fields(picture) | {"usage": NO_USAGE},
            id=self._row.request_id,
            model=model,
            index=image.index,
            **self._missing,
            **await answers.image(image, self._request.gateway.store),
        )

    def _put(self, kind: str, fields: dict[str, Any], **more: Any) -> None:
        kind = f"{self._name}.{kind}"
        self.queue.put_nowait(sse.frame(kind, {"type": kind, **fields, **more}))

    def _fields(self, picture: Picture) -> dict[str, Any]:
        asked = self._row.parameters
        return {
            "b64_json": pybase64.b64encode(picture.data).decode(),
            "created_at": int(self._row.created_at.timestamp()),
            "size": f"{picture.width}x{picture.height}",
            "quality": asked.get("quality", "auto"),
            "background": asked.get("background", "auto"),
            "output_format": picture.mime_type.removeprefix("image/"),
        }


async def respond(
    request: ApiRequest, started: Started, leave: Callable[[], Awaitable[None]], *, name: str
) -> StreamingHttpResponse:
    """Start the work and return its events as they come; raises what fails before the first.

    `name` is what the names of the events begin with; `leave` is called when the work is over.
    """
    events = Events(request, started.generation, name)

    async def work() -> None:
        try:
            finished = await story.complete(request.gateway, started, events)
            request.log["cost_usd"] = money.to_usd(finished.generation.cost_micro)
            request.log["images"] = finished.generation.delivered
        except Exception as error:
            events.queue.put_nowait(error)
        finally:
            await leave()
            events.queue.put_nowait(None)

    # The gateway keeps the task: it goes on when the client, and so this response, is gone.
    request.gateway.keep(asyncio.create_task(work()))
    first: Event = sse.KEEP_ALIVE
    try:
        async with asyncio.timeout(FIRST_EVENT_SECONDS):
            first = await events.queue.get()
    except TimeoutError:
        pass
    if isinstance(first, Exception):
        raise first
    return _response(_following(request, events, first))


async def replay(request: ApiRequest, finished: Finished, *, name: str) -> StreamingHttpResponse:
    """Return the events of a request that had finished before."""
    events = Events(request, finished.generation, name, finished.deleted)
    for image, data in zip(finished.images, finished.data, strict=True):
        await events.completed(image, Picture.of(image, data), finished.generation.model)
    events.queue.put_nowait(None)
    row = finished.generation
    request.log |= {"model": row.model, "replay_of": row.request_id}
    response = _response(_following(request, events, sse.KEEP_ALIVE))
    for header, value in answers.replayed(row).items():
        response.headers[header] = value
    return response


def _response(body: AsyncIterator[bytes]) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        body, content_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _following(request: ApiRequest, events: Events, event: Event) -> AsyncIterator[bytes]:
    while event is not None:
        if isinstance(event, Exception):
            yield _failure(request, event)
        else:
            yield event
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                event = await events.queue.get()
        except TimeoutError:
            event = sse.KEEP_ALIVE


def _failure(request: ApiRequest, error: Exception) -> bytes:
    answer = answer_to(error, request)
    return sse.frame("error", {"type": "error", **answer.body(request.request_id)})
