"""The endpoints under /v1. They translate; `images.drawing` decides."""

import asyncio
from contextlib import ExitStack
from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import keys
from accounts.models import ApiKey
from geekhub.lib.bodies import ClientGone
from geekhub.lib.ids import REQUEST_ID
from images.api import answers, authentication, serializers, streaming, throttling, uploads, usage
from images.api.errors import AN_ID, ApiError, answer_to, images_deleted, wrong_method
from images.api.renderers import OrjsonRenderer
from images.api.requests import ApiRequest
from images.catalog.model import ImageModel
from images.drawing import admit, repeats, routing, story
from images.drawing.admit import Priced
from images.drawing.gateway import Gateway
from images.drawing.limits import Admission
from images.drawing.repeats import Finished, Running, Sent
from images.drawing.request import GenerationRequest
from images.drawing.started import Started
from images.gallery import deletion
from images.models import Generation, Image
from images.usage import status

type Begun = Started | Finished | Running | Priced


class AsyncAPIView(APIView):
    """A DRF view in the event loop. Its handlers are plain functions, each one database hop."""

    http_method_names = ["get", "head"]
    #: Whether the view reads the body itself; else it is there before the view is called.
    reads_body = False

    @property
    def raw(self) -> ApiRequest:
        """Return the request under DRF's, which knows the process and the request's id."""
        return cast(ApiRequest, self.request._request)

    @property
    def key(self) -> ApiKey:
        """Return the caller's key."""
        return cast(ApiKey, self.request.auth)

    async def dispatch(  # type: ignore[override]
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        self.args, self.kwargs, self.headers = args, kwargs, {}
        self.request = self.initialize_request(request, *args, **kwargs)
        try:
            if (request.method or "").lower() not in self.http_method_names:
                raise wrong_method(request.method or "", self.http_method_names)
            await authentication.knock(self.raw)
            try:
                response: HttpResponseBase = await self.handle(*args, **kwargs)
            except keys.KeyRefused as error:
                authentication.note_refused(self.raw, error)
                raise
        except ClientGone:
            raise
        except Exception as error:
            response = self.handle_exception(error)
        if isinstance(response, Response):
            self.finalize_response(self.request, response, *args, **kwargs)
            response.render()
        return response

    async def handle(self, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Authenticate and answer, in one database hop."""
        return await self.raw.gateway.db.run(self.work, *args, **kwargs)

    def work(self, *args: Any, **kwargs: Any) -> Response:
        """Authenticate and answer."""
        self.initial(self.request, *args, **kwargs)
        return self.get(self.request, *args, **kwargs)

    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return the answer to GET."""
        raise NotImplementedError

    def perform_content_negotiation(
        self, request: Request, force: bool = False
    ) -> tuple[BaseRenderer, str]:
        """Return JSON whatever is accepted: a client of a stream may accept only that."""
        return OrjsonRenderer(), OrjsonRenderer.media_type

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        authentication.note_good(self.raw)
        self.raw.log |= {"organization": str(self.key.organization_id), "key": self.key.prefix}

    def handle_exception(self, exc: Exception) -> Response:
        error = answer_to(exc, self.raw)
        body = error.body(self.raw.request_id)
        return Response(body, status=error.status, headers=error.all_headers())


class GenerationsView(AsyncAPIView):
    """POST /v1/images/generations"""

    http_method_names = ["post"]
    event = "image_generation"
    admission: Admission | None = None
    asked: GenerationRequest

    async def handle(self, *args: Any, **kwargs: Any) -> HttpResponseBase:
        gateway = self.raw.gateway
        handed_over = False
        try:
            await self.prepare()
            begun = await self.join(await gateway.db.run(self.begin))
            if isinstance(begun, Priced):
                return Response(answers.priced(begun, self.raw.request_id))
            if isinstance(begun, Finished):
                begun = await repeats.with_data(begun, gateway.store)
                if not begun.images:
                    raise images_deleted()
                if begun.generation.parameters.get("stream"):
                    return await streaming.replay(self.raw, begun, name=self.event)
                return await self.answer(begun, replayed=True)
            if begun.generation.parameters.get("stream"):
                # The stream leaves when its work is done.
                handed_over = True
                return await streaming.respond(self.raw, begun, self.leave, name=self.event)
            finished = await story.complete(gateway, begun)
            return await self.answer(finished, replayed=False)
        finally:
            if not handed_over:
                await self.leave()

    async def prepare(self) -> None:
        """Do what comes before the database's part."""

    async def leave(self) -> None:
        """Give back what the request holds."""
        if self.admission is not None:
            await self.raw.gateway.leave(self.admission)

    async def join(self, begun: Begun) -> Started | Finished | Priced:
        """Wait, at most a deadline, for the request that this one repeats; begin if that fails."""
        gateway = self.raw.gateway
        until = asyncio.get_running_loop().time() + settings.REQUEST_DEADLINE_SECONDS
        while isinstance(begun, Running):
            ended = await repeats.wait(gateway, begun, until=until, pause=self.raw.pause)
            begun = await gateway.db.run(self.let_in) if ended is None else ended
        return begun

    def begin(self) -> Begun:
        """Authenticate, check the limits and the body, and let the request in."""
        self.initial(self.request)
        self.asked = serializers.parse(self.request.data)
        self.note()
        self.take_a_place()
        return self.let_in()

    def note(self) -> None:
        """Put what is asked for into the log line."""
        self.raw.log["model"] = ",".join(self.asked.models)
        if settings.LOG_PROMPTS:
            self.raw.log["prompt"] = self.asked.prompt

    def take_a_place(self, body_seconds: float = 0) -> None:
        """Check the limits; raises RateLimited."""
        # A retry may wait for the deadline of another request before its own begins.
        waiting = settings.REQUEST_DEADLINE_SECONDS if self.sent.retry else 0
        self.admission = throttling.enter(
            self.raw.gateway.limiter,
            self.key,
            self.raw.request_id,
            seconds_before=body_seconds + waiting,
        )

    @property
    def sent(self) -> Sent:
        """Return what the headers say of the request; raises ApiError."""
        headers = self.request.headers
        return Sent(
            idempotency_key=serializers.idempotency_key(headers.get("idempotency-key")),
            retry=serializers.retry(headers.get("x-stainless-retry-count")),
            arrived=self.raw.arrived,
        )

    def let_in(self) -> Begun:
        """Let a checked request in."""
        return admit.begin(
            self.raw.gateway,
            self.key,
            self.asked,
            request_id=self.raw.request_id,
            sent=self.sent,
        )

    async def answer(self, finished: Finished, *, replayed: bool) -> Response:
        """Return OpenAI's answer for what was delivered."""
        row = finished.generation
        body = await answers.generation(finished, self.raw.gateway.store)
        headers = answers.headers(row)
        if self.admission is not None:
            headers |= throttling.headers(self.admission)
        self.raw.log["model"] = row.model
        if replayed:
            headers |= answers.replayed(row)
            self.raw.log["replay_of"] = row.request_id
        else:
            cost = headers["x-geekhub-cost-usd"]
            self.raw.log |= {"cost_usd": cost, "images": row.delivered}
        return Response(body, headers=headers)


class EditsView(GenerationsView):
    """POST /v1/images/edits

    Its body may be large, so key and limits are checked before a byte of it is stored.
    """

    event = "image_edit"
    reads_body = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.files = ExitStack()

    async def prepare(self) -> None:
        await self.raw.gateway.db.run(self.enter)
        turns = self.raw.gateway.turns(self.key)
        self.asked = await uploads.receive(self.raw, turns, self.files)

    def enter(self) -> None:
        """Authenticate and check the limits."""
        self.initial(self.request)
        self.take_a_place(uploads.BODY_SECONDS)

    def begin(self) -> Begun:
        """Let the request in."""
        self.note()
        return self.let_in()

    async def leave(self) -> None:
        self.files.close()
        await super().leave()


class ModelsView(AsyncAPIView):
    """GET /v1/models"""

    def get(self, request: Request) -> Response:
        return Response(
            {"object": "list", "data": models(self.raw.gateway, self.key, routing.listing())}
        )


class ModelView(AsyncAPIView):
    """GET /v1/models/{id}"""

    def get(self, request: Request, model_id: str) -> Response:
        (model,) = models(self.raw.gateway, self.key, [routing.find(model_id)])
        return Response(model)


def models(gateway: Gateway, key: ApiKey, rows: list[ImageModel]) -> list[dict[str, Any]]:
    """Return rows of the catalogue with what they cost the key's organization now."""
    quotes = gateway.prices.offered([row.id for row in rows], key.organization_id)
    return [answers.model(row, gateway, key, quotes.get(row.id)) for row in rows]


class CreditsView(AsyncAPIView):
    """GET /v1/credits"""

    def get(self, request: Request) -> Response:
        return Response(answers.credits(status.credits(self.key)))


class UsageView(AsyncAPIView):
    """GET /v1/usage"""

    def get(self, request: Request) -> Response:
        params = usage.parse(request.query_params.dict())
        return Response(usage.report(self.key, params))


class GenerationView(AsyncAPIView):
    """GET /v1/generation?id=req_…"""

    async def handle(self, *args: Any, **kwargs: Any) -> Response:
        found = await self.raw.gateway.db.run(self.find)
        return Response(await answers.audit(found, self.raw.gateway.store))

    def find(self) -> Generation:
        """Authenticate and return the request, its pictures loaded."""
        self.initial(self.request)
        wanted = self.request.query_params.get("id", "")
        if not wanted:
            raise serializers.invalid("id", "is required: GET /v1/generation?id=req_…")
        found = status.find_generation(self.key, wanted)
        if found is None:
            raise _no_request(wanted)
        return found


class PicturesView(AsyncAPIView):
    """DELETE /v1/images/{request id}[/{index}]"""

    http_method_names = ["delete"]

    async def handle(self, *args: Any, **kwargs: Any) -> Response:
        gateway = self.raw.gateway
        marked = await gateway.db.run(self.mark, **kwargs)
        gone = await deletion.purge(gateway.store, marked)
        await gateway.db.run(deletion.mark_purged, gone)
        return Response(
            {
                "id": kwargs["request_id"],
                "object": "image.deleted",
                "deleted": [image.index for image in gone],
                # Told to nobody any more; their objects go when the store is back.
                "pending": [image.index for image in marked if image not in gone],
            }
        )

    def mark(self, request_id: str, index: str | None = None) -> list[Image]:
        """Authenticate and mark the pictures as deleted."""
        self.initial(self.request)
        found = status.find_generation(self.key, request_id)
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
