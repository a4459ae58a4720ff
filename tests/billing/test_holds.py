"""Holds: what is set aside, what is spent, and what stops a request that cannot be paid for."""

import itertools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone as clock

from accounts import keys, members
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
    scopes,
)
from billing.models.scopes import Holder
from billing.spending import budgets, holds, ledger, prices
from billing.spending.budgets import BudgetExceeded, period_start
from billing.spending.holds import HoldLost, InsufficientBalance
from tests.billing import SETTLE, authorize, budget_of, capture, expire, money_of, release
from tests.factories import KeyFactory, UserFactory

TEN = 10_000_000


def consumption() -> list[LedgerEntry]:
    return list(LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION).order_by("pk"))


def test_authorizing_sets_the_price_aside_and_spends_nothing(key: ApiKey) -> None:
    owner, before = uuid.uuid4(), clock.now()
    hold = authorize(key, quantity=3, request_id="req_1", owner=owner, lease=timedelta(seconds=90))

    assert money_of(key) == (TEN, 120_000, 0)
    assert consumption() == []
    saved = Hold.objects.get()
    assert saved.pk == hold.pk
    assert (saved.organization_id, saved.api_key_id) == (key.organization_id, key.pk)
    assert (saved.request_id, saved.quantity, saved.amount_micro) == ("req_1", 3, 120_000)
    assert (saved.state, saved.settled_at, saved.owner) == (HoldState.HELD, None, owner)
    assert saved.budget_periods == []
    assert before + timedelta(seconds=90) <= saved.lease_until
    assert saved.lease_until <= clock.now() + timedelta(seconds=90)


@pytest.mark.parametrize("delivered", [1, 2, 3, 4])
def test_k_delivered_of_n_charge_k_and_give_the_rest_back(key: ApiKey, delivered: int) -> None:
    hold = authorize(key, "b/middle", quantity=4, request_id="req_1")
    entry = capture(hold, model="b/middle", delivered=delivered)

    spent = delivered * 65_000
    assert money_of(key) == (TEN - spent, 0, spent)
    (saved,) = consumption()
    assert saved.entry_key == entry.entry_key == f"use:{hold.pk}:0"
    assert saved.first_unit == entry.first_unit == 0
    assert saved.amount_micro == -spent
    assert (saved.sku, saved.quantity, saved.request_id) == ("b/middle", delivered, "req_1")
    assert (saved.hold_id, saved.api_key_id) == (hold.pk, key.pk)
    assert saved.organization_id == key.organization_id
    hold.refresh_from_db()
    assert hold.state == HoldState.CAPTURED
    assert hold.settled_at is not None


def capture_one(hold: Hold, model: str = "a/cheap") -> LedgerEntry:
    """Charge one image, and count it as the caller does once it is committed."""
    with transaction.atomic():
        entry = holds.capture_one(hold, sku=model)
    hold.captured += 1
    return entry


def test_images_delivered_one_by_one_are_charged_one_by_one(key: ApiKey) -> None:
    budgets.set_budget(key, 1_000_000, Period.DAY)
    # The dear one is held, the cheap one answers: each image gives the difference back.
    hold = authorize(key, "a/cheap", "c/dear", quantity=3)
    assert budget_of(key) == (570_000, 0)
    entries = [capture_one(hold), capture_one(hold)]
    assert money_of(key) == (TEN - 80_000, 190_000, 80_000)
    assert budget_of(key) == (190_000, 80_000)
    assert [(one.amount_micro, one.quantity) for one in entries] == [(-40_000, 1)] * 2
    assert [one.entry_key for one in entries] == [f"use:{hold.pk}:0", f"use:{hold.pk}:1"]
    assert [one.first_unit for one in entries] == [0, 1]
    hold.refresh_from_db()
    assert (hold.state, hold.captured, hold.settled_at) == (HoldState.HELD, 2, None)

    with pytest.raises(ValueError, match="cannot capture 2 of 3"):
        capture(hold, delivered=2)
    last = capture(hold)

    assert (last.entry_key, last.first_unit, last.quantity) == (f"use:{hold.pk}:2", 2, 1)
    assert money_of(key) == (TEN - 120_000, 0, 120_000)
    assert budget_of(key) == (0, 120_000)
    hold.refresh_from_db()
    assert (hold.state, hold.captured) == (HoldState.CAPTURED, 3)


