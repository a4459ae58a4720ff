"""The endpoints under /v1. They translate; `images.generation` decides."""

from contextlib import ExitStack
from typing import Any, cast

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import ApiKey
from images import gallery, generation, routing, status
from images.api import answers, serializers, streaming, throttling, uploads, usage
from images.api.errors import ApiError, internal, translate
from images.api.renderers import OrjsonRenderer
from images.api.requests import ApiRequest, ClientGone
from images.generation import Finished, Priced, Started
from images.limits import Admission
from images.models import Generation, Image
from images.requests import GenerationRequest

log = structlog.get_logger("geekhub.api")


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
                allowed = ", ".join(self.http_method_names).upper()
                raise ApiError(
                    "method_not_allowed",
                    f"{request.method} is not allowed here. Allowed: {allowed}.",
                    headers={"allow": allowed},
                )
            response: HttpResponseBase = await self.handle(*args, **kwargs)
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
        self.raw.log |= {"organization": str(self.key.organization_id), "key": self.key.prefix}

    def handle_exception(self, exc: Exception) -> Response:
        error = translate(exc)
        if error is None:
            log.exception("unhandled", request_id=self.raw.request_id)
            error = internal()
        self.raw.log["error"] = error.code
        body = error.body(self.raw.request_id)
        return Response(body, status=error.status, headers=error.all_headers())


class GenerationsView(AsyncAPIView):
    """POST /v1/images/generations"""

    http_method_names = ["post"]
    event = "image_generation"
    admission: Admission | None = None

    async def handle(self, *args: Any, **kwargs: Any) -> HttpResponseBase:
        gateway = self.raw.gateway
        handed_over = False
        try:
            await self.prepare()
            begun = await gateway.db.run(self.begin)
            if isinstance(begun, Priced):
                return Response(answers.priced(begun, self.raw.request_id))
            if isinstance(begun, Finished):
                if begun.generation.parameters.get("stream"):
                    return await streaming.replay(self.raw, begun, name=self.event)
                return await self.answer(begun, replayed=True)
            if begun.generation.parameters.get("stream"):
                # The stream leaves when its work is done.
                handed_over = True
                return await streaming.respond(self.raw, begun, self.leave, name=self.event)
            finished = await generation.complete(gateway, begun)
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

    def begin(self) -> Started | Finished | Priced:
        """Authenticate, check the limits and the body, and let the request in."""
        self.initial(self.request)
        request = serializers.parse(self.request.data)
        self.note(request)
        self.admission = throttling.enter(self.raw.gateway.limiter, self.key, self.raw.request_id)
        return self.let_in(request)

    def note(self, request: GenerationRequest) -> None:
        """Put what is asked for into the log line."""
        self.raw.log["model"] = ",".join(request.models)
        if settings.LOG_PROMPTS:
            self.raw.log["prompt"] = request.prompt

    def let_in(self, request: GenerationRequest) -> Started | Finished | Priced:
        """Let a checked request in."""
        return generation.begin(
            self.raw.gateway,
            self.key,
            request,
            request_id=self.raw.request_id,
            idempotency_key=serializers.idempotency_key(
                self.request.headers.get("idempotency-key")
            ),
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
    asked: GenerationRequest

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
        self.admission = throttling.enter(
            self.raw.gateway.limiter,
            self.key,
            self.raw.request_id,
            body_seconds=uploads.BODY_SECONDS,
        )

    def begin(self) -> Started | Finished | Priced:
        """Let the request in."""
        self.note(self.asked)
        return self.let_in(self.asked)

    async def leave(self) -> None:
        self.files.close()
        await super().leave()


class ModelsView(AsyncAPIView):
    """GET /v1/models"""

    def get(self, request: Request) -> Response:
        return Response(
            {
                "object": "list",
                "data": [
                    answers.model(row, self.raw.gateway, self.key) for row in routing.listing()
                ],
            }
        )


class ModelView(AsyncAPIView):
    """GET /v1/models/{id}"""

    def get(self, request: Request, model_id: str) -> Response:
        return Response(answers.model(routing.find(model_id), self.raw.gateway, self.key))


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
            raise ApiError("not_found", f"There is no request {wanted[:40]!r}.", "id")
        return found


class PicturesView(AsyncAPIView):
    """DELETE /v1/images/{request id}[/{index}]"""

    http_method_names = ["delete"]

    async def handle(self, *args: Any, **kwargs: Any) -> Response:
        gateway = self.raw.gateway
        marked = await gateway.db.run(self.mark, **kwargs)
        gone = await gallery.purge(gateway.store, marked)
        await gateway.db.run(gallery.mark_purged, gone)
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
        if found is None or (number is not None and number >= found.delivered):
            raise ApiError("not_found", "There is no such picture.")
        return gallery.mark_deleted(found, number)
