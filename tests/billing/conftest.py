"""Fixtures of the tests of money: published prices, keys of one organization, and Stripe."""

from collections.abc import Iterator

import pytest
from pytest_django.fixtures import Settings

from accounts.models import ApiKey
from billing import prices
from billing.stripe_client import Stripe, connect
from tests.billing import PRICES
from tests.billing.buyer import Buyer, sell
from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.factories import KeyFactory


@pytest.fixture
def key(db: None) -> ApiKey:
    """A key of an organization with 10 USD, in a transaction that is rolled back."""
    prices.publish(PRICES)
    return KeyFactory().row


@pytest.fixture
def committed_key(transactional_db: None) -> ApiKey:
    """A key of an organization with 10 USD, seen by every connection."""
    prices.publish(PRICES)
    return KeyFactory().row


@pytest.fixture(scope="session")
def _stripe_account() -> Iterator[StripeEmulator]:
    with StripeEmulator(check_contract=True) as emulator:
        yield emulator


@pytest.fixture
def stripe_account(_stripe_account: StripeEmulator, settings: Settings) -> Iterator[StripeEmulator]:
    """An empty Stripe account, which the settings point to; its clock stands at the real time.

    Every call and answer is checked against Stripe's OpenAPI document.
    """
    emulator = _stripe_account
    emulator.reset()
    settings.STRIPE_SECRET_KEY = emulator.key
    settings.STRIPE_API_BASE = settings.STRIPE_METER_EVENTS_BASE = emulator.url
    settings.STRIPE_WEBHOOK_SECRETS = [emulator.webhook_secret]
    settings.STRIPE_LIVEMODE = emulator.livemode
    yield emulator
    emulator.raise_violations()


@pytest.fixture
def stripe(stripe_account: StripeEmulator) -> Stripe:
    """Our connection to that account."""
    return connect()


@pytest.fixture
def buyer(stripe_account: StripeEmulator, key: ApiKey) -> Buyer:
    """The key's organization, subscribed in Stripe to everything that is sold."""
    return Buyer(stripe_account, sell(Shop(stripe_account)), key)


@pytest.fixture
def committed_buyer(stripe_account: StripeEmulator, committed_key: ApiKey) -> Buyer:
    """The same, seen by every connection."""
    return Buyer(stripe_account, sell(Shop(stripe_account)), committed_key)
