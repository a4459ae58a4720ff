"""Money under many hands at once: threads with their own connections, on a real database."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import Sum

from accounts.models import ApiKey
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
    scopes,
)
from billing.models.scopes import Holder
from billing.spending import budgets, holds, ledger, limits, prices
from billing.spending.budgets import BudgetExceeded
from billing.spending.holds import HoldLost, InsufficientBalance
from tests.billing import SETTLE, authorize, budget_of, capture, money_of, race, release
from tests.factories import KeyFactory, UserFactory

THREADS = 40
PRICE = 40_000


def storm(*keys: ApiKey) -> Counter[type]:
    """Ask for one image on each of THREADS threads; return how often which answer came."""
    answers = race(
        THREADS,
        lambda number: authorize(keys[number % len(keys)]),
        losing=(InsufficientBalance, BudgetExceeded),
    )
    return Counter(type(answer) for answer in answers)


@pytest.mark.parametrize(("balance", "credit"), [("1.00", "0"), ("0", "1.00"), ("0.70", "0.33")])
def test_an_account_is_never_overspent(transactional_db: None, balance: str, credit: str) -> None:
    prices.publish({"a/cheap": PRICE})
    key = KeyFactory(organization__bonus=balance, organization__credit_limit=credit).row
    start = money_of(key)[0]

    answers = storm(key)

    assert answers == {Hold: 25, InsufficientBalance: THREADS - 25}
    assert Hold.objects.count() == 25
    assert money_of(key) == (start, 25 * PRICE, 0)


def test_a_budget_is_never_overspent_and_its_refusals_hold_nothing(
    transactional_db: None,
) -> None:
    prices.publish({"a/cheap": PRICE})
    key = KeyFactory(organization__bonus="1.00").row
    free = KeyFactory(organization=key.organization).row
    budgets.set_budget(key, 15 * PRICE + PRICE - 1, Period.MONTH)

    assert storm(key) == {Hold: 15, BudgetExceeded: THREADS - 15}
    assert budget_of(key) == (15 * PRICE, 0)
    assert money_of(key) == (1_000_000, 15 * PRICE, 0)
    # What the budget refused is still there for another key.
    assert storm(free) == {Hold: 10, InsufficientBalance: THREADS - 10}
    assert money_of(key) == (1_000_000, 25 * PRICE, 0)


def test_two_budgets_and_the_account_hold_together(transactional_db: None) -> None:
    prices.publish({"a/cheap": PRICE})
    one = KeyFactory(organization__bonus="1.00").row
    two = KeyFactory(organization=one.organization).row
    budgets.set_budget(one, 18 * PRICE, Period.DAY)
    budgets.set_budget(two, 18 * PRICE, Period.WEEK)

    # Each asks for 20, its budget covers 18, and the account 25 of both.
    assert storm(one, two)[Hold] == 25
    assert money_of(one) == (1_000_000, 25 * PRICE, 0)
    held = [budget_of(key)[0] for key in (one, two)]
    assert sum(held) == 25 * PRICE
    assert max(held) <= 18 * PRICE


@pytest.mark.parametrize(
    ("tightest", "passing"),
    [("balance", 25), ("key-day", 17), ("key-month", 16), ("member-week", 15), ("images", 14)],
)
def test_budgets_of_several_scopes_hold_together_or_not_at_all(
    transactional_db: None, tightest: str, passing: int
) -> None:
    """Two keys of one maker: each has budgets of its own, and both share the maker's."""
    prices.publish({"a/cheap": PRICE})
    alice = UserFactory()
    one = KeyFactory(organization__bonus="1.00", actor=alice).row
    two = KeyFactory(organization=one.organization, actor=alice).row
    room = dict.fromkeys(("key-day", "key-month", "member-week", "images"), 2 * THREADS)
    room |= {tightest: passing} if tightest in room else {}
    # Made in this order for one key and in the other for the other: the rows are always taken
    # in the order of their ids, so nobody waits for somebody who waits for him.
    budgets.set_budget(one, room["key-day"] * PRICE, Period.DAY)
    budgets.set_budget(one, room["key-month"] * PRICE + PRICE - 1, Period.MONTH)
    budgets.set_for(
        one.organization.pk,
        Holder(scopes.MEMBER, alice.pk),
        room["member-week"] * PRICE,
        Period.WEEK,
    )
    budgets.set_for(
        one.organization.pk,
        Holder(scopes.MEMBER, alice.pk),
        None,
        Period.DAY,
        limit_images=room["images"],
    )
    budgets.set_budget(two, THREADS * PRICE, Period.MONTH)
    budgets.set_budget(two, None, Period.DAY, limit_images=THREADS)

    mine = [one] if tightest.startswith("key") else [one, two]
    answers = storm(*mine)

    refused = InsufficientBalance if tightest == "balance" else BudgetExceeded
    assert answers == {Hold: passing, refused: THREADS - passing}
    assert money_of(one) == (1_000_000, passing * PRICE, 0)
    held = Counter[ApiKey | None](hold.api_key for hold in Hold.objects.select_related("api_key"))
    told = {
        (row.budget.key_family, row.budget.period): (row.held_micro, row.held_images)
        for row in BudgetPeriod.objects.select_related("budget")
    }
    expected = {(None, period): passing for period in ("week", "day")}
    for key in mine:
        if held[key]:
            expected |= {(key.family, period): held[key] for period in ("day", "month")}
    assert told == {name: (count * PRICE, count) for name, count in expected.items()}


