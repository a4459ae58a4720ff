"""Budgets: the most a key (and its successors) may spend in a period."""

import uuid
from datetime import UTC, datetime, timedelta

from django.db.models import F
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import Budget, BudgetPeriod, Period


class BudgetExceeded(Exception):
    """The key's budget for the running period does not cover the request."""


def set_budget(key: ApiKey, limit_micro: int, period: Period) -> Budget:
    """Give the key's family a budget, or change the one it has."""
    budget, _ = Budget.objects.update_or_create(
        key_family=key.family,
        defaults={
            "organization_id": key.organization_id,
            "limit_micro": limit_micro,
            "period": period,
        },
    )
    return budget


def current(key_family: uuid.UUID) -> tuple[Budget, BudgetPeriod] | None:
    """Return the family's budget and its running period, which may not be saved yet."""
    budget = Budget.objects.filter(key_family=key_family).first()
    if budget is None:
        return None
    starts_at = period_start(Period(budget.period), timezone.now())
    running = BudgetPeriod.objects.filter(budget=budget, starts_at=starts_at).first()
    return budget, running or BudgetPeriod(budget=budget, starts_at=starts_at)


def hold(key_family: uuid.UUID, amount_micro: int) -> int | None:
    """Set an amount aside in the running period; return the period's id, None without a budget.

    Raises BudgetExceeded. Call it inside the transaction that makes the hold.
    """
    budget = Budget.objects.filter(key_family=key_family).first()
    if budget is None:
        return None
    starts_at = period_start(Period(budget.period), timezone.now())
    BudgetPeriod.objects.bulk_create(
        [BudgetPeriod(budget=budget, starts_at=starts_at)], ignore_conflicts=True
    )
    running = BudgetPeriod.objects.get(budget=budget, starts_at=starts_at)
    room = BudgetPeriod.objects.filter(
        pk=running.pk,
        spent_micro__lte=budget.limit_micro - amount_micro - F("held_micro"),
    )
    if not room.update(held_micro=F("held_micro") + amount_micro):
        raise BudgetExceeded(f"The key's budget for this {budget.period} is used up.")
    return running.pk


def settle(period_id: int | None, *, held_micro: int, spent_micro: int) -> None:
    """Turn what was held in a period into what was spent."""
    if period_id is not None:
        BudgetPeriod.objects.filter(pk=period_id).update(
            held_micro=F("held_micro") - held_micro, spent_micro=F("spent_micro") + spent_micro
        )


def period_start(period: Period, at: datetime) -> datetime:
    """Return the UTC midnight at which the period around `at` began."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case Period.DAY:
            return day
        case Period.WEEK:
            return day - timedelta(days=day.weekday())
        case Period.MONTH:
            return day.replace(day=1)
