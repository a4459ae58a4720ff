from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_invitations")]

    operations = [
        migrations.AddField(
            model_name="auditevent",
            name="ip",
            field=models.GenericIPAddressField(
                help_text="Empty: a command, or not known.", null=True, verbose_name="IP address"
            ),
        ),
    ]
