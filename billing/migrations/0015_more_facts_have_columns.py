"""Facts that were read out of strings get columns: whose invoice a difference is of, the card."""

from django.db import migrations, models


def name_invoices(apps, editor):
    """The key of a difference of an invoice is its kind, the invoice, and what of it."""
    differences = apps.get_model("billing", "Difference").objects
    of_invoices = differences.filter(kind__in=["invoice_draft", "invoice_final"])
    for pk, key in list(of_invoices.values_list("pk", "key")):
        differences.filter(pk=pk).update(stripe_invoice=key.split(":")[1])


def part_cards(apps, editor):
    accounts = apps.get_model("billing", "BillingAccount").objects.exclude(card="")
    for pk, words in list(accounts.values_list("pk", "card")):
        brand, _space, last4 = words.partition(" ")
        accounts.filter(pk=pk).update(card_brand=brand, card_last4=last4)


def join_cards(apps, editor):
    accounts = apps.get_model("billing", "BillingAccount").objects.exclude(card_brand="")
    for account in accounts.iterator():
        words = f"{account.card_brand} {account.card_last4}".strip()
        accounts.filter(pk=account.pk).update(card=words)


class Migration(migrations.Migration):
    dependencies = [("billing", "0014_shared_item")]
    operations = [
        migrations.AddField(
            model_name="difference",
            name="stripe_invoice",
            field=models.CharField(blank=True, default="", max_length=100, verbose_name="invoice"),
            preserve_default=False,
        ),
        migrations.RunPython(name_invoices, migrations.RunPython.noop),
        migrations.AddField(
            model_name="billingaccount",
            name="card_brand",
            field=models.CharField(
                blank=True,
                default="",
                help_text="Of the card on file, or another means of payment.",
                max_length=50,
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="billingaccount",
            name="card_last4",
            field=models.CharField(blank=True, default="", max_length=4),
            preserve_default=False,
        ),
        migrations.RunPython(part_cards, join_cards),
        migrations.RemoveField(model_name="billingaccount", name="card"),
    ]
