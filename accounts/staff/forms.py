"""Forms of the staff's pages: a reason with everything, amounts in USD."""

from typing import Any

from django import forms
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from geekhub.lib import money


class ReasonForm(forms.Form):
    """A reason and a confirmation."""

    reason = forms.CharField(
        label=_("Reason"),
        max_length=200,
        help_text=_("Recorded in the organization's audit log, which its members can read."),
        widget=UnfoldAdminTextInputWidget(),
    )
    confirmed = forms.BooleanField(
        label=_("Yes, do it now"),
        widget=UnfoldBooleanWidget(),
        error_messages={"required": _("Tick this to confirm.")},
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
                _now("Enter an amount in USD, such as 12.50, with up to six decimals.")
            ) from error


class RatesForm(ReasonForm):
    """An organization's own limits; empty means the default."""

    rate_limit_rpm = forms.IntegerField(
        label=_("Requests per minute, per key"),
        required=False,
        min_value=1,
        max_value=1_000_000,
        help_text=_("Empty: the default."),
        widget=UnfoldAdminIntegerFieldWidget(),
    )
    max_in_flight = forms.IntegerField(
        label=_("Concurrent requests"),
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
