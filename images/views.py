"""The pages: an overview of an organization, and the pictures of the local store."""

from django.contrib.auth.decorators import login_required
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import Storage, storages
from django.db.models import Prefetch
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from accounts.models import Organization
from billing import ledger
from images import gateway, pictures
from images.models import Generation, Image
from images.storage import LocalStorage

LATEST = 12


@require_safe
def local_picture(request: HttpRequest, name: str) -> HttpResponse:
    """Serve a picture of the local store under the path it would have in Supabase.

    With a spool, also a picture that waits until Supabase is back.
    """
    waiting = gateway.spool()
    if waiting is not None and waiting.has(name):
        return _picture(waiting.files, name, "public, max-age=31536000, immutable")
    return _picture(storages["images"], name, "public, max-age=31536000, immutable")


@require_safe
def local_private_picture(request: HttpRequest, name: str) -> HttpResponse:
    """Serve a private picture of the local store to whoever has a signed address."""
    store = storages["private_images"]
    if isinstance(store, LocalStorage) and store.is_signed(name, request.GET.get("token", "")):
        return _picture(store, name, "private, no-store")
    return _nothing()


def _picture(store: Storage, name: str, cache_control: str) -> HttpResponse:
    try:
        if not isinstance(store, LocalStorage):
            return _nothing()
        with store.open(name) as file:
            picture = pictures.inspect(file.read())
    except (OSError, SuspiciousFileOperation, pictures.NotAPicture):
        return _nothing()
    return HttpResponse(
        picture.data,
        content_type=picture.mime_type,
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


@login_required
@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    """Show the balance and the latest requests of the person's organizations."""
    organizations = Organization.objects.filter(memberships__user=request.user)  # type: ignore[misc]
    organization = organizations.order_by("created_at").first()
    if organization is None:
        return render(request, "images/overview.html", {"organization": None})
    latest = (
        Generation.objects.filter(organization=organization)
        .select_related("api_key")
        .prefetch_related(Prefetch("images", Image.objects.filter(deleted_at=None)))
        .order_by("-created_at")[:LATEST]
    )
    return render(
        request,
        "images/overview.html",
        {
            "organization": organization,
            "account": ledger.balance(organization),
            "generations": latest,
        },
    )
