"""The forms of the key pages."""

import uuid
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.models import MAX_TAG, MAX_TAGS
from billing.models import Period
from geekhub.lib import addresses, money
from images.catalog.rows import CATALOG
from images.pages.days import DayField, midnight


class KeyForm(forms.Form):
    """What a new key may do."""

    once = forms.UUIDField(widget=forms.HiddenInput)
    name = forms.CharField(
        label=_("Name"),
        max_length=100,
        help_text=_("Where you use it, such as prod-web."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    kind = forms.ChoiceField(
        label=_("Kind"),
        choices=[
            ("test", _("Sandbox: placeholder images, free")),
            ("live", _("Live: real models, charged per image")),
        ],
        initial="test",
        widget=forms.RadioSelect,
    )
    budget_usd = forms.CharField(
        label=_("Budget in USD"),
        required=False,
        help_text=_("The most it can spend per period. Empty: no budget."),
        widget=forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
    )
    budget_period = forms.ChoiceField(
        label=_("Budget per"),
        choices=[
            (Period.DAY.value, _("day")),
            (Period.WEEK.value, _("week")),
            (Period.MONTH.value, _("month")),
        ],
        initial=Period.MONTH,
    )
    expires_on = DayField(
        label=_("Last day"),
        help_text=_("The key stops working at the end of this day. Empty: never."),
    )
    allowed_models = forms.MultipleChoiceField(
        label=_("Allowed models"),
        required=False,
        choices=[(model.id, model.id) for model in CATALOG.values()],
        help_text=_("Select none to allow all."),
        widget=forms.CheckboxSelectMultiple,
    )
    allowed_ips = forms.CharField(
        label=_("Allowed IP ranges"),
        required=False,
        help_text=_("One per line, such as 203.0.113.0/24. Empty: anywhere."),
        widget=forms.Textarea(attrs={"rows": 3}),
    )
    tags = forms.CharField(
        label=_("Tags"),
        required=False,
        help_text=_("Your own labels, separated by commas."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    private = forms.BooleanField(
        label=_("Private images"),
        required=False,
        help_text=_("Image URLs are signed and expire."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["once"].initial = uuid.uuid4

    def clean_budget_usd(self) -> int | None:
        """Return micro-USD."""
        text = self.cleaned_data["budget_usd"].strip()
        if not text:
            return None
        try:
            micro = money.from_usd(text)
        except ValueError as error:
            raise forms.ValidationError(gettext("Enter an amount such as 25 or 7.50.")) from error
        if micro < 0:
            raise forms.ValidationError(gettext("A budget cannot be negative."))
        return micro

    def clean_expires_on(self) -> datetime | None:
        """Return the end of the day in the viewer's time zone."""
        day = self.cleaned_data["expires_on"]
        if day is None:
            return None
        end = midnight(day + timedelta(days=1))
        if end <= timezone.now():
            raise forms.ValidationError(gettext("Choose today or a later day."))
        return end

    def clean_allowed_ips(self) -> list[str]:
        """Return networks as CIDR."""
        found = []
        for line in self.cleaned_data["allowed_ips"].replace(",", "\n").split():
            try:
                found.append(addresses.network(line))
            except ValueError as error:
                message = gettext("%s is not an IP address or range.") % line[:60]
                raise forms.ValidationError(message) from error
        return list(dict.fromkeys(found))

    def clean_tags(self) -> list[str]:
        """Return the labels."""
        found = [tag.strip() for tag in self.cleaned_data["tags"].split(",") if tag.strip()]
        if len(found) > MAX_TAGS or any(len(tag) > MAX_TAG for tag in found):
            most = {"many": MAX_TAGS, "long": MAX_TAG}
            raise forms.ValidationError(
                gettext("Up to %(many)s tags of up to %(long)s characters each.") % most
            )
        return list(dict.fromkeys(found))


class RotateForm(forms.Form):
    """How long the old key keeps working."""

    overlap = forms.TypedChoiceField(
        label=_("The old key keeps working for"),
        coerce=lambda hours: timedelta(hours=int(hours)),
        choices=[
            ("0", _("not at all: it stops now")),
            ("1", _("one hour")),
            ("24", _("one day")),
            ("168", _("seven days")),
            ("720", _("thirty days")),
        ],
        initial="24",
        widget=forms.RadioSelect,
    )
