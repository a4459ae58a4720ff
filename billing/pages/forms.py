"""The forms of the billing pages. Amounts are written in USD and read as micro-USD."""

from collections.abc import Sequence
from typing import Any, cast

from django import forms
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.models import MAX_TAG, Organization
from billing.models import BillingAccount, EntryKind, Period
from billing.models.scopes import SCOPES, Holder, Scope
from billing.stripe import recharges
from billing.templatetags.amounts import dollars
from geekhub.lib import money
from geekhub.lib.money import MICRO_PER_CENT

PRESETS = (10, 25, 50, 100)
OTHER = "other"
# What the database's numbers hold, with room for sums.
MOST_MICRO = 1_000_000_000 * money.MICRO
MOST_IMAGES = 1_000_000_000

KINDS = {
    EntryKind.BONUS: _("Bonus"),
    EntryKind.RECHARGE: _("Recharge"),
    EntryKind.CONSUMPTION: _("Images"),
    EntryKind.REFUND: _("Refund"),
    EntryKind.ADJUSTMENT: _("Adjustment"),
}
PERIODS = {Period.DAY: _("day"), Period.WEEK: _("week"), Period.MONTH: _("month")}


class UsdField(forms.CharField):
    """An amount of USD, not negative; its value is micro-USD, None when it is empty."""

    def __init__(self, **kwargs: Any) -> None:
        attributes = {"inputmode": "decimal", "autocomplete": "off"}
        super().__init__(max_length=30, widget=forms.TextInput(attrs=attributes), **kwargs)

    def clean(self, value: Any) -> int | None:
        """Return micro-USD."""
        text = super().clean(value).strip().removeprefix("$").replace(",", "").strip()
        if not text:
            return None
        try:
            micro = money.from_usd(text)
        except ValueError as error:
            raise forms.ValidationError(gettext("Enter an amount such as 25 or 7.50.")) from error
        if not 0 <= micro <= MOST_MICRO:
            raise forms.ValidationError(gettext("This amount is not allowed."))
        return micro

    def prepare_value(self, value: Any) -> Any:
        """Show micro-USD as USD."""
        return money.to_usd(value) if isinstance(value, int) else value


def _check_recharge(form: forms.Form, name: str, micro: int) -> None:
    if not recharges.MINIMUM_MICRO <= micro <= recharges.MAXIMUM_MICRO:
        least, most = dollars(recharges.MINIMUM_MICRO), dollars(recharges.MAXIMUM_MICRO)
        text = gettext("Enter an amount between %(least)s and %(most)s.")
        form.add_error(name, text % {"least": least, "most": most})
    elif micro % MICRO_PER_CENT:
        form.add_error(name, gettext("Use at most two decimals."))


class RechargeForm(forms.Form):
    """How much to pay now."""

    amount = forms.ChoiceField(
        label=_("Amount"),
        choices=[*((str(usd), f"${usd}") for usd in PRESETS), (OTHER, _("Other"))],
        initial="25",
        widget=forms.RadioSelect,
    )
    other = UsdField(label=_("Other amount in USD"), required=False)

    def clean(self) -> dict[str, Any]:
        """Find the amount: `micro`."""
        data = super().clean() or self.cleaned_data
        chosen = data.get("amount")
        if chosen == OTHER and "other" in data:
            if data["other"] is None:
                self.add_error("other", gettext("Enter an amount such as 25 or 7.50."))
            else:
                data["micro"] = data["other"]
                _check_recharge(self, "other", data["other"])
        elif chosen and chosen != OTHER:
            data["micro"] = money.from_usd(chosen)
        return data


