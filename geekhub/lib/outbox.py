"""Rows that are worked on until they are over: claimed, tried, put off, at last given up.

An Outbox is how one table is worked on. A row is claimed before anything is done for it, by a
guarded update that counts the attempt and keeps others away for a lease; if its process dies, the
row is due again when the lease is over. What the attempt came to is written only by who claimed
the row last. Each table has its own word for "over", and its own columns for what went wrong.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import models
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class Attempted(models.Model):
    """A row of an outbox: how often it was tried, and when it is tried next."""

    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    next_at = models.DateTimeField(_("next attempt"), db_default=Now())

    class Meta:
        abstract = True


@dataclass(frozen=True, slots=True)
class Outbox[Row: Attempted]:
    """How the rows of a table that are not over, `waiting`, are worked on.

    The pause after a failed attempt doubles from `first_pause` up to `longest_pause`. After `tries`
    attempts the worker gives a row up; None: never.
    """

    table: type[Row]
    waiting: Q
    lease: timedelta
    first_pause: timedelta
    longest_pause: timedelta
    tries: int | None = None
    order: tuple[str, ...] = ("next_at", "pk")

    def due(self, now: datetime) -> QuerySet[Row]:
        """Return the rows to work on, the longest due first."""
        rows = self.table._default_manager.filter(self.waiting, next_at__lte=now)
        return rows.order_by(*self.order)

    def claim(self, row: Row, now: datetime) -> bool:
        """Take the row as it was read, unless it is over or another process took it since."""
        attempts = row.attempts + 1
        if not self.mine(row).update(attempts=attempts, next_at=now + self.lease):
            return False
        row.attempts, row.next_at = attempts, now + self.lease
        return True

    def mine(self, row: Row) -> QuerySet[Row]:
        """Return the row while it is not over and nobody else has claimed it since."""
        rows = self.table._default_manager.filter(self.waiting)
        return rows.filter(pk=row.pk, attempts=row.attempts)

    def put_off(self, row: Row, now: datetime, **changes: Any) -> bool:
        """Try a claimed row later and write why; return whether it was still ours."""
        doubled = self.first_pause * 2 ** min(row.attempts - 1, 10)
        later = now + min(doubled, self.longest_pause)
        return bool(self.mine(row).update(next_at=later, **changes))

    def is_last(self, row: Row) -> bool:
        """Return whether a claimed row is to be given up if this attempt fails."""
        return self.tries is not None and row.attempts >= self.tries
