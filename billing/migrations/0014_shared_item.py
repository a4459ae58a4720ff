"""Prices without an item of their own are counted in the units of a shared one, which are money.

The prices that are there have items, and keep them.
"""

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import F, Q


class Migration(migrations.Migration):
    dependencies = [("billing", "0013_facts_have_columns")]

    operations = [
        migrations.AddField(
            "priceversion",
            "counted_in",
            models.ForeignKey(
                help_text=(
                    "The price in whose units Stripe counts it; empty: in its own. Decided when "
                    "it is published, and never changed."
                ),
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="billing.priceversion",
                verbose_name="counted in",
            ),
        ),
        migrations.AddConstraint(
            "priceversion",
            models.CheckConstraint(
                condition=Q(counted_in=None) | Q(stripe_price=""),
                name="stripe_price_counts_itself",
            ),
        ),
        migrations.AddConstraint(
            "priceversion",
            models.CheckConstraint(
                condition=Q(counted_in=None) | Q(unit_micro=F("unit_micro") / 100 * 100),
                name="shared_price_counts_whole_units",
            ),
        ),
    ]
