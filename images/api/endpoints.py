"""DRF's views of functions, in the event loop.

All that DRF checks before a view is asked, authentication, permissions and throttles, is checked in
the first database hop, whatever that hop is for.
"""

import inspect
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Concatenate, cast

from django.http import HttpRequest, HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import keys
from accounts.models import ApiKey
from geekhub.lib.bodies import ClientGone
from images.api import authentication, serializers
from images.api.errors import wrong_method
from images.api.requests import ApiRequest
from images.drawing.gateway import Gateway
from images.drawing.place import Place
from images.drawing.repeats import Sent


class Call(Request):
    """A DRF request that knows its process and its key, and the way to the database."""

    view: "EndpointView"
    _checked = False

    @property
    def raw(self) -> ApiRequest:
        """Return the request under this one."""
        return cast(ApiRequest, self._request)

    @property
    def gateway(self) -> Gateway:
        """Return the process that serves it."""
        return self.raw.gateway

    @property
    def key(self) -> ApiKey:
        """Return the caller's key."""
        return cast(ApiKey, self.auth)

    @cached_property
    def sent(self) -> Sent:
        """Return what the headers say of the request; raises ApiError."""
        return Sent(
            request_id=self.raw.request_id,
            idempotency_key=serializers.idempotency_key(self.headers.get("idempotency-key")),
            retry=serializers.retry(self.headers.get("x-stainless-retry-count")),
            arrived=self.raw.arrived,
        )

    @cached_property
    def place(self) -> Place:
        """Return its place in flight, which may not be taken yet."""
        return Place(self.gateway, self.raw.request_id)

    async def hop[**P, T](
        self, work: "Callable[Concatenate[Call, P], T]", *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a unit of database work returns; before the first, the call is checked."""
        return await self.gateway.db.run(self._hop, partial(work, self, *args, **kwargs))

    async def check(self) -> None:
        """Check the call in a hop of its own, before its body is read."""
        await self.hop(lambda call: None)

    def _hop[T](self, work: Callable[[], T]) -> T:
        if not self._checked:
            self.view.initial(self, *self.view.args, **self.view.kwargs)
            self._checked = True
        return work()


class EndpointView(APIView):
    """What `endpoint` makes of a function: `get`, `post` or `delete` is that function."""

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Call:
        call = Call(
            request,
            parsers=self.get_parsers(),
            authenticators=self.get_authenticators(),
            negotiator=self.get_content_negotiator(),
            parser_context=self.get_parser_context(request),
        )
        call.view = self
        return call

    async def dispatch(  # type: ignore[override]
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        self.args, self.kwargs, self.headers = args, kwargs, {}
        call = self.request = self.initialize_request(request, *args, **kwargs)
        try:
            method = (request.method or "").lower()
            if method not in self.http_method_names:
                raise wrong_method(request.method or "", self.http_method_names)
            await authentication.knock(call.raw)
            try:
                response = await self._answer(call, getattr(self, method))
            except keys.KeyRefused as error:
                authentication.note_refused(call.raw, error)
                raise
        except ClientGone:
            raise
        except Exception as error:
            response = self.handle_exception(error)
        if isinstance(response, Response):
            self.finalize_response(call, response, *args, **kwargs)
            response.render()
        return response

    async def _answer(self, call: Call, function: Callable[..., Any]) -> HttpResponseBase:
        if inspect.iscoroutinefunction(function):
            answer: HttpResponseBase = await function(call, *self.args, **self.kwargs)
        else:
            answer = await call.hop(function, *self.args, **self.kwargs)
        return answer

    def check_permissions(self, request: Request) -> None:
        super().check_permissions(request)
        call = cast(Call, request)
        authentication.note_good(call.raw)
        call.raw.log |= {"organization": str(call.key.organization_id), "key": call.key.prefix}


def endpoint(method: str, **policies: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a view of a function, as DRF's `api_view` does; `policies` are as in DRF's `action`.

    A plain function is one database hop; a coroutine function says itself what hops it makes.
    """
    names = [method.lower(), *(["head"] if method == "GET" else [])]

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        about = {"__module__": function.__module__, "__doc__": function.__doc__}
        handlers = dict.fromkeys(names, staticmethod(function))
        body = {**about, **handlers, "http_method_names": names, **policies}
        view: type[EndpointView] = type(function.__name__, (EndpointView,), body)
        return view.as_view()

    return made
