"""The gallery: find pictures, look at one, take several along, delete."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from django import forms
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods, require_safe

from accounts.access import MemberRequest, Permission, member
from accounts.models import Organization
from images.catalog.rows import CATALOG
from images.drawing.gateway import Gateway, gateway_of, store_of, turns_of
from images.gallery import archive, browse, deletion, thumbnails
from images.gallery.browse import Filters, NoSuchPicture
from images.gallery.deletion import StillRunning
from images.models import Image
from images.pages.days import DayField, midnight
from images.pages.privacy import hide_prompts
from images.pixels.pictures import NotAPicture
from images.stores.contract import StorageError

log = logging.getLogger(__name__)

PAGE = 48
MAX_WORDS = 8
# No index helps to find words, so a search without a first day looks this far back.
SEARCHED = timedelta(days=90)


class FilterForm(forms.Form):
    """What to show; it is in the URL."""

    q = forms.CharField(
        label=_("Search prompts"),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"type": "search"}),
    )
    model = forms.ChoiceField(label=_("Model"), required=False)
    key = forms.ChoiceField(label=_("Key"), required=False)
    since = DayField(label=_("From"))
    until = DayField(label=_("To"))

    def __init__(self, *args: Any, organization: Organization, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        any_of: list[tuple[str, Any]] = [("", _("any"))]
        models = [(model.id, model.name) for model in CATALOG.values()]
        cast(forms.ChoiceField, self.fields["model"]).choices = any_of + models
        keys = [
            (str(key.pk), f"{key.name} ({key.prefix}…)")
            for key in organization.api_keys.order_by("name", "-created_at")
        ]
        cast(forms.ChoiceField, self.fields["key"]).choices = any_of + keys

    def filters(self) -> Filters:
        """Return what is asked for; days are the viewer's."""
        data = self.cleaned_data
        words = tuple(data["q"].split()[:MAX_WORDS])
        since = midnight(data["since"]) if data["since"] else None
        until = midnight(data["until"] + timedelta(days=1)) if data["until"] else None
        if words and since is None:
            since = (until or timezone.now()) - SEARCHED
        return Filters(
            words=words,
            model=data["model"],
            key=data["key"] or None,
            since=since,
            until=until,
        )


@require_safe
@member(Permission.VIEW)
def index(request: MemberRequest) -> HttpResponse:
    """Show a page of pictures, newest first."""
    organization = request.access.organization
    form = FilterForm(request.GET, organization=organization)
    filters = form.filters() if form.is_valid() else Filters()
    if request.access.viewing_until is not None:
        # Whether a word is found would reveal what the prompts say.
        filters = replace(filters, words=())
    try:
        images, after = browse.browse(
            organization, filters, after=request.GET.get("after", ""), most=PAGE
        )
    except NoSuchPicture as error:
        raise Http404 from error
    hide_prompts(request.access, images)
    context = {
        "form": form,
        "images": images,
        "after": after,
        "filtered": any(request.GET.get(name) for name in form.fields),
        "searched_days": SEARCHED.days if filters.words and not request.GET.get("since") else 0,
        "most": archive.MAX_PICTURES,
    }
    return render(request, "images/gallery/index.html", context)


def _picked(request: HttpRequest, organization: Organization) -> list[Image]:
    """Return the pictures that the request names; 404 when one is not the organization's."""
    named = request.POST if request.method == "POST" else request.GET
    try:
        return browse.pick(organization, named.getlist("picture")[: 2 * archive.MAX_PICTURES])
    except NoSuchPicture as error:
        raise Http404 from error


def _one(request: MemberRequest, reference: str) -> Image:
    """Return the organization's picture of that name; 404 if it does not exist, or no longer."""
    try:
        images = browse.pick(request.access.organization, [reference])
    except NoSuchPicture as error:
        raise Http404 from error
    if not images:
        raise Http404
    return images[0]


@require_safe
@member(Permission.VIEW)
def picture(request: MemberRequest, reference: str) -> HttpResponse:
    """Show one picture with all that is known of it."""
    image = _one(request, reference)
    hide_prompts(request.access, [image])
    model = CATALOG.get(image.generation.model)
    context = {
        "image": image,
        "url": links(request, [image]).get(image.name, ""),
        "generation": image.generation,
        "name": model.name if model else image.generation.model,
        "file_name": archive.file_name(image),
    }
    return render(request, "images/gallery/picture.html", context)


def links(request: HttpRequest, images: list[Image]) -> dict[str, str]:
    """Return where each picture is read from; none, and a message, while the store is away."""
    try:
        return browse.links(images)
    except StorageError as error:
        log.warning("no links to pictures: %s", error)
        messages.error(
            request, _now("Image storage can't be reached right now. Try again in a moment.")
        )
        return {}


@require_safe
@member(Permission.VIEW)
def thumbnail(request: MemberRequest, reference: str) -> HttpResponse:
    """Return a picture small enough for a list."""
    image = _one(request, reference)
    gateway = gateway_of(request)
    turns = turns_of(gateway, request.access.organization.pk)
    try:
        data = thumbnails.thumbnail(gateway, turns, image.name)
    except (FileNotFoundError, NotAPicture) as error:
        raise Http404 from error
    except (StorageError, thumbnails.Busy):
        return HttpResponse(status=503, headers={"Retry-After": "5"})
    # The picture of a name never changes.
    kept = f"private, max-age={thumbnails.KEPT_SECONDS}, immutable"
    return HttpResponse(data, content_type="image/webp", headers={"Cache-Control": kept})


@require_safe
@member(Permission.VIEW)
def zipped(request: MemberRequest) -> HttpResponse:
    """Return the chosen pictures as one file."""
    images = _picked(request, request.access.organization)
    try:
        archive.check(images)
    except archive.TooLarge:
        messages.error(
            request,
            _now("One zip file holds up to %(pictures)d images and %(megabytes)d MB. Select fewer.")
            % {
                "pictures": archive.MAX_PICTURES,
                "megabytes": archive.MAX_BYTES // 1024**2,
            },
        )
        return redirect("gallery")
    if not images:
        messages.warning(request, _now("Select images first."))
        return redirect("gallery")
    name = f"pictures-{timezone.localdate():%Y-%m-%d}.zip"
    response = StreamingHttpResponse(
        _zip_file(gateway_of(request), request.access.organization, images),
        content_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
    return cast(HttpResponse, response)


async def _zip_file(
    gateway: Gateway | None, organization: Organization, images: list[Image]
) -> AsyncIterator[bytes]:
    turns = turns_of(gateway, organization.pk)
    async with store_of(gateway) as store, aclosing(archive.zipped(store, turns, images)) as parts:
        async for part in parts:
            yield part


@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.DRAW)
def delete(request: MemberRequest) -> HttpResponse:
    """Ask whether the chosen pictures shall go; a POST deletes them."""
    organization = request.access.organization
    images = _picked(request, organization)
    if not images:
        messages.warning(request, _now("Select images first."))
        return redirect("gallery")
    if request.method != "POST":
        return render(request, "images/gallery/delete.html", {"images": images})
    references = [image.reference for image in images]
    try:
        gone = deletion.delete(organization, references, actor=request.access.user)
    except StillRunning:
        messages.warning(
            request, _now("Some of these images belong to a request that is still running.")
        )
        return redirect("gallery")
    done = ngettext("%d image deleted.", "%d images deleted.", gone) % gone
    messages.success(request, done)
    return redirect("gallery")
