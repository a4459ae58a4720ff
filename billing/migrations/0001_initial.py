import uuid

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("accounts", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="BillingAccount",
            fields=[
                (
                    "organization",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="billing_account",
                        serialize=False,
                        to="accounts.organization",
                    ),
                ),
                ("balance_micro", models.BigIntegerField(default=0)),
                ("spent_micro", models.BigIntegerField(default=0)),
                ("held_micro", models.BigIntegerField(default=0)),
                ("credit_limit_micro", models.BigIntegerField(default=0)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("held_micro__gte", 0)), name="account_holds_no_debt"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("credit_limit_micro__gte", 0)),
                        name="credit_limit_not_negative",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Budget",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("key_family", models.UUIDField(unique=True)),
                (
                    "period",
                    models.CharField(
                        choices=[("day", "Day"), ("week", "Week"), ("month", "Month")], max_length=5
                    ),
                ),
                ("limit_micro", models.BigIntegerField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="budgets",
                        to="accounts.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="BudgetPeriod",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("starts_at", models.DateTimeField()),
                ("spent_micro", models.BigIntegerField(default=0)),
                ("held_micro", models.BigIntegerField(default=0)),
                (
                    "budget",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="periods",
                        to="billing.budget",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Hold",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("request_id", models.CharField(max_length=28, verbose_name="request id")),
                ("quantity", models.PositiveIntegerField(verbose_name="quantity")),
                ("amount_micro", models.PositiveBigIntegerField(verbose_name="amount, micro-USD")),
                (
                    "quotes",
                    models.JSONField(
                        help_text="What each candidate model costs: {model: [price version id, micro-USD]}.",
                        verbose_name="prices quoted",
                    ),
                ),
                (
                    "captured",
                    models.PositiveIntegerField(
                        default=0, help_text="Images charged so far.", verbose_name="captured"
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("held", "Held"),
                            ("captured", "Captured"),
                            ("released", "Released"),
                            ("expired", "Expired"),
                        ],
                        default="held",
                        max_length=8,
                        verbose_name="state",
                    ),
                ),
                (
                    "owner",
                    models.UUIDField(
                        help_text="The server process that works on the request.",
                        verbose_name="server process",
                    ),
                ),
                ("lease_until", models.DateTimeField(verbose_name="lease until")),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        verbose_name="created at",
                    ),
                ),
                ("settled_at", models.DateTimeField(null=True, verbose_name="settled at")),
                (
                    "api_key",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.apikey",
                    ),
                ),
                (
                    "budget_period",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="holds",
                        to="billing.budgetperiod",
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="holds",
                        to="accounts.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="PriceVersion",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("model", models.CharField(max_length=100, verbose_name="model")),
                ("version", models.PositiveIntegerField(verbose_name="version")),
                (
                    "unit_micro",
                    models.PositiveBigIntegerField(verbose_name="unit price, micro-USD"),
                ),
                (
                    "effective_from",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        verbose_name="effective from",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("model", "version"), name="one_price_per_version"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("unit_micro__gt", 0)), name="price_is_positive"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="LedgerEntry",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "entry_key",
                    models.CharField(max_length=150, unique=True, verbose_name="entry key"),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("bonus", "Bonus"),
                            ("recharge", "Recharge"),
                            ("consumption", "Consumption"),
                            ("refund", "Refund"),
                            ("adjustment", "Adjustment"),
                        ],
                        max_length=11,
                        verbose_name="kind",
                    ),
                ),
                ("amount_micro", models.BigIntegerField(verbose_name="amount, micro-USD")),
                ("model", models.CharField(blank=True, max_length=100, verbose_name="model")),
                ("quantity", models.PositiveIntegerField(default=0, verbose_name="quantity")),
                (
                    "request_id",
                    models.CharField(blank=True, max_length=28, verbose_name="request id"),
                ),
                ("note", models.CharField(blank=True, max_length=200, verbose_name="note")),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        verbose_name="created at",
                    ),
                ),
                (
                    "api_key",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="ledger_entries",
                        to="accounts.apikey",
                    ),
                ),
                (
                    "hold",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="ledger_entries",
                        to="billing.hold",
                        verbose_name="hold",
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="ledger",
                        to="accounts.organization",
                    ),
                ),
                (
                    "price_version",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="billing.priceversion",
                        verbose_name="price version",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(("limit_micro__gte", 0)), name="budget_not_negative"
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(("period__in", ["day", "week", "month"])),
                name="budget_period_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="budgetperiod",
            constraint=models.UniqueConstraint(
                fields=("budget", "starts_at"), name="one_row_per_period"
            ),
        ),
        migrations.AddConstraint(
            model_name="budgetperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(("held_micro__gte", 0)), name="budget_holds_no_debt"
            ),
        ),
        migrations.AddIndex(
            model_name="hold",
            index=models.Index(
                condition=models.Q(("state", "held")), fields=["lease_until"], name="open_holds"
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.UniqueConstraint(
                fields=("organization", "request_id"), name="one_hold_each"
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(("state__in", ["held", "captured", "released", "expired"])),
                name="hold_state_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("settled_at", None), ("state", "held")),
                    models.Q(
                        models.Q(("state", "held"), _negated=True), ("settled_at__isnull", False)
                    ),
                    _connector="OR",
                ),
                name="hold_settled_once_not_held",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(("captured__lte", models.F("quantity"))),
                name="hold_captures_no_more_than_held",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("state", "held"),
                    models.Q(("captured__gt", 0), ("state", "captured")),
                    models.Q(("captured", 0), ("state__in", ["released", "expired"])),
                    _connector="OR",
                ),
                name="hold_state_tells_if_captured",
            ),
        ),
        migrations.AddIndex(
            model_name="ledgerentry",
            index=models.Index(fields=["organization", "-created_at"], name="ledger_of_one"),
        ),
        migrations.AddIndex(
            model_name="ledgerentry",
            index=models.Index(fields=["api_key", "-created_at"], name="ledger_of_a_key"),
        ),
        migrations.AddConstraint(
            model_name="ledgerentry",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("kind__in", ["bonus", "recharge", "consumption", "refund", "adjustment"])
                ),
                name="ledger_kind_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="ledgerentry",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micro__lt", 0),
                        ("hold__isnull", False),
                        ("kind", "consumption"),
                        ("price_version__isnull", False),
                        ("quantity__gt", 0),
                    ),
                    models.Q(
                        ("kind__in", ["bonus", "recharge", "refund"]), ("amount_micro__gt", 0)
                    ),
                    models.Q(("kind", "adjustment"), models.Q(("amount_micro", 0), _negated=True)),
                    _connector="OR",
                ),
                name="ledger_sign_follows_kind",
            ),
        ),
    ]
