"""Which price has an item of its own on subscriptions, and the item that all others share.

Stripe allows so many items on a subscription (`STRIPE_SUBSCRIPTION_ITEMS`). A price has one of its
own while there is room, and one place is kept for the shared item. That is the item of a price
version too, of a sku that nobody is quoted: its units are money, 0.0001 USD each, and its meter
counts what the others cost. Which of the two a version has is decided when it is published and kept
in its row; what is frozen never moves to another meter.
"""

from django.conf import settings

from billing.models import PriceState, PriceVersion
from billing.models.prices import SHARED_SKU, SHARED_UNIT, SHARED_UNIT_MICRO
from geekhub.lib import money


class PriceTooFine(Exception):
    """A price is no whole number of the shared item's units, and there is no room for its own."""


def counting(sku: str, unit_micro: int) -> PriceVersion | None:
    """Return the shared price if the sku's new price is to be counted in its units.

    None while there is room for an item of its own. Raises PriceTooFine.
    """
    own = PriceVersion.objects.filter(counted_in=None).exclude(sku=SHARED_SKU)
    if own.exclude(state=PriceState.RETIRED).count() < settings.STRIPE_SUBSCRIPTION_ITEMS - 1:
        return None
    if unit_micro % SHARED_UNIT_MICRO:
        raise PriceTooFine(
            f"{sku}: {money.to_usd(unit_micro)} USD is no multiple of {SHARED_UNIT}, and no item "
            "is left on subscriptions to count it by itself (STRIPE_SUBSCRIPTION_ITEMS)"
        )
    shared, _ = PriceVersion.objects.get_or_create(
        sku=SHARED_SKU,
        version=1,
        defaults={
            "unit": SHARED_UNIT,
            "unit_micro": SHARED_UNIT_MICRO,
            "state": PriceState.DRAFT,
        },
    )
    return shared
