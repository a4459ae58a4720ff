"""Prices, each version for ever."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accounts.models import Organization

# What is counted, unless a price says otherwise.
UNIT = "image"
# The price that counts money, for those that Stripe does not count in their own units.
SHARED_SKU, SHARED_UNIT, SHARED_UNIT_MICRO = "shared", "0.0001 USD", 100


class PriceState(models.TextChoices):
    """A draft is not quoted yet: Stripe has to know it first. A retired one is on no invoice."""

    DRAFT = "draft", _("Draft")
    ACTIVE = "active", _("Active")
    RETIRED = "retired", _("Retired")


class PriceVersion(models.Model):
    """What one delivered unit of a sku costs, from a moment on; never re-rated.

    What a sku is, and which order is of which, the seller decides: here it is a name.

    With Stripe connected each version has a product, a meter and a price of its own there, unless
    it is counted in the units of the one shared price, which are money.
    """

    sku = models.CharField(_("SKU"), max_length=100)
    unit = models.CharField(_("unit"), max_length=30, default=UNIT)
    version = models.PositiveIntegerField(_("version"))
    unit_micro = models.PositiveBigIntegerField(_("unit price, micro-USD"))
    effective_from = models.DateTimeField(_("effective from"), db_default=Now())
    state = models.CharField(
        _("state"), max_length=7, choices=PriceState, default=PriceState.ACTIVE
    )
    stripe_product = models.CharField(_("product at Stripe"), max_length=100, blank=True)
    stripe_meter = models.CharField(_("meter at Stripe"), max_length=100, blank=True)
    stripe_price = models.CharField(_("price at Stripe"), max_length=100, blank=True)
    counted_in = models.ForeignKey(
        "self",
        verbose_name=_("counted in"),
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text=_(
            "The price in whose units Stripe counts it; empty: in its own. Decided when it is "
            "published, and never changed."
        ),
    )
    livemode = models.BooleanField(
        _("live mode"),
        null=True,
        help_text=_("Whether its Stripe objects are live ones; empty: it has none."),
    )

    class Meta:
        verbose_name = _("price")
        verbose_name_plural = _("prices")
        constraints = [
            models.UniqueConstraint(fields=["sku", "version"], name="one_price_per_version"),
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
            models.CheckConstraint(
                condition=Q(counted_in=None) | Q(stripe_price=""),
                name="stripe_price_counts_itself",
            ),
            models.CheckConstraint(
                condition=Q(counted_in=None)
                | Q(unit_micro=F("unit_micro") / SHARED_UNIT_MICRO * SHARED_UNIT_MICRO),
                name="shared_price_counts_whole_units",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.sku} v{self.version}"

    @property
    def counter(self) -> "PriceVersion":
        """The version that Stripe has a meter, a price and items of, for this one's usage."""
        return self.counted_in or self

    @property
    def event_name(self) -> str:
        """The name of its meter's events: `img_flux-1.1-pro_v2`, at most 100 characters."""
        return f"img_{self.sku.rpartition('/')[2]}_v{self.version}"[-100:]


class PriceException(models.Model):
    """An organization that stays on an older price, or without one, until Stripe can bill it.

    Its subscription could not be given an item of the newest version yet.
    """

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    sku = models.CharField(max_length=100)
    price_version = models.ForeignKey(
        PriceVersion, null=True, on_delete=models.PROTECT, related_name="+"
    )
    reason = models.CharField(max_length=500)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["organization", "sku"], name="one_exception_each")
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} stays on {self.price_version or 'no price'}"