@pytest.mark.parametrize("give_back", [release, expire])
def test_what_was_not_delivered_of_a_part_is_given_back(
    key: ApiKey, give_back: Callable[[Hold], None]
) -> None:
    hold = authorize(key, quantity=3)
    capture_one(hold)
    give_back(hold)
    assert money_of(key) == (TEN - 40_000, 0, 40_000)
    hold.refresh_from_db()
    # Something was charged, and the state says so.
    assert (hold.state, hold.captured) == (HoldState.CAPTURED, 1)
    with pytest.raises(HoldLost):
        capture_one(hold)


def test_no_more_images_are_charged_one_by_one_than_were_held(key: ApiKey) -> None:
    hold = authorize(key, quantity=2)
    capture_one(hold)
    capture_one(hold)
    with pytest.raises(HoldLost):
        capture_one(hold)
    release(hold)
    assert money_of(key) == (TEN - 80_000, 0, 80_000)


@pytest.mark.parametrize("settle", [*SETTLE.values(), capture_one])
def test_who_does_not_know_of_a_part_has_lost_the_hold(
    key: ApiKey, settle: Callable[[Hold], object]
) -> None:
    hold = authorize(key, quantity=3)
    unaware = Hold.objects.get(pk=hold.pk)
    capture_one(hold)
    with pytest.raises(HoldLost):
        settle(unaware)
    assert money_of(key) == (TEN - 40_000, 80_000, 40_000)


def test_the_dearest_quote_is_held_and_the_answering_models_quote_is_charged(key: ApiKey) -> None:
    hold = authorize(key, "a/cheap", "c/dear", "b/middle", quantity=2)
    assert money_of(key) == (TEN, 380_000, 0)

    entry = capture(hold, model="b/middle", delivered=2)

    assert money_of(key) == (TEN - 130_000, 0, 130_000)
    assert entry.price_version is not None
    assert (entry.price_version.sku, entry.price_version.version) == ("b/middle", 1)


def test_a_price_change_after_the_hold_changes_nothing_for_it(key: ApiKey) -> None:
    hold = authorize(key, quantity=2)
    prices.publish({"a/cheap": 50_000})
    entry = capture(hold, delivered=2)

    assert entry.amount_micro == -80_000
    assert entry.price_version is not None
    assert (entry.price_version.version, entry.price_version.unit_micro) == (1, 40_000)
    assert money_of(key) == (TEN - 80_000, 0, 80_000)
    assert authorize(key, quantity=2).amount_micro == 100_000


@pytest.mark.parametrize("settle", [release, expire])
def test_releasing_or_expiring_gives_all_of_it_back(
    key: ApiKey, settle: Callable[[Hold], None]
) -> None:
    hold = authorize(key, quantity=8)
    settle(hold)

    assert money_of(key) == (TEN, 0, 0)
    assert consumption() == []
    hold.refresh_from_db()
    assert hold.state == {release: "released", expire: "expired"}[settle]
    assert hold.settled_at is not None


@pytest.mark.parametrize(("first", "second"), list(itertools.product(SETTLE, SETTLE)))
def test_a_settled_hold_is_lost_to_everybody_else(key: ApiKey, first: str, second: str) -> None:
    budgets.set_budget(key, 1_000_000, Period.MONTH)
    other, hold = authorize(key), authorize(key, request_id="req_2")
    SETTLE[first](hold)
    after, budget = money_of(key), budget_of(key)

    with pytest.raises(HoldLost, match="req_2"):
        SETTLE[second](hold)

    # The other hold's money is still there: nothing was given back twice.
    spent = 40_000 if first == "captured" else 0
    assert money_of(key) == after == (TEN - spent, other.amount_micro, spent)
    assert budget_of(key) == budget == (other.amount_micro, spent)
    assert len(consumption()) == (first == "captured")
    hold.refresh_from_db()
    assert hold.state == first


