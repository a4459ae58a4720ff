"""Budgets: the most that a holder may use in a period, and what of it is held and spent."""

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import Budget, BudgetPeriod, Period, scopes
from billing.models.scopes import Holder
from geekhub.lib import db


class BudgetExceeded(Exception):
    """A budget's running period does not cover the request; the message names the budget.

    `by_key`: it covers every request of the key, so that current() has it.
    """

    def __init__(self, message: str, *, by_key: bool) -> None:
        super().__init__(message)
        self.by_key = by_key


def set_budget(
    key: ApiKey, limit_micro: int | None, period: Period, *, limit_images: int | None = None
) -> Budget:
    """Give the key's family a budget for such a period, or change the one it has."""
    return set_for(
        key.organization_id,
        Holder(scopes.KEY, key.family),
        limit_micro,
        period,
        limit_images=limit_images,
    )


def set_for(
    organization_id: uuid.UUID,
    holder: Holder,
    limit_micro: int | None,
    period: Period,
    *,
    limit_images: int | None = None,
) -> Budget:
    """Give a holder a budget for such a period, or change the one there is."""
    budget, _ = Budget.objects.update_or_create(
        organization_id=organization_id,
        period=period,
        **holder.columns,
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
    """Return every budget that covers all requests of the key, each with its running period.

    The nearest first: the key's own before those that it shares. A period may be unsaved.
    """
    order = list(scopes.SCOPES)
    return running(sorted(_covering(key, ()), key=lambda budget: order.index(budget.scope)))


def running(rows: Iterable[Budget]) -> list[tuple[Budget, BudgetPeriod]]:
    """Return budgets with their running periods, which may not be saved yet; asks once."""
    return _periods(rows, timezone.now())


def hold(key: ApiKey, tags: Sequence[str], *, amount_micro: int, images: int) -> list[int]:
    """Set an amount and a count aside in every running period that covers the request.

    Returns the periods' ids in the order in which they must be settled. Raises BudgetExceeded:
    call it inside the transaction that makes the hold, so that all are held or none.
    """
    now = timezone.now()
    # Locked, so that none is removed while a period of it begins.
    rows = list(_covering(key, tags).select_for_update(no_key=True))
    BudgetPeriod.objects.bulk_create(
        [BudgetPeriod(budget=row, starts_at=_starts_at(row, now)) for row in rows],
        ignore_conflicts=True,
    )
    held = []
    for budget, period in _periods(rows, now):
        if not _hold_one(budget, period, amount_micro, images):
            raise BudgetExceeded(
                f"{budget.holder.refusal} for this {budget.period} is used up.",
                by_key=budget.holder.subject in budget.holder.scope.covers(key, ()),
            )
        held.append(period.pk)
    return held


def _hold_one(budget: Budget, period: BudgetPeriod, amount_micro: int, images: int) -> int:
    room = Q(pk=period.pk)
    if budget.limit_micro is not None:
        room &= Q(spent_micro__lte=budget.limit_micro - amount_micro - F("held_micro"))
    if budget.limit_images is not None:
        room &= Q(spent_images__lte=budget.limit_images - images - F("held_images"))
    return BudgetPeriod.objects.filter(room).update(
        held_micro=F("held_micro") + amount_micro, held_images=F("held_images") + images
    )


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


def covering_sql(key: ApiKey, tags: Sequence[str]) -> tuple[str, list[db.Parameter]]:
    """Return the condition of `_covering` as plain SQL, which asks at a quarter of the cost."""
    arms: list[str] = []
    parameters: list[db.Parameter] = [key.organization_id]
    for scope, subjects in scopes.covering(key, tags):
        arm = f"scope = '{scope.name}'"
        if scope.column:
            arm += f" AND {scope.column} IN ({', '.join(['%s'] * len(subjects))})"
            parameters += subjects
        arms.append(f"({arm})")
    return f"organization_id = %s AND ({' OR '.join(arms)})", parameters


def _covering(key: ApiKey, tags: Sequence[str]) -> QuerySet[Budget]:
    arms = Q()
    for scope, subjects in scopes.covering(key, tags):
        whose = {f"{scope.column}__in": subjects} if scope.column else {}
        arms |= Q(scope=scope.name, **whose)
    # Always in one order: two requests that wait for each other's rows would wait for ever.
    return Budget.objects.filter(arms, organization_id=key.organization_id).order_by("pk")


def _periods(rows: Iterable[Budget], now: datetime) -> list[tuple[Budget, BudgetPeriod]]:
    starts = {row: _starts_at(row, now) for row in rows}
    saved = BudgetPeriod.objects.filter(budget__in=starts, starts_at__in=set(starts.values()))
    found = {(period.budget_id, period.starts_at): period for period in saved}
    return [
        (row, found.get((row.pk, at)) or BudgetPeriod(budget=row, starts_at=at))
        for row, at in starts.items()
    ]


def _starts_at(budget: Budget, now: datetime) -> datetime:
    return period_start(Period(budget.period), now)
