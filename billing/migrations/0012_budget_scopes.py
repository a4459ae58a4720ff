"""The scope of a budget is a value of its own; those there are belong to keys and members."""

from django.db import migrations, models


def fill(apps, editor):
    budgets = apps.get_model("billing", "Budget").objects
    budgets.filter(member__isnull=False).update(scope="member")


class Migration(migrations.Migration):
    dependencies = [("billing", "0011_prices_by_sku")]

    operations = [
        migrations.RemoveConstraint(model_name="budget", name="budget_has_one_scope"),
        migrations.AddField(
            model_name="budget",
            name="scope",
            field=models.CharField(default="key", max_length=12),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="budget",
            name="word",
            field=models.CharField(max_length=40, null=True),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.UniqueConstraint(
                fields=("organization", "scope", "word", "period"), name="one_budget_per_word"
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.UniqueConstraint(
                condition=models.Q(("key_family", None), ("member", None), ("word", None)),
                fields=("organization", "scope", "period"),
                name="one_budget_per_scope",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("key_family__isnull", False),
                        ("member_id__isnull", True),
                        ("scope", "key"),
                        ("word__isnull", True),
                    ),
                    models.Q(
                        ("key_family__isnull", True),
                        ("member_id__isnull", False),
                        ("scope", "member"),
                        ("word__isnull", True),
                    ),
                    models.Q(
                        ("key_family__isnull", True),
                        ("member_id__isnull", True),
                        ("scope", "tag"),
                        ("word__isnull", False),
                    ),
                    models.Q(
                        ("key_family__isnull", True),
                        ("member_id__isnull", True),
                        ("scope", "organization"),
                        ("word__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="budget_has_its_subject",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(("word", ""), _negated=True), name="budget_word_is_not_empty"
            ),
        ),
    ]
