"""The outcome of a request, and what is left to spend: questions, no changes."""

from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Prefetch
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import BillingAccount, Budget, BudgetPeriod
from billing.spending import budgets, ledger
from geekhub.lib.ids import REQUEST_ID
from images.models import Generation, Image


@dataclass(frozen=True, slots=True)
class Credits:
    """An organization's money as one of its keys sees it; micro-USD."""

    account: BillingAccount
    spent_30_days_micro: int
    key_spent_micro: int
    budgets: list[tuple[Budget, BudgetPeriod]]


def find_generation(key: ApiKey, request_id: str) -> Generation | None:
    """Return a request of the key's organization, its pictures loaded; None if there is none."""
    if not REQUEST_ID.fullmatch(request_id):
        return None  # also what PostgreSQL would not even take, such as a NUL
    return (
        Generation.objects.filter(organization_id=key.organization_id, request_id=request_id)
        .prefetch_related(Prefetch("images", Image.objects.filter(deleted_at=None)))
        .first()
    )


def credits(key: ApiKey) -> Credits:
    """Return balance, spend and budgets; a key without a budget gets its last 30 days."""
    month_ago = timezone.now() - timedelta(days=30)
    covering = budgets.current(key)
    since = covering[0][1].starts_at if covering else month_ago
    return Credits(
        account=ledger.balance(key.organization),
        spent_30_days_micro=ledger.spent_since(key.organization, since=month_ago),
        key_spent_micro=ledger.spent_since(key.organization, since=since, key_family=key.family),
        budgets=covering,
    )
