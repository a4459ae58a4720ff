"""What was compared, and what did not agree."""

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import Organization
from billing.models.prices import PriceVersion


class LedgerTotal(models.Model):
    """What the ledger of one organization sums up to through its entry `through`.

    Rows of the ledger never change, so what was added up once need not be read again.
    """

    organization = models.OneToOneField(
        Organization, on_delete=models.PROTECT, primary_key=True, related_name="ledger_total"
    )
    through = models.BigIntegerField()
    balance_micro = models.BigIntegerField()
    spent_micro = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.balance_micro} µUSD through {self.through}"


class Comparison(models.TextChoices):
    """What is compared: the books with each other, or with what lies outside them."""

    INTERNAL = "internal", _("our books")
    REQUESTS = "requests", _("requests and their charges")
    USAGE = "usage", _("usage at Stripe")
    INVOICE_DRAFT = "invoice_draft", _("draft invoice")
    INVOICE_FINAL = "invoice_final", _("final invoice")


class Reconciliation(models.Model):
    """One comparison that was made."""

    kind = models.CharField(_("kind"), max_length=20, choices=Comparison)
    subject = models.CharField(
        _("subject"),
        max_length=100,
        blank=True,
        help_text=_("The invoice it was of, by Stripe's id."),
    )
    started_at = models.DateTimeField(_("started at"))
    finished_at = models.DateTimeField(_("finished at"), null=True)
    checked = models.PositiveIntegerField(_("compared"), default=0)
    differences = models.PositiveIntegerField(_("differences"), default=0)

    class Meta:
        verbose_name = _("comparison")
        verbose_name_plural = _("comparisons")
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=Comparison.values), name="comparison_is_known"
            )
        ]
        indexes = [models.Index(fields=["subject", "kind"], name="reconciliations_of_one")]

    def __str__(self) -> str:
        return f"{self.kind} of {self.started_at:%Y-%m-%d %H:%M}"


class DifferenceState(models.TextChoices):
    """`closed` went away by itself, `fixed` was put right by us, `accepted` by a person's word."""

    OPEN = "open", _("Open")
    FIXED = "fixed", _("Fixed")
    ACCEPTED = "accepted", _("Accepted")
    CLOSED = "closed", _("Closed")


class Difference(models.Model):
    """Something that should be equal and is not: the number we expect and the one we found."""

    key = models.CharField(_("key"), max_length=200)
    kind = models.CharField(_("kind"), max_length=40)
    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    price_version = models.ForeignKey(
        PriceVersion,
        verbose_name=_("price version"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    hour = models.DateTimeField(_("hour"), null=True)
    # Not a key: a draft can be deleted, and what it showed is closed afterwards.
    stripe_invoice = models.CharField(_("invoice"), max_length=100, blank=True)
    subject = models.CharField(_("subject"), max_length=200, blank=True)
    expected = models.BigIntegerField(_("expected"))
    found = models.BigIntegerField(_("found"))
    state = models.CharField(
        _("state"), max_length=8, choices=DifferenceState, default=DifferenceState.OPEN
    )
    note = models.CharField(_("note"), max_length=500, blank=True)
    seen = models.PositiveIntegerField(
        _("seen, times"), default=1, help_text=_("How many comparisons found it alike.")
    )
    first_seen_at = models.DateTimeField(_("first seen at"), db_default=Now())
    last_seen_at = models.DateTimeField(_("last seen at"))

    class Meta:
        verbose_name = _("difference")
        verbose_name_plural = _("differences")
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=DifferenceState.values), name="difference_state_is_known"
            ),
            models.UniqueConstraint(
                fields=["key"],
                condition=Q(state=DifferenceState.OPEN),
                name="one_open_difference_each",
            ),
        ]
        indexes = [models.Index(fields=["state", "-last_seen_at"], name="differences_by_state")]

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, found {self.found}"
