"""The scopes of budgets: what each covers, what it refuses and how, and what the database keeps."""

import uuid
from datetime import datetime
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import Budget, BudgetPeriod, Hold, LedgerEntry, Period, scopes
from billing.models.scopes import SCOPES, Holder
from billing.spending import budgets, limits, prices
from billing.spending.budgets import BudgetExceeded, period_start
from billing.spending.limits import NoSuchHolder
from tests.billing import PRICES, authorize, capture, money_of, race, release
from tests.factories import KeyFactory, OrganizationFactory, UserFactory

TEN = 10_000_000
PRICE = PRICES["a/cheap"]
# How the API names the budget of each holder that `holder_of` makes.
NAMES = {
    "key": "The key's budget for this day is used up.",
    "member": "The member's budget for this day is used up.",
    "tag": "The budget of the tag web for this day is used up.",
    "organization": "The organization's budget for this day is used up.",
}


@pytest.fixture
def made(db: None) -> ApiKey:
    """A key that a member made, in an organization with 10 USD."""
    prices.publish(PRICES)
    organization = OrganizationFactory()
    return KeyFactory(organization=organization, actor=organization.members.get()).row


def holder_of(key: ApiKey, scope: str) -> Holder:
    """Return the holder of that scope that covers the key, and requests with the tag `web`."""
    subjects = {"key": key.family, "member": key.created_by_id, "tag": "web", "organization": None}
    return Holder(SCOPES[scope], subjects[scope])


def give(key: ApiKey, scope: str, limit: int | None, **more: Any) -> Budget:
    """Give the holder a budget a day."""
    period = more.pop("period", Period.DAY)
    return budgets.set_for(key.organization_id, holder_of(key, scope), limit, period, **more)


def used(budget: Budget) -> tuple[int, int, int, int]:
    """Return held and spent of a budget's only period, micro-USD and images."""
    row = BudgetPeriod.objects.get(budget=budget)
    return row.held_micro, row.spent_micro, row.held_images, row.spent_images


# What each does


@pytest.mark.parametrize("period", Period)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_budget_of_any_scope_holds_and_spends_beside_the_account(
    made: ApiKey, scope: str, period: Period
) -> None:
    budget = give(made, scope, 2 * PRICE, period=period, limit_images=9)
    first, second = authorize(made, tags=["web"]), authorize(made, tags=["web"])
    assert used(budget) == (2 * PRICE, 0, 2, 0)
    assert BudgetPeriod.objects.get().starts_at == period_start(period, timezone.now())
    with pytest.raises(BudgetExceeded, match=f"for this {period} is used up"):
        authorize(made, tags=["web"])
    capture(first)
    release(second)
    assert used(budget) == (0, PRICE, 0, 1)
    capture(authorize(made, tags=["web"]))
    assert used(budget) == (0, 2 * PRICE, 0, 2)
    with pytest.raises(BudgetExceeded):
        authorize(made, tags=["web"])
    assert money_of(made) == (TEN - 2 * PRICE, 0, 2 * PRICE)
    assert LedgerEntry.objects.filter(kind="consumption").count() == 2


