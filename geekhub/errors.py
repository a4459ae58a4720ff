"""The pages of errors.

Those of what is not there or not allowed show the navigation and so ask the database. Under ASGI,
Django renders them in a thread of a pool and not in the request's own. Nobody would close that
thread's connection: it would stay open, and some day be one that the server has ended.
"""

import sys
from collections.abc import Callable
from functools import wraps

from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils import translation
from django.views import defaults

from geekhub.lib.db import is_away

RETRY_SECONDS = 5

type ErrorPage = Callable[[HttpRequest, Exception], HttpResponse]


def _closing(page: ErrorPage) -> ErrorPage:
    """Return the page, which closes a connection that it has opened itself."""

    @wraps(page)
    def render(request: HttpRequest, exception: Exception) -> HttpResponse:
        was_open = connection.connection is not None
        try:
            return page(request, exception)
        finally:
            if not was_open:
                connection.close()

    return render


not_found = _closing(defaults.page_not_found)
forbidden = _closing(defaults.permission_denied)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 503 while the database is away, without asking it anything; else 500."""
    error = sys.exc_info()[1]
    if error is None or not is_away(error):
        return defaults.server_error(request)
    # It may be a middleware that failed, before the one that chooses the language.
    with translation.override(translation.get_language_from_request(request)):
        return HttpResponse(
            render_to_string("503.html"),
            status=503,
            headers={"Retry-After": str(RETRY_SECONDS), "Cache-Control": "no-store"},
        )
