"""Indexes that others begin with, or that nobody reads, are dropped: each costs every write.

By hand, because Django makes a table anew for it on SQLite, and the ledger would lose its trigger.
"""

import django.db.models.deletion
from django.db import migrations, models


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
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.apikey",
                        verbose_name="API key",
                    ),
                ),
                migrations.AlterField(
                    "hold",
                    "organization",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="holds",
                        to="accounts.organization",
                        verbose_name="organization",
                    ),
                ),
                migrations.AlterField(
                    "ledgerentry",
                    "api_key",
                    models.ForeignKey(
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="ledger_entries",
                        to="accounts.apikey",
                        verbose_name="API key",
                    ),
                ),
                migrations.AlterField(
                    "ledgerentry",
                    "organization",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="ledger",
                        to="accounts.organization",
                        verbose_name="organization",
                    ),
                ),
            ],
        )
    ]
