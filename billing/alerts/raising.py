"""Which alerts are due; an organization gets each once."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import F, OuterRef, Q, Subquery
from django.utils import timezone

from accounts.models import Organization, User
from billing.models import (
    BillingAccount,
    BudgetPeriod,
    EntryKind,
    LedgerEntry,
    Notification,
    Period,
    StripeOperation,
)
from billing.spending import prices
from billing.spending.budgets import period_start
from geekhub.lib import money

PERCENTS = (100, 80, 50)


def raise_alert(
    organization: Organization,
    kind: str,
    key: str,
    *,
    operation: StripeOperation | None = None,
    **details: Any,
) -> bool:
    """Write down what the organization is to be told; False when the `key` was told before.

    The details are what JSON can hold; `operation` is what failed at Stripe. Call it in the
    transaction that decides; it is delivered by whichever worker comes next.
    """
    _, new = Notification.objects.get_or_create(
        key=key,
        defaults={
            "organization": organization,
            "kind": kind,
            "operation": operation,
            "details": details,
            "next_at": timezone.now(),
        },
    )
    return new


def send_test(organization: Organization, actor: User, *, now: datetime) -> bool:
    """Tell everybody who is told of money, and the endpoint, that alerts arrive.

    False when one was sent in this minute already.
    """
    minute = int(now.timestamp()) // 60
    return raise_alert(organization, "test", f"test:{organization.pk}:{minute}", by=actor.email)


@dataclass(frozen=True, slots=True)
class _Alert:
    """`silent`: written down as told, but sent to nobody, since a higher threshold is."""

    organization: Organization
    kind: str
    key: str
    details: dict[str, Any]
    silent: bool = False


def scan(*, now: datetime) -> int:
    """Write down every threshold that was crossed and not told yet; return how many.

    A budget: 50, 80 and 100 % of its dollars and of its images, once per period. Of several
    crossed since the last look only the highest is sent. A balance: once below its mark, and not
    again before the next recharge.
    """
    found = {alert.key: alert for alert in (*_budgets(now), *_balances())}
    known = Notification.objects.filter(key__in=list(found)).values_list("key", flat=True)
    return sum(_write(found[key], now) for key in found.keys() - set(known))


def _write(alert: _Alert, now: datetime) -> bool:
    _, new = Notification.objects.get_or_create(
        key=alert.key,
        defaults={
            "organization": alert.organization,
            "kind": alert.kind,
            "details": alert.details,
            "next_at": now,
            "settled_at": now if alert.silent else None,
        },
    )
    return new


def _budgets(now: datetime) -> Iterator[_Alert]:
    cheapest = prices.lowest_micro()
    running, used = Q(), Q(spent_micro__gt=0, budget__limit_micro__lte=F("spent_micro") * 2)
    used |= Q(spent_micro__gt=0, budget__limit_micro__lt=F("spent_micro") + cheapest)
    used |= Q(spent_images__gt=0, budget__limit_images__lte=F("spent_images") * 2)
    for period in Period:
        running |= Q(budget__period=period, starts_at=period_start(period, now))
    rows = BudgetPeriod.objects.filter(running, used).order_by("pk")
    for row in rows.select_related("budget__organization", "budget__member"):
        budget = row.budget
        if (limit := budget.limit_micro) is not None:
            share = _percent(row.spent_micro, limit, cheapest)
            told = {"limit_usd": money.to_usd(limit), "spent_usd": money.to_usd(row.spent_micro)}
            yield from _crossed(row, "usd", share, told)
        if (images := budget.limit_images) is not None:
            share = _percent(row.spent_images, images, 1)
            yield from _crossed(
                row, "images", share, {"limit_images": images, "spent_images": row.spent_images}
            )


def _percent(spent: int, limit: int, next_one: int) -> int:
    """Return how much is used: all of it as soon as not one more image fits.

    Images of $0.19 never spend a budget of $5 to the cent.
    """
    if not spent:
        return 0
    return 100 if spent + next_one > limit else spent * 100 // limit


def _crossed(
    row: BudgetPeriod, unit: str, used: int, told: dict[str, str] | dict[str, int]
) -> Iterator[_Alert]:
    budget = row.budget
    for place, percent in enumerate(one for one in PERCENTS if one <= used):
        details = {
            "percent": percent,
            "unit": unit,
            **told,
            "period": budget.period,
            "since": row.starts_at.isoformat(),
            "scope": budget.scope,
            "budget": budget.pk,
            "member": budget.member.email if budget.member else None,
            **budget.holder.words,
        }
        key = f"budget:{row.pk}:{unit}:{percent}"
        yield _Alert(budget.organization, "budget", key, details, silent=place > 0)


def _balances() -> Iterator[_Alert]:
    recharges = LedgerEntry.objects.filter(
        organization=OuterRef("organization"), kind=EntryKind.RECHARGE
    )
    low = BillingAccount.objects.filter(
        # One that never spent anything is new, not low.
        spent_micro__gt=0,
        balance_micro__lt=F("alert_below_micro") - F("credit_limit_micro") + F("held_micro"),
    ).annotate(recharge=Subquery(recharges.order_by("-pk").values("pk")[:1]))
    for account in low.select_related("organization").order_by("pk"):
        left = account.available_micro
        details = {
            "available_usd": money.to_usd(left),
            "below_usd": money.to_usd(account.alert_below_micro),
        }
        key = f"low:{account.pk}:{account.recharge or 0}"
        yield _Alert(account.organization, "low_balance", key, details)
