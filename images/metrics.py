"""The public API's metrics for Prometheus."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

from images.providers.base import Provider

REQUESTS = Counter(
    "geekhub_requests_total",
    "Requests to /v1 by route, status and error.",
    ["route", "status", "code"],
)
SECONDS = Histogram(
    "geekhub_request_seconds",
    "Seconds from a request's first byte to its answer's last.",
    ["route"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 90),
)
IMAGES = Counter("geekhub_images_total", "Delivered images by model.", ["model"])
CIRCUIT = Gauge(
    "geekhub_circuit_open",
    "Per provider: 0 closed, 1 half-open, 2 open.",
    ["provider"],
    multiprocess_mode="livemax",
)
_STATES = {"closed": 0, "half-open": 1, "open": 2}


def note_circuits(providers: Mapping[str, Provider]) -> None:
    """Record the state of each provider's circuit in this process."""
    for name, provider in providers.items():
        CIRCUIT.labels(name).set(_STATES[provider.circuit.state])
