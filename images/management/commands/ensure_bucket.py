from typing import Any

from django.core.files.storage import storages
from django.core.management.base import BaseCommand, CommandError

from images import pictures
from images.storage import StorageError, SupabaseStorage


class Command(BaseCommand):
    help = (
        "Create the bucket of Supabase Storage, or check that it is public and has the size limit "
        "and types of our pictures. Prints what differs; exits 1 when something does."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        store = storages["images"]
        if not isinstance(store, SupabaseStorage):
            self.stderr.write("SUPABASE_URL is not set: pictures are kept in DATA_DIR.")
            return
        types = [mime_type for mime_type, _ in pictures.FORMATS.values()]
        try:
            differences = store.ensure_bucket(size_limit=pictures.MAX_BYTES, mime_types=types)
        except StorageError as error:
            raise CommandError(f"{store.bucket}: {error}") from error
        for difference in differences:
            self.stdout.write(difference)
        if differences:
            raise CommandError(f"{store.bucket} is not as it should be")
        self.stderr.write(f"{store.bucket} is as it should be.")
