"""Holds: money set aside while somebody draws."""

import uuid

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import ApiKey, Organization


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
        help_text=_("What a unit of each candidate costs: {SKU: [price version id, micro-USD]}."),
    )
    budget_periods = models.JSONField(
        _("budget periods"),
        default=list,
        help_text=_("The budget periods it is held in, by id, in order."),
    )
    captured = models.PositiveIntegerField(
        _("captured"), default=0, help_text=_("Units charged so far.")
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
