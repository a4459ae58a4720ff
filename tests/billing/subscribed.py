"""From the catalogue to a running subscription, all by our own code, as a customer goes."""

from collections.abc import Mapping
from datetime import datetime

from accounts.models import ApiKey
from billing.models import Subscription
from billing.stripe import catalog, customers, subscriptions
from billing.stripe.client import Stripe
from tests.billing import PRICES
from tests.billing.metered import moment
from tests.emulators.stripe import StripeEmulator

NAMES = {"a/cheap": "Cheap", "b/middle": "Middle", "c/dear": "Dear"}
OK, BACK = "https://us.test/ok", "https://us.test/back"


def now_of(emulator: StripeEmulator) -> datetime:
    """Return the emulator's time, which is the time of the test."""
    return moment(emulator.clock.now)


def next_first(emulator: StripeEmulator) -> datetime:
    """Return when the emulator's month ends."""
    return customers.next_month(now_of(emulator))


def sync(stripe: Stripe, emulator: StripeEmulator, wanted: Mapping[str, int] = PRICES) -> list[str]:
    """Bring prices to Stripe; return what was done."""
    return catalog.sync(stripe, wanted, now=now_of(emulator), names=NAMES)


def checkout(stripe: Stripe, emulator: StripeEmulator, key: ApiKey) -> str:
    """Return the Checkout session in which the key's organization gives a card."""
    url = customers.card_checkout(stripe, key.organization, OK, BACK, now_of(emulator))
    return url.rpartition("/")[2]


def subscribe(
    stripe: Stripe, emulator: StripeEmulator, key: ApiKey, card: str = "4242424242424242"
) -> Subscription:
    """Give a card, and copy the subscription that begins with it."""
    emulator.complete_checkout(checkout(stripe, emulator, key), card)
    begun = emulator.objects("subscription")[-1]
    copy = subscriptions.mirror(stripe, begun["id"], now=now_of(emulator))
    assert copy is not None
    return copy
