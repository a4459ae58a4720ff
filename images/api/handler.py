"""Serves /v1 in the event loop: no middleware, no thread per request, no page of HTML.

Django's own handler makes one thread per request and runs synchronous middleware around the whole
wait for a provider. Here a request costs an event-loop task and its database hops. What a client
started is finished even if the client leaves: nothing listens for a disconnect.
"""

import asyncio
import difflib
import time
from typing import Any, cast

import structlog
from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.urls import Resolver404, resolve

from geekhub.lib.bodies import ClientGone, Headers, Incoming, Receive, Scope, Send
from geekhub.lib.ids import new_request_id
from images import metrics
from images.api.endpoints import EndpointView
from images.api.errors import AN_ID, ApiError, answer_to, wrong_method
from images.api.renderers import OrjsonRenderer
from images.api.requests import ApiRequest
from images.api.urls import urlpatterns
from images.drawing.gateway import Gateway

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
        request = ApiRequest(scope, Incoming(scope, receive), self._gateway)
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
            view: type[EndpointView] = cast(Any, match.func).cls
            if view.parser_classes:
                most = settings.API_MAX_BODY_BYTES
                request.set_body(await request.receive.read(most=most, seconds=BODY_SECONDS))
            response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        except ClientGone:
            raise
        except Resolver404:
            response = _plain(
                request, answer_to(_nothing_at(request.method or "", request.path), request)
            )
        except Exception as error:
            response = _plain(request, answer_to(error, request))
        return response


def is_meant(path: str) -> bool:
    """Return whether a path is the API's, or was meant to be and lacks the /v1."""
    return path == "/v1" or path.startswith("/v1/") or _near(path) is not None


def _near(path: str) -> str | None:
    """Return the endpoint that a path is with its slashes in order and one /v1 before it."""
    words = [word for word in path.split("/") if word]
    while words[:1] == ["v1"]:
        del words[0]
    near = "/".join(["/v1", *words])
    try:
        resolve(near, URLS)
    except Resolver404:
        return None
    return near


def _mistyped(method: str, path: str) -> str | None:
    """Return the endpoint for this method whose path is nearly this one."""
    paths = [
        str(one.pattern)
        for one in urlpatterns
        if method.lower() in cast(Any, one.callback).cls.http_method_names
    ]
    near = difflib.get_close_matches(path[:100].strip("/").lower(), paths, 1, 0.85)
    return f"/{near[0]}" if near else None


def _nothing_at(method: str, path: str) -> ApiError:
    if method == "HEAD":
        method = "GET"  # whose answer has the same length
    near = _near(path) or _mistyped(method, path)
    if method == "DELETE" and path.startswith("/v1/images/"):
        hint = f"{AN_ID} It can be followed by / and the index of an image."
    elif near is None:
        hint = "POST /v1/images/generations generates images; GET /v1/models lists the models."
    elif path.lstrip("/").partition("/")[0] == "v1":
        hint = f"Did you mean {near[:100]}?"
    else:
        hint = f"The base URL of the API must end in /v1, as in {method} {near[:100]}."
    return ApiError("not_found", f"There is no {method} {path[:100]}. {hint}")


def misread(method: str, target: str, code: str, message: str) -> HttpResponse:
    """Return the answer to what the server could not read as a request: JSON under /v1."""
    path = target.partition("?")[0]
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    error = ApiError(code, message)
    if not is_meant(path):
        return HttpResponse(
            f"{message}\n", status=error.status, headers=headers, content_type="text/plain"
        )
    request_id = new_request_id()
    if code == "method_not_allowed":
        try:
            allowed = cast(Any, resolve(path, URLS).func).cls.http_method_names
            error = wrong_method(method, allowed)
        except Resolver404:
            error = _nothing_at(method, path)
    return HttpResponse(
        OrjsonRenderer().render(error.body(request_id)),
        status=error.status,
        headers={**headers, **error.all_headers(), "x-request-id": request_id},
        content_type="application/json",
    )


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
    headers: Headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.items()
        if name.lower() not in ("content-length", "vary")
    ]
    if isinstance(response, StreamingHttpResponse):
        status = response.status_code
        await send({"type": "http.response.start", "status": status, "headers": headers})
        async for chunk in response:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    body: bytes = getattr(response, "content", b"")
    headers.append((b"content-length", str(len(body)).encode()))
    # HEAD has the length of what GET would bring, and nothing of it.
    body = b"" if request.method == "HEAD" else body
    await request.receive.answer(send, response.status_code, headers, body)
