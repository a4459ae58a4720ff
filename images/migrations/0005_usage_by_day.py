"""Sums by the day and without keys and models, made from the hours that are rolled up."""

from datetime import UTC

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Sum
from django.db.models.functions import TruncDay

SUMS = ("requests", "images", "cost_micro")
USAGE = ("organization_id", "hour", "api_key_id", "sandbox", "model", "error_code")


def fill(apps, schema_editor):
    def insert(to, come_from, columns, sums):
        names = ["day" if name == "hour" and to != "HourlyTotal" else name for name in columns]
        rows = apps.get_model("images", come_from).objects.annotate(
            day=TruncDay("hour", tzinfo=UTC)
        )
        rows = rows.order_by().values_list(*names)
        rows = rows.annotate(**{f"total_{name}": Sum(name) for name in sums})
        select, parameters = rows.query.sql_with_params()
        quoted = ", ".join(f'"{name}"' for name in (*columns, *sums))
        table = apps.get_model("images", to)._meta.db_table
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(f'INSERT INTO "{table}" ({quoted}) {select}', parameters)

    insert("DailyUsage", "HourlyUsage", USAGE, SUMS)
    insert("HourlyTotal", "HourlyUsage", ("organization_id", "hour", "sandbox", "error_code"), SUMS)
    bars = ("organization_id", "hour", "sandbox", "model", "bucket")
    insert("DailyLatency", "HourlyLatency", bars, ("requests",))


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_playground_keys_and_days_of_prompts"),
        ("images", "0004_usage_by_hour"),
    ]

    operations = [
        migrations.CreateModel(
            name="DailyLatency",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("hour", models.DateTimeField(help_text="The hour the requests came in; UTC.")),
                ("sandbox", models.BooleanField()),
                ("model", models.CharField(max_length=100)),
                (
                    "bucket",
                    models.PositiveSmallIntegerField(help_text="See images.usage.rollups.WIDTH."),
                ),
                ("requests", models.PositiveIntegerField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "hour", "sandbox", "model", "bucket"),
                        name="one_row_per_bar_a_day",
                    )
                ]
            },
        ),
        migrations.CreateModel(
            name="DailyUsage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("hour", models.DateTimeField(help_text="The hour the requests came in; UTC.")),
                ("sandbox", models.BooleanField()),
                (
                    "model",
                    models.CharField(
                        help_text="Who drew; of a failed request the first that was asked.",
                        max_length=100,
                    ),
                ),
                (
                    "error_code",
                    models.CharField(blank=True, help_text="Empty: it succeeded.", max_length=40),
                ),
                ("requests", models.PositiveIntegerField()),
                ("images", models.PositiveIntegerField()),
                ("cost_micro", models.PositiveBigIntegerField()),
                (
                    "api_key",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.apikey",
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "hour", "api_key", "model", "error_code"),
                        name="one_row_of_usage_a_day",
                    )
                ]
            },
        ),
        migrations.CreateModel(
            name="HourlyTotal",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("hour", models.DateTimeField(help_text="The hour the requests came in; UTC.")),
                ("sandbox", models.BooleanField()),
                (
                    "error_code",
                    models.CharField(blank=True, help_text="Empty: it succeeded.", max_length=40),
                ),
                ("requests", models.PositiveIntegerField()),
                ("images", models.PositiveIntegerField()),
                ("cost_micro", models.PositiveBigIntegerField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "hour", "sandbox", "error_code"),
                        name="one_total_an_hour_each",
                    )
                ]
            },
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
