"""GET /metrics, for Prometheus; closed unless METRICS_TOKEN is set and sent as a Bearer token."""

import hmac
import os

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from images import metrics as images
from images.drawing.gateway import gateway_of


def metrics(request: HttpRequest) -> HttpResponse:
    """Answer the numbers of all processes that share PROMETHEUS_MULTIPROC_DIR, or of this one."""
    sent = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    expected = settings.METRICS_TOKEN.encode()
    if not expected or not hmac.compare_digest(sent, expected):
        raise Http404
    if (gateway := gateway_of(request)) is not None:
        images.note_circuits(gateway.providers)
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
