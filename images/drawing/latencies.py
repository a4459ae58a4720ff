"""How long each model took lately, from our own requests."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta

from django.utils import timezone

from images.models import Generation, GenerationStatus

LOOK_BACK = timedelta(hours=1)
SAMPLES = 1000


class Latencies:
    """Medians of the last hour's live requests, read again at most every `fresh_seconds`."""

    def __init__(self, fresh_seconds: float = 30.0) -> None:
        self._fresh_seconds = fresh_seconds
        self._read_at = -math.inf
        self._medians: Mapping[str, float] = {}

    def current(self) -> Mapping[str, float]:
        """Return seconds by model id; models nobody used lately are missing."""
        if time.monotonic() - self._read_at > self._fresh_seconds:
            self._medians, self._read_at = medians(), time.monotonic()
        return self._medians


def medians() -> dict[str, float]:
    """Return the median seconds of each model over the newest requests of the last hour."""
    rows = (
        Generation.objects.filter(
            status=GenerationStatus.SUCCEEDED,
            sandbox=False,
            finished_at__gte=timezone.now() - LOOK_BACK,
            draw_ms__isnull=False,
        )
        .order_by("-finished_at")
        .values_list("model", "draw_ms")[:SAMPLES]
    )
    seconds = defaultdict(list)
    for model, draw_ms in rows:
        seconds[model].append((draw_ms or 0) / 1000)
    return {model: statistics.median(values) for model, values in seconds.items()}
