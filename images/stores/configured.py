"""The stores that the settings name."""

from typing import cast

from django.conf import settings
from django.core.files.storage import storages

from images.stores.contract import ImageStore
from images.stores.private import PublicAndPrivate
from images.stores.spool import Spool, SpoolingStore


def image_store() -> ImageStore:
    """Return the stores that the settings name as one; public pictures with a spool if wanted.

    A private picture is not spooled: nobody could read it there without a login.
    """
    waiting = spool()
    public = SpoolingStore(bare_store(), waiting) if waiting else bare_store()
    return PublicAndPrivate(public, cast(ImageStore, storages["private_images"]))


def bare_store() -> ImageStore:
    """Return the store of public pictures itself, without the spool."""
    return cast(ImageStore, storages["images"])


def spool() -> Spool | None:
    """Return this host's spool; None when an outage of the store is to fail requests."""
    if settings.STORAGE_OUTAGE != "spool":
        return None
    return Spool(settings.DATA_DIR / "spool", max_bytes=settings.SPOOL_MAX_BYTES)
