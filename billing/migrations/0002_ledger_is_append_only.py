"""A ledger row, once written, stays as it is: the database itself refuses to change it."""

from django.db import migrations

POSTGRESQL = """
CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only';
END $$;
CREATE TRIGGER ledger_is_append_only BEFORE UPDATE OR DELETE ON billing_ledgerentry
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
"""
# Deleting stays possible on SQLite, whose test databases are emptied row by row.
SQLITE = """
CREATE TRIGGER ledger_is_append_only BEFORE UPDATE ON billing_ledgerentry
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


def add(apps, editor):
    with editor.connection.cursor() as cursor:
        cursor.execute(POSTGRESQL if editor.connection.vendor == "postgresql" else SQLITE)


def remove(apps, editor):
    table = " ON billing_ledgerentry" if editor.connection.vendor == "postgresql" else ""
    with editor.connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER ledger_is_append_only{table}")
        if table:
            cursor.execute("DROP FUNCTION ledger_is_append_only()")


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [migrations.RunPython(add, remove)]
