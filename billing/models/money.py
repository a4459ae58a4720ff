"""Prices, what may be spent, what is held, what was spent.

Amounts are micro-USD. The ledger is the truth; the totals on BillingAccount and BudgetPeriod are
kept in step with it in the same transaction, so that one guarded UPDATE can decide.
"""

import uuid

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import ApiKey, Organization, User


class PriceState(models.TextChoices):
    """A draft is not quoted yet: Stripe has to know it first. A retired one is on no invoice."""

    DRAFT = "draft", _("Draft")
    ACTIVE = "active", _("Active")
    RETIRED = "retired", _("Retired")


class PriceVersion(models.Model):
    """What one delivered image of a model costs, from a moment on; never re-rated.

    With Stripe connected each version has a product, a meter and a price of its own there.
    """

    model = models.CharField(_("model"), max_length=100)
    version = models.PositiveIntegerField(_("version"))
    unit_micro = models.PositiveBigIntegerField(_("unit price, micro-USD"))
    effective_from = models.DateTimeField(_("effective from"), db_default=Now())
    state = models.CharField(
        _("state"), max_length=7, choices=PriceState, default=PriceState.ACTIVE
    )
    stripe_product = models.CharField(_("product at Stripe"), max_length=100, blank=True)
    stripe_meter = models.CharField(_("meter at Stripe"), max_length=100, blank=True)
    stripe_price = models.CharField(_("price at Stripe"), max_length=100, blank=True)
    livemode = models.BooleanField(
        _("live mode"),
        null=True,
        help_text=_("Whether its Stripe objects are live ones; empty: it has none."),
    )

    class Meta:
        verbose_name = _("price")
        verbose_name_plural = _("prices")
        constraints = [
            models.UniqueConstraint(fields=["model", "version"], name="one_price_per_version"),
            models.UniqueConstraint(
                fields=["stripe_price"],
                condition=~Q(stripe_price=""),
                name="one_version_per_stripe_price",
            ),
            models.CheckConstraint(condition=Q(unit_micro__gt=0), name="price_is_positive"),
            models.CheckConstraint(
                condition=Q(state__in=PriceState.values), name="price_state_is_known"
            ),
            models.CheckConstraint(
                condition=Q(stripe_price="") | Q(livemode__isnull=False),
                name="stripe_price_has_a_mode",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} v{self.version}"

    @property
    def event_name(self) -> str:
        """The name of its meter's events: `img_flux-1.1-pro_v2`, at most 100 characters."""
        return f"img_{self.model.rpartition('/')[2]}_v{self.version}"[-100:]


class PriceException(models.Model):
    """An organization that stays on an older price, or without one, until Stripe can bill it.

    Its subscription could not be given an item of the newest version yet.
    """

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    model = models.CharField(max_length=100)
    price_version = models.ForeignKey(
        PriceVersion, null=True, on_delete=models.PROTECT, related_name="+"
    )
    reason = models.CharField(max_length=500)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["organization", "model"], name="one_exception_each")
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} stays on {self.price_version or 'no price'}"


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
    card = models.CharField(
        max_length=60, blank=True, help_text="The card on file, in words: visa 4242."
    )
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


class Period(models.TextChoices):
    """How often a budget starts anew; at 00:00 UTC, weeks on Monday."""

    DAY = "day", _("Day")
    WEEK = "week", _("Week")
    MONTH = "month", _("Month")


class Budget(models.Model):
    """The most a family of keys, or the keys of a member, may use in a period: USD or images."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="budgets")
    key_family = models.UUIDField(null=True)
    member = models.ForeignKey(User, null=True, on_delete=models.CASCADE, related_name="+")
    period = models.CharField(max_length=5, choices=Period)
    limit_micro = models.BigIntegerField(null=True)
    limit_images = models.BigIntegerField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key_family", "period"], name="one_budget_per_key"),
            models.UniqueConstraint(
                fields=["organization", "member", "period"], name="one_budget_per_member"
            ),
            models.CheckConstraint(
                condition=Q(key_family=None, member__isnull=False)
                | Q(key_family__isnull=False, member=None),
                name="budget_has_one_scope",
            ),
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


class HoldState(models.TextChoices):
    """Where a hold stands. All but `held` are final."""

    HELD = "held", _("Held")
    CAPTURED = "captured", _("Captured")
    RELEASED = "released", _("Released")
    EXPIRED = "expired", _("Expired")


class Hold(models.Model):
    """Money set aside for one request until it is known what the request delivered."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # Without an index of its own where another begins with it, or nobody asks by it: each costs
    # every request.
    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        on_delete=models.PROTECT,
        related_name="holds",
        db_index=False,
    )
    api_key = models.ForeignKey(
        ApiKey,
        verbose_name=_("API key"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
    )
    request_id = models.CharField(_("request id"), max_length=28)
    quantity = models.PositiveIntegerField(_("quantity"))
    amount_micro = models.PositiveBigIntegerField(_("amount, micro-USD"))
    quotes = models.JSONField(
        _("prices quoted"),
        help_text=_("What each candidate model costs: {model: [price version id, micro-USD]}."),
    )
    budget_periods = models.JSONField(
        _("budget periods"),
        default=list,
        help_text=_("The budget periods it is held in, by id, in order."),
    )
    captured = models.PositiveIntegerField(
        _("captured"), default=0, help_text=_("Images charged so far.")
    )
    state = models.CharField(_("state"), max_length=8, choices=HoldState, default=HoldState.HELD)
    owner = models.UUIDField(
        _("server process"), help_text=_("The server process that works on the request.")
    )
    lease_until = models.DateTimeField(_("lease until"))
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    settled_at = models.DateTimeField(_("settled at"), null=True)

    class Meta:
        verbose_name = _("hold")
        verbose_name_plural = _("holds")
        constraints = [
            models.UniqueConstraint(fields=["organization", "request_id"], name="one_hold_each"),
            models.CheckConstraint(
                condition=Q(state__in=HoldState.values), name="hold_state_is_known"
            ),
            models.CheckConstraint(
                condition=Q(state=HoldState.HELD, settled_at=None)
                | (~Q(state=HoldState.HELD) & Q(settled_at__isnull=False)),
                name="hold_settled_once_not_held",
            ),
            models.CheckConstraint(
                condition=Q(captured__lte=F("quantity")), name="hold_captures_no_more_than_held"
            ),
            models.CheckConstraint(
                condition=Q(state=HoldState.HELD)
                | Q(state=HoldState.CAPTURED, captured__gt=0)
                | Q(state__in=[HoldState.RELEASED, HoldState.EXPIRED], captured=0),
                name="hold_state_tells_if_captured",
            ),
        ]
        indexes = [
            models.Index(
                fields=["lease_until"], condition=Q(state=HoldState.HELD), name="open_holds"
            ),
            models.Index(
                fields=["settled_at"],
                condition=Q(state=HoldState.CAPTURED),
                name="captured_holds",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.amount_micro} µUSD {self.state} for {self.request_id}"


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
    model = models.CharField(_("model"), max_length=100, blank=True)
    quantity = models.PositiveIntegerField(_("quantity"), default=0)
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
        ]
        indexes = [
            models.Index(fields=["organization", "-created_at"], name="ledger_of_one"),
            # For what goes on from a mark: freezing, and adding up what is new.
            models.Index(fields=["organization", "id"], name="ledger_in_order"),
            models.Index(fields=["api_key", "-created_at"], name="ledger_of_a_key"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount_micro} µUSD"


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
