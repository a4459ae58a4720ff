import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("billing", "0002_ledger_is_append_only"),
        ("images", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="ClosedHours",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("until", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="HourlyLatency",
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
            ],
        ),
        migrations.CreateModel(
            name="HourlyTagUsage",
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
                    "tag",
                    models.CharField(blank=True, help_text="Empty: without tags.", max_length=40),
                ),
            ],
        ),
        migrations.CreateModel(
            name="HourlyUsage",
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
            ],
        ),
        migrations.AddIndex(
            model_name="generation",
            index=models.Index(fields=["created_at"], name="generations_of_an_hour"),
        ),
        migrations.AddConstraint(
            model_name="closedhours",
            constraint=models.CheckConstraint(
                condition=models.Q(("pk", 1)), name="closed_hours_is_one_row"
            ),
        ),
        migrations.AddField(
            model_name="hourlylatency",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="accounts.organization",
            ),
        ),
        migrations.AddField(
            model_name="hourlytagusage",
            name="api_key",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.apikey"
            ),
        ),
        migrations.AddField(
            model_name="hourlytagusage",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="accounts.organization",
            ),
        ),
        migrations.AddField(
            model_name="hourlyusage",
            name="api_key",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.apikey"
            ),
        ),
        migrations.AddField(
            model_name="hourlyusage",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="accounts.organization",
            ),
        ),
        migrations.AddConstraint(
            model_name="hourlylatency",
            constraint=models.UniqueConstraint(
                fields=("organization", "hour", "sandbox", "model", "bucket"),
                name="one_row_per_bar",
            ),
        ),
        migrations.AddIndex(
            model_name="hourlytagusage",
            index=models.Index(fields=["organization", "hour"], name="tag_usage_by_hour"),
        ),
        migrations.AddConstraint(
            model_name="hourlytagusage",
            constraint=models.UniqueConstraint(
                fields=("organization", "tag", "hour", "api_key", "model", "error_code"),
                name="one_row_of_usage_per_tag",
            ),
        ),
        migrations.AddConstraint(
            model_name="hourlyusage",
            constraint=models.UniqueConstraint(
                fields=("organization", "hour", "api_key", "model", "error_code"),
                name="one_row_of_usage_each",
            ),
        ),
    ]
