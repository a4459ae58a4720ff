"""An organization's account: what it may spend, and the bonus it had."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import Organization


class AccountStatus(models.TextChoices):
    """Whether an organization may spend: in `grace` an invoice is unpaid, but it still may."""

    OK = "ok", _("Ok")
    GRACE = "grace", _("Grace")
    SUSPENDED = "suspended", _("Suspended")


class BillingAccount(models.Model):
    """The money of one organization.

    `balance_micro` is the sum of its ledger, `held_micro` of its open holds. It may spend down
    to minus the credit limit.
    """

    organization = models.OneToOneField(
        Organization, on_delete=models.PROTECT, primary_key=True, related_name="billing_account"
    )
    balance_micro = models.BigIntegerField(default=0)
    spent_micro = models.BigIntegerField(default=0)
    held_micro = models.BigIntegerField(default=0)
    credit_limit_micro = models.BigIntegerField(default=0)
    status = models.CharField(max_length=9, choices=AccountStatus, default=AccountStatus.OK)
    status_reason = models.CharField(max_length=200, blank=True)
    suspended_by_staff = models.BooleanField(
        default=False, help_text="Only staff end it then; a payment does not."
    )
    grace_until = models.DateTimeField(null=True)
    stripe_customer = models.CharField(max_length=100, blank=True)
    card_brand = models.CharField(
        max_length=50, blank=True, help_text="Of the card on file, or another means of payment."
    )
    card_last4 = models.CharField(max_length=4, blank=True)
    metered_from = models.BigIntegerField(
        null=True,
        help_text="Consumption after this ledger entry is billed by Stripe; empty: none is.",
    )
    frozen_through = models.BigIntegerField(
        default=0, help_text="The last ledger entry that is in a meter event, or need not be."
    )
    recharge_below_micro = models.BigIntegerField(null=True)
    recharge_amount_micro = models.BigIntegerField(null=True)
    recharge_daily_cap_micro = models.BigIntegerField(null=True)
    alert_below_micro = models.BigIntegerField(default=1_000_000)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=AccountStatus.values), name="account_status_is_known"
            ),
            models.CheckConstraint(
                condition=Q(status=AccountStatus.GRACE, grace_until__isnull=False)
                | (~Q(status=AccountStatus.GRACE) & Q(grace_until=None)),
                name="grace_has_an_end",
            ),
            models.CheckConstraint(
                condition=Q(suspended_by_staff=False) | Q(status=AccountStatus.SUSPENDED),
                name="staff_suspension_is_one",
            ),
            models.CheckConstraint(
                condition=Q(
                    recharge_below_micro=None,
                    recharge_amount_micro=None,
                    recharge_daily_cap_micro=None,
                )
                | Q(
                    recharge_below_micro__gte=0,
                    recharge_amount_micro__gt=0,
                    recharge_daily_cap_micro__gte=F("recharge_amount_micro"),
                ),
                name="automatic_recharge_is_whole",
            ),
            models.UniqueConstraint(
                fields=["stripe_customer"],
                condition=~Q(stripe_customer=""),
                name="one_account_per_stripe_customer",
            ),
            models.CheckConstraint(condition=Q(held_micro__gte=0), name="account_holds_no_debt"),
            models.CheckConstraint(
                condition=Q(credit_limit_micro__gte=0), name="credit_limit_not_negative"
            ),
        ]

    @property
    def available_micro(self) -> int:
        """Return what may still be spent."""
        return self.balance_micro + self.credit_limit_micro - self.held_micro

    def __str__(self) -> str:
        return f"account of {self.organization_id}"


class BonusClaim(models.Model):
    """A person had the sign-up bonus; one row for each thing they are known by.

    `digest` is of the account's id or of an address. It refers to nothing, so that it outlives
    people, organizations and renamed addresses.
    """

    digest = models.CharField(_("digest"), max_length=64, unique=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta:
        verbose_name = _("claim of the sign-up bonus")
        verbose_name_plural = _("claims of the sign-up bonus")

    def __str__(self) -> str:
        return f"claimed by {self.digest[:8]}…"
