"""Differences and comparisons, for staff."""

from collections.abc import Iterable
from typing import Any, cast

from django.contrib.admin import SimpleListFilter, display
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from accounts.models import User
from accounts.staff.forms import ReasonForm
from accounts.staff.lists import StaffAdmin, on_row, organizations_named
from billing import reconciliation
from billing.models import Comparison, Difference, DifferenceState, Reconciliation


class OpenFilter(SimpleListFilter):
    """Open differences, unless others are asked for."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the other states."""
        others = [one for one in DifferenceState if one is not DifferenceState.OPEN]
        return [*((one.value, one.label) for one in others), ("all", _("all"))]

    def choices(self, changelist: Any) -> Any:
        """Return the choices; no state means open."""
        first, *others = super().choices(changelist)
        yield first | {"display": _("open")}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return differences of the state."""
        if self.value() == "all":
            return queryset
        return queryset.filter(state=self.value() or DifferenceState.OPEN)


class AcceptForm(ReasonForm):
    """Why a difference is as it should be."""

    def __init__(self, *args: Any, row: Difference, **kwargs: Any) -> None:
        super().__init__(*args, row=row, **kwargs)
        self.fields["reason"].help_text = _("Recorded with the difference and in the audit log.")


class DifferenceAdmin(StaffAdmin):
    """What should be equal and is not. The list should be empty."""

    list_display = (
        "kind",
        "organization",
        "price_version",
        "hour",
        "expected",
        "found_number",
        "off_by",
        "seen",
        "last_seen_at",
        "state",
        "note",
    )
    list_filter = (OpenFilter,)
    list_select_related = ("organization", "price_version")
    ordering = ("state", "-last_seen_at")
    search_fields = ("key",)
    search_help_text = _("An organization's name, slug or UUID, or the key of a difference")
    fields = (
        ("kind", "subject", "key"),
        ("organization", "price_version", "hour", "stripe_invoice"),
        ("expected", "found_number", "off_by"),
        ("state", "note", "seen"),
        ("first_seen_at", "last_seen_at"),
    )
    readonly_fields = ("found_number", "off_by")
    list_before_template = "staff/reconciliation.html"
    actions_detail = ("accept",)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the differences under the last run of each kind."""
        context = {
            "runs": last_runs(),
            "open_differences": reconciliation.open_differences().count(),
        }
        return cast(HttpResponse, super().changelist_view(request, context))

    def found(self, queryset: QuerySet[Difference], term: str) -> QuerySet[Difference]:
        """Return a difference by its key, or those of organizations."""
        return queryset.filter(Q(key=term) | Q(organization__in=organizations_named(term)))

    @display(description=_("Found"))
    def found_number(self, row: Difference) -> int:
        """Return the number that was found; `found` is what searches."""
        return row.found

    @display(description=_("Off by"))
    def off_by(self, row: Difference) -> int:
        """Return how far apart the two are."""
        return row.found - row.expected

    @on_row(description=_("Accept…"), url_path="accept")
    def accept(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Accept a difference."""

        def do(row: Difference, data: dict[str, Any]) -> str:
            reconciliation.resolve(row, data["reason"], cast(User, request.user))
            return _now("Difference accepted. It reopens only if its numbers change.")

        return self.act(
            request,
            object_id,
            AcceptForm,
            title=_("Accept a difference"),
            text=_(
                "Accepting corrects nothing: it records that somebody knows why the two differ."
            ),
            do=do,
            refused=(ValueError, reconciliation.AlreadyResolved),
        )


class ReconciliationAdmin(StaffAdmin):
    """Every comparison that was made and is kept."""

    list_display = ("kind", "subject", "started_at", "finished_at", "checked", "differences")
    list_filter = ("kind",)
    sortable_by = ()
    ordering = ("-pk",)
    search_fields = ("subject",)
    search_help_text = _("An invoice, by Stripe's id")

    def found(self, queryset: QuerySet[Reconciliation], term: str) -> QuerySet[Reconciliation]:
        """Return the runs of an invoice."""
        return queryset.filter(subject=term)


def last_runs() -> list[Reconciliation]:
    """Return the last comparison of each kind."""
    runs = [Reconciliation.objects.filter(kind=kind).order_by("-pk").first() for kind in Comparison]
    return [run for run in runs if run is not None]
