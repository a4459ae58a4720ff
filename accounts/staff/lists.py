"""What the staff's lists have in common: rows to read, and bounds."""

import uuid
from collections.abc import Callable
from typing import Any, cast

from django.contrib import messages
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import cached_property
from unfold.admin import ModelAdmin
from unfold.decorators import action

from accounts.models import Membership, Organization
from accounts.staff.forms import ReasonForm

# How far a list can be paged through: beyond it, staff search.
MOST = 2000
FOUND = 200


class Bounded(Paginator):  # type: ignore[type-arg] # generic for mypy alone
    """Pages of the first rows: it never counts further, however many millions there are."""

    @cached_property
    def count(self) -> int:
        """Return how many rows there are, MOST at most."""
        # A query without order, and cut: the database stops when it has so many.
        return cast(QuerySet[Model], self.object_list).order_by()[:MOST].count()


class StaffAdmin(ModelAdmin):  # type: ignore[misc] # unfold ships no types
    """Rows to be read by staff. `newest` is how far back an unsearched list goes, by key."""

    paginator = Bounded
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 0
    list_filter_submit = False
    actions = None
    # Only enables the search: `found` does it.
    search_fields: tuple[str, ...] = ()
    newest: int | None = None

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Return True: the site's gate has decided."""
        return True

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Return True: the site's gate has decided."""
        return True

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody: rows are made by services."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Nobody: rows are changed by services."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Nobody: nothing is deleted."""
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Return what `found` finds; without words the newest."""
        term = search_term.strip()
        if term:
            return self.found(queryset, term), False
        if self.newest is None:
            return queryset, False
        last = self.model._default_manager.order_by("-pk").values_list("pk", flat=True).first()
        return queryset.filter(pk__gt=(last or 0) - self.newest), False

    def found(self, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Return the rows meant by the words: those of the organizations they name."""
        return queryset.filter(organization__in=organizations_named(term))

    # --- Forms --------------------------------------------------------------------------------

    def act(
        self,
        request: HttpRequest,
        object_id: str,
        form_class: type[ReasonForm],
        *,
        title: Any,
        text: Any,
        do: Callable[[Any, Any], str],
        refused: tuple[type[Exception], ...] = (),
    ) -> HttpResponse:
        """Show a form about a row; when it is sent whole, `do(row, data)` and show its message.

        What `do` raises of `refused` is shown in the form. All it does is one transaction.
        """
        row = self.get_object(request, object_id)
        if row is None:
            raise Http404
        form = form_class(request.POST or None, row=row)
        if request.method == "POST" and form.is_valid():
            try:
                with transaction.atomic():
                    done = do(row, form.cleaned_data)
            except refused as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, done)
                return redirect(self.address(row))
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "row": row,
            "text": text,
            "form": form,
            "back": self.address(row),
        }
        request.current_app = self.admin_site.name
        status = 400 if request.method == "POST" else 200
        return TemplateResponse(request, "staff/act.html", context, status=status)

    def address(self, row: Model) -> str:
        """Return the address of a row's page."""
        return reverse(
            f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[quote(row.pk)]
        )


class StaffList(ChangeList):
    """A list that is read whole at once, so that a page can add to its rows."""

    def get_results(self, request: HttpRequest) -> None:
        """Read the page and let the admin add what it shows beside the rows."""
        super().get_results(request)
        self.result_list = list(self.result_list)
        self.model_admin.complete(self.result_list)  # type: ignore[attr-defined]


def organizations_named(term: str) -> list[uuid.UUID]:
    """Return which organizations are meant by a name, a slug, a UUID or a member's address."""
    meant = Q(name__icontains=term) | Q(slug__icontains=term)
    members = Membership.objects.filter(user__email__icontains=term).values("organization")
    meant |= Q(pk__in=members)
    if (key := as_uuid(term)) is not None:
        meant |= Q(pk=key)
    return list(Organization.objects.filter(meant).values_list("pk", flat=True)[:FOUND])


def as_uuid(text: str) -> uuid.UUID | None:
    """Return the UUID that a text is, or None."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def on_row[F: Callable[..., HttpResponse]](*, description: Any, url_path: str) -> Callable[[F], F]:
    """Let a method be a button on a row's page, named in `actions_detail`."""
    return cast(Callable[[F], F], action(description=description, url_path=url_path))