@pytest.mark.parametrize("delivered", [-1, 0, 4])
def test_capturing_nothing_or_more_than_was_held_is_refused(key: ApiKey, delivered: int) -> None:
    hold = authorize(key, quantity=3)
    with pytest.raises(ValueError, match=f"cannot capture {delivered} of 3"):
        capture(hold, delivered=delivered)
    assert money_of(key) == (TEN, 120_000, 0)
    release(hold)


def test_capturing_a_model_that_was_not_quoted_is_refused(key: ApiKey) -> None:
    hold = authorize(key, "a/cheap", "b/middle")
    with pytest.raises(KeyError):
        capture(hold, model="c/dear", delivered=1)
    assert money_of(key) == (TEN, 65_000, 0)
    release(hold)


def test_a_model_without_a_price_is_refused_and_never_free(key: ApiKey) -> None:
    with pytest.raises(prices.UnknownPrice, match="x/unknown"):
        authorize(key, "a/cheap", "x/unknown")
    assert money_of(key) == (TEN, 0, 0)


def test_one_request_has_one_hold(key: ApiKey) -> None:
    authorize(key, request_id="req_1")
    with pytest.raises(IntegrityError):
        authorize(key, request_id="req_1")
    assert money_of(key) == (TEN, 40_000, 0)
    assert authorize(KeyFactory().row, request_id="req_1").request_id == "req_1"


def test_the_last_micro_dollar_can_be_spent_and_not_one_more(db: None) -> None:
    prices.publish({"a/cheap": 40_000})
    key = KeyFactory(organization__bonus="0.12").row
    for number in range(3):
        hold = authorize(key)
        if number:
            capture(hold)
    assert money_of(key) == (40_000, 40_000, 80_000)
    with pytest.raises(InsufficientBalance):
        authorize(key)
    ledger.record(key.organization, EntryKind.RECHARGE, 39_999, entry_key="topup:1", note="almost")
    with pytest.raises(InsufficientBalance):
        authorize(key)
    ledger.record(key.organization, EntryKind.RECHARGE, 1, entry_key="topup:2", note="enough")
    authorize(key)
    assert money_of(key) == (80_000, 80_000, 80_000)


def test_a_credit_limit_may_be_spent_below_zero(db: None) -> None:
    prices.publish({"a/cheap": 40_000})
    key = KeyFactory(organization__bonus="0", organization__credit_limit="0.08").row
    for _ in range(2):
        capture(authorize(key))
    assert money_of(key) == (-80_000, 0, 80_000)
    with pytest.raises(InsufficientBalance):
        authorize(key)
    # A limit lowered below the debt lets nothing through, and needs no repair.
    BillingAccount.objects.update(credit_limit_micro=0)
    with pytest.raises(InsufficientBalance):
        authorize(key)
    assert money_of(key) == (-80_000, 0, 80_000)


def test_an_organization_without_an_account_spends_nothing(key: ApiKey) -> None:
    bare = members.found("Bare", owner=UserFactory())
    with pytest.raises(InsufficientBalance):
        authorize(keys.create(bare, "ci-bot").row)


def test_leases_and_dead_owners_make_a_hold_expirable(key: ApiKey) -> None:
    dead = uuid.uuid4()
    fresh = authorize(key)
    late = authorize(key, lease=timedelta(seconds=-1))
    later = authorize(key, lease=timedelta(hours=-1))
    orphan = authorize(key, owner=dead)
    for state in SETTLE:
        SETTLE[state](authorize(key, owner=dead, lease=timedelta(hours=-2)))

    assert list(holds.expirable([])) == [later, late]
    assert list(holds.expirable([dead])) == [later, late, orphan]
    assert list(holds.expirable([fresh.owner])) == [later, late, fresh]
    expire(late)
    assert list(holds.expirable([])) == [later]


