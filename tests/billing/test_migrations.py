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

BEFORE = [("billing", "0012_budget_scopes")]
AFTER = [("billing", "0015_more_facts_have_columns")]
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
        self.price = self.add("PriceVersion", sku="a/cheap", version=1, unit_micro=40_000)

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
            sku="a/cheap",
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

    def invoice(self, stripe_id: str) -> Any:
        now = datetime(2026, 11, 1, tzinfo=UTC)
        return self.add(
            "Invoice",
            stripe_id=stripe_id,
            organization=self.organization,
            number=f"A-{stripe_id}",
            status="paid",
            currency="usd",
            **dict.fromkeys(("period_start", "period_end", "created", "fetched_at"), now),
            **dict.fromkeys(
                ("subtotal_cents", "total_cents", "amount_due_cents", "amount_paid_cents"), 500
            ),
            tax_cents=0,
            lines=[],
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


def test_a_recharge_names_its_payment_or_its_invoice(before: Apps) -> None:
    past = Past(before)
    invoice = past.invoice("in_1")
    given = {
        "topup:pi_1": "Recharge by card, pi_1",
        "topup:pi_2": "Automatic recharge, pi_2",
        "topup:cs_3": "Recharge by card, cs_3",
        "topup:pi_4": "By hand, pi_1",
        "topup:in_1": "Payment of invoice A-in_1",
        "topup:in_2": "Payment of invoice in_2",
        "bonus:1": "Bonus, pi_1",
    }
    for key, note in given.items():
        past.recharge(key, note, "bonus" if key == "bonus:1" else "recharge")

    after = migrate(AFTER).get_model("billing", "LedgerEntry").objects

    rows = after.values_list("entry_key", "note", "payment_id", "invoice")
    assert {row[0]: row[1:] for row in rows} == {
        "topup:pi_1": ("Recharge by card", "pi_1", None),
        "topup:pi_2": ("Automatic recharge", "pi_2", None),
        "topup:cs_3": ("Recharge by card", "cs_3", None),
        # A note that is not ours stays as it is.
        "topup:pi_4": ("By hand, pi_1", "pi_4", None),
        "topup:in_1": ("Payment of invoice A-in_1", "", invoice.pk),
        "topup:in_2": ("Payment of invoice in_2", "", None),
        "bonus:1": ("Bonus, pi_1", "", None),
    }
    # A release that is taken back shows its ids again.
    back = migrate(BEFORE).get_model("billing", "LedgerEntry").objects
    assert dict(back.values_list("entry_key", "note")) == given | {
        "topup:pi_4": "By hand, pi_1, pi_4"
    }


def test_an_automatic_recharge_has_its_day_and_its_alert_names_it(before: Apps) -> None:
    past = Past(before)
    mine = {"organization": past.organization, "kind": "recharge"}
    wanted = {"customer": "cus_1", "card": "pm_1", "micro": 5_000_000}
    first, second = [
        past.add("StripeOperation", key=key, parameters=wanted, **mine)
        for key in (
            f"recharge:{past.organization.pk}:2026-11-28:1",
            f"recharge:{past.organization.pk}:2026-11-29:1",
        )
    ]
    other = past.add("StripeOperation", key="product:a/cheap", kind="product", parameters={"x": 1})
    key = f"recharge_failed:{second.key}"
    told = past.add("Notification", key=key, **mine | {"kind": "recharge_failed"})
    low = past.add("Notification", key="low", **mine | {"kind": "low_balance"})

    after = migrate(AFTER)

    operations = after.get_model("billing", "StripeOperation").objects
    assert dict(operations.values_list("pk", "parameters")) == {
        first.pk: wanted | {"day": "2026-11-28"},
        second.pk: wanted | {"day": "2026-11-29"},
        other.pk: {"x": 1},
    }
    alerts = after.get_model("billing", "Notification").objects
    assert dict(alerts.values_list("pk", "operation")) == {told.pk: second.pk, low.pk: None}


def test_what_went_wrong_with_an_alert_is_told_by_channel(before: Apps) -> None:
    past = Past(before)
    errors = {
        "e-mail: SMTPError: full; endpoint: HTTP 500": ("SMTPError: full", "HTTP 500"),
        "e-mail: SMTPError: no endpoint: here": ("SMTPError: no endpoint: here", ""),
        "endpoint: HTTP 503; endpoint: twice": ("", "HTTP 503; endpoint: twice"),
        "": ("", ""),
    }
    for text in errors:
        mine = {"organization": past.organization, "kind": "resumed", "last_error": text}
        past.add("Notification", key=text, **mine)

    after = migrate(AFTER).get_model("billing", "Notification").objects
    rows = after.values_list("key", "email_error", "post_error")
    assert {row[0]: row[1:] for row in rows} == errors

    back = migrate(BEFORE).get_model("billing", "Notification").objects
    assert all(row.last_error == row.key for row in back.all())


def test_a_card_is_a_brand_and_four_digits(before: Apps) -> None:
    past = Past(before)
    cards = {
        "visa 4242": ("visa", "4242"),
        "us_bank_account": ("us_bank_account", ""),
        "": ("", ""),
    }
    for number, words in enumerate(cards):
        owner = past.add("Organization", name=words or "None", slug=f"owner-{number}")
        past.add("BillingAccount", organization=owner, card=words)

    after = migrate(AFTER).get_model("billing", "BillingAccount").objects
    accounts = after.order_by("organization__slug")
    assert list(accounts.values_list("card_brand", "card_last4")) == list(cards.values())

    back = migrate(BEFORE).get_model("billing", "BillingAccount").objects
    accounts = back.order_by("organization__slug")
    assert list(accounts.values_list("card", flat=True)) == list(cards)


def test_a_difference_names_its_invoice(before: Apps) -> None:
    past = Past(before)
    numbers = {"expected": 1, "found": 0, "last_seen_at": datetime(2026, 11, 1, tzinfo=UTC)}
    names = {
        "invoice_draft:in_1:il_1": "in_1",
        "invoice_final:in_2:v7": "in_2",
        "usage:1:2:2026-11-01T10": "",
    }
    for key in names:
        past.add("Difference", key=key, kind=key.partition(":")[0], **numbers)

    after = migrate(AFTER).get_model("billing", "Difference").objects

    assert dict(after.values_list("key", "stripe_invoice")) == names


def test_the_ledger_cannot_be_changed_before_or_after(before: Apps) -> None:
    Past(before).charge("use:{}:0")
    assert refused({"note": "x"})
    migrate(AFTER)
    assert refused({"note": "x"})
    migrate(BEFORE)
    assert refused({"note": "x"})
