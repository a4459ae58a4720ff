"""Days as people write them: a field, and when a day begins for its viewer."""

from datetime import date, datetime, time
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

# With room on both sides for a day more, a search's ninety days less, and any time zone.
FIRST, LAST = date(2000, 1, 1), date(9998, 12, 31)


class DayField(forms.DateField):
    """A day that can be reckoned with; optional."""

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
        super().__init__(required=False, widget=widget, **kwargs)

    def clean(self, value: Any) -> date | None:
        """Return the day, None when there is none."""
        day: date | None = super().clean(value)
        if day is not None and not FIRST <= day <= LAST:
            raise forms.ValidationError(_("Choose a day in 2000 or later."))
        return day


def midnight(day: date) -> datetime:
    """Return when the day begins in the viewer's time zone."""
    return timezone.make_aware(datetime.combine(day, time()))
