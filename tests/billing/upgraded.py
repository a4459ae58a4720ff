"""A program: fill a database as of billing's migration 0010, migrate it, and print what it has.

Run beside the tests, in a database of its own, because it begins with none of our tables.
"""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import django
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.db.migrations.executor import MigrationExecutor

BEFORE = ("billing", "0010_names_for_staff")
ACME, HOLD, OWNER = (UUID(int=number) for number in (1, 2, 3))
AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
OLD, OTHER = "openai/gpt-image-1", "fal/flux-dev"


def fill() -> None:
    """Write rows of every table that named a model, by the models of then."""
    executor = MigrationExecutor(connection)
    executor.migrate([BEFORE])
    then = MigrationExecutor(connection).loader.project_state([BEFORE]).apps

    def make(app: str, table: str, /, **fields: Any) -> Any:
        return then.get_model(app, table).objects.create(**fields)

    acme = make("accounts", "Organization", id=ACME, name="Acme", slug="acme")
    old = make("billing", "PriceVersion", model=OLD, version=1, unit_micro=190_000,
               stripe_product="prod_1", stripe_meter="mtr_1", stripe_price="price_1",
               livemode=False, state="retired")  # fmt: skip
    make("billing", "PriceVersion", model=OLD, version=2, unit_micro=200_000)
    other = make("billing", "PriceVersion", model=OTHER, version=1, unit_micro=25_000)
    make("billing", "PriceException", organization=acme, model=OLD, price_version=old, reason="x")
    make("billing", "PriceException", organization=acme, model=OTHER, reason="y")
    hold = make("billing", "Hold", id=HOLD, organization=acme, request_id="req_1", quantity=2,
                amount_micro=380_000, quotes={OLD: [old.pk, 190_000], OTHER: [other.pk, 25_000]},
                captured=2, state="captured", owner=OWNER, lease_until=AT,
                settled_at=AT)  # fmt: skip
    make("billing", "LedgerEntry", organization=acme, entry_key="bonus:1", kind="bonus",
         amount_micro=2_500_000, note="Sign-up bonus", created_at=AT)  # fmt: skip
    entry = make("billing", "LedgerEntry", organization=acme, entry_key="use:1",
                 kind="consumption", amount_micro=-380_000, price_version=old, model=OLD,
                 quantity=2, hold=hold, request_id="req_1", created_at=AT)  # fmt: skip
    event = make("billing", "MeterEvent", identifier="gh1:1", organization=acme, price_version=old,
                 hour=AT, quantity=2, timestamp=AT, state="sending", next_at=AT)  # fmt: skip
    make("billing", "MeteredEntry", ledger_entry=entry, meter_event=event)
    make("billing", "StripeOperation", key=f"product:{OLD}", kind="product",
         parameters={"model": OLD, "name": "GPT Image 1"})  # fmt: skip
    make("billing", "StripeOperation", key="price:1", kind="price",
         parameters={"model": OLD, "version": 1, "unit_cents": "19"})  # fmt: skip
    make("billing", "StripeOperation", key="customer:1", kind="customer",
         parameters={"model": "not ours to touch"})  # fmt: skip


def found() -> dict[str, Any]:
    """Return what the tables have now, by the models of now."""
    from billing.models import (
        Hold,
        LedgerEntry,
        MeteredEntry,
        MeterEvent,
        PriceException,
        PriceVersion,
        StripeOperation,
    )

    def rows(model: Any, *fields: str) -> list[list[Any]]:
        return [list(row) for row in model.objects.order_by("pk").values_list(*fields)]

    return {
        "prices": rows(PriceVersion, "sku", "unit", "version", "unit_micro", "state",
                       "stripe_price"),
        "exceptions": rows(PriceException, "sku", "price_version__version", "reason"),
        "quotes": sorted(Hold.objects.get().quotes),
        "ledger": rows(LedgerEntry, "entry_key", "sku", "price_version__version", "quantity",
                       "amount_micro"),
        "events": rows(MeterEvent, "identifier", "price_version__sku", "quantity", "state"),
        "metered": rows(MeteredEntry, "ledger_entry__entry_key", "meter_event_id"),
        "operations": [row[0] for row in rows(StripeOperation, "parameters")],
        "refused": refused(),
    }  # fmt: skip


def refused() -> str:
    """Return what the database says to a change of the ledger."""
    from billing.models import LedgerEntry

    try:
        with transaction.atomic():
            LedgerEntry.objects.update(sku="another")
    except DatabaseError as error:
        return str(error).splitlines()[0]
    return ""


if __name__ == "__main__":
    django.setup()
    fill()
    call_command("migrate", verbosity=0)
    print(json.dumps(found()))
