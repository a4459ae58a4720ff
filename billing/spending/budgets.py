"""Budgets: the most a key (with its successors), or a member's keys, may use in a period."""

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from accounts.models import ApiKey, Organization, User
from billing.models import Budget, BudgetPeriod, Period


class BudgetExceeded(Exception):
    """A budget for the running period does not cover the request."""


def set_budget(
    key: ApiKey, limit_micro: int | None, period: Period, *, limit_images: int | None = None
) -> Budget:
    """Give the key's family a budget for such a period, or change the one it has."""
    budget, _ = Budget.objects.update_or_create(
        key_family=key.family,
        period=period,
        defaults={
            "organization_id": key.organization_id,
            "limit_micro": limit_micro,
            "limit_images": limit_images,
        },
    )
    return budget


def set_member_budget(
    organization: Organization,
    member: User,
    limit_micro: int | None,
    period: Period,
    *,
    limit_images: int | None = None,
) -> Budget:
    """Give a member's keys together a budget for such a period, or change the one there is."""
    budget, _ = Budget.objects.update_or_create(
        organization=organization,
        member=member,
        period=period,
        defaults={"limit_micro": limit_micro, "limit_images": limit_images},
    )
    return budget


def remove(budget: Budget) -> bool:
    """End a budget; False if it was ended before.

    Its periods go with it; what was spent stays in the ledger.
    """
    with transaction.atomic():
        # A request that begins a period has this row until it is committed.
        row = Budget.objects.select_for_update().filter(pk=budget.pk).first()
        if row is None:
            return False
        BudgetPeriod.objects.filter(budget=row).delete()
        row.delete()
    return True


def current(key: ApiKey) -> list[tuple[Budget, BudgetPeriod]]:
    """Return the key's budgets, its maker's too, each with its running period, maybe unsaved."""
    return [
        running(budget) for budget in _covering(key.family, key.organization_id, key.created_by_id)
    ]


def running(budget: Budget) -> tuple[Budget, BudgetPeriod]:
    """Return a budget with its running period, which may not be saved yet."""
    starts_at = period_start(Period(budget.period), timezone.now())
    found = BudgetPeriod.objects.filter(budget=budget, starts_at=starts_at).first()
    return budget, found or BudgetPeriod(budget=budget, starts_at=starts_at)


def hold(key: ApiKey, *, amount_micro: int, images: int) -> list[int]:
    """Set an amount and a count aside in every running period that covers the key.

    Returns the periods' ids in the order in which they must be settled. Raises BudgetExceeded:
    call it inside the transaction that makes the hold, so that all are held or none.
    """
    covering = _covering(key.family, key.organization_id, key.created_by_id)
    return [
        _hold_one(budget, amount_micro, images)
        # So that none is removed while a period of it begins.
        for budget in covering.select_for_update(no_key=True)
    ]


def _hold_one(budget: Budget, amount_micro: int, images: int) -> int:
    starts_at = period_start(Period(budget.period), timezone.now())
    BudgetPeriod.objects.bulk_create(
        [BudgetPeriod(budget=budget, starts_at=starts_at)], ignore_conflicts=True
    )
    period = BudgetPeriod.objects.get(budget=budget, starts_at=starts_at)
    room = Q(pk=period.pk)
    if budget.limit_micro is not None:
        room &= Q(spent_micro__lte=budget.limit_micro - amount_micro - F("held_micro"))
    if budget.limit_images is not None:
        room &= Q(spent_images__lte=budget.limit_images - images - F("held_images"))
    if not BudgetPeriod.objects.filter(room).update(
        held_micro=F("held_micro") + amount_micro, held_images=F("held_images") + images
    ):
        whose = "key" if budget.key_family else "member"
        raise BudgetExceeded(f"The {whose}'s budget for this {budget.period} is used up.")
    return period.pk


def settle(
    periods: Iterable[int],
    *,
    held_micro: int,
    spent_micro: int,
    held_images: int,
    spent_images: int,
) -> bool:
    """Turn what was held in each period into what was spent.

    False when a period holds less, so that it was settled before: the caller must roll back.
    """
    for period_id in periods:
        period = BudgetPeriod.objects.filter(pk=period_id)
        settled = period.filter(held_micro__gte=held_micro, held_images__gte=held_images).update(
            held_micro=F("held_micro") - held_micro,
            spent_micro=F("spent_micro") + spent_micro,
            held_images=F("held_images") - held_images,
            spent_images=F("spent_images") + spent_images,
        )
        # Of a budget that was removed there is no period, and nothing to settle.
        if not settled and period.exists():
            return False
    return True


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


def _covering(
    family: uuid.UUID, organization_id: uuid.UUID, member_id: int | None
) -> QuerySet[Budget]:
    # Always in one order: two requests that wait for each other's rows would wait for ever.
    scope = Q(key_family=family)
    if member_id is not None:
        scope |= Q(organization_id=organization_id, member_id=member_id)
    return Budget.objects.filter(scope).order_by("pk")
