"""Migrations that move data, with rows of the version before."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.apps.registry import Apps
from django.db import DatabaseError, connection, transaction
from django.db.migrations.executor import MigrationExecutor

from billing.models import LedgerEntry

BEFORE = [("billing", "0010_names_for_staff")]
AFTER = [("billing", "0011_facts_have_columns")]
pytestmark = pytest.mark.django_db(transaction=True)


def migrate(to: list[tuple[str, str]]) -> Apps:
    """Migrate there, and return the models as they were then."""
    executor = MigrationExecutor(connection)
    executor.migrate(to)
    return executor.loader.project_state(to).apps


@pytest.fixture
def before() -> Iterator[Apps]:
    """The models of the version before; the newest are there again after the test."""
    newest = MigrationExecutor(connection).loader.graph.leaf_nodes()
    yield migrate(BEFORE)
    migrate(newest)


class Past:
    """Rows of the version before, of one organization."""

    def __init__(self, apps: Apps) -> None:
        self.models = {model.__name__: model for model in apps.get_models()}
        self.organization = self.add("Organization", name="Acme", slug="acme")
        self.price = self.add("PriceVersion", model="a/cheap", version=1, unit_micro=40_000)

    def add(self, model: str, /, **values: Any) -> Any:
        return self.models[model].objects.create(**values)

    def charge(self, key: str, quantity: int = 1) -> Any:
        """Add what was charged for pictures, under a key of this hold's."""
        now = datetime(2026, 11, 1, tzinfo=UTC)
        hold = self.add(
            "Hold",
            organization=self.organization,
            request_id=uuid.uuid4().hex[:28],
            quantity=9,
            amount_micro=9 * 40_000,
            quotes={},
            owner=uuid.uuid4(),
            lease_until=now,
            captured=9,
            state="captured",
            settled_at=now,
        )
        return self.add(
            "LedgerEntry",
            organization=self.organization,
            kind="consumption",
            amount_micro=-quantity * 40_000,
            quantity=quantity,
            entry_key=key.format(hold.pk),
            hold=hold,
            price_version=self.price,
            model="a/cheap",
        )

    def recharge(self, key: str, note: str, kind: str = "recharge") -> Any:
        return self.add(
            "LedgerEntry",
            organization=self.organization,
            kind=kind,
            amount_micro=5_000_000,
            entry_key=key,
            note=note,
        )


def refused(values: dict[str, Any]) -> bool:
    """Tell whether the ledger can no longer be changed."""
    try:
        with transaction.atomic():
            LedgerEntry.objects.update(**values)
    except DatabaseError as error:
        return "append-only" in str(error)
    return False


def test_a_charge_says_from_which_unit_on(before: Apps) -> None:
    past = Past(before)
    whole = past.charge("use:{}:0", 4)
    streamed = [past.charge(f"use:{{}}:{number}") for number in (1, 2, 12)]
    # The key of another kind of entry is nobody's number, and neither is another's form.
    other = past.charge("use:7")
    given = past.recharge(f"use:{uuid.uuid4()}:3", "like a charge")

    after = migrate(AFTER)

    rows = after.get_model("billing", "LedgerEntry").objects
    assert dict(rows.values_list("pk", "first_unit")) == {
        whole.pk: 0,
        **dict(zip([one.pk for one in streamed], (1, 2, 12), strict=True)),
        other.pk: 0,
        given.pk: 0,
    }
    assert refused({"first_unit": 5})


def test_the_ledger_cannot_be_changed_before_or_after(before: Apps) -> None:
    Past(before).charge("use:{}:0")
    assert refused({"note": "x"})
    migrate(AFTER)
    assert refused({"note": "x"})
    migrate(BEFORE)
    assert refused({"note": "x"})
