"""The front page of the staff's site: what is the matter right now."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.db.models import Count, Min
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from accounts.staff import viewing
from accounts.staff.show import usd
from billing import reconciliation
from billing.models import JobRun, MeterEvent, MeterState
from billing.spending.prices import PriceBook
from billing.stripe.client import is_connected
from geekhub.lib import money
from geekhub.lib.moments import LONG_AGO
from geekhub.work.jobs import current
from images.catalog.rows import CATALOG
from images.catalog.skus import sku_of
from images.drawing.gateway import gateway_of
from images.pages.charts import daily
from images.providers.registry import OWNERS
from images.usage import platform
from images.usage.rollups import closed_until

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise


# Unfold's pages run on Alpine, which writes code and styles into them. Nowhere else is this let in.
RELAXED = {
    "script-src": ["'self'", "'unsafe-inline'", "'unsafe-eval'"],
    "style-src": ["'self'", "'unsafe-inline'"],
}
# A job may wait for its turn, and for a long one before it.
PATIENCE = timedelta(minutes=2)
CIRCUITS: Mapping[str, "StrPromise"] = {
    "closed": _("closed"),
    "open": _("open"),
    "half-open": _("half open"),
}


@dataclass(frozen=True, slots=True)
class JobHealth:
    """When a background job was last begun, on whichever host."""

    title: "StrPromise"
    every: timedelta
    begun: datetime | None
    late: bool

    @property
    def interval(self) -> str:
        """Return how often, in the largest unit that divides it."""
        return interval(self.every)


@dataclass(frozen=True, slots=True)
class Line:
    """A model or a provider in the table of what it earned."""

    name: str
    earned: platform.Earned
    unit_price: str = ""
    unit_cost: str = ""

    @property
    def revenue(self) -> str:
        """Return what was earned."""
        return usd(self.earned.revenue_micro)

    @property
    def cost(self) -> str:
        """Return what it cost us."""
        return usd(self.earned.cost_micro) if self.earned.is_known else _now("unknown")

    @property
    def margin(self) -> str:
        """Return what is left."""
        return usd(self.earned.margin_micro) if self.earned.is_known else _now("unknown")

    @property
    def margin_part(self) -> str:
        """Return what is left, in percent."""
        return tenths(self.earned.margin_tenths)

    @property
    def failed_part(self) -> str:
        """Return how many requests failed, in percent."""
        return tenths(self.earned.failed_tenths)


def interval(time: timedelta) -> str:
    """Return a time of whole seconds in the largest unit that divides it: `10 min`."""
    seconds = int(time.total_seconds())
    units = ((86400, _now("d")), (3600, _now("h")), (60, _now("min")), (1, _now("s")))
    for size, unit in units:
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    raise ValueError("a time of whole seconds")


def tenths(value: int | None) -> str:
    """Return tenths of a percent as percent; a dash for None."""
    if value is None:
        return "–"
    sign = "-" if value < 0 else ""
    return f"{sign}{abs(value) // 10}.{abs(value) % 10} %"


def figures(request: HttpRequest) -> dict[str, Any]:
    """Return what the first page shows."""
    month = platform.month()
    days = [(day, earned) for day, earned in month.days.items()]
    gateway = gateway_of(request)
    return {
        "total": Line(_now("All"), month.total),
        "today": Line(_now("Today"), days[-1][1]),
        "revenue_chart": daily([(day, one.revenue_micro) for day, one in days], dollars),
        "pictures_chart": daily([(day, one.images) for day, one in days], str),
        "days": [Line(day.isoformat(), earned) for day, earned in reversed(days)],
        "models": _models(month),
        "providers": [
            Line(str(OWNERS.get(name, name)), earned)
            for name, earned in sorted(month.providers.items())
        ],
        "errors": sorted(
            (
                (str(OWNERS.get(provider, provider)), code, count)
                for (provider, code), count in month.errors.items()
            ),
            key=lambda one: (-one[2], one),
        ),
        "circuits": [
            (str(OWNERS.get(name, name)), state, CIRCUITS[state])
            for name, provider in gateway.providers.items()
            for state in [provider.circuit.state]
        ]
        if gateway is not None
        else None,
        "jobs": job_health(timezone.now()),
        "closed_until": closed_until(),
        "connected": is_connected(),
        "open_differences": reconciliation.open_differences().count(),
        "unsent": MeterEvent.objects.filter(
            state__in=[MeterState.PENDING, MeterState.SENDING]
        ).aggregate(many=Count("pk"), oldest=Min("hour")),
        "uncertain": MeterEvent.objects.filter(state=MeterState.UNCERTAIN).count(),
        "looking": viewing.looked_at(request),
    }


def job_health(now: datetime) -> list[JobHealth]:
    """Return how each job that should run here does."""
    begun = dict(JobRun.objects.values_list("name", "started_at"))
    found = []
    for job in current():
        at = begun.get(job.name)
        late = at is None or at < now - job.every - PATIENCE
        found.append(JobHealth(job.title, job.every, at if at != LONG_AGO else None, late))
    return found


def _models(month: platform.Month) -> list[Line]:
    found = []
    rows = {model: CATALOG[model] for model in month.models if model in CATALOG}
    quotes = PriceBook().offered(map(sku_of, rows.values()), None)
    for model, earned in month.models.items():
        row = rows.get(model)
        quote = quotes.get(sku_of(row)) if row else None
        cost = row.cost_micro if row else None
        found.append(
            Line(
                model,
                earned,
                usd(quote.unit_micro) if quote else "–",
                _now("unknown") if cost is None else usd(cost),
            )
        )
    return sorted(found, key=lambda one: (-one.earned.revenue_micro, one.name))


def dollars(micro: int) -> str:
    return f"${money.to_usd(micro)}"
