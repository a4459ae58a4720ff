"""Facts that were read out of strings get columns of their own."""

from importlib import import_module

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import F, IntegerField, OuterRef, Q, Subquery
from django.db.models.functions import Cast, Concat, Left, Length, Now, Substr

trigger = import_module("billing.migrations.0002_ledger_is_append_only")
# "use:", the UUID of the hold, ":", and from here on the number of the first unit.
FIRST_UNIT = 42
OF_PAYMENT, OF_ALERT = "topup:", "recharge_failed:"


def number_units(apps, editor):
    entries = apps.get_model("billing", "LedgerEntry").objects.filter(kind="consumption")
    later = entries.filter(entry_key__regex=r"^use:[0-9a-f-]{36}:[1-9][0-9]*$")
    later.update(first_unit=Cast(Substr("entry_key", FIRST_UNIT), IntegerField()))


def name_payments(apps, editor):
    """Name what was paid; the notes of a card's recharges lose the id that followed them."""
    entries = apps.get_model("billing", "LedgerEntry").objects.filter(kind="recharge")
    stripe_id = Substr("entry_key", len(OF_PAYMENT) + 1)
    by_card = Q(entry_key__startswith=f"{OF_PAYMENT}pi_") | Q(
        entry_key__startswith=f"{OF_PAYMENT}cs_"
    )
    entries.filter(by_card).update(payment_id=stripe_id)
    ending = Concat(models.Value(", "), F("payment_id"))
    noted = entries.filter(by_card, note__endswith=ending)
    noted.update(note=Left("note", Length("note") - Length("payment_id") - len(", ")))
    invoices = apps.get_model("billing", "Invoice").objects.filter(
        stripe_id=Substr(OuterRef("entry_key"), len(OF_PAYMENT) + 1)
    )
    others = entries.filter(entry_key__startswith=OF_PAYMENT).exclude(by_card)
    others.update(invoice=Subquery(invoices.values("pk")[:1]))


def add_ids_to_notes(apps, editor):
    entries = apps.get_model("billing", "LedgerEntry").objects.exclude(payment_id="")
    entries.update(note=Concat("note", models.Value(", "), "payment_id"))


def date_recharges(apps, editor):
    """Write the day, which their key has, among the parameters of automatic recharges."""
    operations = apps.get_model("billing", "StripeOperation").objects.filter(kind="recharge")
    for pk, key, parameters in list(operations.values_list("pk", "key", "parameters")):
        _kind, _organization, day, _number = key.split(":")
        operations.filter(pk=pk).update(parameters={**parameters, "day": day})


def name_operations(apps, editor):
    operations = apps.get_model("billing", "StripeOperation").objects.filter(
        key=Substr(OuterRef("key"), len(OF_ALERT) + 1)
    )
    alerts = apps.get_model("billing", "Notification").objects.filter(kind="recharge_failed")
    alerts.update(operation=Subquery(operations.values("pk")[:1]))


def part_errors(apps, editor):
    """Give what went wrong by e-mail and at the endpoint a column each."""
    alerts = apps.get_model("billing", "Notification").objects.exclude(last_error="")
    for pk, text in list(alerts.values_list("pk", "last_error")):
        by_email, _between, by_post = f"; {text}".partition("; endpoint: ")
        alerts.filter(pk=pk).update(
            email_error=by_email.removeprefix("; e-mail: "), post_error=by_post
        )


def join_errors(apps, editor):
    alerts = apps.get_model("billing", "Notification").objects.all()
    for row in alerts.exclude(email_error="", post_error="").iterator():
        errors = {"e-mail": row.email_error, "endpoint": row.post_error}
        text = "; ".join(f"{channel}: {error}" for channel, error in errors.items() if error)
        alerts.filter(pk=row.pk).update(last_error=text[:500])


class Migration(migrations.Migration):
    dependencies = [("billing", "0012_budget_scopes")]
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
        migrations.AddField(
            model_name="ledgerentry",
            name="payment_id",
            field=models.CharField(
                blank=True,
                default="",
                help_text="The PaymentIntent, or the Checkout session without one, that brought it.",
                max_length=100,
                verbose_name="payment id",
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="ledgerentry",
            name="invoice",
            field=models.ForeignKey(
                db_index=False,
                help_text="The invoice whose payment it is.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="billing.invoice",
                verbose_name="invoice",
            ),
        ),
        migrations.AddConstraint(
            model_name="ledgerentry",
            constraint=models.UniqueConstraint(
                condition=models.Q(("payment_id", ""), _negated=True),
                fields=("payment_id",),
                name="one_ledger_entry_per_payment",
            ),
        ),
        migrations.AddConstraint(
            model_name="ledgerentry",
            constraint=models.UniqueConstraint(
                condition=models.Q(("invoice__isnull", False)),
                fields=("invoice",),
                name="one_ledger_entry_per_invoice",
            ),
        ),
        migrations.AddField(
            model_name="notification",
            name="operation",
            field=models.ForeignKey(
                help_text="The write to Stripe whose failure it tells of.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="billing.stripeoperation",
            ),
        ),
        migrations.RunPython(number_units, migrations.RunPython.noop),
        migrations.RunPython(name_payments, add_ids_to_notes),
        migrations.RunPython(date_recharges, migrations.RunPython.noop),
        migrations.RunPython(name_operations, migrations.RunPython.noop),
        migrations.RunPython(trigger.add, trigger.remove),
        migrations.AddField(
            model_name="notification",
            name="email_error",
            field=models.CharField(blank=True, default="", max_length=500),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="notification",
            name="post_error",
            field=models.CharField(blank=True, default="", max_length=500),
            preserve_default=False,
        ),
        migrations.RunPython(part_errors, join_errors),
        migrations.RemoveField(model_name="notification", name="last_error"),
        migrations.AlterField(
            model_name="notification",
            name="attempts",
            field=models.PositiveIntegerField(default=0, verbose_name="attempts"),
        ),
        migrations.AlterField(
            model_name="notification",
            name="next_at",
            field=models.DateTimeField(db_default=Now(), verbose_name="next attempt"),
        ),
    ]
