"""A time machine for ledger rows: the one place where the ledger's trigger is put aside.

Rows are made through the services, with the database's own time. A test that lives in the
emulator's time moves them there, and changes nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module

from django.db import connection, transaction

from billing.models import Hold, LedgerEntry

TRIGGER = import_module("billing.migrations.0002_ledger_is_append_only")


def move(*entries: LedgerEntry, to: datetime) -> None:
    """Let these entries, and the holds they captured, have been written at that time."""
    with transaction.atomic(), _writable():
        LedgerEntry.objects.filter(pk__in=[entry.pk for entry in entries]).update(created_at=to)
    holds = Hold.objects.filter(pk__in=[entry.hold_id for entry in entries if entry.hold_id])
    holds.update(created_at=to)
    holds.exclude(settled_at=None).update(settled_at=to)


@contextmanager
def _writable() -> Iterator[None]:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # Foreign keys that wait for the commit would keep the table from being altered.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE billing_ledgerentry DISABLE TRIGGER ledger_is_append_only")
            yield
            cursor.execute("ALTER TABLE billing_ledgerentry ENABLE TRIGGER ledger_is_append_only")
        else:
            cursor.execute("DROP TRIGGER ledger_is_append_only")
            yield
            cursor.execute(TRIGGER.SQLITE)