def test_many_scopes_settled_at_once_end_with_nothing_held(transactional_db: None) -> None:
    prices.publish({"a/cheap": PRICE})
    alice = UserFactory()
    one = KeyFactory(organization__bonus="10", actor=alice).row
    two = KeyFactory(organization=one.organization, actor=alice).row
    for key in (one, two):
        for period in Period:
            budgets.set_budget(key, 1_000_000, period, limit_images=1_000)
    for period in Period:
        budgets.set_for(one.organization.pk, Holder(scopes.MEMBER, alice.pk), 2_000_000, period)

    def live(number: int) -> str:
        key = (one, two)[number % 2]
        for turn in range(2):
            way = list(SETTLE)[(number // 2 + turn) % 3]
            SETTLE[way](authorize(key))
        return way

    race(12, live)

    assert not Hold.objects.filter(state=HoldState.HELD).exists()
    captured = {
        key: Hold.objects.filter(api_key=key, state="captured").count() for key in (one, two)
    }
    assert captured == {one: 4, two: 4}
    for row in BudgetPeriod.objects.select_related("budget"):
        count = 4 if row.budget.key_family else 8
        assert (row.spent_micro, row.spent_images) == (count * PRICE, count)
        assert (row.held_micro, row.held_images) == (0, 0)
    assert BudgetPeriod.objects.count() == 9


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
    spent = PRICE if won == ["captured"] else 0
    assert money_of(committed_key) == (10_000_000 - spent, other.amount_micro, spent)
    assert budget_of(committed_key) == (other.amount_micro, spent)
    assert LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION).count() == len(
        [way for way in won if way == "captured"]
    )


@pytest.mark.parametrize("budget", [False, True])
@pytest.mark.parametrize("way", SETTLE)
def test_a_hold_that_is_the_only_one_is_settled_by_exactly_one(
    committed_key: ApiKey, way: str, budget: bool
) -> None:
    """Nothing else is held, so whoever comes second finds too little, not a hold that is over."""
    if budget:
        budgets.set_budget(committed_key, 1_000_000, Period.DAY)
        # Held beside it, but not in the budget: there the second finds too little only there.
        authorize(KeyFactory(organization=committed_key.organization).row)
    hold = authorize(committed_key)

    settled = race(8, lambda _: SETTLE[way](Hold.objects.get(pk=hold.pk)), losing=HoldLost)

    assert len([one for one in settled if not isinstance(one, HoldLost)]) == 1
    spent = PRICE if way == "captured" else 0
    assert money_of(committed_key) == (10_000_000 - spent, PRICE if budget else 0, spent)
    assert not budget or budget_of(committed_key) == (0, spent)


def _waiting(pid: int) -> bool:
    """Return whether the session waits for another's lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid])
        return bool(cursor.fetchone()[0])


@pytest.mark.postgresql
@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
@pytest.mark.parametrize(
    "settle",
    [capture, release, lambda hold: holds.capture_one(hold, sku="a/cheap")],
    ids=["capture", "release", "capture_one"],
)
def test_a_request_that_comes_again_while_its_hold_is_settled_waits_in_no_circle(
    committed_key: ApiKey, settle: Callable[[Hold], object]
) -> None:
    """The second asks for the account, then for the hold that is there already; so must the first.

    Both stand in line for the account, the second before the first.
    """
    hold = authorize(committed_key, request_id="req_1")
    pids: list[int] = []
    came = threading.Semaphore(0)

    def work[T](do: Callable[[], T]) -> T | Exception:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                pids.append(cursor.fetchone()[0])
            came.release()
            return do()
        except Exception as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as threads:
        with transaction.atomic():
            BillingAccount.objects.select_for_update().get(pk=committed_key.organization_id)
            both = []
            for do in (lambda: authorize(committed_key, request_id="req_1"), lambda: settle(hold)):
                both.append(threads.submit(work, do))
                assert came.acquire(timeout=30)
                while not _waiting(pids[-1]):
                    pass
        again, settled = (one.result(timeout=30) for one in both)

    assert isinstance(again, IntegrityError)
    assert not isinstance(settled, Exception), settled
    spent = 0 if settle is release else PRICE
    assert money_of(committed_key) == (10_000_000 - spent, 0, spent)


def test_of_a_part_charged_by_many_at_once_one_wins(committed_key: ApiKey) -> None:
    hold = authorize(committed_key, quantity=3)

    def charge(number: int) -> LedgerEntry:
        return holds.capture_one(Hold.objects.get(pk=hold.pk), sku="a/cheap")

    def charge_the_same(number: int) -> LedgerEntry:
        return holds.capture_one(hold, sku="a/cheap")

    won = race(12, charge_the_same, losing=HoldLost)
    assert len([one for one in won if isinstance(one, LedgerEntry)]) == 1
    assert money_of(committed_key) == (10_000_000 - PRICE, 2 * PRICE, PRICE)
    # However they meet, no more is charged than was held.
    race(12, charge, losing=HoldLost)
    race(12, charge, losing=HoldLost)
    hold.refresh_from_db()
    assert hold.captured == hold.quantity == 3
    assert money_of(committed_key) == (10_000_000 - 3 * PRICE, 0, 3 * PRICE)


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
    spent = captured * PRICE
    assert money_of(committed_key) == (10_000_000 - spent + 36, 0, spent)
    assert LedgerEntry.objects.aggregate(sum=Sum("amount_micro"))["sum"] == 10_000_036 - spent
    of_budget = LedgerEntry.objects.filter(api_key=committed_key, kind=EntryKind.CONSUMPTION)
    assert budget_of(committed_key) == (0, of_budget.count() * PRICE)
    # Every row tells the balance that the rows before it lead to.
    balance = 0
    for entry in reversed(ledger.movements(organization)):
        balance += entry.amount_micro
        assert entry.balance_after == balance
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
    models = sorted(version.sku for versions in published for version in versions)  # type: ignore[union-attr]
    assert models == ["a/cheap", "b/middle"]
    assert sorted(PriceVersion.objects.values_list("sku", "version")) == [
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


def test_a_budget_is_set_and_removed_while_requests_hold_in_it(transactional_db: None) -> None:
    prices.publish({"a/cheap": PRICE})
    key = KeyFactory(organization__bonus="100").row
    rounds = 40

    def work(number: int) -> None:
        for _ in range(rounds):
            if number:
                release(authorize(key))
            else:
                limits.remove_budget(budgets.set_budget(key, 100 * PRICE, Period.DAY), actor=None)

    assert race(5, work) == [None] * 5
    assert Hold.objects.filter(state=HoldState.RELEASED).count() == 4 * rounds
    assert not Budget.objects.exists()
    assert not BudgetPeriod.objects.exists()
    assert money_of(key) == (100_000_000, 0, 0)
