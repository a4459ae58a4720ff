"""The pages of errors, which show the navigation and so ask the database, and read no form.

A body that could not be read once is not read again: Django's own pages look for a token in it, and
an error there is a 500.

Under ASGI, Django renders them in a thread of a pool and not in the request's own. Nobody would
close that thread's connection: it would stay open, and some day be one that the server has ended.
"""

from collections.abc import Callable
from functools import wraps
from typing import cast

from django.db import connection
from django.http import HttpRequest, HttpResponse, QueryDict
from django.views import defaults


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
server_error = _alone(defaults.server_error)