# --- Budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "at", "start"),
    [
        ("day", "2026-03-01T00:00:00+00:00", "2026-03-01"),
        ("day", "2026-02-28T23:59:59.999999+00:00", "2026-02-28"),
        ("day", "2028-02-29T12:00:00+00:00", "2028-02-29"),
        # Everywhere the day is UTC's, also where the wall shows another one.
        ("day", "2026-01-01T01:30:00+02:00", "2025-12-31"),
        ("day", "2025-12-31T22:00:00-05:00", "2026-01-01"),
        ("week", "2026-11-16T00:00:00+00:00", "2026-11-16"),
        ("week", "2026-11-15T23:59:59.999999+00:00", "2026-11-09"),
        ("week", "2026-11-18T10:00:00+00:00", "2026-11-16"),
        ("week", "2026-01-01T00:00:00+00:00", "2025-12-29"),
        ("week", "2026-11-16T01:00:00+02:00", "2026-11-09"),
        ("month", "2026-12-01T00:00:00+00:00", "2026-12-01"),
        ("month", "2026-11-30T23:59:59.999999+00:00", "2026-11-01"),
        ("month", "2028-02-29T23:00:00+00:00", "2028-02-01"),
        ("month", "2026-01-01T00:30:00+01:00", "2025-12-01"),
    ],
)
def test_periods_start_at_midnight_utc(period: str, at: str, start: str) -> None:
    expected = datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert period_start(Period(period), datetime.fromisoformat(at)) == expected


def test_a_period_is_the_same_moment_in_every_time_zone() -> None:
    at = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
    for period in Period:
        starts = {
            period_start(period, at.astimezone(timezone(timedelta(hours=hours))))
            for hours in range(-12, 13)
        }
        assert len(starts) == 1


@pytest.mark.parametrize("period", list(Period))
def test_a_budget_holds_and_spends_beside_the_account(key: ApiKey, period: Period) -> None:
    budgets.set_budget(key, 100_000, period)
    first, second = authorize(key), authorize(key)
    (held_in,) = BudgetPeriod.objects.filter(pk__in=first.budget_periods)
    assert held_in.starts_at == period_start(period, clock.now())
    assert budget_of(key) == (80_000, 0)
    with pytest.raises(BudgetExceeded, match=f"for this {period}"):
        authorize(key)
    capture(first)
    assert budget_of(key) == (40_000, 40_000)
    with pytest.raises(BudgetExceeded):
        authorize(key)
    release(second)
    assert budget_of(key) == (0, 40_000)
    authorize(key)
    assert budget_of(key) == (40_000, 40_000)
    assert money_of(key) == (TEN - 40_000, 40_000, 40_000)


def test_a_budget_is_spent_to_the_last_micro_dollar(key: ApiKey) -> None:
    budgets.set_budget(key, 79_999, Period.DAY)
    authorize(key)
    with pytest.raises(BudgetExceeded):
        authorize(key)
    budgets.set_budget(key, 80_000, Period.DAY)
    authorize(key)
    assert budget_of(key) == (80_000, 0)


def test_a_refusal_by_the_budget_leaves_nothing_behind(committed_key: ApiKey) -> None:
    budgets.set_budget(committed_key, 39_999, Period.DAY)
    with pytest.raises(BudgetExceeded):
        holds.authorize(
            key=committed_key,
            request_id="req_1",
            quotes=list(prices.current(["a/cheap"]).values()),
            quantity=1,
            tags=(),
            owner=uuid.uuid4(),
            lease=timedelta(minutes=1),
        )
    assert money_of(committed_key) == (TEN, 0, 0)
    assert not Hold.objects.exists()
    assert not BudgetPeriod.objects.exists()


