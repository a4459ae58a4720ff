"""The overview: what is left, what was spent and drawn in thirty days, and how well it went."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from accounts.access import MemberRequest, Permission, member
from accounts.models import ApiKey, Organization
from billing.models import BillingAccount
from billing.spending import ledger
from geekhub.lib import money
from images.models import Generation
from images.pages.charts import Chart, daily, share
from images.pages.privacy import hide_prompts
from images.pages.words import explain
from images.usage import latencies as usage_latencies
from images.usage import requests, sums
from images.usage.latencies import Latency
from images.usage.span import Wanted
from images.usage.sums import Used

DAYS = 30
LATEST = 12
TOP = 8
# The balance is low when it is below a dollar, or would not last this long at the pace of the week.
LOW_MICRO = 1 * money.MICRO
LOW_DAYS = 3
PACE_DAYS = 7


@dataclass(frozen=True, slots=True)
class Balance:
    """What may still be spent, and how long it lasts; `days` is None while nothing is spent."""

    account: BillingAccount
    days: int | None

    @property
    def is_low(self) -> bool:
        """Return whether it should be recharged now."""
        if self.account.available_micro < LOW_MICRO:
            return True
        return self.days is not None and self.days < LOW_DAYS


@dataclass(frozen=True, slots=True)
class Line:
    """One model, key or error of a table; `share` is its percentage of the whole."""

    name: str
    note: str
    used: Used
    share: str
    latency: Latency | None = None


@dataclass(frozen=True, slots=True)
class Month:
    """Thirty days of the viewer, of live or of sandbox keys."""

    sandbox: bool
    total: Used
    spend: Chart
    pictures: Chart
    models: list[Line]
    keys: list[Line]
    errors: list[Line]
    latency: Latency | None

    @property
    def ended(self) -> int:
        """Return how many requests have an outcome; the others are running."""
        return self.total.succeeded + self.total.failed

    @property
    def success(self) -> str:
        """Return the percentage of ended requests that delivered; never 100 if one failed."""
        if not self.ended:
            return ""
        tenths = self.total.succeeded * 1000 // self.ended
        return f"{tenths // 10}" if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10}"


@require_safe
@member(Permission.VIEW)
def overview(request: MemberRequest) -> HttpResponse:
    """Show the organization at a glance."""
    organization = request.access.organization
    if not Generation.objects.filter(organization=organization).exists():
        return render(request, "images/overview.html", _first_run(organization))
    by_kind = _used(organization)
    asked = request.GET.get("kind")
    sandbox = asked == "sandbox" if asked in ("live", "sandbox") else not by_kind[False]
    images = requests.latest_images(organization, LATEST)
    hide_prompts(request.access, images)
    context = {
        "balance": _balance(organization, by_kind[False]),
        "month": _month(organization, by_kind[sandbox], sandbox=sandbox),
        "pictures": images,
        "zone": timezone.get_current_timezone_name(),
        "tabs": [
            {"label": _("Live keys"), "url": "?kind=live", "here": not sandbox},
            {"label": _("Sandbox keys"), "url": "?kind=sandbox", "here": sandbox},
        ],
    }
    return render(request, "images/overview.html", context)


def _first_run(organization: Organization) -> dict[str, Any]:
    return {
        "balance": _balance(organization, {}),
        "has_key": organization.api_keys.filter(revoked_at=None).exists(),
    }


# --- Thirty days ------------------------------------------------------------------------------

# By day, and by (model, key, error); see usage.sums.
type Days = dict[date, Used]
type Sums = dict[tuple[str, ApiKey, str], Used]


def _days() -> list[date]:
    today = timezone.localdate()
    return [today - timedelta(days=ago) for ago in range(DAYS - 1, -1, -1)]


def _wanted(sandbox: bool | None = None) -> Wanted:
    first = timezone.make_aware(datetime.combine(_days()[0], time()))
    last = timezone.make_aware(datetime.combine(_days()[-1] + timedelta(days=1), time()))
    return Wanted(start=first, end=last, sandbox=sandbox)


def _used(organization: Organization) -> dict[bool, Days]:
    """Return the sums of the thirty days, of live keys (False) and of sandbox keys (True)."""
    zone = timezone.get_current_timezone()
    kinds: dict[bool, Days] = {False: {}, True: {}}
    found = sums.grouped(organization, _wanted(), ("day", "sandbox"), zone=zone)
    for (day, sandbox), used in found.items():
        kinds[sandbox][day] = used
    return kinds


def _parts(organization: Organization, *, sandbox: bool) -> Sums:
    found = sums.grouped(organization, _wanted(sandbox), ("model", "key", "error"))
    keys: dict[UUID, ApiKey] = organization.api_keys.in_bulk({group[1] for group in found})
    return {(model, keys[key], error): used for (model, key, error), used in found.items()}


def _sum(values: Iterable[Used]) -> Used:
    total = Used()
    for one in values:
        total.add(one)
    return total


def _balance(organization: Organization, days_used: Days) -> Balance:
    account = ledger.balance(organization)
    recent = set(_days()[-PACE_DAYS:])
    spent = sum(used.cost_micro for day, used in days_used.items() if day in recent)
    days = max(0, account.available_micro) * PACE_DAYS // spent if spent else None
    return Balance(account, days)


def _month(organization: Organization, days_used: Days, *, sandbox: bool) -> Month:
    by_day = {day: days_used.get(day, Used()) for day in _days()}
    by_model: dict[str, Used] = defaultdict(Used)
    by_key: dict[ApiKey, Used] = defaultdict(Used)
    by_error: dict[str, Used] = defaultdict(Used)
    parts = _parts(organization, sandbox=sandbox)
    for (model, key, error), used in parts.items():
        by_model[model].add(used)
        by_key[key].add(used)
        if error:
            by_error[error].add(used)
    # Not the sum of the days: a request may have come in between.
    total = _sum(parts.values())
    latencies = usage_latencies.by_model(organization, _wanted(sandbox))
    return Month(
        sandbox=sandbox,
        total=total,
        spend=daily([(day, used.cost_micro) for day, used in by_day.items()], _dollars),
        pictures=daily([(day, used.images) for day, used in by_day.items()], str),
        models=_lines(
            (Line(model, "", used, _part(used, total), latencies.get(model)))
            for model, used in by_model.items()
        ),
        keys=_lines(
            Line(key.name, f"{key.prefix}…", used, _part(used, total))
            for key, used in by_key.items()
        ),
        errors=_lines(
            Line(code, str(explain(code)), used, share(used.requests, total.failed))
            for code, used in by_error.items()
        ),
        latency=latencies.get(""),
    )


def _dollars(micro: int) -> str:
    return f"${money.to_usd(micro)}"


def _part(used: Used, total: Used) -> str:
    """Return the part of the spend, or of the pictures where nothing is paid."""
    if total.cost_micro:
        return share(used.cost_micro, total.cost_micro)
    return share(used.images, total.images)


def _lines(lines: Iterable[Line]) -> list[Line]:
    """Return the largest first, all beyond TOP as one."""
    found = sorted(
        lines,
        key=lambda one: (-one.used.cost_micro, -one.used.images, -one.used.requests, one.name),
    )
    if len(found) <= TOP + 1:
        return found
    rest = found[TOP:]
    part = f"{sum(float(one.share) for one in rest):.2f}"
    others = Line(_("%d others") % len(rest), "", _sum(one.used for one in rest), part)
    return [*found[:TOP], others]
