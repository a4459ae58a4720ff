"""GET /openapi.json: the API described for machines, to anybody."""

import hashlib
from functools import cache
from threading import Lock

import orjson
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import cache_control
from django.views.decorators.http import etag, require_safe

# The generator's settings are the whole process's: two at once would take them from each other.
MAKING = Lock()


def _document() -> tuple[bytes, str]:
    """Return the document and its ETag, made once in a process."""
    with MAKING:
        return _made()


@cache
def _made() -> tuple[bytes, str]:
    # Loaded when it is first asked for: requests to /v1 need nothing of it.
    from images.api import openapi

    body = orjson.dumps(openapi.document())
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


@require_safe
@cache_control(public=True, max_age=3600)
@etag(lambda request: _document()[1])
def document(request: HttpRequest) -> HttpResponse:
    """Return the OpenAPI document."""
    return HttpResponse(_document()[0], content_type="application/json")
