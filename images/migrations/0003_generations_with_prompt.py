from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("images", "0002_hourly_usage")]

    operations = [
        migrations.AddIndex(
            model_name="generation",
            index=models.Index(
                condition=models.Q(("prompt", ""), _negated=True),
                fields=["organization", "created_at"],
                name="generations_with_prompt",
            ),
        ),
    ]
