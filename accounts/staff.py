"""What the pages for staff have in common: rows to read, and forms that ask for a reason.

Nothing is edited or deleted there. What staff may change is done by services, one form each; so a
page of ours is a list, a row and its forms, whoever may be tempted to put more on it.
"""

import uuid
from collections.abc import Callable
from typing import Any, cast

from django import forms
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
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin
from unfold.decorators import action
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from accounts import audit
from accounts.models import Membership, Organization, User
from geekhub.lib import money

# As far as a list is leafed through: beyond it one looks for something.
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
    # Only says that there is a search: `found` does it.
    search_fields: tuple[str, ...] = ()
    newest: int | None = None

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Let in whoever passed the gate of the site."""
        return True

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Let in whoever passed the gate of the site."""
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
        form_class: "type[ReasonForm]",
        *,
        title: Any,
        text: Any,
        do: Callable[[Any, Any], str],
        refused: tuple[type[Exception], ...] = (),
    ) -> HttpResponse:
        """Show a form about a row; when it is sent whole, `do(row, data)` and tell its answer.

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


# --- Forms ------------------------------------------------------------------------------------


class ReasonForm(forms.Form):
    """Why it is done, and that it is meant."""

    reason = forms.CharField(
        label=_("Reason"),
        max_length=200,
        help_text=_("Written into the organization's audit log, which its members can read."),
        widget=UnfoldAdminTextInputWidget(),
    )
    confirmed = forms.BooleanField(
        label=_("Yes, do this now"),
        widget=UnfoldBooleanWidget(),
        error_messages={"required": _("Confirm that it is meant.")},
    )

    def __init__(self, *args: Any, row: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_suffix = ""
        self.row = row
        self.order_fields([name for name in self.fields if name not in ("reason", "confirmed")])

    def clean_reason(self) -> str:
        """Return the reason."""
        return str(self.cleaned_data["reason"]).strip()


class UsdField(forms.CharField):
    """An exact amount of USD, as micro-USD."""

    widget = UnfoldAdminTextInputWidget(attrs={"inputmode": "decimal", "autocomplete": "off"})

    def clean(self, value: Any) -> Any:
        """Return micro-USD; refuses what is not an exact amount."""
        text = super().clean(value)
        try:
            return money.from_usd(text)
        except ValueError as error:
            raise forms.ValidationError(
                _now("Not an amount of USD. Write it like 12.50, at most six decimals.")
            ) from error


class RatesForm(ReasonForm):
    """An organization's own limits; empty means the default."""

    rate_limit_rpm = forms.IntegerField(
        label=_("Requests a minute, per key"),
        required=False,
        min_value=1,
        max_value=1_000_000,
        help_text=_("Empty: the default."),
        widget=UnfoldAdminIntegerFieldWidget(),
    )
    max_in_flight = forms.IntegerField(
        label=_("Requests at the same time"),
        required=False,
        min_value=1,
        max_value=1_000_000,
        help_text=_("Empty: the default."),
        widget=UnfoldAdminIntegerFieldWidget(),
    )

    def __init__(self, *args: Any, row: Any, **kwargs: Any) -> None:
        super().__init__(*args, row=row, **kwargs)
        self.initial = {
            "rate_limit_rpm": row.rate_limit_rpm,
            "max_in_flight": row.max_in_flight,
        }


class ChoiceField(forms.ModelChoiceField):  # type: ignore[type-arg] # as above
    """A row among some, in the manner of these pages."""

    widget = UnfoldAdminSelectWidget()


# --- What is done, and found ------------------------------------------------------------------


def change_rate_limits(
    organization: Organization,
    rate_limit_rpm: int | None,
    max_in_flight: int | None,
    reason: str,
    actor: User,
) -> bool:
    """Give an organization limits of its own, None: the default; tell whether they are others."""
    after = {"rate_limit_rpm": rate_limit_rpm, "max_in_flight": max_in_flight}
    with transaction.atomic():
        row = Organization.objects.select_for_update().get(pk=organization.pk)
        before = {name: getattr(row, name) for name in after}
        if before == after:
            return False
        Organization.objects.filter(pk=row.pk).update(**after)
        audit.record(
            "account.rate_limits_changed",
            organization=row,
            actor=actor,
            subject=row.slug,
            before=before,
            after=after,
            reason=reason,
        )
    return True


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


# --- How things look --------------------------------------------------------------------------


def usd(micro: int | None) -> str:
    """Return an exact amount as it is shown; nothing for None."""
    if micro is None:
        return "–"
    return f"-${money.to_usd(-micro)}" if micro < 0 else f"${money.to_usd(micro)}"


def link(row: Model | None, text: str = "") -> SafeString | str:
    """Return a link to a row's page."""
    if row is None:
        return "–"
    name = f"admin:{row._meta.app_label}_{row._meta.model_name}_change"
    return format_html('<a href="{}">{}</a>', reverse(name, args=[quote(row.pk)]), text or str(row))


def lines(values: list[str]) -> SafeString | str:
    """Return texts under each other; a dash for none."""
    if not values:
        return "–"
    return format_html_join("", "<div>{}</div>", [(value,) for value in values])
