"""What was asked, and the pictures that came of it."""

import uuid

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import MAX_TAG, ApiKey, Organization
from billing.models import Hold


class GenerationStatus(models.TextChoices):
    """Where a request stands."""

    RUNNING = "running", _("Running")
    SUCCEEDED = "succeeded", _("Succeeded")
    FAILED = "failed", _("Failed")


class Generation(models.Model):
    """One request; its row exists before a provider is called.

    `id` is part of the pictures' URLs and known to nobody else; `request_id` is the public name.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    request_id = models.CharField(_("request id"), max_length=28, unique=True)
    # Without an index of its own, as everywhere below where another begins with it: PostgreSQL
    # would join the two, and each costs every write.
    organization = models.ForeignKey(
        Organization,
        verbose_name=_("organization"),
        on_delete=models.PROTECT,
        related_name="generations",
        db_index=False,
    )
    api_key = models.ForeignKey(
        ApiKey, verbose_name=_("API key"), on_delete=models.PROTECT, related_name="generations"
    )
    sandbox = models.BooleanField(_("sandbox"))
    hold = models.OneToOneField(
        Hold, verbose_name=_("hold"), null=True, on_delete=models.PROTECT, related_name="generation"
    )
    owner = models.UUIDField(_("server process"), help_text=_("The server process handling it."))
    status = models.CharField(
        _("status"), max_length=9, choices=GenerationStatus, default=GenerationStatus.RUNNING
    )
    requested = models.JSONField(
        _("requested models"), help_text=_("The requested models, in order.")
    )
    parameters = models.JSONField(
        _("parameters"), help_text=_("The request as sent, without model and prompt.")
    )
    prompt = models.TextField(blank=True, help_text="Empty when the organization keeps none.")
    tags = models.JSONField(_("tags"), default=list)
    n = models.PositiveSmallIntegerField(_("requested"))
    retry = models.PositiveSmallIntegerField(
        _("retry"),
        default=0,
        db_default=0,
        help_text=_("Which retry by an SDK this is; 0: not a retry."),
    )
    idempotency_key = models.CharField(_("idempotency key"), max_length=255, null=True)
    fingerprint = models.CharField(_("fingerprint"), max_length=64)

    model = models.CharField(
        _("model"), max_length=100, blank=True, help_text=_("The provider that delivered it.")
    )
    provider = models.CharField(_("provider"), max_length=20, blank=True)
    delivered = models.PositiveSmallIntegerField(_("delivered"), default=0)
    filtered = models.PositiveSmallIntegerField(_("refused by the provider"), default=0)
    cost_micro = models.PositiveBigIntegerField(_("cost, micro-USD"), default=0)
    attempts = models.JSONField(_("attempts"), default=list)
    skipped = models.JSONField(_("skipped"), default=list)
    adjusted = models.JSONField(_("adjusted"), default=list)
    error_code = models.CharField(_("error"), max_length=40, blank=True)
    error_message = models.CharField(_("error message"), max_length=500, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    deadline_at = models.DateTimeField(
        _("deadline"), help_text=_("No process works on it after this time.")
    )
    finished_at = models.DateTimeField(_("finished at"), null=True)
    draw_ms = models.PositiveIntegerField(
        _("generation time, ms"), null=True, help_text=_("How long the delivering model took.")
    )
    latency_ms = models.PositiveIntegerField(_("duration, ms"), null=True)

    class Meta:
        verbose_name = _("request")
        verbose_name_plural = _("requests")
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "sandbox", "idempotency_key"],
                condition=~Q(status=GenerationStatus.FAILED),
                name="one_generation_per_idempotency_key",
            ),
            models.CheckConstraint(
                condition=Q(status__in=GenerationStatus.values), name="generation_status_is_known"
            ),
            models.CheckConstraint(
                condition=Q(status=GenerationStatus.RUNNING)
                | Q(status=GenerationStatus.SUCCEEDED, delivered__gt=0)
                | Q(status=GenerationStatus.FAILED, delivered=0, cost_micro=0),
                name="generation_costs_only_if_delivered",
            ),
            models.CheckConstraint(
                condition=Q(sandbox=False) | Q(hold=None, cost_micro=0), name="sandbox_is_free"
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "-created_at"], name="generations_of_one"),
            # The rollups read an hour of all organizations.
            models.Index(fields=["created_at"], name="generations_of_an_hour"),
            models.Index(
                fields=["organization", "created_at"],
                condition=~Q(prompt=""),
                name="generations_with_prompt",
            ),
            models.Index(
                fields=["deadline_at"],
                condition=Q(status=GenerationStatus.RUNNING),
                name="running_generations",
            ),
            models.Index(
                fields=["-finished_at"],
                condition=Q(status=GenerationStatus.SUCCEEDED, sandbox=False),
                name="recent_latencies",
            ),
        ]

    def __str__(self) -> str:
        return self.request_id


class Image(models.Model):
    """One stored picture."""

    generation = models.ForeignKey(
        Generation, on_delete=models.PROTECT, related_name="images", db_index=False
    )
    index = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=100, unique=True, help_text="Its name in the storage.")
    mime_type = models.CharField(max_length=20)
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    bytes = models.PositiveIntegerField()
    sha256 = models.CharField(max_length=64)
    revised_prompt = models.TextField(blank=True)
    deleted_at = models.DateTimeField(null=True, help_text="Told to nobody from then on.")
    purged_at = models.DateTimeField(null=True, help_text="When its object was gone.")

    #: Its address, where the store was asked for it already; no column.
    link: str | None = None

    class Meta:
        ordering = ["index"]
        constraints = [
            models.UniqueConstraint(fields=["generation", "index"], name="one_image_per_index"),
            models.CheckConstraint(
                condition=Q(purged_at=None) | Q(deleted_at__isnull=False),
                name="image_purged_only_if_deleted",
            ),
        ]
        indexes = [
            models.Index(
                fields=["deleted_at"],
                condition=Q(deleted_at__isnull=False, purged_at=None),
                name="images_to_purge",
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def reference(self) -> str:
        """Return its public name: the request's and its index in it."""
        return f"{self.generation.request_id}-{self.index}"


