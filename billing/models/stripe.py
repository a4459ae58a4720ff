"""What Stripe is told (outboxes), what it tells (inbox), and our copies of what it decides.

Every effect on Stripe is a row with its final identifier before the call is made; every event
from Stripe is a row before it is worked on. So a crash between any two steps loses nothing.
"""

import uuid

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import Organization
from billing.models.ledger import LedgerEntry
from billing.models.prices import PriceVersion
from geekhub.lib.outbox import Attempted


class MeterState(models.TextChoices):
    """Where a meter event stands.

    `uncertain`: whether Stripe counted it is not known and the identifier is too old to ask by
    sending again. `rejected`, `unbilled`: Stripe refused it, or no invoice is left to carry it.
    """

    PENDING = "pending", _("Pending")
    SENDING = "sending", _("Sending")
    UNCERTAIN = "uncertain", _("Uncertain")
    ACCEPTED = "accepted", _("Accepted")
    CONFIRMED = "confirmed", _("Confirmed")
    REJECTED = "rejected", _("Rejected")
    UNBILLED = "unbilled", _("Unbilled")


class MeterEvent(models.Model):
    """Delivered units of one organization, price version and UTC hour, frozen for Stripe.

    Of the shared price version it has the money of all that are counted in its units.

    `identifier`, `quantity` and `timestamp` never change once it may have been sent.
    """

    identifier = models.CharField(_("identifier"), primary_key=True, max_length=100)
    organization = models.ForeignKey(
        Organization, verbose_name=_("organization"), on_delete=models.PROTECT, related_name="+"
    )
    price_version = models.ForeignKey(
        PriceVersion, verbose_name=_("price version"), on_delete=models.PROTECT, related_name="+"
    )
    hour = models.DateTimeField(_("hour"))
    quantity = models.BigIntegerField(_("quantity"))
    timestamp = models.DateTimeField(_("timestamp"))
    restamped_from = models.DateTimeField(
        _("restamped from"),
        null=True,
        help_text=_("When it was used, if that was too late for its own invoice."),
    )
    reissue_of = models.ForeignKey(
        "self",
        verbose_name=_("reissue of"),
        null=True,
        on_delete=models.PROTECT,
        related_name="reissues",
    )
    state = models.CharField(
        _("state"), max_length=9, choices=MeterState, default=MeterState.PENDING
    )
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    first_attempt_at = models.DateTimeField(_("first attempt at"), null=True)
    lease_until = models.DateTimeField(_("lease until"), null=True)
    next_at = models.DateTimeField(_("next attempt"))
    accepted_at = models.DateTimeField(_("accepted at"), null=True)
    last_error = models.CharField(_("last error"), max_length=500, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta:
        verbose_name = _("meter event")
        verbose_name_plural = _("meter events")
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=MeterState.values), name="meter_event_state_is_known"
            ),
            models.CheckConstraint(condition=~Q(quantity=0), name="meter_event_is_not_empty"),
            # Two unknown outcomes in one lane could not be told apart by Stripe's sums.
            models.UniqueConstraint(
                fields=["organization", "price_version"],
                condition=Q(state__in=[MeterState.SENDING, MeterState.UNCERTAIN]),
                name="one_unknown_per_lane",
            ),
        ]
        indexes = [
            models.Index(
                fields=["next_at"],
                condition=Q(state__in=[MeterState.PENDING, MeterState.SENDING]),
                name="meter_events_to_send",
            ),
            models.Index(
                fields=["organization", "price_version", "timestamp"], name="lane_in_time"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.identifier}: {self.quantity} {self.state}"


class MeteredEntry(models.Model):
    """Which meter event a ledger entry is in; its key makes that at most one."""

    ledger_entry = models.OneToOneField(
        LedgerEntry, on_delete=models.PROTECT, primary_key=True, related_name="metered"
    )
    meter_event = models.ForeignKey(MeterEvent, on_delete=models.PROTECT, related_name="entries")

    def __str__(self) -> str:
        return f"{self.ledger_entry_id} in {self.meter_event_id}"


class OperationState(models.TextChoices):
    """Where a write to Stripe stands; `failed` needs a person."""

    PENDING = "pending", _("Pending")
    DONE = "done", _("Done")
    FAILED = "failed", _("Failed")


class StripeOperation(Attempted):
    """One write to Stripe other than a meter event, done once per `key`."""

    key = models.CharField(_("key"), max_length=200, unique=True)
    kind = models.CharField(_("kind"), max_length=30)
    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    parameters = models.JSONField(_("parameters"), default=dict)
    idempotency_key = models.UUIDField(_("idempotency key"), default=uuid.uuid4)
    state = models.CharField(
        _("state"), max_length=7, choices=OperationState, default=OperationState.PENDING
    )
    result = models.CharField(
        _("result"), max_length=100, blank=True, help_text=_("The Stripe id it made.")
    )
    last_error = models.CharField(_("last error"), max_length=500, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    done_at = models.DateTimeField(_("done at"), null=True)

    class Meta:
        verbose_name = _("write to Stripe")
        verbose_name_plural = _("writes to Stripe")
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=OperationState.values), name="operation_state_is_known"
            )
        ]
        indexes = [
            models.Index(
                fields=["next_at"],
                condition=Q(state=OperationState.PENDING),
                name="operations_to_do",
            )
        ]

    def __str__(self) -> str:
        return f"{self.key} {self.state}"


