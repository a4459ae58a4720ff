"""Budgets, and what was spent in each of their periods."""

from functools import reduce
from operator import or_

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from accounts.models import MAX_TAG, Organization, User
from billing.models import scopes
from billing.models.scopes import Holder, Scope


class Period(models.TextChoices):
    """How often a budget starts anew; at 00:00 UTC, weeks on Monday."""

    DAY = "day", _("Day")
    WEEK = "week", _("Week")
    MONTH = "month", _("Month")


class Budget(models.Model):
    """The most that its holder may use in a period: USD, images, or both.

    `scopes` says which holders there are; each budget has the one column that its scope needs.
    """

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="budgets")
    scope = models.CharField(max_length=12)
    key_family = models.UUIDField(null=True)
    member = models.ForeignKey(User, null=True, on_delete=models.CASCADE, related_name="+")
    # For scopes that go by a word of the customer's own, such as a tag.
    word = models.CharField(null=True, max_length=MAX_TAG)
    period = models.CharField(max_length=5, choices=Period)
    limit_micro = models.BigIntegerField(null=True)
    limit_images = models.BigIntegerField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key_family", "period"], name="one_budget_per_key"),
            models.UniqueConstraint(
                fields=["organization", "member", "period"], name="one_budget_per_member"
            ),
            models.UniqueConstraint(
                fields=["organization", "scope", "word", "period"], name="one_budget_per_word"
            ),
            models.UniqueConstraint(
                fields=["organization", "scope", "period"],
                condition=Q(key_family=None, member=None, word=None),
                name="one_budget_per_scope",
            ),
            models.CheckConstraint(
                condition=reduce(or_, (scope.shape for scope in scopes.SCOPES.values())),
                name="budget_has_its_subject",
            ),
            models.CheckConstraint(condition=~Q(word=""), name="budget_word_is_not_empty"),
            models.CheckConstraint(
                condition=Q(limit_micro__isnull=False) | Q(limit_images__isnull=False),
                name="budget_has_a_limit",
            ),
            models.CheckConstraint(condition=Q(limit_micro__gte=0), name="budget_not_negative"),
            models.CheckConstraint(
                condition=Q(limit_images__gte=0), name="budget_images_not_negative"
            ),
            models.CheckConstraint(
                condition=Q(period__in=Period.values), name="budget_period_is_known"
            ),
        ]

    @property
    def holder(self) -> Holder:
        """Return whose budget it is."""
        scope: Scope = scopes.SCOPES[self.scope]
        return Holder(scope, getattr(self, scope.column) if scope.column else None)

    def __str__(self) -> str:
        limits = [
            f"{limit} {unit}"
            for limit, unit in ((self.limit_micro, "µUSD"), (self.limit_images, "images"))
            if limit is not None
        ]
        return f"{' and '.join(limits)} a {self.period}"


class BudgetPeriod(models.Model):
    """One period of a budget. A new period is a new row: nothing is ever reset."""

    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="periods")
    starts_at = models.DateTimeField()
    spent_micro = models.BigIntegerField(default=0)
    held_micro = models.BigIntegerField(default=0)
    spent_images = models.BigIntegerField(default=0)
    held_images = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["budget", "starts_at"], name="one_row_per_period"),
            models.CheckConstraint(condition=Q(held_micro__gte=0), name="budget_holds_no_debt"),
            models.CheckConstraint(
                condition=Q(held_images__gte=0), name="budget_holds_no_missing_images"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.budget_id} from {self.starts_at:%Y-%m-%d}"
