from typing import Any

from django.core.files.storage import storages
from django.core.management.base import BaseCommand, CommandError

from images.pixels import pictures
from images.stores.contract import StorageError
from images.stores.supabase import SupabaseStorage


class Command(BaseCommand):
    help = (
        "Create the public and the private bucket of Supabase Storage, or check that they have "
        "the size limit and types of our images. Prints what differs; exits 1 if anything does."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        types = [mime_type for mime_type, _ in pictures.FORMATS.values()]
        differ = False
        for store in (storages["images"], storages["private_images"]):
            if not isinstance(store, SupabaseStorage):
                self.stderr.write("SUPABASE_URL is not set: pictures are kept in DATA_DIR.")
                return
            try:
                differences = store.ensure_bucket(size_limit=pictures.MAX_BYTES, mime_types=types)
            except StorageError as error:
                raise CommandError(f"{store.bucket}: {error}") from error
            for difference in differences:
                differ = True
                self.stdout.write(f"{store.bucket}: {difference}")
        if differ:
            raise CommandError("a bucket is not as it should be")
