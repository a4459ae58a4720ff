"""Any order of steps against a plain-Python model of the money: both must always agree."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from accounts import keys
from accounts.models import ApiKey
from billing import budgets, holds, ledger, prices
from billing.budgets import BudgetExceeded, period_start
from billing.holds import HoldLost, InsufficientBalance
from billing.models import (
    BillingAccount,
    BudgetPeriod,
    EntryKind,
    Hold,
    HoldState,
    LedgerEntry,
    Period,
)
from tests.billing import PRICES, authorize, capture, expire, release
from tests.factories import KeyFactory

MODELS = sorted(PRICES)


@dataclass
class Expected:
    """What the books must say, kept without a database."""

    balance: int = 1_000_000
    credit: int = 0
    held: int = 0
    spent: int = 0
    prices: dict[str, int] = field(default_factory=lambda: dict(PRICES))
    budget: tuple[int, Period] | None = None
    # Held and spent of the budget's periods, by their start.
    periods: defaultdict[datetime, list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0, 0])
    )


@dataclass
class Open:
    """A hold as the model remembers it."""

    row: Hold
    amount: int
    quotes: dict[str, int]
    quantity: int
    period: datetime | None
    captured: int = 0
    settled: bool = False

    @property
    def left(self) -> int:
        """What of the amount is still held."""
        return self.amount // self.quantity * (self.quantity - self.captured)


class Money(RuleBasedStateMachine):
    """Authorize, capture, release, expire, and all that changes what is allowed meanwhile."""

    @initialize()
    def begin(self) -> None:
        self.steps = self._in_a_transaction()
        next(self.steps)
        prices.publish(PRICES)
        first = KeyFactory(organization__bonus="1").row
        second = keys.rotate(first, overlap=timedelta(days=1)).row
        free = KeyFactory(organization=first.organization).row
        self.keys: list[ApiKey] = [first, second, free]
        self.organization = first.organization
        self.expected = Expected()
        self.holds: list[Open] = []
        self.recharges = 0

    def _in_a_transaction(self) -> Iterator[None]:
        with transaction.atomic():
            yield
            transaction.set_rollback(True)

    def teardown(self) -> None:
        if hasattr(self, "steps"):
            with contextlib.suppress(StopIteration):
                next(self.steps)

    @rule(
        key=st.integers(0, 2),
        models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=3, unique=True),
        quantity=st.integers(1, 8),
    )
    def authorize(self, key: int, models: list[str], quantity: int) -> None:
        expected = self.expected
        amount = quantity * max(expected.prices[model] for model in models)
        budget = expected.budget if key < 2 else None
        start = period_start(budget[1], timezone.now()) if budget else None
        wanted: type[Exception] | None = None
        refused: type[Exception] | None
        if amount > expected.balance + expected.credit - expected.held:
            wanted = InsufficientBalance
        elif budget and start and sum(expected.periods[start]) + amount > budget[0]:
            wanted = BudgetExceeded
        try:
            hold = authorize(self.keys[key], *models, quantity=quantity)
        except (InsufficientBalance, BudgetExceeded) as error:
            refused = type(error)
        else:
            refused = None
        assert refused is wanted
        if refused:
            return
        expected.held += amount
        if start:
            expected.periods[start][0] += amount
        quotes = {model: expected.prices[model] for model in models}
        self.holds.append(Open(hold, amount, quotes, quantity, start))

    def _settle(self, hold: Open, spent: int, settle: Callable[[Hold], Any]) -> None:
        expected = self.expected
        try:
            settle(hold.row)
        except HoldLost:
            assert hold.settled
            return
        assert not hold.settled
        hold.settled = True
        expected.held -= hold.left
        expected.balance -= spent
        expected.spent += spent
        if hold.period:
            expected.periods[hold.period][0] -= hold.left
            expected.periods[hold.period][1] += spent

    @precondition(lambda self: self.holds)
    @rule(which=st.integers(0, 30), model=st.integers(0, 2), part=st.integers(0, 7))
    def capture(self, which: int, model: int, part: int) -> None:
        hold = self.holds[which % len(self.holds)]
        name = sorted(hold.quotes)[model % len(hold.quotes)]
        if hold.captured == hold.quantity:
            return
        delivered = 1 + part % (hold.quantity - hold.captured)
        self._settle(
            hold,
            delivered * hold.quotes[name],
            lambda row: capture(row, model=name, delivered=delivered),
        )

    @precondition(lambda self: self.holds)
    @rule(which=st.integers(0, 30), model=st.integers(0, 2))
    def capture_one(self, which: int, model: int) -> None:
        hold, expected = self.holds[which % len(self.holds)], self.expected
        name = sorted(hold.quotes)[model % len(hold.quotes)]
        try:
            with transaction.atomic():
                holds.capture_one(hold.row, model=name)
        except HoldLost:
            assert hold.settled or hold.captured == hold.quantity
            return
        assert not hold.settled
        assert hold.captured < hold.quantity
        unit, spent = hold.amount // hold.quantity, hold.quotes[name]
        hold.captured += 1
        hold.row.captured += 1
        expected.held -= unit
        expected.balance -= spent
        expected.spent += spent
        if hold.period:
            expected.periods[hold.period][0] -= unit
            expected.periods[hold.period][1] += spent

    @precondition(lambda self: self.holds)
    @rule(which=st.integers(0, 30), settle=st.sampled_from([release, expire]))
    def give_back(self, which: int, settle: Callable[[Hold], None]) -> None:
        self._settle(self.holds[which % len(self.holds)], 0, settle)

    @rule(limit=st.sampled_from([0, 40_000, 250_000, 2_000_000]), period=st.sampled_from(Period))
    def set_budget(self, limit: int, period: Period) -> None:
        budgets.set_budget(self.keys[0], limit, period)
        self.expected.budget = (limit, period)

    @rule(limit=st.sampled_from([0, 40_000, 1_000_000]))
    def set_credit_limit(self, limit: int) -> None:
        BillingAccount.objects.update(credit_limit_micro=limit)
        self.expected.credit = limit

    @rule(model=st.sampled_from(MODELS), unit=st.sampled_from([1, 40_000, 65_000, 333_333]))
    def publish(self, model: str, unit: int) -> None:
        prices.publish({model: unit})
        self.expected.prices[model] = unit

    @rule(amount=st.integers(1, 500_000), again=st.booleans())
    def recharge(self, amount: int, again: bool) -> None:
        known = again and self.recharges > 0
        self.recharges += not known
        key = f"topup:{self.recharges}"
        entry = ledger.record(self.organization, EntryKind.RECHARGE, amount, entry_key=key, note="")
        assert (entry is None) == known
        self.expected.balance += 0 if known else amount

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "expected"):
            return
        expected = self.expected
        account = BillingAccount.objects.get()
        open_holds = Hold.objects.filter(state=HoldState.HELD)
        entries = LedgerEntry.objects.all()
        used = entries.filter(kind=EntryKind.CONSUMPTION)
        assert account.balance_micro == expected.balance == _sum(entries, "amount_micro")
        assert account.held_micro == expected.held == _left(open_holds)
        assert account.spent_micro == expected.spent == -_sum(used, "amount_micro")
        newest = ledger.movements(self.organization).first()
        assert newest is not None
        assert newest.balance_after == account.balance_micro
        assert _sum(used, "quantity") == _sum(Hold.objects.all(), "captured")
        for period in BudgetPeriod.objects.all():
            mine = open_holds.filter(budget_period=period)
            spent = used.filter(hold__budget_period=period)
            assert period.held_micro == _left(mine)
            assert period.spent_micro == -_sum(spent, "amount_micro")
            told = expected.periods[period.starts_at]
            assert [period.held_micro, period.spent_micro] == told


def _left(rows: Any) -> int:
    return sum(
        hold.amount_micro // hold.quantity * (hold.quantity - hold.captured) for hold in rows
    )


def _sum(rows: Any, name: str) -> int:
    return int(rows.aggregate(total=Sum(name))["total"] or 0)


@pytest.mark.django_db
def test_the_books_agree_with_a_plain_model_after_every_step() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Money,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
