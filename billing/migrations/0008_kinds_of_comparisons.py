"""The kinds of comparisons are a list that the database knows, so that pages and code agree."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0007_fewer_indexes"),
    ]

    operations = [
        migrations.AlterField(
            model_name="reconciliation",
            name="kind",
            field=models.CharField(
                choices=[
                    ("internal", "our books"),
                    ("requests", "requests and their charges"),
                    ("usage", "usage at Stripe"),
                    ("invoice_draft", "draft invoice"),
                    ("invoice_final", "final invoice"),
                ],
                max_length=20,
                verbose_name="kind",
            ),
        ),
        migrations.AddConstraint(
            model_name="reconciliation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "kind__in",
                        ["internal", "requests", "usage", "invoice_draft", "invoice_final"],
                    )
                ),
                name="comparison_is_known",
            ),
        ),
    ]
