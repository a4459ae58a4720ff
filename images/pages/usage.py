"""Usage: every request of the organization, one of them, and all of them as a file."""

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from django import forms
from django.conf import settings
from django.http import Http404, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_safe

from accounts.access import MemberRequest, Permission, member
from accounts.models import Organization
from billing.models import LedgerEntry
from geekhub.lib.csv import csv_file
from images.catalog.rows import CATALOG
from images.models import Generation, GenerationStatus, Image
from images.pages import parameters
from images.pages.curl import curl
from images.pages.days import FIRST, DayField, midnight
from images.pages.gallery import links
from images.pages.privacy import hide_prompts
from images.pages.words import ERRORS, explain
from images.usage import csv, requests, sums
from images.usage.span import Place, Wanted

PAGE = 30
DEFAULT_DAYS = 30
MAX_KEYS = 300
BEGUN = {
    GenerationStatus.SUCCEEDED: _("Succeeded"),
    GenerationStatus.FAILED: _("Failed"),
    GenerationStatus.RUNNING: _("Running"),
}
TONES = {GenerationStatus.SUCCEEDED: "good", GenerationStatus.FAILED: "wrong"}


class FilterForm(forms.Form):
    """Which requests to show; it is in the URL."""

    since = DayField(label=_("From"))
    until = DayField(label=_("To"))
    key = forms.ChoiceField(label=_("Key"), required=False)
    model = forms.ChoiceField(label=_("Model"), required=False)
    status = forms.ChoiceField(label=_("Status"), required=False)
    tag = forms.CharField(label=_("Tag"), required=False, max_length=40, strip=False)
    q = forms.CharField(
        label=_("Request id"),
        required=False,
        max_length=40,
        widget=forms.TextInput(attrs={"type": "search", "placeholder": "req_…"}),
    )

    def __init__(self, *args: Any, organization: Organization, **kwargs: Any) -> None:
        kwargs |= {"use_required_attribute": False, "label_suffix": ""}
        super().__init__(*args, **kwargs)
        any_of: list[tuple[str, Any]] = [("", _("any"))]
        keys = organization.api_keys.order_by("-created_at")[:MAX_KEYS]
        self._choices("key").choices = any_of + [
            (str(key.pk), f"{key.name} ({key.prefix}…)") for key in keys
        ]
        self._choices("model").choices = any_of + [(name, name) for name in (*CATALOG, "auto")]
        codes = [(code, code) for code in (*ERRORS, "internal_error")]
        self._choices("status").choices = [
            *any_of,
            *((status.value, word) for status, word in BEGUN.items()),
            (_("Error"), codes),
        ]

    def _choices(self, name: str) -> forms.ChoiceField:
        return cast(forms.ChoiceField, self.fields[name])

    def clean(self) -> dict[str, Any]:
        """Check the days together."""
        data = super().clean() or self.cleaned_data
        since, until = data.get("since"), data.get("until")
        if since and until and since > until:
            self.add_error("until", _("The end date is before the start date."))
        return data

    def wanted(self) -> Wanted:
        """Return what is asked for: days are the viewer's; without any, the last thirty."""
        data = self.cleaned_data
        until = data["until"] or max(timezone.localdate(), data["since"] or FIRST)
        since = data["since"] or max(FIRST, until - timedelta(days=DEFAULT_DAYS - 1))
        return Wanted(
            start=midnight(since),
            end=midnight(until + timedelta(days=1)),
            key=uuid.UUID(data["key"]) if data["key"] else None,
            model=data["model"],
            status=data["status"],
            tag=data["tag"],
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A request as the list shows it."""

    request: Generation

    @property
    def first(self) -> Image | None:
        """Return the first picture that is not deleted, of those loaded."""
        return next(iter(self.request.images.all()), None)

    @property
    def pictures(self) -> str:
        """Return how many pictures came, of how many that were asked for."""
        asked = {"delivered": self.request.delivered, "n": self.request.n}
        return gettext("%(delivered)s of %(n)s") % asked

    @property
    def asked(self) -> str:
        """Return the requested models, if they say more than the one that delivered."""
        asked = ", ".join(self.request.requested)
        return asked if asked != self.request.model else ""

    @property
    def size(self) -> str:
        """Return the size, empty if none is known."""
        return csv.size(self.request)

    @property
    def more(self) -> int:
        """Return how many pictures there are beside the one shown."""
        return max(0, len(self.request.images.all()) - 1)

    @property
    def tone(self) -> str:
        """Return the tone of the status."""
        return TONES.get(GenerationStatus(self.request.status), "")

    @property
    def status(self) -> Any:
        """Return the status in words."""
        return BEGUN[GenerationStatus(self.request.status)]

    @property
    def why(self) -> Any:
        """Return what went wrong in words; empty if nothing did."""
        return explain(self.request.error_code) if self.request.error_code else ""


def _form(request: MemberRequest) -> FilterForm:
    """Return the checked filters; 404 for a key of somebody else."""
    form = FilterForm(request.GET, organization=request.access.organization)
    if not form.is_valid() and "key" in form.errors:
        raise Http404
    return form


def _before(request: MemberRequest) -> Place | None:
    try:
        return Place.parse(request.GET["before"]) if "before" in request.GET else None
    except ValueError as error:
        raise Http404 from error


@require_safe
@member(Permission.VIEW)
def index(request: MemberRequest) -> HttpResponse:
    """Show a page of requests, newest first, and what all that match add up to."""
    form, before = _form(request), _before(request)
    context: dict[str, Any] = {
        "form": form,
        "filtered": any(request.GET.get(name) for name in form.fields),
        "before": before,
        "zone": timezone.get_current_timezone_name(),
        "now": timezone.localtime(),
    }
    if not form.is_valid():
        return render(request, "images/usage.html", context, status=400)
    return render(request, "images/usage.html", context | _found(request, form, before))


def _found(request: MemberRequest, form: FilterForm, before: Place | None) -> dict[str, Any]:
    organization = request.access.organization
    if wanted_id := form.cleaned_data["q"].strip():
        one = requests.find(organization, wanted_id)
        return {"rows": [Row(one)] if one else []}
    wanted = form.wanted()
    rows = requests.page(organization, wanted, before=before, size=PAGE + 1)
    last = rows[PAGE - 1] if len(rows) > PAGE else None
    return {
        "rows": [Row(row) for row in rows[:PAGE]],
        "older": str(Place(last.created_at, last.request_id)) if last else "",
        "total": sums.total(organization, wanted),
        "first_day": timezone.localdate(wanted.start),
        "last_day": timezone.localdate(wanted.end - timedelta(seconds=1)),
    }


@require_safe
@member(Permission.VIEW)
def export(request: MemberRequest) -> HttpResponseBase:
    """Return all requests that match as CSV, written while it is sent."""
    form = _form(request)
    if not form.is_valid():
        return render(request, "images/usage.html", {"form": form}, status=400)
    zone = timezone.get_current_timezone()
    lines = csv.lines(request.access.organization, form.wanted(), zone)
    return csv_file(request, "usage", lines)


@require_safe
@member(Permission.VIEW)
def detail(request: MemberRequest, request_id: str) -> HttpResponse:
    """Show one request with all that is known of it."""
    found = requests.find(request.access.organization, request_id)
    if found is None:
        raise Http404
    images: list[Image] = list(found.images.all())
    hide_prompts(request.access, images, [found])
    addresses = links(request, images)
    context = {
        "row": Row(found),
        "found": found,
        "parameters": parameters.rows(found),
        "adjusted": _adjusted(found),
        "pictures": [(image, addresses.get(image.name, "")) for image in images],
        "deleted": found.delivered - len(images),
        "entries": _entries(found),
        "curl": curl(found, settings.PUBLIC_URL),
        "zone": timezone.get_current_timezone_name(),
    }
    return render(request, "images/usage_detail.html", context)


def _adjusted(found: Generation) -> list[dict[str, str]]:
    """Return what was drawn differently, each value as text; empty for nothing."""
    return [
        {name: "" if value is None else parameters.plain(value) for name, value in one.items()}
        for one in found.adjusted
    ]


def _entries(found: Generation) -> list[LedgerEntry]:
    if found.hold_id is None:
        return []
    return list(LedgerEntry.objects.filter(hold=found.hold_id).order_by("pk"))
