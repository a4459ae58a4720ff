"""Any order of steps against a plain-Python model of the money: both must always agree."""

import contextlib
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
from billing.models import (
    AccountStatus,
    BillingAccount,
    Budget,
    BudgetPeriod,
    EntryKind,
    Hold,
    HoldState,
    LedgerEntry,
    Period,
    scopes,
)
from billing.models.scopes import Holder
from billing.spending import budgets, holds, ledger, prices
from billing.spending.budgets import BudgetExceeded, period_start
from billing.spending.holds import AccountSuspended, HoldLost, InsufficientBalance
from tests.billing import PRICES, authorize, capture, expire, release
from tests.factories import KeyFactory, UserFactory

MODELS = sorted(PRICES)
# Whose budgets cover which key: two of one family and maker, one of the same maker, one of nobody.
# Those of the organization cover all; those of a tag its key, and requests that have the tag.
SCOPES = [
    ("key", "member", "organization"),
    ("key", "member", "organization"),
    ("member", "tag", "organization"),
    ("organization",),
]


@dataclass
class Used:
    """What one period of a budget must say: micro-USD and images."""

    held: int = 0
    spent: int = 0
    held_images: int = 0
    spent_images: int = 0


@dataclass
class Limits:
    """A budget as the model remembers it, and what each of its periods must say."""

    micro: int | None
    images: int | None
    periods: dict[datetime, Used] = field(default_factory=dict)

    def cover(self, start: datetime, amount: int, quantity: int) -> bool:
        """Return whether a request of so much fits."""
        used = self.periods.get(start, Used())
        return (self.micro is None or used.held + used.spent + amount <= self.micro) and (
            self.images is None or used.held_images + used.spent_images + quantity <= self.images
        )


@dataclass
class Expected:
    """What the books must say, kept without a database."""

    balance: int = 1_000_000
    credit: int = 0
    held: int = 0
    spent: int = 0
    suspended: bool = False
    prices: dict[str, int] = field(default_factory=lambda: dict(PRICES))
    budgets: dict[tuple[str, Period], Limits] = field(default_factory=dict)


