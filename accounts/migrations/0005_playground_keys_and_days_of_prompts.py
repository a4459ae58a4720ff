from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0004_keys_have_networks_tags_and_a_fuse")]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="playground",
            field=models.BooleanField(
                default=False,
                help_text="The key under which its maker draws on the pages.",
                verbose_name="playground",
            ),
        ),
        migrations.AddField(
            model_name="organization",
            name="prompts_days",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Days a prompt is kept; empty means for ever.",
                null=True,
                verbose_name="days prompts are kept",
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.UniqueConstraint(
                condition=models.Q(("playground", True), ("revoked_at", None)),
                fields=("organization", "created_by", "sandbox"),
                name="one_playground_key_each",
            ),
        ),
    ]
