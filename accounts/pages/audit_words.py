"""The audit log in words: what a kind of event is called, and what its details say.

An event keeps plain values under short names. Each kind has a row in `audit.LABELS` and each name
of a detail one in `DETAILS`; `tests/pages/test_audit.py` looks for those that have none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from accounts.audit import LABELS
from accounts.models import AuditEvent, OnRefusal, Role
from geekhub.lib import money

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

# How many pictures a line names; the others are counted.
NAMED = 3
WORDS: Mapping[str | None, "StrPromise"] = {
    **{role.value: role.label for role in Role},
    "day": _("day"),
    "week": _("week"),
    "month": _("month"),
    OnRefusal.NEXT.value: _("try the next model on the list"),
    OnRefusal.STOP.value: _("stop and return the refusal"),
    None: _("not set"),
    "the hour was over": _("the hour ended"),
}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return _now("yes") if value else _now("no")
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(WORDS.get(value, value))


def _dollars(value: Any) -> str:
    return f"${value}"


def _micro(value: Any) -> str:
    return f"${money.to_usd(value)}"


def _moment(value: str) -> str:
    return date_format(timezone.localtime(datetime.fromisoformat(value)), "Y-m-d H:i")


def _pictures(value: list[str]) -> str:
    more = len(value) - NAMED
    named = ", ".join(value[:NAMED])
    if more <= 0:
        return named
    return ngettext("%(named)s and %(n)d more", "%(named)s and %(n)d more", more) % {
        "named": named,
        "n": more,
    }


def _days(value: int | None) -> str:
    if value is None:
        return _now("forever")
    return ngettext("%d day", "%d days", value) % value


@dataclass(frozen=True, slots=True)
class Detail:
    """The name of a detail, and how its value is written."""

    label: "StrPromise"
    say: Callable[[Any], str] = _plain


BEFORE, AFTER = "before", "after"
DETAILS: Mapping[str, Detail] = {
    "reason": Detail(_("Reason")),
    "why": Detail(_("Why")),
    "note": Detail(_("Note")),
    "role": Detail(_("Role")),
    "period": Detail(_("Period")),
    "usd": Detail(_("Limit"), _dollars),
    "images": Detail(_("Images")),
    "pictures": Detail(_("Images"), _pictures),
    "days": Detail(_("Days images are kept"), _days),
    "below_usd": Detail(_("Warn below"), _dollars),
    "below_micro": Detail(_("When available is below"), _micro),
    "amount_micro": Detail(_("Recharge amount"), _micro),
    "daily_cap_micro": Detail(_("Maximum per day"), _micro),
    "amount_usd": Detail(_("Amount"), _dollars),
    "before_usd": Detail(_("Before"), _dollars),
    "after_usd": Detail(_("After"), _dollars),
    "invoice": Detail(_("Invoice")),
    "url": Detail(_("Address")),
    "until": Detail(_("Until"), _moment),
    "grace_until": Detail(_("Until"), _moment),
    "expected": Detail(_("Expected")),
    "found": Detail(_("Found")),
    BEFORE: Detail(_("Before")),
    AFTER: Detail(_("After")),
}
# What a change names: fields of an organization.
FIELDS: Mapping[str, "StrPromise"] = {
    "name": _("Name"),
    "keeps_prompts": _("Keep prompts"),
    "on_refusal": _("When a model refuses a prompt"),
    "retention_days": _("Days images are kept"),
    "prompts_days": _("Days prompts are kept"),
    "rate_limit_rpm": _("Requests per minute, per key"),
    "max_in_flight": _("Concurrent requests"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """An event as a person reads it; `lines` are (what, value)."""

    event: AuditEvent

    @property
    def label(self) -> "StrPromise | str":
        """Return what was done."""
        return LABELS.get(self.event.action, self.event.action)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Return the details; what is empty, or the same as before, says nothing."""
        details = dict(self.event.details)
        lines = []
        if isinstance(details.get(BEFORE), dict):
            before, after = details.pop(BEFORE), details.pop(AFTER)
            lines = [
                (str(FIELDS.get(name, name)), f"{_plain(before.get(name))} → {_plain(value)}")
                for name, value in after.items()
                if before.get(name) != value
            ]
        for name, value in details.items():
            if value in (None, "") and name != "days":
                continue
            known = DETAILS.get(name)
            lines.append((str(known.label), known.say(value)) if known else (name, _plain(value)))
        return lines
