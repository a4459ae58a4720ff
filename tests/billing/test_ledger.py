"""The ledger: append-only, signed by kind, in step with the balance; and what is asked of it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils import timezone

from accounts import keys
from accounts.models import ApiKey
from billing.models import BillingAccount, EntryKind, LedgerEntry, PriceVersion
from billing.spending import ledger
from billing.spending.ledger import SkuSpend
from tests.billing import authorize, capture, money_of
from tests.factories import KeyFactory, OrganizationFactory

on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only PostgreSQL refuses to delete from the ledger"
)


def use(key: ApiKey, model: str = "a/cheap", images: int = 1) -> LedgerEntry:
    return capture(authorize(key, model, quantity=images), model=model, delivered=images)


def change_a_row() -> None:
    entry = LedgerEntry.objects.latest("pk")
    entry.note = "something else"
    entry.save()


@pytest.mark.parametrize(
    "write",
    [
        lambda: LedgerEntry.objects.update(note="x"),
        lambda: LedgerEntry.objects.update(amount_micro=1),
        change_a_row,
        pytest.param(
            lambda: LedgerEntry.objects.all().delete(),
            marks=[pytest.mark.postgresql, on_postgresql],
        ),
    ],
    ids=["update", "update the amount", "save", "delete"],
)
def test_the_database_refuses_to_change_the_ledger(key: ApiKey, write: Callable[[], Any]) -> None:
    before = list(LedgerEntry.objects.values())
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        write()
    assert list(LedgerEntry.objects.values()) == before


IS_USE = {"quantity", "hold", "price_version"}


@pytest.mark.parametrize(
    ("kind", "amount", "fields", "fits"),
    [
        ("bonus", 1, set(), True),
        ("bonus", 0, set(), False),
        ("bonus", -1, set(), False),
        ("recharge", 1, set(), True),
        ("recharge", 0, set(), False),
        ("recharge", -1, set(), False),
        ("refund", 1, set(), True),
        ("refund", 0, set(), False),
        ("refund", -1, set(), False),
        ("adjustment", 1, set(), True),
        ("adjustment", -1, set(), True),
        ("adjustment", 0, set(), False),
        ("consumption", -1, IS_USE, True),
        ("consumption", 0, IS_USE, False),
        ("consumption", 1, IS_USE, False),
        ("consumption", -1, IS_USE - {"quantity"}, False),
        ("consumption", -1, IS_USE - {"hold"}, False),
        ("consumption", -1, IS_USE - {"price_version"}, False),
        ("gift", 1, set(), False),
    ],
)
def test_the_sign_follows_the_kind(
    key: ApiKey, kind: str, amount: int, fields: set[str], fits: bool
) -> None:
    values = {
        "quantity": 1,
        "hold": authorize(key),
        "price_version": PriceVersion.objects.get(sku="a/cheap"),
    }

    def write() -> None:
        with transaction.atomic():
            LedgerEntry.objects.create(
                organization=key.organization,
                kind=kind,
                amount_micro=amount,
                entry_key="once",
                **{name: value for name, value in values.items() if name in fields},
            )

    if fits:
        write()
    else:
        with pytest.raises(IntegrityError, match=r"ledger_(sign_follows_kind|kind_is_known)"):
            write()


def test_a_part_of_a_hold_has_one_entry(key: ApiKey) -> None:
    entry = use(key)
    with pytest.raises(IntegrityError), transaction.atomic():
        LedgerEntry.objects.create(
            organization=key.organization,
            kind=EntryKind.CONSUMPTION,
            amount_micro=-1,
            quantity=1,
            hold=entry.hold,
            price_version=entry.price_version,
            entry_key=entry.entry_key,
        )


def test_each_row_tells_the_balance_after_it(key: ApiKey) -> None:
    use(key, "c/dear", 2)
    ledger.record(key.organization, EntryKind.RECHARGE, 5_000_000, entry_key="topup:1", note="")
    use(key, "b/middle")
    ledger.record(key.organization, EntryKind.ADJUSTMENT, -1, entry_key="adj:1", note="")

    rows = ledger.movements(key.organization)
    assert list(rows.values_list("kind", "amount_micro", "balance_after"))[::-1] == [
        ("bonus", 10_000_000, 10_000_000),
        ("consumption", -380_000, 9_620_000),
        ("recharge", 5_000_000, 14_620_000),
        ("consumption", -65_000, 14_555_000),
        ("adjustment", -1, 14_554_999),
    ]
    assert money_of(key) == (14_554_999, 0, 445_000)


def test_movements_are_the_newest_first_and_nobody_elses(key: ApiKey) -> None:
    other = OrganizationFactory()
    for number in (1, 2, 3):
        ledger.record(
            key.organization, EntryKind.RECHARGE, number, entry_key=f"t:{number}", note=""
        )
    found = list(ledger.movements(key.organization))
    assert [row.amount_micro for row in found] == [3, 2, 1, 10_000_000]
    assert [row.organization_id for row in ledger.movements(other)] == [other.pk]
    # A balance counts nobody else's rows.
    assert [row.balance_after for row in ledger.movements(other)] == [10_000_000]


def test_an_entry_key_moves_the_balance_once(key: ApiKey) -> None:
    first = ledger.record(
        key.organization, EntryKind.RECHARGE, 7, entry_key="topup:pi_1", note="a card"
    )
    assert first is not None
    assert (first.amount_micro, first.note) == (7, "a card")
    again = ledger.record(key.organization, EntryKind.RECHARGE, 7, entry_key="topup:pi_1", note="")
    assert again is None
    assert money_of(key) == (10_000_007, 0, 0)


def test_a_movement_that_the_database_refuses_moves_nothing(key: ApiKey) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        ledger.record(key.organization, EntryKind.BONUS, -5, entry_key="bonus:wrong", note="")
    assert money_of(key) == (10_000_000, 0, 0)


def test_an_account_opens_once_with_its_bonus(db: None) -> None:
    organization = OrganizationFactory(bonus="2.50", credit_limit="1")
    account = BillingAccount.objects.get(organization=organization)
    assert (account.balance_micro, account.credit_limit_micro) == (2_500_000, 1_000_000)
    assert (account.held_micro, account.spent_micro) == (0, 0)
    entry = LedgerEntry.objects.get()
    assert (entry.kind, entry.entry_key) == (EntryKind.BONUS, f"bonus:{organization.pk}")
    assert entry.amount_micro == 2_500_000
    with pytest.raises(IntegrityError), transaction.atomic():
        ledger.open_account(organization, bonus_micro=2_500_000, credit_limit_micro=0)
    assert LedgerEntry.objects.get() == entry
    assert ledger.balance(organization).balance_micro == 2_500_000


def test_an_account_without_a_bonus_has_no_entry(db: None) -> None:
    assert ledger.balance(OrganizationFactory(bonus="0")).balance_micro == 0
    assert not LedgerEntry.objects.exists()


def test_spend_is_told_by_model_since_a_moment(key: ApiKey) -> None:
    before = timezone.now() - timedelta(minutes=1)
    use(key, "c/dear", 2)
    use(key, "a/cheap", 3)
    use(key, "a/cheap")
    use(KeyFactory(organization__bonus="1").row, "b/middle")

    spend = [SkuSpend("a/cheap", 4, 160_000), SkuSpend("c/dear", 2, 380_000)]
    assert ledger.spend_by_sku(key.organization) == spend
    assert ledger.spend_by_sku(key.organization, since=before) == spend
    later = timezone.now() + timedelta(minutes=1)
    assert ledger.spend_by_sku(key.organization, since=later) == []
    assert ledger.spent_since(key.organization, since=before) == 540_000
    assert ledger.spent_since(key.organization, since=later) == 0


def test_the_spend_of_a_family_counts_all_its_keys_and_no_other(key: ApiKey) -> None:
    before = timezone.now() - timedelta(minutes=1)
    successor = keys.rotate(key, overlap=timedelta(hours=1)).row
    stranger = KeyFactory(organization=key.organization).row
    for each in (key, successor, stranger):
        use(each)
    of_family = ledger.spent_since(key.organization, since=before, key_family=key.family)
    assert of_family == 80_000
    assert ledger.spent_since(key.organization, since=before) == 120_000
