"""The pages of errors, which read no form.

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

from django.db import connection
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.loader import render_to_string
from django.utils import translation
from django.views import defaults

from geekhub.lib.db import is_away

RETRY_SECONDS = 5


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
not_found = _alone(defaults.page_not_found)
_server_error = _alone(defaults.server_error)


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
