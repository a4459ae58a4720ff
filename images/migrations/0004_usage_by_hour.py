from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("images", "0003_generations_with_prompt")]

    operations = [
        migrations.AddIndex(
            model_name="hourlyusage",
            index=models.Index(fields=["hour"], name="usage_by_hour"),
        )
    ]
