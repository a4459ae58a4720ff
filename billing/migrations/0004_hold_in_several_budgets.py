"""A hold may be in several budget periods: their ids become a list."""

from django.db import migrations


def copy(apps, editor):
    holds = apps.get_model("billing", "Hold").objects.exclude(budget_period=None)
    for pk, period in holds.values_list("pk", "budget_period"):
        holds.filter(pk=pk).update(budget_periods=[period])


class Migration(migrations.Migration):
    dependencies = [("billing", "0003_stripe_budgets_alerts")]
    operations = [
        migrations.RunPython(copy, migrations.RunPython.noop),
        migrations.RemoveField(model_name="hold", name="budget_period"),
    ]