@dataclass
class Open:
    """A hold as the model remembers it."""

    row: Hold
    amount: int
    quotes: dict[str, int]
    quantity: int
    periods: list[Used]
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
        self.member = UserFactory()
        first = KeyFactory(organization__bonus="1", actor=self.member).row
        self.organization = first.organization
        second = keys.rotate(first, overlap=timedelta(days=1), actor=self.member).row
        other = KeyFactory(organization=self.organization, actor=self.member, tags=["web"]).row
        free = KeyFactory(organization=self.organization).row
        self.keys: list[ApiKey] = [first, second, other, free]
        self.holders = {
            one.scope.name: one
            for one in (
                Holder(scopes.KEY, first.family),
                Holder(scopes.MEMBER, self.member.pk),
                Holder(scopes.TAG, "web"),
                Holder(scopes.ORGANIZATION),
            )
        }
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

    def _covering(self, key: int, tags: tuple[str, ...]) -> list[tuple[datetime, Limits]]:
        now = timezone.now()
        return [
            (period_start(period, now), limits)
            for (scope, period), limits in self.expected.budgets.items()
            if scope in SCOPES[key] or (scope == "tag" and "web" in tags)
        ]

    def _refusal(
        self, covering: list[tuple[datetime, Limits]], amount: int, quantity: int
    ) -> type[Exception] | None:
        expected = self.expected
        if expected.suspended:
            return AccountSuspended
        if amount > expected.balance + expected.credit - expected.held:
            return InsufficientBalance
        if all(limits.cover(at, amount, quantity) for at, limits in covering):
            return None
        return BudgetExceeded

    @rule(
        key=st.integers(0, 3),
        models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=3, unique=True),
        quantity=st.integers(1, 8),
        tags=st.sampled_from([(), ("web",), ("app", "web"), ("app",)]),
    )
    def authorize(self, key: int, models: list[str], quantity: int, tags: tuple[str, ...]) -> None:
        expected = self.expected
        amount = quantity * max(expected.prices[model] for model in models)
        covering = self._covering(key, tags)
        wanted = self._refusal(covering, amount, quantity)
        refused: type[Exception] | None = None
        try:
            hold = authorize(self.keys[key], *models, quantity=quantity, tags=tags)
        except (InsufficientBalance, BudgetExceeded) as error:
            refused = type(error)
        assert refused is wanted
        if refused:
            return
        expected.held += amount
        periods = [limits.periods.setdefault(start, Used()) for start, limits in covering]
        for used in periods:
            used.held += amount
            used.held_images += quantity
        quotes = {model: expected.prices[model] for model in models}
        self.holds.append(Open(hold, amount, quotes, quantity, periods))

    def _move(self, hold: Open, *, held: int, spent: int, held_images: int, images: int) -> None:
        expected = self.expected
        expected.held -= held
        expected.balance -= spent
        expected.spent += spent
        for used in hold.periods:
            used.held -= held
            used.spent += spent
            used.held_images -= held_images
            used.spent_images += images

    def _settle(
        self, hold: Open, spent: int, images: int, settle: Callable[[Hold], object]
    ) -> None:
        try:
            settle(hold.row)
        except HoldLost:
            assert hold.settled
            return
        assert not hold.settled
        hold.settled = True
        left = hold.quantity - hold.captured
        self._move(hold, held=hold.left, spent=spent, held_images=left, images=images)

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
            delivered,
            lambda row: capture(row, model=name, delivered=delivered),
        )

    @precondition(lambda self: self.holds)
    @rule(which=st.integers(0, 30), model=st.integers(0, 2))
    def capture_one(self, which: int, model: int) -> None:
        hold = self.holds[which % len(self.holds)]
        name = sorted(hold.quotes)[model % len(hold.quotes)]
        try:
            with transaction.atomic():
                holds.capture_one(hold.row, sku=name)
        except HoldLost:
            assert hold.settled or hold.captured == hold.quantity
            return
        assert not hold.settled
        assert hold.captured < hold.quantity
        hold.captured += 1
        hold.row.captured += 1
        unit = hold.amount // hold.quantity
        self._move(hold, held=unit, spent=hold.quotes[name], held_images=1, images=1)

    @precondition(lambda self: self.holds)
    @rule(which=st.integers(0, 30), settle=st.sampled_from([release, expire]))
    def give_back(self, which: int, settle: Callable[[Hold], None]) -> None:
        self._settle(self.holds[which % len(self.holds)], 0, 0, settle)

    @rule(
        scope=st.sampled_from(["key", "member", "tag", "organization"]),
        limits=st.sampled_from([(0, None), (250_000, None), (2_000_000, 9), (None, 5), (None, 0)]),
        period=st.sampled_from(Period),
    )
    def set_budget(self, scope: str, limits: tuple[int | None, int | None], period: Period) -> None:
        micro, images = limits
        holder = self.holders[scope]
        budgets.set_for(self.organization.pk, holder, micro, period, limit_images=images)
        known = self.expected.budgets.setdefault((scope, period), Limits(micro, images))
        known.micro, known.images = micro, images

    @precondition(lambda self: self.expected.budgets)
    @rule(which=st.integers(0, 11))
    def remove_budget(self, which: int) -> None:
        scope, period = list(self.expected.budgets)[which % len(self.expected.budgets)]
        budgets.remove(Budget.objects.get(scope=scope, period=period))
        # A hold that was in it is settled without it.
        del self.expected.budgets[scope, period]

    @rule(suspended=st.booleans())
    def suspend(self, suspended: bool) -> None:
        status = AccountStatus.SUSPENDED if suspended else AccountStatus.OK
        BillingAccount.objects.update(status=status)
        self.expected.suspended = suspended

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
        assert _told() == {
            (scope, period, start): row
            for (scope, period), limits in expected.budgets.items()
            for start, row in limits.periods.items()
        }


def _told() -> dict[tuple[str, str, datetime], Used]:
    """Return what the rows of the budgets' periods say, refused requests' empty ones left out."""
    return {
        (row.budget.scope, row.budget.period, row.starts_at): Used(
            row.held_micro, row.spent_micro, row.held_images, row.spent_images
        )
        for row in BudgetPeriod.objects.select_related("budget")
    }


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
            max_examples=40,
            stateful_step_count=25,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
