"""A client for all emulator tests, and the way they read pictures."""

import base64
import io
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def emulator(server: StripeEmulator) -> StripeEmulator:
    """The module's own Stripe, its account empty."""
    server.reset()
    return server


@pytest.fixture
def shop(emulator: StripeEmulator) -> Shop:
    """Where things are sold through it."""
    return Shop(emulator)


def opened(data: bytes | str) -> tuple[str | None, tuple[int, int]]:
    """The format and size of a picture, decoded in full."""
    raw = base64.b64decode(data, validate=True) if isinstance(data, str) else data
    with Image.open(io.BytesIO(raw)) as picture:
        picture.load()
        return picture.format, picture.size
