"""The ledger: append-only, in micro-USD.

It is the truth; the totals on BillingAccount and BudgetPeriod are kept in step with it in the same
transaction, so that one guarded UPDATE can decide.
"""

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import ApiKey, Organization
from billing.models.holds import Hold
from billing.models.prices import PriceVersion


class EntryKind(models.TextChoices):
    """Why a balance moved."""

    BONUS = "bonus", _("Bonus")
    RECHARGE = "recharge", _("Recharge")
    CONSUMPTION = "consumption", _("Consumption")
    REFUND = "refund", _("Refund")
    ADJUSTMENT = "adjustment", _("Adjustment")


class LedgerEntry(models.Model):
    """One movement of a balance; append-only, kept so by a trigger."""

    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        on_delete=models.PROTECT,
        related_name="ledger",
        db_index=False,
    )
    entry_key = models.CharField(_("entry key"), max_length=150, unique=True)
    kind = models.CharField(_("kind"), max_length=11, choices=EntryKind)
    amount_micro = models.BigIntegerField(_("amount, micro-USD"))
    price_version = models.ForeignKey(
        PriceVersion,
        verbose_name=_("price version"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    sku = models.CharField(_("SKU"), max_length=100, blank=True)
    quantity = models.PositiveIntegerField(_("quantity"), default=0)
    first_unit = models.PositiveIntegerField(
        _("first unit"),
        default=0,
        help_text=_("The number, within its request, of the first of the units it charges."),
    )
    hold = models.ForeignKey(
        Hold,
        verbose_name=_("hold"),
        null=True,
        on_delete=models.PROTECT,
        related_name="ledger_entries",
    )
    api_key = models.ForeignKey(
        ApiKey,
        verbose_name=_("API key"),
        null=True,
        on_delete=models.PROTECT,
        related_name="ledger_entries",
        db_index=False,
    )
    request_id = models.CharField(_("request id"), max_length=28, blank=True)
    payment_id = models.CharField(
        _("payment id"),
        max_length=100,
        blank=True,
        help_text=_("The PaymentIntent, or the Checkout session without one, that brought it."),
    )
    invoice = models.ForeignKey(
        "billing.Invoice",
        verbose_name=_("invoice"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
        help_text=_("The invoice whose payment it is."),
    )
    note = models.CharField(_("note"), max_length=200, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta:
        verbose_name = _("ledger entry")
        verbose_name_plural = _("ledger entries")
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=EntryKind.values), name="ledger_kind_is_known"
            ),
            models.CheckConstraint(
                condition=Q(
                    kind=EntryKind.CONSUMPTION,
                    amount_micro__lt=0,
                    quantity__gt=0,
                    hold__isnull=False,
                    price_version__isnull=False,
                )
                | Q(kind__in=[EntryKind.BONUS, EntryKind.RECHARGE, EntryKind.REFUND])
                & Q(amount_micro__gt=0)
                | Q(kind=EntryKind.ADJUSTMENT) & ~Q(amount_micro=0),
                name="ledger_sign_follows_kind",
            ),
            models.UniqueConstraint(
                fields=["payment_id"],
                condition=~Q(payment_id=""),
                name="one_ledger_entry_per_payment",
            ),
            models.UniqueConstraint(
                fields=["invoice"],
                condition=Q(invoice__isnull=False),
                name="one_ledger_entry_per_invoice",
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "-created_at"], name="ledger_of_one"),
            # For what goes on from a mark: freezing, and adding up what is new.
            models.Index(fields=["organization", "id"], name="ledger_in_order"),
            models.Index(fields=["api_key", "-created_at"], name="ledger_of_a_key"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount_micro} µUSD"
