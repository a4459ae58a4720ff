"""GET /openapi.json: the API described for machines, to anybody."""

import hashlib
from functools import cache

import orjson
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import cache_control
from django.views.decorators.http import etag, require_safe


@cache
def _document() -> tuple[bytes, str]:
    """Return the document and its ETag, made once in a process."""
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