@pytest.mark.parametrize("unit", ["usd", "images"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_refusal_names_the_budget_and_leaves_nothing_behind(
    transactional_db: None, scope: str, unit: str
) -> None:
    prices.publish(PRICES)
    organization = OrganizationFactory()
    key = KeyFactory(organization=organization, actor=organization.members.get()).row
    roomy = give(key, "key", None, limit_images=100, period=Period.MONTH)
    limit, images = (PRICE - 1, None) if unit == "usd" else (None, 0)
    give(key, scope, limit, limit_images=images)
    with pytest.raises(BudgetExceeded) as refused:
        authorize(key, tags=["web"])
    assert str(refused.value) == NAMES[scope]
    # The page of a key's credits has all but the budget of a tag that the request brought.
    assert refused.value.by_key is (scope != "tag")
    assert money_of(key) == (TEN, 0, 0)
    assert not Hold.objects.exists()
    assert not BudgetPeriod.objects.exists()
    assert roomy.periods.count() == 0


def test_what_each_scope_covers(made: ApiKey) -> None:
    """Each kind of key and request, and the budgets in which it is held."""
    acme, alice = made.organization, made.created_by
    assert alice is not None
    mine = {scope: give(made, scope, TEN) for scope in SCOPES}
    # Others' budgets, which never cover anything of these.
    bob = UserFactory()
    budgets.set_for(acme.pk, Holder(scopes.MEMBER, bob.pk), 0, Period.DAY)
    budgets.set_for(acme.pk, Holder(scopes.TAG, "Web"), 0, Period.DAY)
    budgets.set_for(acme.pk, Holder(scopes.KEY, uuid.uuid4()), 0, Period.DAY)
    globex = OrganizationFactory()
    for holder in (
        Holder(scopes.MEMBER, alice.pk),
        Holder(scopes.TAG, "web"),
        Holder(scopes.ORGANIZATION),
    ):
        budgets.set_for(globex.pk, holder, 0, Period.DAY)

    hers = KeyFactory(organization=acme, actor=alice).row
    nobodys = KeyFactory(organization=acme).row
    tagged = KeyFactory(organization=acme, tags=["web", "app"]).row
    for key, tags, expected in (
        (made, (), {"key", "member", "organization"}),
        (made, ("web",), {"key", "member", "tag", "organization"}),
        (made, ("app", "web", "ci"), {"key", "member", "tag", "organization"}),
        (made, ("we", "webb"), {"key", "member", "organization"}),
        (hers, (), {"member", "organization"}),
        (nobodys, (), {"organization"}),
        (nobodys, ("web",), {"tag", "organization"}),
        (tagged, (), {"tag", "organization"}),
        (tagged, ("web",), {"tag", "organization"}),
    ):
        hold = authorize(key, tags=tags)
        held = BudgetPeriod.objects.filter(pk__in=hold.budget_periods)
        assert {row.budget for row in held.select_related("budget")} == {
            mine[scope] for scope in expected
        }
        # Each once, also where a tag is the key's and the request's.
        assert len(hold.budget_periods) == len(expected)
    assert used(mine["organization"])[0] == 9 * PRICE
    assert used(mine["tag"])[0] == 5 * PRICE


def test_a_request_is_held_in_the_budget_of_each_of_its_tags(made: ApiKey) -> None:
    tags = ["a", "b", "c"]
    made.tags = ["a"]
    made.save()
    one, two, three = (
        budgets.set_for(
            made.organization_id, Holder(scopes.TAG, tag), None, Period.DAY, limit_images=most
        )
        for tag, most in zip(tags, (5, 2, 3), strict=True)
    )
    capture(authorize(made, quantity=2, tags=["c", "b"]), delivered=2)
    assert [used(budget)[3] for budget in (one, two, three)] == [2, 2, 2]
    with pytest.raises(
        BudgetExceeded, match=r"^The budget of the tag b for this day is used up\.$"
    ):
        authorize(made, tags=["c", "b"])
    authorize(made, tags=["c"])
    assert [used(budget)[2] for budget in (one, two, three)] == [1, 0, 1]
    # The key's own tag cannot be left out.
    authorize(made, quantity=2)
    with pytest.raises(BudgetExceeded, match="tag a "):
        authorize(made)


def test_a_tag_that_keys_had_before_they_were_short_is_counted_by_what_fits(made: ApiKey) -> None:
    made.tags = ["x" * 60]
    made.save()
    budget = budgets.set_for(made.organization_id, Holder(scopes.TAG, "x" * 40), TEN, Period.DAY)
    authorize(made)
    assert used(budget)[0] == PRICE
    assert [rule for rule, _ in budgets.current(made)] == [budget]


def test_the_nearest_budget_is_told_first_and_tags_only_of_the_key(made: ApiKey) -> None:
    for scope in reversed(SCOPES):
        give(made, scope, TEN)
    assert [rule.scope for rule, _ in budgets.current(made)] == ["key", "member", "organization"]
    made.tags = ["web"]
    assert [rule.scope for rule, _ in budgets.current(made)] == [
        "key", "member", "tag", "organization",
    ]  # fmt: skip


def _statements(key: ApiKey) -> int:
    """Return how many statements on budgets, account and hold a request costs."""
    with CaptureQueriesContext(connection) as asked:
        authorize(key, tags=["web", "app"])
    names = ("billing_budget", "billing_billingaccount", "billing_hold")
    return len([one for one in asked if any(name in one["sql"] for name in names)])


def test_one_question_finds_all_budgets_however_many_there_are(made: ApiKey) -> None:
    other = KeyFactory(organization=made.organization).row
    assert _statements(made) == 2  # the account, and the hold
    give(made, "key", TEN)
    # And the budgets, their periods begun, their periods read, each of them held in.
    assert _statements(made) == 6
    # A key that none covers is not asked for, whatever others there are.
    assert _statements(other) == 2
    for number, scope in enumerate(("member", "tag", "organization"), 7):
        give(made, scope, TEN)
        assert _statements(made) == number


# What the database keeps


def _row(key: ApiKey, scope: str, *columns: str) -> Budget:
    """Return a budget of that scope with such subjects, not saved."""
    subjects = {"key_family": key.family, "member_id": key.created_by_id, "word": "web"}
    return Budget(
        organization=key.organization, scope=scope, period=Period.DAY, limit_micro=1,
        **{column: subjects[column] for column in columns if column},
    )  # fmt: skip


@pytest.mark.parametrize("column", [*scopes.COLUMNS, ""])
@pytest.mark.parametrize("scope", [*SCOPES, "unknown"])
def test_a_budget_has_the_one_subject_that_its_scope_needs(
    made: ApiKey, scope: str, column: str
) -> None:
    row = _row(made, scope, column)
    if scope in SCOPES and SCOPES[scope].column == column:
        row.save()
        return
    with pytest.raises(IntegrityError, match="budget_has_its_subject"), transaction.atomic():
        row.save()


def test_a_budget_has_not_two_subjects_and_no_empty_word(made: ApiKey) -> None:
    for scope, one, more in (
        ("key", "key_family", "word"),
        ("tag", "word", "member_id"),
        ("member", "member_id", "key_family"),
    ):
        with pytest.raises(IntegrityError, match="budget_has_its_subject"), transaction.atomic():
            _row(made, scope, one, more).save()
    row = _row(made, "tag", "word")
    row.word = ""
    with pytest.raises(IntegrityError, match="budget_word_is_not_empty"), transaction.atomic():
        row.save()


@pytest.mark.parametrize("scope", SCOPES)
def test_a_holder_has_one_budget_for_each_period(made: ApiKey, scope: str) -> None:
    budget = give(made, scope, 1)
    assert give(made, scope, None, limit_images=3) == budget
    give(made, scope, 1, period=Period.WEEK)
    give(KeyFactory(actor=made.created_by).row, scope, 1)  # of another organization
    assert Budget.objects.count() == 3
    twin = Budget(
        organization=made.organization, period=Period.DAY, limit_micro=2,
        **holder_of(made, scope).columns,
    )  # fmt: skip
    with pytest.raises(IntegrityError), transaction.atomic():
        twin.save()


def test_only_what_an_organization_has_is_given_a_budget(made: ApiKey) -> None:
    stranger = KeyFactory().row
    for holder in (
        Holder(scopes.KEY, stranger.family),
        Holder(scopes.MEMBER, UserFactory().pk),
        Holder(scopes.TAG, ""),
        Holder(scopes.TAG, "x" * 41),
        Holder(scopes.TAG),
        Holder(scopes.ORGANIZATION, "web"),
    ):
        with pytest.raises(NoSuchHolder):
            limits.set_budget(
                *(made.organization, holder, Period.DAY),
                limit_micro=1, limit_images=None, actor=None,
            )  # fmt: skip
    assert not Budget.objects.exists()


# At once


@pytest.mark.parametrize("scope", ["organization", "tag"])
@pytest.mark.parametrize("unit", ["usd", "images"])
def test_of_two_keys_that_ask_for_the_last_cent_one_gets_it(
    transactional_db: None, scope: str, unit: str
) -> None:
    prices.publish(PRICES)
    one = KeyFactory(tags=["web"]).row
    two = KeyFactory(organization=one.organization).row
    limit, images = (2 * PRICE, None) if unit == "usd" else (None, 2)
    budget = give(one, scope, limit, limit_images=images)
    own = give(two, "key", TEN)
    capture(authorize(one))

    answers = race(
        2,
        lambda number: authorize((one, two)[number], tags=[["app"], ["app", "web"]][number]),
        losing=BudgetExceeded,
    )

    (refused,) = (answer for answer in answers if isinstance(answer, BudgetExceeded))
    (hold,) = (answer for answer in answers if isinstance(answer, Hold))
    assert str(refused) == NAMES[scope]
    assert used(budget) == (PRICE, PRICE, 1, 1)
    assert money_of(one) == (TEN - PRICE, PRICE, PRICE)
    assert list(Hold.objects.filter(state="held")) == [hold]
    # Who was refused holds nothing in the budgets that had room, either.
    held = sum(row.held_micro for row in BudgetPeriod.objects.filter(budget=own))
    assert held == (PRICE if hold.api_key_id == two.pk else 0)


def test_many_tags_in_any_order_wait_in_no_circle(transactional_db: None) -> None:
    prices.publish(PRICES)
    keys = [KeyFactory(organization__bonus="100", tags=["a"]).row]
    keys.append(KeyFactory(organization=keys[0].organization, tags=["d"]).row)
    tags = ["a", "b", "c", "d"]
    for tag in ("c", "a", "d", "b"):
        for period in Period:
            budgets.set_for(keys[0].organization_id, Holder(scopes.TAG, tag), 100 * TEN, period)
    give(keys[0], "organization", 100 * TEN)

    def live(number: int) -> None:
        mine = tags if number % 2 else tags[::-1]
        for turn in range(6):
            hold = authorize(keys[number % 2], tags=mine[: 2 + number % 3])
            (capture if (number + turn) % 2 else release)(hold)

    assert race(10, live) == [None] * 10
    assert money_of(keys[0]) == (100_000_000 - 30 * PRICE, 0, 30 * PRICE)
    captured = list(Hold.objects.filter(state="captured"))
    for row in BudgetPeriod.objects.all():
        count = len([hold for hold in captured if row.pk in hold.budget_periods])
        assert (row.held_micro, row.held_images) == (0, 0)
        assert (row.spent_micro, row.spent_images) == (count * PRICE, count)
    assert BudgetPeriod.objects.get(budget__scope="organization").spent_images == 30


@pytest.mark.parametrize("scope", SCOPES)
def test_a_budget_set_on_ten_hosts_is_one_row(transactional_db: None, scope: str) -> None:
    organization = OrganizationFactory()
    key = KeyFactory(organization=organization, actor=organization.members.get()).row
    race(10, lambda number: give(key, scope, number))
    assert Budget.objects.count() == 1


# Of the version before


def test_budgets_of_the_version_before_stay_as_they_are(transactional_db: None) -> None:
    prices.publish(PRICES)
    organization = OrganizationFactory()
    key = KeyFactory(organization=organization, actor=organization.members.get()).row
    executor = MigrationExecutor(connection)
    name = ("billing", "0012_budget_scopes")
    migration = executor.loader.get_migration(*name)
    before = executor.loader.project_state([name], at_end=False)
    with connection.schema_editor() as editor:
        migration.unapply(before.clone(), editor)
    old = before.apps
    owner = {"organization_id": organization.pk, "limit_micro": 3 * PRICE}
    mine = old.get_model("billing", "Budget").objects.create(
        key_family=key.family, period="day", limit_images=9, **owner
    )
    theirs = old.get_model("billing", "Budget").objects.create(
        member_id=key.created_by_id, period="month", **owner
    )
    starts = {"day": period_start(Period.DAY, timezone.now()), "month": _month()}
    for budget in (mine, theirs):
        old.get_model("billing", "BudgetPeriod").objects.create(
            budget=budget, starts_at=starts[budget.period], spent_micro=PRICE, spent_images=1
        )
    rows = _columns(old)
    with connection.schema_editor() as editor:
        migration.apply(before, editor)

    assert _columns(apps) == rows
    assert [(rule.pk, rule.holder) for rule, _ in budgets.current(key)] == [
        (mine.pk, Holder(scopes.KEY, key.family)),
        (theirs.pk, Holder(scopes.MEMBER, key.created_by_id)),
    ]
    # They go on counting where they were.
    capture(authorize(key, quantity=2), delivered=2)
    assert [used(rule) for rule in Budget.objects.order_by("pk")] == [(0, 3 * PRICE, 0, 3)] * 2
    with pytest.raises(BudgetExceeded, match="The key's budget"):
        authorize(key)
    give(key, "organization", 1)
    assert give(key, "key", TEN).pk == mine.pk


def _month() -> datetime:
    return period_start(Period.MONTH, timezone.now())


def _columns(registry: Any) -> list[list[dict[str, Any]]]:
    """Return what both versions know of the budgets and their periods."""
    columns = ["pk", "organization", "key_family", "member", "period", "limit_micro"]
    return [
        list(registry.get_model("billing", "Budget").objects.order_by("pk").values(*columns)),
        list(registry.get_model("billing", "BudgetPeriod").objects.order_by("pk").values()),
    ]
