"""The endpoints under /v1, one function each. They translate; `images.drawing` decides."""

from contextlib import AsyncExitStack, ExitStack
from functools import partial

from django.conf import settings
from django.http import HttpResponseBase
from rest_framework.response import Response

from accounts.models import ApiKey
from geekhub.lib.ids import REQUEST_ID
from images.api import answers, serializers, streaming, throttling, uploads
from images.api import usage as usage_report
from images.api.endpoints import Call, endpoint
from images.api.errors import AN_ID, ApiError
from images.api.shapes import Model
from images.catalog.model import ImageModel
from images.catalog.skus import sku_of
from images.drawing import repeats, routing, story
from images.drawing.admit import Admitted, Priced, admit, join
from images.drawing.gateway import Gateway
from images.drawing.repeats import Finished
from images.drawing.request import GenerationRequest
from images.gallery import deletion
from images.models import Generation, Image
from images.usage import status


@endpoint("POST")
async def generations(call: Call) -> HttpResponseBase:
    """POST /v1/images/generations"""
    async with AsyncExitStack() as held:
        held.push_async_callback(call.place.aleave)
        begun = await call.hop(_parse_and_admit)
        return await _drawn(call, begun, held, event="image_generation")


@endpoint("POST", parser_classes=[], throttle_classes=[throttling.PlaceForUpload])
async def edits(call: Call) -> HttpResponseBase:
    """POST /v1/images/edits

    Its body may be large, so key and limits are checked before a byte of it is stored.
    """
    async with AsyncExitStack() as held:
        held.push_async_callback(call.place.aleave)
        await call.check()
        files, turns = held.enter_context(ExitStack()), call.gateway.turns(call.key)
        asked = await uploads.receive(call.raw, turns, files)
        begun = await call.hop(_admit, asked)
        return await _drawn(call, begun, held, event="image_edit")


def _parse_and_admit(call: Call) -> Admitted:
    return _admit(call, serializers.parse(call.data))


def _admit(call: Call, asked: GenerationRequest) -> Admitted:
    """Let the request in, and put what is asked into the log line."""
    call.raw.log["model"] = ",".join(asked.models)
    if settings.LOG_PROMPTS:
        call.raw.log["prompt"] = asked.prompt
    return admit(call.gateway, call.key, asked, call.sent, call.place)


async def _drawn(
    call: Call, begun: Admitted, held: AsyncExitStack, *, event: str
) -> HttpResponseBase:
    """Return the answer to what was let in, once it is drawn; a stream, as it is drawn."""
    gateway = call.gateway
    begun = await join(gateway, begun, partial(_admit, call), call.raw.pause)
    if isinstance(begun, Priced):
        return Response(answers.priced(begun, call.raw.request_id))
    if isinstance(begun, Finished):
        before, row = await repeats.with_data(begun, gateway.store), begun.generation
        if row.parameters.get("stream"):
            return await streaming.replay(call.raw, before, name=event)
        call.raw.log |= {"model": row.model, "replay_of": row.request_id}
        return await _delivered(call, before, answers.replayed(row))
    if begun.request.stream:
        # What is held is given back when the work is done, not when the client leaves.
        return await streaming.respond(call.raw, begun, held.pop_all().aclose, name=event)
    finished = await story.complete(gateway, begun)
    row = finished.generation
    answer = await _delivered(call, finished, {})
    cost = answer.headers["x-geekhub-cost-usd"]
    call.raw.log |= {"model": row.model, "cost_usd": cost, "images": row.delivered}
    return answer


async def _delivered(call: Call, finished: Finished, headers: dict[str, str]) -> Response:
    """Return OpenAI's answer for what was delivered."""
    body = await answers.generation(finished, call.gateway.store)
    headers |= answers.headers(finished.generation) | throttling.headers(call.place.admission)
    return Response(body, headers=headers)


@endpoint("GET")
def models(call: Call) -> Response:
    """GET /v1/models"""
    rows = described(call.gateway, call.key, routing.listing())
    return Response({"object": "list", "data": rows})


@endpoint("GET")
def model(call: Call, model_id: str) -> Response:
    """GET /v1/models/{id}"""
    (row,) = described(call.gateway, call.key, [routing.find(model_id)])
    return Response(row)


def described(gateway: Gateway, key: ApiKey, rows: list[ImageModel]) -> list[Model]:
    """Return rows of the catalogue with what they cost the key's organization now."""
    quotes = gateway.prices.offered(map(sku_of, rows), key.organization_id)
    return [answers.model(row, gateway, key, quotes.get(sku_of(row))) for row in rows]


@endpoint("GET")
def credits(call: Call) -> Response:
    """GET /v1/credits"""
    return Response(answers.credits(status.credits(call.key)))


@endpoint("GET")
def usage(call: Call) -> Response:
    """GET /v1/usage"""
    params = usage_report.parse(call.query_params.dict())
    return Response(usage_report.report(call.key, params))


@endpoint("GET")
async def generation(call: Call) -> Response:
    """GET /v1/generation?id=req_…"""
    row = await call.hop(_find)
    return Response(await answers.audit(row, call.gateway.store))


def _find(call: Call) -> Generation:
    """Return the request that is asked for, its pictures loaded."""
    request_id = call.query_params.get("id", "")
    if not request_id:
        raise serializers.invalid("id", "is required: GET /v1/generation?id=req_…")
    found = status.find_generation(call.key, request_id)
    if found is None:
        raise _no_request(request_id)
    return found


@endpoint("DELETE")
async def pictures(call: Call, request_id: str, index: str | None = None) -> Response:
    """DELETE /v1/images/{request id}[/{index}]"""
    gateway = call.gateway
    marked = await call.hop(_mark, request_id, index)
    gone = await deletion.purge(gateway.store, marked)
    await gateway.db.run(deletion.mark_purged, gone)
    return Response(
        {
            "id": request_id,
            "object": "image.deleted",
            "deleted": [image.index for image in gone],
            # No longer shown to anyone; their objects are deleted when the store is back.
            "pending": [image.index for image in marked if image not in gone],
        }
    )


def _mark(call: Call, request_id: str, index: str | None) -> list[Image]:
    """Mark the pictures as deleted."""
    found = status.find_generation(call.key, request_id)
    number = None if index is None else int(index)
    if found is None:
        raise _no_request(request_id)
    # Those whose objects the store would not remove yet are marked again: it is asked again.
    marked = deletion.mark_deleted(found, number)
    if not marked:
        there = ", ".join(str(image.index) for image in found.images.all())
        which = f"image {number}; it has {there}." if number is not None and there else "image."
        raise ApiError("not_found", f"The request {request_id} has no {which}")
    return marked


def _no_request(request_id: str) -> ApiError:
    known = "" if REQUEST_ID.fullmatch(request_id) else f" {AN_ID}"
    return ApiError(
        "not_found", f"There is no request {request_id[:40]!r} in your organization.{known}", "id"
    )
