"""Indexes that others begin with, or that nobody reads, are dropped: each costs every write.

By hand, because Django makes a table anew for it on SQLite.
"""

import django.db.models.deletion
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
        ("images", "0005_usage_by_day"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                drop("images_dailylatency", "organization_id", "aebe3b76"),
                drop("images_dailyusage", "api_key_id", "79308b09"),
                drop("images_dailyusage", "organization_id", "dc513edf"),
                drop("images_generation", "organization_id", "3a5198d3"),
                drop("images_hourlylatency", "organization_id", "cdc565c8"),
                drop("images_hourlytagusage", "api_key_id", "1676165f"),
                drop("images_hourlytagusage", "organization_id", "fe276ae3"),
                drop("images_hourlytotal", "organization_id", "289ba24c"),
                drop("images_hourlyusage", "api_key_id", "1b75b91e"),
                drop("images_hourlyusage", "organization_id", "9bd2cb2e"),
                drop("images_image", "generation_id", "8c6d8a1c"),
            ],
            state_operations=[
                migrations.AlterField(
                    "dailylatency",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="+", db_index=False
                    ),
                ),
                migrations.AlterField(
                    "dailyusage",
                    "api_key",
                    models.ForeignKey("accounts.apikey", PROTECT, related_name="+", db_index=False),
                ),
                migrations.AlterField(
                    "dailyusage",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="+", db_index=False
                    ),
                ),
                migrations.AlterField(
                    "generation",
                    "organization",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="generations",
                        to="accounts.organization",
                        verbose_name="organization",
                    ),
                ),
                migrations.AlterField(
                    "hourlylatency",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="+", db_index=False
                    ),
                ),
                migrations.AlterField(
                    "hourlytagusage",
                    "api_key",
                    models.ForeignKey("accounts.apikey", PROTECT, related_name="+", db_index=False),
                ),
                migrations.AlterField(
                    "hourlytagusage",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="+", db_index=False
                    ),
                ),
                migrations.AlterField(
                    "hourlytotal",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="+", db_index=False
                    ),
                ),
                migrations.AlterField(
                    "hourlyusage",
                    "api_key",
                    models.ForeignKey("accounts.apikey", PROTECT, related_name="+", db_index=False),
                ),
                migrations.AlterField(
                    "hourlyusage",
                    "organization",
                    models.ForeignKey(
                        "accounts.organization", PROTECT, related_name="+", db_index=False
                    ),
                ),
                migrations.AlterField(
                    "image",
                    "generation",
                    models.ForeignKey(
                        "images.generation", PROTECT, related_name="images", db_index=False
                    ),
                ),
            ],
        )
    ]
