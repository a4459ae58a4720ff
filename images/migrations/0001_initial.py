import uuid

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("accounts", "0001_initial"),
        ("billing", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Generation",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "request_id",
                    models.CharField(max_length=28, unique=True, verbose_name="request id"),
                ),
                ("sandbox", models.BooleanField(verbose_name="sandbox")),
                (
                    "owner",
                    models.UUIDField(
                        help_text="The server process that works on it.",
                        verbose_name="server process",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("running", "Running"),
                            ("succeeded", "Succeeded"),
                            ("failed", "Failed"),
                        ],
                        default="running",
                        max_length=9,
                        verbose_name="status",
                    ),
                ),
                (
                    "requested",
                    models.JSONField(
                        help_text="The models asked for, in order.", verbose_name="models asked for"
                    ),
                ),
                (
                    "parameters",
                    models.JSONField(
                        help_text="The request as sent, without model and prompt.",
                        verbose_name="parameters",
                    ),
                ),
                (
                    "prompt",
                    models.TextField(
                        blank=True, help_text="Empty when the organization keeps none."
                    ),
                ),
                ("tags", models.JSONField(default=list, verbose_name="tags")),
                ("n", models.PositiveSmallIntegerField(verbose_name="asked for")),
                (
                    "idempotency_key",
                    models.CharField(max_length=255, null=True, verbose_name="idempotency key"),
                ),
                ("fingerprint", models.CharField(max_length=64, verbose_name="fingerprint")),
                (
                    "model",
                    models.CharField(
                        blank=True,
                        help_text="Who drew it in the end.",
                        max_length=100,
                        verbose_name="model",
                    ),
                ),
                ("provider", models.CharField(blank=True, max_length=20, verbose_name="provider")),
                (
                    "delivered",
                    models.PositiveSmallIntegerField(default=0, verbose_name="delivered"),
                ),
                (
                    "filtered",
                    models.PositiveSmallIntegerField(
                        default=0, verbose_name="refused by the provider"
                    ),
                ),
                (
                    "cost_micro",
                    models.PositiveBigIntegerField(default=0, verbose_name="cost, micro-USD"),
                ),
                ("attempts", models.JSONField(default=list, verbose_name="attempts")),
                ("skipped", models.JSONField(default=list, verbose_name="skipped")),
                ("adjusted", models.JSONField(default=list, verbose_name="adjusted")),
                ("error_code", models.CharField(blank=True, max_length=40, verbose_name="error")),
                (
                    "error_message",
                    models.CharField(blank=True, max_length=500, verbose_name="error message"),
                ),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        verbose_name="created at",
                    ),
                ),
                (
                    "deadline_at",
                    models.DateTimeField(
                        help_text="After this nobody works on it any more.", verbose_name="deadline"
                    ),
                ),
                ("finished_at", models.DateTimeField(null=True, verbose_name="finished at")),
                (
                    "draw_ms",
                    models.PositiveIntegerField(
                        help_text="How long the model that delivered took.",
                        null=True,
                        verbose_name="drawn in ms",
                    ),
                ),
                ("latency_ms", models.PositiveIntegerField(null=True, verbose_name="took, ms")),
                (
                    "api_key",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="generations",
                        to="accounts.apikey",
                        verbose_name="API key",
                    ),
                ),
                (
                    "hold",
                    models.OneToOneField(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="generation",
                        to="billing.hold",
                        verbose_name="hold",
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="generations",
                        to="accounts.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Image",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("index", models.PositiveSmallIntegerField()),
                (
                    "name",
                    models.CharField(
                        help_text="Its name in the storage.", max_length=100, unique=True
                    ),
                ),
                ("mime_type", models.CharField(max_length=20)),
                ("width", models.PositiveIntegerField()),
                ("height", models.PositiveIntegerField()),
                ("bytes", models.PositiveIntegerField()),
                ("sha256", models.CharField(max_length=64)),
                ("revised_prompt", models.TextField(blank=True)),
                (
                    "deleted_at",
                    models.DateTimeField(help_text="Told to nobody from then on.", null=True),
                ),
                (
                    "purged_at",
                    models.DateTimeField(help_text="When its object was gone.", null=True),
                ),
                (
                    "generation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="images",
                        to="images.generation",
                    ),
                ),
            ],
            options={
                "ordering": ["index"],
            },
        ),
        migrations.AddIndex(
            model_name="generation",
            index=models.Index(fields=["organization", "-created_at"], name="generations_of_one"),
        ),
        migrations.AddIndex(
            model_name="generation",
            index=models.Index(
                condition=models.Q(("status", "running")),
                fields=["deadline_at"],
                name="running_generations",
            ),
        ),
        migrations.AddIndex(
            model_name="generation",
            index=models.Index(
                condition=models.Q(("sandbox", False), ("status", "succeeded")),
                fields=["-finished_at"],
                name="recent_latencies",
            ),
        ),
        migrations.AddConstraint(
            model_name="generation",
            constraint=models.UniqueConstraint(
                condition=models.Q(("status", "failed"), _negated=True),
                fields=("organization", "sandbox", "idempotency_key"),
                name="one_generation_per_idempotency_key",
            ),
        ),
        migrations.AddConstraint(
            model_name="generation",
            constraint=models.CheckConstraint(
                condition=models.Q(("status__in", ["running", "succeeded", "failed"])),
                name="generation_status_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="generation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("status", "running"),
                    models.Q(("delivered__gt", 0), ("status", "succeeded")),
                    models.Q(("cost_micro", 0), ("delivered", 0), ("status", "failed")),
                    _connector="OR",
                ),
                name="generation_costs_only_if_delivered",
            ),
        ),
        migrations.AddConstraint(
            model_name="generation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("sandbox", False), models.Q(("cost_micro", 0), ("hold", None)), _connector="OR"
                ),
                name="sandbox_is_free",
            ),
        ),
        migrations.AddIndex(
            model_name="image",
            index=models.Index(
                condition=models.Q(("deleted_at__isnull", False), ("purged_at", None)),
                fields=["deleted_at"],
                name="images_to_purge",
            ),
        ),
        migrations.AddConstraint(
            model_name="image",
            constraint=models.UniqueConstraint(
                fields=("generation", "index"), name="one_image_per_index"
            ),
        ),
        migrations.AddConstraint(
            model_name="image",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("purged_at", None), ("deleted_at__isnull", False), _connector="OR"
                ),
                name="image_purged_only_if_deleted",
            ),
        ),
    ]
