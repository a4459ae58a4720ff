"""Whom to warn of what, once."""

import uuid

from django.db import models
from django.db.models.functions import Now

from accounts.models import Organization
from geekhub.lib.outbox import Attempted


class AlertEndpoint(models.Model):
    """Where an organization's own software hears of its alerts, signed with a secret of ours."""

    organization = models.OneToOneField(
        Organization, on_delete=models.CASCADE, primary_key=True, related_name="alert_endpoint"
    )
    url = models.URLField(max_length=500)
    secret = models.CharField(max_length=60)

    def __str__(self) -> str:
        return self.url


class Notification(Attempted):
    """One thing an organization is told, once per `key`: by e-mail, and to its endpoint."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(
        Organization, on_delete=models.CASCADE, related_name="notifications"
    )
    key = models.CharField(max_length=150, unique=True)
    kind = models.CharField(max_length=40)
    operation = models.ForeignKey(
        "billing.StripeOperation",
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="The write to Stripe whose failure it tells of.",
    )
    details = models.JSONField(default=dict)
    created_at = models.DateTimeField(db_default=Now())
    emailed_at = models.DateTimeField(null=True)
    posted_at = models.DateTimeField(null=True)
    settled_at = models.DateTimeField(null=True, help_text="Nothing more will be tried.")
    email_error = models.CharField(max_length=500, blank=True)
    post_error = models.CharField(max_length=500, blank=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["next_at"],
                condition=models.Q(settled_at=None),
                name="notifications_to_send",
            ),
            models.Index(fields=["organization", "-created_at"], name="notifications_of_one"),
        ]

    def __str__(self) -> str:
        return self.key
