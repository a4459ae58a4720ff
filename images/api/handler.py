"""Serves /v1 in the event loop: no middleware, no thread per request, no page of HTML.

Django's own handler makes one thread per request and runs synchronous middleware around the whole
wait for a provider. Here a request costs an event-loop task and its database hops. What a client
started is finished even if the client leaves: nothing listens for a disconnect.
"""

import asyncio
import time
from typing import Any, cast

import structlog
from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.urls import Resolver404, resolve

from images import metrics
from images.api.errors import ApiError, answer_to
from images.api.renderers import OrjsonRenderer
from images.api.requests import (
    ApiRequest,
    ClientGone,
    Receive,
    Scope,
    Send,
    read_body,
)
from images.api.views import AsyncAPIView
from images.gateway import Gateway

log = structlog.get_logger("geekhub.api")

BODY_SECONDS = 30.0
URLS = "images.api.urls"


class ApiHandler:
    """An ASGI application for the paths under /v1."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.create_task(self._serve(scope, receive, send))
        self._gateway.keep(task)
        # A server that cancels us when its client leaves must not cancel paid work.
        await asyncio.shield(task)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        request = ApiRequest(scope, receive, self._gateway)
        try:
            response = await self._respond(request)
        except ClientGone:
            return
        response.headers.setdefault("x-request-id", request.request_id)
        response.headers["cache-control"] = "no-store"
        response.headers["x-content-type-options"] = "nosniff"
        try:
            await _send(response, request, send)
        finally:
            _note(request, response.status_code, time.monotonic() - began)

    async def _respond(self, request: ApiRequest) -> HttpResponseBase:
        try:
            match = request.resolver_match = resolve(request.path_info, URLS)
            view: type[AsyncAPIView] = cast(Any, match.func).cls
            if not view.reads_body:
                most = settings.API_MAX_BODY_BYTES
                request.set_body(await read_body(request, most=most, seconds=BODY_SECONDS))
            response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        except ClientGone:
            raise
        except Resolver404:
            response = _plain(request, answer_to(_nothing_at(request), request))
        except Exception as error:
            response = _plain(request, answer_to(error, request))
        return response


def _nothing_at(request: ApiRequest) -> ApiError:
    return ApiError("not_found", f"There is no {request.method} {request.path[:100]}.")


def _note(request: ApiRequest, status: int, seconds: float) -> None:
    """Tell the log and the metrics what came of a request."""
    log.info(
        "request",
        request_id=request.request_id,
        method=request.method,
        path=request.path,
        status=status,
        ms=round(seconds * 1000),
        **request.log,
    )
    route = request.resolver_match.route if request.resolver_match else "unknown"
    metrics.REQUESTS.labels(route, status, request.log.get("error", "")).inc()
    metrics.SECONDS.labels(route).observe(seconds)
    if "images" in request.log:
        metrics.IMAGES.labels(request.log["model"]).inc(request.log["images"])


def _plain(request: ApiRequest, error: ApiError) -> HttpResponse:
    return HttpResponse(
        OrjsonRenderer().render(error.body(request.request_id)),
        status=error.status,
        headers=error.all_headers(),
        content_type="application/json",
    )


async def _send(response: HttpResponseBase, request: ApiRequest, send: Send) -> None:
    headers: list[tuple[bytes, bytes]] = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.items()
        if name.lower() not in ("content-length", "vary")
    ]
    start: dict[str, Any] = {"type": "http.response.start", "status": response.status_code}
    if isinstance(response, StreamingHttpResponse):
        await send({**start, "headers": headers})
        async for chunk in response:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    body = b"" if request.method == "HEAD" else getattr(response, "content", b"")
    headers.append((b"content-length", str(len(body)).encode()))
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": body})
