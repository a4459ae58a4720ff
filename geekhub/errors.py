"""The pages of errors, which read no form; and where else to look.

A body that could not be read once is not read again: Django's own pages look for a token in it, and
an error there is a 500.

Those of what is not there or not allowed show the navigation and so ask the database. Under ASGI,
Django renders them in a thread of a pool and not in the request's own. Nobody would close that
thread's connection: it would stay open, and some day be one that the server has ended.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import cast
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib import messages
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect, QueryDict
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import is_valid_path, reverse
from django.utils import translation
from django.utils.http import escape_leading_slashes
from django.utils.translation import gettext as _
from django.views import defaults

from accounts.access import came_from
from geekhub.lib.db import is_away

RETRY_SECONDS = 5

type View = Callable[..., HttpResponse]

READS = ("GET", "HEAD")
# static/drafts.js gives a form on the page back what was typed in it.
UNSENT = "#unsent"


def _alone[**P](page: Callable[P, HttpResponse]) -> Callable[P, HttpResponse]:
    """Return the page, which reads no form and closes a connection that it has opened itself."""

    @wraps(page)
    def render(*args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        cast(HttpRequest, args[0]).POST = QueryDict()
        was_open = connection.connection is not None
        try:
            return page(*args, **kwargs)
        finally:
            if not was_open:
                connection.close()

    return render


bad_request = _alone(defaults.bad_request)
forbidden = _alone(defaults.permission_denied)
_server_error = _alone(defaults.server_error)


@_alone
def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Lead from an address that lacks a slash, or has one too many, to the page; else 404."""
    path = request.path_info
    other = path.rstrip("/") if path.endswith("/") else f"{path}/"
    # No route at all led here. One that takes any path has no other address.
    if request.method in READS and request.resolver_match is None and is_valid_path(other):
        query = request.META.get("QUERY_STRING", "")
        address = escape_leading_slashes(other) + (f"?{query}" if query else "")
        return HttpResponsePermanentRedirect(address)
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 503 while the database is away, without asking it anything; else 500."""
    error = sys.exc_info()[1]
    if error is None or not is_away(error):
        return _server_error(request)
    # It may be a middleware that failed, before the one that chooses the language.
    with translation.override(translation.get_language_from_request(request)):
        return HttpResponse(
            render_to_string("503.html"),
            status=503,
            headers={"Retry-After": str(RETRY_SECONDS), "Cache-Control": "no-store"},
        )


def moved(name: str, view: View) -> View:
    """Return a view that leads readers to the address `name`; a form is served as before."""

    @wraps(view)
    def old(request: HttpRequest) -> HttpResponse:
        if request.method not in READS:
            return view(request)
        query = request.META.get("QUERY_STRING", "")
        return HttpResponsePermanentRedirect(reverse(name) + (f"?{query}" if query else ""))

    return old


def out_of_date(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Open a form again whose token is of an earlier login; a form of elsewhere is refused, 403.

    Nothing is sent again but by the person, who has seen what is in it.
    """
    page = came_from(request) if _is_ours(request) else ""
    # A browser that keeps no cookies would be led in circles, and shown no message.
    if not page or settings.CSRF_COOKIE_NAME not in request.COOKIES:
        context = {"form_page": page and page + UNSENT}
        return render(request, "403_csrf.html", context, status=403)
    messages.warning(
        request, _("The form had expired. Nothing was changed. Check it and send it again.")
    )
    return redirect(page + UNSENT)


def _is_ours(request: HttpRequest) -> bool:
    """Return whether one of our pages sent it: browsers say so with every POST."""
    origin = request.headers.get("Origin", "")
    known = {f"{request.scheme}://{request.get_host()}", *settings.CSRF_TRUSTED_ORIGINS}
    return bool(urlsplit(origin).netloc) and origin in known
