"""Fixtures of the tests of money: published prices and keys of one organization."""

import pytest

from accounts.models import ApiKey
from billing import prices
from tests.billing import PRICES
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
