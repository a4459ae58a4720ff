"""What was keyed by a model's id is keyed by a sku; today's skus are the models' ids.

The ledger's column is renamed in place on both databases, so its trigger stays.
"""

from django.db import migrations, models

KINDS = ("product", "price")


def renamed(old, new):
    def rename(apps, editor):
        operations = apps.get_model("billing", "StripeOperation").objects.filter(kind__in=KINDS)
        for row in operations.iterator():
            row.parameters = {
                new if name == old else name: value for name, value in row.parameters.items()
            }
            row.save(update_fields=["parameters"])

    return rename


class Migration(migrations.Migration):
    dependencies = [("billing", "0010_names_for_staff")]

    operations = [
        migrations.RemoveConstraint("priceexception", "one_exception_each"),
        migrations.RemoveConstraint("priceversion", "one_price_per_version"),
        migrations.RenameField("ledgerentry", "model", "sku"),
        migrations.RenameField("priceexception", "model", "sku"),
        migrations.RenameField("priceversion", "model", "sku"),
        migrations.AlterField(
            "ledgerentry",
            "sku",
            models.CharField(blank=True, max_length=100, verbose_name="SKU"),
        ),
        migrations.AlterField(
            "priceversion", "sku", models.CharField(max_length=100, verbose_name="SKU")
        ),
        migrations.AddField(
            "priceversion",
            "unit",
            models.CharField(default="image", max_length=30, verbose_name="unit"),
        ),
        migrations.AddConstraint(
            "priceexception",
            models.UniqueConstraint(fields=("organization", "sku"), name="one_exception_each"),
        ),
        migrations.AddConstraint(
            "priceversion",
            models.UniqueConstraint(fields=("sku", "version"), name="one_price_per_version"),
        ),
        migrations.AlterField(
            "hold",
            "captured",
            models.PositiveIntegerField(
                default=0, help_text="Units charged so far.", verbose_name="captured"
            ),
        ),
        migrations.AlterField(
            "hold",
            "quotes",
            models.JSONField(
                help_text=(
                    "What a unit of each candidate costs: {SKU: [price version id, micro-USD]}."
                ),
                verbose_name="prices quoted",
            ),
        ),
        migrations.RunPython(renamed("model", "sku"), renamed("sku", "model")),
    ]
