"""The pages of errors, which show the navigation and so ask the database.

Under ASGI, Django renders them in a thread of a pool and not in the request's own. Nobody would
close that thread's connection: it would stay open, and some day be one that the server has ended.
"""

from collections.abc import Callable
from functools import wraps

from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.views import defaults

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