class StripeEvent(Attempted):
    """An event Stripe delivered: a hint to fetch its object again, never itself the truth."""

    id = models.CharField(primary_key=True, max_length=100)
    type = models.CharField(_("type"), max_length=100)
    object_id = models.CharField(_("id of its object"), max_length=100, blank=True)
    thin = models.BooleanField(_("without its object"), default=False)
    livemode = models.BooleanField(_("live mode"))
    created = models.DateTimeField(_("created at"))
    payload = models.JSONField(_("payload"))
    received_at = models.DateTimeField(_("received at"), db_default=Now())
    processed_at = models.DateTimeField(_("processed at"), null=True)
    error = models.CharField(_("error"), max_length=500, blank=True)

    class Meta:
        verbose_name = _("event from Stripe")
        verbose_name_plural = _("events from Stripe")
        indexes = [
            models.Index(
                fields=["next_at"], condition=Q(processed_at=None), name="events_to_process"
            )
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class Subscription(models.Model):
    """Our copy of an organization's subscription in Stripe, and of its items."""

    stripe_id = models.CharField(max_length=100, unique=True)
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="subscriptions"
    )
    status = models.CharField(max_length=20)
    items = models.JSONField(help_text="{Stripe price: [item, when it was added, epoch seconds]}")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    cancels_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    fetched_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization"],
                condition=Q(ended_at=None),
                name="one_running_subscription",
            )
        ]

    def __str__(self) -> str:
        return f"{self.stripe_id} {self.status}"


class Invoice(models.Model):
    """Our copy of an invoice; amounts are cents, as Stripe has them.

    Its PDF and page are bearer secrets and not kept: they are fetched when somebody asks.
    """

    stripe_id = models.CharField(_("Stripe id"), max_length=100, unique=True)
    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        on_delete=models.PROTECT,
        related_name="invoices",
    )
    number = models.CharField(_("number"), max_length=100, blank=True)
    status = models.CharField(_("status"), max_length=15)
    billing_reason = models.CharField(_("billing reason"), max_length=40, blank=True)
    currency = models.CharField(_("currency"), max_length=3)
    period_start = models.DateTimeField(_("period start"))
    period_end = models.DateTimeField(_("period end"))
    subtotal_cents = models.BigIntegerField(_("subtotal, cents"))
    tax_cents = models.BigIntegerField(_("tax, cents"))
    total_cents = models.BigIntegerField(_("total, cents"))
    amount_due_cents = models.BigIntegerField(_("due, cents"))
    amount_paid_cents = models.BigIntegerField(_("paid, cents"))
    payment_failed = models.BooleanField(
        _("payment failed"),
        default=False,
        help_text=_("It is owed: Stripe has tried to collect it and could not."),
    )
    lines = models.JSONField(
        _("lines"),
        help_text=_("[{id, price, description, quantity, unit_cents, amount_cents, start, end}]"),
    )
    created = models.DateTimeField(_("created at"))
    finalized_at = models.DateTimeField(_("finalized at"), null=True)
    fetched_at = models.DateTimeField(_("fetched at"))

    class Meta:
        verbose_name = _("invoice")
        verbose_name_plural = _("invoices")
        indexes = [
            models.Index(fields=["organization", "-created"], name="invoices_of_one"),
            models.Index(
                fields=["organization"],
                condition=models.Q(payment_failed=True),
                name="invoices_owed",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.number or self.stripe_id} {self.status}"


class JobRun(models.Model):
    """When a background job was last begun, on whichever host, so that only one begins it."""

    name = models.CharField(primary_key=True, max_length=60)
    started_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name} at {self.started_at:%Y-%m-%d %H:%M:%S}"
