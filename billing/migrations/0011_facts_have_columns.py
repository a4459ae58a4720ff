"""Facts that were read out of strings get columns of their own."""

from importlib import import_module

from django.db import migrations, models
from django.db.models import IntegerField
from django.db.models.functions import Cast, Substr

trigger = import_module("billing.migrations.0002_ledger_is_append_only")
# "use:", the UUID of the hold, ":", and from here on the number of the first unit.
FIRST_UNIT = 42


def number_units(apps, editor):
    entries = apps.get_model("billing", "LedgerEntry").objects.filter(kind="consumption")
    later = entries.filter(entry_key__regex=r"^use:[0-9a-f-]{36}:[1-9][0-9]*$")
    later.update(first_unit=Cast(Substr("entry_key", FIRST_UNIT), IntegerField()))


class Migration(migrations.Migration):
    dependencies = [("billing", "0010_names_for_staff")]
    operations = [
        # Off while rows are filled. On SQLite it would be lost anyway: each new column makes a
        # new table there.
        migrations.RunPython(trigger.remove, trigger.add),
        migrations.AddField(
            model_name="ledgerentry",
            name="first_unit",
            field=models.PositiveIntegerField(
                default=0,
                help_text="The number, within its request, of the first of the units it charges.",
                verbose_name="first unit",
            ),
        ),
        migrations.RunPython(number_units, migrations.RunPython.noop),
        migrations.RunPython(trigger.add, trigger.remove),
    ]