def test_a_capture_that_the_ledger_refuses_leaves_the_hold_as_it_was(
    committed_key: ApiKey,
) -> None:
    budgets.set_budget(committed_key, 1_000_000, Period.DAY)
    hold = authorize(committed_key)
    ledger.record(
        committed_key.organization, EntryKind.RECHARGE, 1, entry_key=f"use:{hold.pk}:0", note=""
    )
    with pytest.raises(IntegrityError):
        holds.capture(hold, sku="a/cheap", delivered=1)
    assert money_of(committed_key) == (TEN + 1, 40_000, 0)
    assert budget_of(committed_key) == (40_000, 0)
    hold.refresh_from_db()
    assert (hold.state, hold.settled_at) == (HoldState.HELD, None)


@pytest.mark.parametrize("settle", [holds.release, holds.expire])
def test_giving_back_that_the_database_refuses_leaves_the_hold_as_it_was(
    committed_key: ApiKey, settle: Callable[[Hold], None]
) -> None:
    budgets.set_budget(committed_key, 1_000_000, Period.DAY)
    hold = authorize(committed_key)
    # Books that do not add up are refused rather than driven below zero.
    BudgetPeriod.objects.update(held_micro=0)
    with pytest.raises(HoldLost):
        settle(hold)
    assert money_of(committed_key) == (TEN, 40_000, 0)
    hold.refresh_from_db()
    assert hold.state == HoldState.HELD


def test_a_refusal_by_the_account_leaves_the_budget_untouched(db: None) -> None:
    prices.publish({"a/cheap": 40_000})
    key = KeyFactory(organization__bonus="0.01").row
    budgets.set_budget(key, 1_000_000, Period.DAY)
    with pytest.raises(InsufficientBalance):
        authorize(key)
    assert not BudgetPeriod.objects.exclude(held_micro=0, spent_micro=0).exists()


def test_a_budget_of_nothing_refuses_everything(key: ApiKey) -> None:
    budgets.set_budget(key, 0, Period.DAY)
    with pytest.raises(BudgetExceeded):
        authorize(key)


def test_a_key_and_its_successor_share_a_budget(key: ApiKey) -> None:
    budgets.set_budget(key, 80_000, Period.MONTH)
    successor = keys.rotate(key, overlap=timedelta(hours=1)).row
    capture(authorize(key))
    capture(authorize(successor))
    for either in (key, successor):
        with pytest.raises(BudgetExceeded):
            authorize(either)
    assert budget_of(successor) == (0, 80_000)
    # A key of another family has nothing to do with it.
    assert authorize(KeyFactory(organization=key.organization).row).budget_periods == []


def test_a_budget_lowered_below_what_is_spent_refuses_until_it_is_raised(key: ApiKey) -> None:
    budgets.set_budget(key, 200_000, Period.MONTH)
    held = authorize(key)
    capture(authorize(key, quantity=3), delivered=3)
    lowered = budgets.set_budget(key, 50_000, Period.MONTH)
    assert Budget.objects.get() == lowered
    assert budget_of(key) == (40_000, 120_000)
    with pytest.raises(BudgetExceeded):
        authorize(key)
    # What was already held may still be settled.
    capture(held)
    assert budget_of(key) == (0, 160_000)
    budgets.set_budget(key, 200_000, Period.MONTH)
    authorize(key)


def test_a_new_period_is_a_new_row_and_an_old_hold_is_settled_in_its_own(key: ApiKey) -> None:
    budgets.set_budget(key, 40_000, Period.DAY)
    old = authorize(key)
    yesterday = period_start(Period.DAY, clock.now()) - timedelta(days=1)
    BudgetPeriod.objects.filter(pk__in=old.budget_periods).update(starts_at=yesterday)

    new = authorize(key)
    assert new.budget_periods != old.budget_periods
    capture(old)

    rows = BudgetPeriod.objects.order_by("starts_at").values_list("held_micro", "spent_micro")
    assert list(rows) == [(0, 40_000), (40_000, 0)]


