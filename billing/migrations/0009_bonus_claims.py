"""The sign-up bonus once per person. Founders who have had it are written down."""

from django.db import migrations, models
from django.db.models.functions import Now


def write_down(apps, schema_editor):
    from billing.spending.onboarding import digests

    claim = apps.get_model("billing", "BonusClaim")
    given = apps.get_model("billing", "LedgerEntry").objects.filter(kind="bonus")
    owners = apps.get_model("accounts", "Membership").objects.filter(
        role="owner", organization__in=given.values("organization")
    )
    for row in owners.select_related("user").iterator():
        known = digests(row.user_id, [row.user.email])
        claim.objects.bulk_create([claim(digest=one) for one in known], ignore_conflicts=True)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_playground_keys_and_days_of_prompts"),
        ("billing", "0008_kinds_of_comparisons"),
    ]

    operations = [
        migrations.CreateModel(
            name="BonusClaim",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("digest", models.CharField(max_length=64, unique=True, verbose_name="digest")),
                ("created_at", models.DateTimeField(db_default=Now(), verbose_name="created at")),
            ],
            options={
                "verbose_name": "claim of the sign-up bonus",
                "verbose_name_plural": "claims of the sign-up bonus",
            },
        ),
        migrations.RunPython(write_down, migrations.RunPython.noop),
    ]
