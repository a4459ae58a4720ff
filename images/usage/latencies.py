"""Percentiles of how long requests took, from histograms."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC

from django.db.models import Count, Sum

from accounts.models import Organization
from images.models import DailyLatency, HourlyLatency
from images.usage.rollups import BUCKET, MODEL, bucket_ms, delivered
from images.usage.sources import cut, matching
from images.usage.span import Wanted


@dataclass(frozen=True, slots=True)
class Latency:
    """How long requests that delivered took, in milliseconds, within 6.1 % (`rollups.WIDTH`)."""

    requests: int
    p50_ms: int
    p95_ms: int


def by_model(organization: Organization, wanted: Wanted) -> dict[str, Latency]:
    """Return each model's latencies, and under the empty name those of all."""
    pieces = cut(wanted, UTC)
    bars: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    live = {} if wanted.sandbox is None else {"sandbox": wanted.sandbox}
    days = DailyLatency.objects.filter(pieces.days, organization=organization, **live)
    edges = HourlyLatency.objects.filter(pieces.edges, organization=organization, **live)
    opened = delivered(matching(organization, wanted, pieces.open).order_by())
    for model, bucket, requests in (
        *days.order_by().values_list("model", "bucket").annotate(Sum("requests")),
        *edges.order_by().values_list("model", "bucket").annotate(Sum("requests")),
        *opened.annotate(drawn_by=MODEL, bucket=BUCKET)
        .values_list("drawn_by", "bucket")
        .annotate(Count("pk")),
    ):
        bars[model][bucket] += requests
        bars[""][bucket] += requests
    return {model: _latency(histogram) for model, histogram in sorted(bars.items())}


def _latency(histogram: dict[int, int]) -> Latency:
    count = sum(histogram.values())
    return Latency(count, _rank(histogram, -(-count // 2)), _rank(histogram, -(-count * 95 // 100)))


def _rank(histogram: dict[int, int], rank: int) -> int:
    """Return the latency of the request that is the `rank`-th fastest."""
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank <= 0:
            return bucket_ms(bucket)
    raise ValueError("the rank is beyond the histogram")