def test_a_members_budget_counts_the_keys_of_its_organization_only(key: ApiKey) -> None:
    """Alice is in two organizations, and has keys and a budget in both."""
    alice = UserFactory()
    here, there = KeyFactory(organization=key.organization, actor=alice).row, KeyFactory().row
    there = KeyFactory(organization=there.organization, actor=alice).row
    budget = budgets.set_for(
        here.organization.pk, Holder(scopes.MEMBER, alice.pk), 40_000, Period.DAY
    )
    other = budgets.set_for(
        there.organization.pk, Holder(scopes.MEMBER, alice.pk), None, Period.DAY, limit_images=9
    )

    assert [rule for rule, _ in budgets.current(there)] == [other]
    held = authorize(there, quantity=2)
    assert [row.budget for row in BudgetPeriod.objects.filter(pk__in=held.budget_periods)] == [
        other
    ]
    capture(held, delivered=2)
    assert not BudgetPeriod.objects.filter(budget=budget).exists()
    # Here it is whole still, and a wall; a key that somebody else made passes it.
    capture(authorize(here))
    with pytest.raises(BudgetExceeded, match="member"):
        authorize(here)
    assert authorize(key).budget_periods == []
    assert authorize(there).budget_periods == held.budget_periods


def test_the_running_period_is_told_before_anything_was_spent_in_it(key: ApiKey) -> None:
    assert budgets.current(key) == []
    budget = budgets.set_budget(key, 40_000, Period.WEEK)
    ((rule, running),) = budgets.current(key)
    assert rule == budget
    assert (running.pk, running.held_micro, running.spent_micro) == (None, 0, 0)
    assert running.starts_at == period_start(Period.WEEK, clock.now())
    hold = authorize(key)
    ((_, running),) = budgets.current(key)
    assert ([running.pk], running.held_micro) == (hold.budget_periods, 40_000)


# --- What the database itself refuses ---------------------------------------------------------


def _write(**fields: object) -> Callable[[Hold], object]:
    return lambda hold: Hold.objects.filter(pk=hold.pk).update(**fields)


@pytest.mark.parametrize(
    ("constraint", "write"),
    [
        ("hold_state_is_known", _write(state="lost", settled_at=datetime(2026, 1, 1, tzinfo=UTC))),
        ("hold_settled_once_not_held", _write(state="captured")),
        ("hold_settled_once_not_held", _write(settled_at=datetime(2026, 1, 1, tzinfo=UTC))),
        ("hold_captures_no_more_than_held", _write(captured=2)),
        (
            "hold_state_tells_if_captured",
            _write(state="captured", settled_at=datetime(2026, 1, 1, tzinfo=UTC)),
        ),
        (
            "hold_state_tells_if_captured",
            _write(state="released", captured=1, settled_at=datetime(2026, 1, 1, tzinfo=UTC)),
        ),
        ("account_holds_no_debt", lambda _: BillingAccount.objects.update(held_micro=-1)),
        (
            "credit_limit_not_negative",
            lambda _: BillingAccount.objects.update(credit_limit_micro=-1),
        ),
        ("budget_not_negative", lambda _: Budget.objects.update(limit_micro=-1)),
        ("budget_period_is_known", lambda _: Budget.objects.update(period="year")),
        ("budget_holds_no_debt", lambda _: BudgetPeriod.objects.update(held_micro=-1)),
    ],
)
def test_the_database_refuses_what_cannot_be(
    key: ApiKey, constraint: str, write: Callable[[Hold], object]
) -> None:
    budgets.set_budget(key, 1_000_000, Period.DAY)
    hold = authorize(key)
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        write(hold)


def test_a_budget_has_one_row_per_period(key: ApiKey) -> None:
    budgets.set_budget(key, 1_000_000, Period.DAY)
    (period,) = BudgetPeriod.objects.filter(pk__in=authorize(key).budget_periods)
    with pytest.raises(IntegrityError), transaction.atomic():
        BudgetPeriod.objects.create(budget=period.budget, starts_at=period.starts_at)
