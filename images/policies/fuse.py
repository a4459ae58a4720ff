"""The fuse: a key that suddenly spends ten times its usual hour is paused and its owners notified.

The rule, all of it for live keys:

- *this hour* is what the key spent in the last 60 minutes, and since it was last resumed;
- *usual* is what its family (the key and those it was rotated from) spent in the seven days before
  this hour, divided by the number of clock hours in which it spent anything;
- it blows when this hour is at least 1 USD and at least ten times usual, and the family's first
  spend in those seven days is at least 24 hours old: a new key has no usual hour yet.
"""

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.db.models import Count, Min, QuerySet, Sum
from django.db.models.functions import TruncHour
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from accounts import keys, mail
from accounts.models import ApiKey, Role
from billing.models import EntryKind, LedgerEntry
from geekhub.lib import money

FACTOR = 10
FLOOR_MICRO = 1 * money.MICRO
HOUR = timedelta(hours=1)
HISTORY = timedelta(days=7)
LEAST_HISTORY = timedelta(hours=24)
# What is usual changes slowly, and a busy key has many rows.
REMEMBERED_SECONDS = 600


def blow_fuses() -> int:
    """Pause each key whose fuse blows and notify its owners; return how many were paused."""
    now = timezone.now()
    # Last use is written once a minute.
    recent = ApiKey.objects.filter(
        sandbox=False, revoked_at=None, paused_at=None, last_used_at__gte=now - HOUR * 2
    )
    return sum(_check(key, now) for key in recent.select_related("organization"))


def _check(key: ApiKey, now: datetime) -> bool:
    since = max(now - HOUR, key.resumed_at or now - HOUR)
    spent = _total(_spending(now=now).filter(api_key=key, created_at__gt=since))
    if spent < FLOOR_MICRO:
        return False
    usual = _usual_hour(key, now)
    if usual is None or spent < FACTOR * usual:
        return False
    reason = (
        f"It spent {money.to_usd(spent)} USD within an hour, at least ten times its usual "
        f"{money.to_usd(usual)} USD."
    )
    if not keys.pause(key, reason):
        return False
    _tell(key, reason)
    return True


def _usual_hour(key: ApiKey, now: datetime) -> int | None:
    """Return micro-USD per active hour; None when there is not enough to know it."""
    name = f"fuse:usual:{key.pk}"
    remembered: tuple[int | None] | None = cache.get(name)
    if remembered is None:
        remembered = (_count_usual_hour(key, now),)
        cache.set(name, remembered, REMEMBERED_SECONDS)
    return remembered[0]


def _count_usual_hour(key: ApiKey, now: datetime) -> int | None:
    before = _spending(now=now).filter(
        api_key__family=key.family, created_at__gte=now - HISTORY - HOUR, created_at__lte=now - HOUR
    )
    found: dict[str, Any] = before.aggregate(
        spent=Sum("amount_micro"),
        hours=Count(TruncHour("created_at"), distinct=True),
        first=Min("created_at"),
    )
    if found["first"] is None or found["first"] > now - LEAST_HISTORY:
        return None
    return int(-found["spent"] // found["hours"])


def _spending(*, now: datetime) -> QuerySet[LedgerEntry]:
    return LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION, created_at__lte=now)


def _total(entries: QuerySet[LedgerEntry]) -> int:
    return -(entries.aggregate(total=Sum("amount_micro"))["total"] or 0)


def _tell(key: ApiKey, reason: str) -> None:
    owners = key.organization.memberships.filter(role=Role.OWNER, user__is_active=True)
    link = f"{settings.PUBLIC_URL}{reverse('keys')}?organization={key.organization.slug}"
    mail.send(
        list(owners.values_list("user__email", flat=True)),
        _("The key %s is paused") % key.name,
        "key_paused",
        {"key": key, "reason": reason, "link": link},
    )
