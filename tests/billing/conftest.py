"""Fixtures of the tests of money: published prices, keys of one organization, a customer."""

import pytest

from accounts.models import ApiKey
from billing.spending import prices
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


@pytest.fixture
def buyer(stripe_account: StripeEmulator, key: ApiKey) -> Buyer:
    """The key's organization, subscribed in Stripe to everything that is sold."""
    return Buyer(stripe_account, sell(Shop(stripe_account)), key)


@pytest.fixture
def committed_buyer(stripe_account: StripeEmulator, committed_key: ApiKey) -> Buyer:
    """The same, seen by every connection."""
    return Buyer(stripe_account, sell(Shop(stripe_account)), committed_key)
