from django.db import migrations


def name_them(apps, schema_editor):
    keys = apps.get_model("accounts", "ApiKey").objects.filter(playground=True, name="Playground")
    for key in keys.select_related("created_by").exclude(created_by=None).iterator():
        person = key.created_by.name or key.created_by.email
        keys.filter(pk=key.pk).update(name=f"Playground · {person}"[:100])


class Migration(migrations.Migration):
    """Give each playground key the name of its person, as new ones have it."""

    dependencies = [("accounts", "0005_playground_keys_and_days_of_prompts")]

    operations = [migrations.RunPython(name_them, migrations.RunPython.noop)]
