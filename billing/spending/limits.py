"""What an organization sets for itself: budgets of keys and members, and when it is warned.

Every change is in the audit log with who made it.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction

from accounts import audit
from accounts.models import ApiKey, Organization, User
from billing.models import BillingAccount, Budget, BudgetPeriod, Period
from billing.spending import budgets
from geekhub.lib import money


class NoSuchHolder(ValueError):
    """The organization has no such member, nor a key of that family."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose budget it is: a family of keys, or a member. Exactly one is set."""

    family: uuid.UUID | None = None
    member: User | None = None


def set_budget(
    organization: Organization,
    holder: Holder,
    period: Period,
    *,
    limit_micro: int | None,
    limit_images: int | None,
    actor: User | None,
) -> Budget:
    """Give a holder a budget for such a period, or change the one there is. Raises NoSuchHolder."""
    with transaction.atomic():
        if holder.member is not None:
            if not organization.memberships.filter(user=holder.member).exists():
                raise NoSuchHolder
            budget = budgets.set_member_budget(
                organization, holder.member, limit_micro, period, limit_images=limit_images
            )
        else:
            key = _newest(organization, holder.family)
            budget = budgets.set_budget(key, limit_micro, period, limit_images=limit_images)
        _record("budget.set", budget, actor)
    return budget


def remove_budget(budget: Budget, *, actor: User | None) -> None:
    """End a budget; what was spent stays in the ledger. Twice is once."""
    subject = name_of(budget)
    with transaction.atomic():
        if budgets.remove(budget):
            _record("budget.removed", budget, actor, subject)


def _record(action: str, budget: Budget, actor: User | None, subject: str = "") -> None:
    limits: dict[str, str | int] = {"period": budget.period}
    if budget.limit_micro is not None:
        limits["usd"] = money.to_usd(budget.limit_micro)
    if budget.limit_images is not None:
        limits["images"] = budget.limit_images
    audit.record(
        action,
        organization=budget.organization,
        actor=actor,
        subject=subject or name_of(budget),
        **limits,
    )


def name_of(budget: Budget) -> str:
    """Return the member's address, or the name of the key."""
    return names([budget])[budget.pk]


def names(rows: Iterable[Budget]) -> dict[int, str]:
    """Return whose each budget is, by its id: a member's address, or the family's newest key."""
    rows = list(rows)
    families = {budget.key_family for budget in rows if budget.key_family}
    keys = ApiKey.objects.filter(family__in=families).order_by("created_at", "pk")
    newest = {key.family: key.name for key in keys}
    return {
        budget.pk: budget.member.email
        if budget.member
        else newest.get(budget.key_family or uuid.UUID(int=0), "")
        for budget in rows
    }


def _newest(organization: Organization, family: uuid.UUID | None) -> ApiKey:
    if family is not None:
        keys = organization.api_keys.filter(family=family).order_by("created_at", "pk")
        if (key := keys.last()) is not None:
            return key
    raise NoSuchHolder


@dataclass(frozen=True, slots=True)
class Use:
    """How much of one limit is used in the running period; micro-USD, or images.

    Held is what running requests may come to.
    """

    unit: str
    limit: int
    spent: int
    held: int

    @property
    def percent(self) -> int:
        """Return how much is spent of a hundred; a budget of nothing is always used up."""
        return 100 if self.spent >= self.limit else self.spent * 100 // self.limit

    @property
    def held_percent(self) -> int:
        """Return how far the bar goes with what is held."""
        both = self.spent + self.held
        return 100 if both >= self.limit else both * 100 // self.limit


def uses(budget: Budget, running: BudgetPeriod) -> list[Use]:
    """Return how much of a budget's limits, one or two, is used."""
    found = []
    if budget.limit_micro is not None:
        found.append(Use("usd", budget.limit_micro, running.spent_micro, running.held_micro))
    if budget.limit_images is not None:
        found.append(Use("images", budget.limit_images, running.spent_images, running.held_images))
    return found


def ends_at(period: Period, starts_at: datetime) -> datetime:
    """Return when a period that began then is over."""
    match period:
        case Period.DAY:
            return starts_at + timedelta(days=1)
        case Period.WEEK:
            return starts_at + timedelta(days=7)
        case Period.MONTH:
            return budgets.period_start(Period.MONTH, starts_at + timedelta(days=31))


def set_warning(organization: Organization, below_micro: int, *, actor: User | None) -> None:
    """Warn when less than so much may be spent; 0: when nothing may be spent any more."""
    if below_micro < 0:
        raise ValueError("A warning is at 0 or more.")
    with transaction.atomic():
        account = BillingAccount.objects.select_for_update().get(pk=organization.pk)
        if account.alert_below_micro == below_micro:
            return
        BillingAccount.objects.filter(pk=account.pk).update(alert_below_micro=below_micro)
        audit.record(
            "alerts.warning_set",
            organization=organization,
            actor=actor,
            below_usd=money.to_usd(below_micro),
        )
