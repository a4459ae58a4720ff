"""The pages: an overview of an organization, and the pictures of the local store."""

from django.contrib.auth.decorators import login_required
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import storages
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
    """Serve a picture of the local store under the path it would have in Supabase."""
    try:
        picture = pictures.inspect(_read_local(name))
    except (OSError, SuspiciousFileOperation, pictures.NotAPicture):
        return JsonResponse({"error": "There is no such picture."}, status=404)
    return HttpResponse(
        picture.data,
        content_type=picture.mime_type,
        headers={
            "Cache-Control": "public, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Access-Control-Allow-Origin": "*",
        },
    )


def _read_local(name: str) -> bytes:
    """Return a picture of the local store, or one that waits for the store to come back."""
    store, waiting = storages["images"], gateway.spool()
    if waiting is not None and waiting.files.exists(name):
        return waiting.read(name)
    if not isinstance(store, LocalStorage):
        raise FileNotFoundError(name)
    with store.open(name) as file:
        data: bytes = file.read()
    return data


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
            "store": storages["images"],
        },
    )
