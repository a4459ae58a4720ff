"""Indexes that others begin with, or that nobody reads, are dropped: each costs every write.

By hand, because Django makes a table anew for it on SQLite, and the ledger would lose its trigger.
"""

from django.db import migrations, models
from django.db.models.deletion import PROTECT


def drop(table, column, digest):
    name = f"{table}_{column}_{digest}"
    return migrations.RunSQL(
        f'DROP INDEX "{name}"', f'CREATE INDEX "{name}" ON "{table}" ("{column}")'
    )


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_playground_keys_and_days_of_prompts"),
        ("billing", "0006_reconciliation_marks"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                drop("billing_hold", "api_key_id", "1029ec72"),
                drop("billing_hold", "organization_id", "fa33b416"),
                drop("billing_ledgerentry", "api_key_id", "41044396"),
                drop("billing_ledgerentry", "organization_id", "edcfad3a"),
            ],
            state_operations=[
                migrations.AlterField(
                    "hold",
                    "api_key",
                    models.ForeignKey(
                        "accounts.apikey", PROTECT, related_name="+", null=True, db_index=False
                    ),
                ),
                migrations.AlterField(
                    "hold",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="holds", db_index=False
                    ),
                ),
                migrations.AlterField(
                    "ledgerentry",
                    "api_key",
                    models.ForeignKey(
                        "accounts.apikey",
                        PROTECT,
                        related_name="ledger_entries",
                        null=True,
                        db_index=False,
                    ),
                ),
                migrations.AlterField(
                    "ledgerentry",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="ledger", db_index=False
                    ),
                ),
            ],
        )
    ]
