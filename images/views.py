"""The pages: an overview of an organization, and the pictures of the local store."""

from django.contrib.auth.decorators import login_required
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import storages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from accounts.models import Organization
from billing import ledger
from images import pictures
from images.models import Generation
from images.storage import LocalStorage

LATEST = 12


@require_safe
def local_picture(request: HttpRequest, name: str) -> HttpResponse:
    """Serve a picture of the local store under the path it would have in Supabase."""
    store = storages["images"]
    try:
        if not isinstance(store, LocalStorage):
            raise FileNotFoundError(name)
        with store.open(name) as file:
            picture = pictures.inspect(file.read())
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
        .prefetch_related("images")
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