class AutomaticForm(forms.Form):
    """When to recharge by itself, by how much, and how much a day at most."""

    below = UsdField(label=_("When available is below"))
    amount = UsdField(label=_("Recharge amount"))
    cap = UsdField(label=_("Maximum per day"), help_text=_("Days are in UTC."))

    @classmethod
    def of(cls, account: BillingAccount, data: Any = None) -> "AutomaticForm":
        """Return the form as the account is set, or with something reasonable."""
        usd = money.MICRO
        initial = {
            "below": account.recharge_below_micro if account.recharge_amount_micro else 5 * usd,
            "amount": account.recharge_amount_micro or 25 * usd,
            "cap": account.recharge_daily_cap_micro or 100 * usd,
        }
        return cls(data, initial=initial, prefix="automatic")

    def clean(self) -> dict[str, Any]:
        """Check the amounts together."""
        data = super().clean() or self.cleaned_data
        amount, cap = data.get("amount"), data.get("cap")
        if amount is not None:
            _check_recharge(self, "amount", amount)
            if cap is not None and cap < amount:
                self.add_error(
                    "cap", gettext("The daily maximum cannot be less than one recharge.")
                )
        return data


class MovementsForm(forms.Form):
    """Which movements to show; it stands in the URL."""

    kind = forms.ChoiceField(
        label=_("Kind"), required=False, choices=[("", _("any")), *KINDS.items()]
    )

    def wanted(self) -> EntryKind | None:
        """Return the kind, None for any, also for one that is none."""
        chosen = self.cleaned_data.get("kind") if self.is_valid() else ""
        return EntryKind(chosen) if chosen else None


class LimitsForm(forms.Form):
    """How much may be used: dollars, pictures, or both."""

    usd = UsdField(label=_("USD"), required=False)
    images = forms.IntegerField(
        label=_("Images"), required=False, min_value=0, max_value=MOST_IMAGES
    )

    def clean(self) -> dict[str, Any]:
        """Check that there is a limit."""
        data = super().clean() or self.cleaned_data
        if data.get("usd") is None and data.get("images") is None and not self.errors:
            self.add_error(None, gettext("Set a limit in USD, in images, or both."))
        return data


class BudgetForm(LimitsForm):
    """The most that a holder may use in a period.

    A scope whose subject can be typed has a field of its own, and a choice that points to it.
    """

    holder = forms.ChoiceField(label=_("For"))
    period = forms.ChoiceField(
        label=_("Period"), choices=list(PERIODS.items()), initial=Period.MONTH.value
    )

    def __init__(
        self, *args: Any, organization: Organization, settable: Sequence[Scope], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._typed = [scope for scope in settable if scope.typed]
        self._holders: dict[str, Holder] = {}
        choices: list[Any] = [("", _("choose"))]
        for scope in settable:
            group: list[Any] = []
            for subject, label in scope.offered(organization):
                name = f"{scope.name}:{subject or ''}"
                self._holders[name] = Holder(scope, subject)
                group.append((name, label))
            if scope.typed:
                group.append((scope.name, _("written below")))
                self.fields[scope.name] = forms.CharField(
                    label=scope.typed,
                    required=False,
                    max_length=MAX_TAG,
                    help_text=_("If it is not in the list."),
                )
            if group:
                choices.append((scope.heading, group))
        cast(forms.ChoiceField, self.fields["holder"]).choices = choices
        self.order_fields(["holder", *(scope.name for scope in self._typed), "period"])

    def clean(self) -> dict[str, Any]:
        """Check that a subject is typed where it is asked for, and only there."""
        data = super().clean()
        for scope in self._typed:
            asked = data.get("holder") == scope.name
            if asked and not data.get(scope.name) and scope.name not in self.errors:
                self.add_error(scope.name, gettext("Write it here."))
            if data.get(scope.name) and not asked:
                self.add_error(scope.name, gettext("Choose “written below”, or leave this empty."))
        return data

    @property
    def chosen(self) -> Holder:
        """Return whose budget it is to be."""
        name = self.cleaned_data["holder"]
        if name in self._holders:
            return self._holders[name]
        return Holder(SCOPES[name], self.cleaned_data[name])


class WarningForm(forms.Form):
    """When to warn that little is left."""

    below = UsdField(
        label=_("Warn when available is below (USD)"),
        help_text=_("Available is your balance plus credit limit, minus holds. 0: no warning."),
    )


class EndpointForm(forms.Form):
    """Where alerts are sent beside the e-mail."""

    url = forms.CharField(
        label=_("URL"),
        max_length=500,
        help_text=_("Public https:// URL, default port."),
        widget=forms.URLInput(
            attrs={"placeholder": "https://example.com/geekhub", "autocomplete": "off"}
        ),
    )
