"""What an organization sets for itself: its budgets, and when it is warned.

Every change is in the audit log with who made it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import translation

from accounts import audit
from accounts.models import Organization, User
from billing.models import BillingAccount, Budget, BudgetPeriod, Period, scopes
from billing.models.scopes import Called, Holder
from billing.spending import budgets
from geekhub.lib import money


class NoSuchHolder(ValueError):
    """The organization has no such holder, or has it no longer."""


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
        if not holder.scope.exists(organization, holder.subject):
            raise NoSuchHolder
        budget = budgets.set_for(
            organization.pk, holder, limit_micro, period, limit_images=limit_images
        )
        _record("budget.set", budget, actor, called(budget))
    return budget


def remove_budget(budget: Budget, *, actor: User | None) -> None:
    """End a budget; what was spent stays in the ledger. Twice is once."""
    subject = called(budget)
    with transaction.atomic():
        if budgets.remove(budget):
            _record("budget.removed", budget, actor, subject)


def _record(action: str, budget: Budget, actor: User | None, subject: Called) -> None:
    limits: dict[str, str | int] = {"period": budget.period}
    if budget.limit_micro is not None:
        limits["usd"] = money.to_usd(budget.limit_micro)
    if budget.limit_images is not None:
        limits["images"] = budget.limit_images
    # What is written down does not depend on the language of the person who did it.
    with translation.override(settings.LANGUAGE_CODE):
        label = subject.label
    audit.record(action, organization=budget.organization, actor=actor, subject=label, **limits)


def called(budget: Budget) -> Called:
    """Return what people call a budget by."""
    return all_called([budget])[budget.pk]


def all_called(rows: Iterable[Budget]) -> dict[int, Called]:
    """Return what people call each budget by, by its id."""
    holders = {budget.pk: budget.holder for budget in rows}
    names = scopes.called(set(holders.values()))
    return {pk: names[holder] for pk, holder in holders.items()}


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
