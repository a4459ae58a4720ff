"""What the tests of money share: prices, holds in one line, and many threads at once."""

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from django.db import connection, transaction

from accounts.models import ApiKey
from billing.models import BillingAccount, BudgetPeriod, Hold, HoldState, LedgerEntry
from billing.spending import holds, prices
from geekhub.lib.ids import new_request_id

# Three models and what one image of each costs, in micro-USD.
PRICES = {"a/cheap": 40_000, "b/middle": 65_000, "c/dear": 190_000}
START_SECONDS = 60


def authorize(
    key: ApiKey,
    *models: str,
    quantity: int = 1,
    tags: Sequence[str] = (),
    request_id: str = "",
    owner: uuid.UUID | None = None,
    lease: timedelta = timedelta(minutes=1),
) -> Hold:
    """Return a hold for images of the models, the cheap one if none is named.

    In a transaction of its own, as every caller does it; so is settling, below.
    """
    with transaction.atomic():
        return holds.authorize(
            key=key,
            request_id=request_id or new_request_id(),
            quotes=list(prices.current(models or ("a/cheap",)).values()),
            quantity=quantity,
            tags=tags,
            owner=owner or uuid.uuid4(),
            lease=lease,
        )


def capture(hold: Hold, *, model: str = "a/cheap", delivered: int = 1) -> LedgerEntry:
    """Spend what was delivered of a hold."""
    with transaction.atomic():
        return holds.capture(hold, sku=model, delivered=delivered)


def release(hold: Hold) -> None:
    """Give a hold back."""
    with transaction.atomic():
        holds.release(hold)


def expire(hold: Hold) -> None:
    """Give back what a dead process held."""
    with transaction.atomic():
        holds.expire(hold)


# How a hold can end, by the state it is in afterwards.
SETTLE: dict[str, Callable[[Hold], object]] = {
    HoldState.CAPTURED: capture,
    HoldState.RELEASED: release,
    HoldState.EXPIRED: expire,
}


def money_of(key: ApiKey) -> tuple[int, int, int]:
    """Return balance, held and spent of the key's organization, in micro-USD."""
    account = BillingAccount.objects.get(pk=key.organization_id)
    return account.balance_micro, account.held_micro, account.spent_micro


def budget_of(key: ApiKey) -> tuple[int, int]:
    """Return held and spent of the only period that the key's budget has, in micro-USD."""
    period = BudgetPeriod.objects.get(budget__key_family=key.family)
    return period.held_micro, period.spent_micro


def race[T](
    count: int,
    work: Callable[[int], T],
    *,
    losing: type[Exception] | tuple[type[Exception], ...] = (),
) -> list[T | Exception]:
    """Run work(0) … work(count - 1) at once, each on a thread and a connection of its own.

    Returns what each returned, or its exception where that is a `losing` one; others are raised.
    """
    start = threading.Barrier(count)

    def run(number: int) -> T | Exception:
        try:
            connection.ensure_connection()
            start.wait(START_SECONDS)
            return work(number)
        except losing as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))
