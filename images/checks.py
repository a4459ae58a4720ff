"""Checks at deployment: `manage.py check --deploy`."""

from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register
from django.core.files.storage import storages

from images.pixels import pictures
from images.stores.contract import StorageError
from images.stores.supabase import SupabaseStorage


@register(deploy=True)
def bucket(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Return what is wrong with the buckets; nothing when pictures are kept locally."""
    stores = [storages["images"], storages["private_images"]]
    return [one for store in stores if isinstance(store, SupabaseStorage) for one in _of(store)]


def _of(store: SupabaseStorage) -> list[CheckMessage]:
    types = [mime_type for mime_type, _ in pictures.FORMATS.values()]
    try:
        differences = store.bucket_differences(size_limit=pictures.MAX_BYTES, mime_types=types)
    except StorageError as error:
        return [Error(f"The bucket {store.bucket} cannot be used: {error}", id="images.E001")]
    return [Warning(f"The bucket {store.bucket}: {one}", id="images.W001") for one in differences]
