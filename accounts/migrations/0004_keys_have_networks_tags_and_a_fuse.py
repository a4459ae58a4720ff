from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_audit_events_say_from_where")]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="allowed_ips",
            field=models.JSONField(
                blank=True,
                default=list,
                help_text="Networks it may be used from; none means anywhere.",
                verbose_name="allowed IP ranges",
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="paused_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="paused at"),
        ),
        migrations.AddField(
            model_name="apikey",
            name="paused_reason",
            field=models.CharField(blank=True, max_length=300, verbose_name="paused reason"),
        ),
        migrations.AddField(
            model_name="apikey",
            name="resumed_at",
            field=models.DateTimeField(
                blank=True,
                help_text="What was spent before does not pause it again.",
                null=True,
                verbose_name="resumed at",
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="tags",
            field=models.JSONField(
                blank=True,
                default=list,
                help_text="The customer's own labels.",
                verbose_name="tags",
            ),
        ),
    ]
