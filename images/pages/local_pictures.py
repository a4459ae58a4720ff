"""The pictures of the local store."""

from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import Storage, storages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from images.pixels import pictures
from images.stores import configured
from images.stores.local import LocalStorage


@require_safe
def local_picture(request: HttpRequest, name: str) -> HttpResponse:
    """Serve a picture of the local store under the path it would have in Supabase.

    With a spool, also a picture that waits until Supabase is back.
    """
    waiting = configured.spool()
    if waiting is not None and waiting.has(name):
        return _picture(waiting.files, name, "public, max-age=31536000, immutable")
    return _picture(storages["images"], name, "public, max-age=31536000, immutable")


@require_safe
def local_private_picture(request: HttpRequest, name: str) -> HttpResponse:
    """Serve a private picture of the local store to anyone with a signed URL."""
    store = storages["private_images"]
    if isinstance(store, LocalStorage) and store.is_signed(name, request.GET.get("token", "")):
        return _picture(store, name, "private, no-store")
    return _nothing()


def _picture(store: Storage, name: str, cache_control: str) -> HttpResponse:
    try:
        if not isinstance(store, LocalStorage):
            return _nothing()
        with store.open(name) as file:
            data = file.read()
        mime_type = pictures.mime_type(data)
    except (OSError, SuspiciousFileOperation, pictures.NotAPicture):
        return _nothing()
    return HttpResponse(
        data,
        content_type=mime_type,
        headers={
            "Cache-Control": cache_control,
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Access-Control-Allow-Origin": "*",
        },
    )


def _nothing() -> HttpResponse:
    return JsonResponse({"error": "There is no such picture."}, status=404)
