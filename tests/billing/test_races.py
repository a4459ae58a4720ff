"""Money under many hands at once: threads with their own connections, on a real database."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError
from django.db.models import Sum

from accounts.models import ApiKey
from billing import budgets, holds, ledger, prices
from billing.budgets import BudgetExceeded
from billing.holds import HoldLost, InsufficientBalance
from billing.models import (
    BillingAccount,
    Budget,
    BudgetPeriod,
    EntryKind,
    Hold,
    HoldState,
    LedgerEntry,
    Period,
    PriceVersion,
)
from tests.billing import authorize, budget_of, money_of, race
from tests.factories import KeyFactory

THREADS = 40
EACH = 2
PRICE = 40_000


def storm(*keys: ApiKey, refused: type[Exception]) -> list[Hold]:
    """Ask for one image EACH times on each of THREADS threads; return the holds that were given."""

    def ask(number: int) -> list[Hold]:
        given = []
        for turn in range(EACH):
            try:
                given.append(authorize(keys[(number + turn) % len(keys)]))
            except refused:
                pass
        return given

    return [hold for given in race(THREADS, ask) for hold in given]  # type: ignore[union-attr]


@pytest.mark.parametrize(("balance", "credit"), [("2.00", "0"), ("0", "2.00"), ("1.50", "0.53")])
def test_an_account_is_never_overspent(
    transactional_db: None, balance: str, credit: str
) -> None:
    prices.publish({"a/cheap": PRICE})
    key = KeyFactory(organization__bonus=balance, organization__credit_limit=credit).row
    start = money_of(key)[0]

    given = storm(key, refused=InsufficientBalance)

    assert len(given) == Hold.objects.count() == 50
    assert money_of(key) == (start, 50 * PRICE, 0)


def test_a_budget_is_never_overspent_and_its_refusals_hold_nothing(
    transactional_db: None,
) -> None:
    prices.publish({"a/cheap": PRICE})
    key = KeyFactory(organization__bonus="2.00").row
    free = KeyFactory(organization=key.organization).row
    budgets.set_budget(key, 30 * PRICE + PRICE - 1, Period.MONTH)

    given = storm(key, refused=BudgetExceeded)

    assert len(given) == 30
    assert budget_of(key) == (30 * PRICE, 0)
    assert money_of(key) == (2_000_000, 30 * PRICE, 0)
    # What the budget refused is still there for another key.
    assert len(storm(free, refused=InsufficientBalance)) == 20
    assert money_of(key) == (2_000_000, 50 * PRICE, 0)


def test_two_budgets_and_the_account_hold_together(transactional_db: None) -> None:
    prices.publish({"a/cheap": PRICE})
    one = KeyFactory(organization__bonus="2.00").row
    two = KeyFactory(organization=one.organization).row
    budgets.set_budget(one, 35 * PRICE, Period.DAY)
    budgets.set_budget(two, 35 * PRICE, Period.WEEK)

    def ask(number: int) -> Counter[type]:
        seen: Counter[type] = Counter()
        for turn in range(EACH):
            try:
                seen[type(authorize((one, two)[(number + turn) % 2]))] += 1
            except (InsufficientBalance, BudgetExceeded) as error:
                seen[type(error)] += 1
        return seen

    seen: Counter[type] = Counter()
    for part in race(THREADS, ask):
        seen += part  # type: ignore[arg-type]
    # 80 are asked for, 40 by each: the account covers 50, each budget 35.
    assert seen[Hold] == 50
    assert seen.total() == 80
    assert money_of(one) == (2_000_000, 50 * PRICE, 0)
    held = [budget_of(key)[0] for key in (one, two)]
    assert sum(held) == 50 * PRICE
    assert max(held) <= 35 * PRICE


SETTLE: dict[str, Callable[[Hold], Any]] = {
    "captured": lambda hold: holds.capture(hold, model="a/cheap", delivered=2),
    "released": holds.release,
    "expired": holds.expire,
}


@pytest.mark.parametrize("ways", [["captured"], ["captured", "released", "expired"]])
def test_a_hold_is_settled_by_exactly_one(committed_key: ApiKey, ways: list[str]) -> None:
    budgets.set_budget(committed_key, 1_000_000, Period.DAY)
    other, hold = authorize(committed_key), authorize(committed_key, quantity=2)

    def settle(number: int) -> str:
        way = ways[number % len(ways)]
        SETTLE[way](Hold.objects.get(pk=hold.pk))
        return way

    won = [result for result in race(12, settle, losing=HoldLost) if isinstance(result, str)]

    assert len(won) == 1
    hold.refresh_from_db()
    assert hold.state == won[0]
    spent = 2 * PRICE if won == ["captured"] else 0
    assert money_of(committed_key) == (10_000_000 - spent, other.amount_micro, spent)
    assert budget_of(committed_key) == (other.amount_micro, spent)
    assert LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION).count() == len(
        [way for way in won if way == "captured"]
    )


def test_all_that_can_happen_at_once_ends_with_books_that_agree(committed_key: ApiKey) -> None:
    stranger = KeyFactory(organization=committed_key.organization).row
    budgets.set_budget(committed_key, 1_000_000, Period.DAY)
    organization = committed_key.organization

    def live(number: int) -> None:
        key = (committed_key, stranger)[number % 2]
        for turn in range(3):
            hold = authorize(key, quantity=2)
            way = list(SETTLE)[(number + turn) % 3]
            SETTLE[way](hold)
            ledger.record(
                organization, EntryKind.RECHARGE, 1, entry_key=f"t:{number}:{turn}", note=""
            )
            budgets.set_budget(committed_key, 1_000_000 + number, Period.DAY)

    race(12, live)

    captured = Hold.objects.filter(state=HoldState.CAPTURED).count()
    assert captured == 12
    spent = captured * 2 * PRICE
    assert money_of(committed_key) == (10_000_000 - spent + 36, 0, spent)
    assert LedgerEntry.objects.aggregate(sum=Sum("amount_micro"))["sum"] == 10_000_036 - spent
    of_budget = LedgerEntry.objects.filter(api_key=committed_key, kind=EntryKind.CONSUMPTION)
    assert budget_of(committed_key) == (0, of_budget.count() * 2 * PRICE)
    # Every row tells the balance that the rows before it lead to.
    balance = 0
    for entry in LedgerEntry.objects.order_by("pk"):
        balance += entry.amount_micro
        assert entry.balance_micro == balance
    assert BillingAccount.objects.get().balance_micro == balance


def test_one_entry_key_from_ten_hosts_moves_the_balance_once(committed_key: ApiKey) -> None:
    def recharge(number: int) -> LedgerEntry | None:
        return ledger.record(
            committed_key.organization, EntryKind.RECHARGE, 5, entry_key="topup:pi_1", note=""
        )

    written = [entry for entry in race(10, recharge) if entry is not None]

    assert len(written) == 1
    assert LedgerEntry.objects.filter(entry_key="topup:pi_1").count() == 1
    assert money_of(committed_key) == (10_000_005, 0, 0)


def test_a_request_sent_ten_times_is_held_once(committed_key: ApiKey) -> None:
    results = race(
        10, lambda _: authorize(committed_key, request_id="req_1"), losing=IntegrityError
    )
    assert len([result for result in results if isinstance(result, Hold)]) == 1
    assert money_of(committed_key) == (10_000_000, PRICE, 0)


def test_a_price_published_on_ten_hosts_is_one_version(transactional_db: None) -> None:
    published = race(10, lambda _: prices.publish({"a/cheap": PRICE, "b/middle": 65_000}))
    models = sorted(version.model for versions in published for version in versions)  # type: ignore[union-attr]
    assert models == ["a/cheap", "b/middle"]
    assert sorted(PriceVersion.objects.values_list("model", "version")) == [
        ("a/cheap", 1),
        ("b/middle", 1),
    ]


def test_different_prices_published_at_once_are_versions_in_a_row(transactional_db: None) -> None:
    race(8, lambda number: prices.publish({"a/cheap": PRICE + number}))
    rows = list(PriceVersion.objects.order_by("version").values_list("version", "unit_micro"))
    assert [version for version, _ in rows] == list(range(1, 9))
    assert sorted(unit for _, unit in rows) == [PRICE + number for number in range(8)]


def test_a_budget_set_on_ten_hosts_is_one_row(committed_key: ApiKey) -> None:
    race(10, lambda number: budgets.set_budget(committed_key, number, Period.DAY))
    assert Budget.objects.count() == 1


def test_a_period_that_begins_under_many_requests_is_one_row(committed_key: ApiKey) -> None:
    budgets.set_budget(committed_key, 1_000_000, Period.DAY)
    race(10, lambda _: authorize(committed_key))
    assert BudgetPeriod.objects.count() == 1
    assert budget_of(committed_key) == (10 * PRICE, 0)