class Counted(models.Model):
    """How many requests of an organization came in in some time; see `images.usage.rollups`."""

    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    hour = models.DateTimeField(help_text="The hour the requests came in; UTC.")
    sandbox = models.BooleanField()
    requests = models.PositiveIntegerField()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.requests} requests at {self.hour:%Y-%m-%d %H:%M}"


class Outcome(Counted):
    """What came of them: those that ended alike, what they delivered and cost."""

    error_code = models.CharField(max_length=40, blank=True, help_text="Empty: it succeeded.")
    images = models.PositiveIntegerField()
    cost_micro = models.PositiveBigIntegerField()

    class Meta:
        abstract = True


class HourOfUse(Outcome):
    """What one key did with one model in one hour, with one outcome."""

    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_index=False)
    model = models.CharField(
        max_length=100, help_text="Who drew; of a failed request the first that was asked."
    )

    class Meta:
        abstract = True


class HourlyUsage(HourOfUse):
    """Every closed hour's requests; each request is counted once."""

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "hour", "api_key", "model", "error_code"],
                name="one_row_of_usage_each",
            )
        ]
        # What staff see of the whole platform.
        indexes = [models.Index(fields=["hour"], name="usage_by_hour")]


class HourlyTagUsage(HourOfUse):
    """Every closed hour's requests by tag; one with three tags is counted under each of them."""

    tag = models.CharField(max_length=MAX_TAG, blank=True, help_text="Empty: without tags.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "tag", "hour", "api_key", "model", "error_code"],
                name="one_row_of_usage_per_tag",
            )
        ]
        indexes = [models.Index(fields=["organization", "hour"], name="tag_usage_by_hour")]


class DailyUsage(HourOfUse):
    """HourlyUsage, summed by day in UTC; `hour` is the day's first.

    The newest day lacks the hours that are not closed.
    """

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "hour", "api_key", "model", "error_code"],
                name="one_row_of_usage_a_day",
            )
        ]


class HourlyTotal(Outcome):
    """HourlyUsage, summed over keys and models."""

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "hour", "sandbox", "error_code"],
                name="one_total_an_hour_each",
            )
        ]


class Bar(Counted):
    """How many delivered requests of some time took how long: one bar of a histogram."""

    model = models.CharField(max_length=100)
    bucket = models.PositiveSmallIntegerField(help_text="See images.usage.rollups.WIDTH.")

    class Meta:
        abstract = True


class HourlyLatency(Bar):
    """The latencies of a closed hour."""

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "hour", "sandbox", "model", "bucket"],
                name="one_row_per_bar",
            )
        ]


class DailyLatency(Bar):
    """HourlyLatency, summed by day in UTC; `hour` is the day's first."""

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "hour", "sandbox", "model", "bucket"],
                name="one_row_per_bar_a_day",
            )
        ]


class ClosedHours(models.Model):
    """The one row that says up to when hours are rolled up; rolling up locks it."""

    until = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="closed_hours_is_one_row")]

    def __str__(self) -> str:
        return f"closed until {self.until}"
