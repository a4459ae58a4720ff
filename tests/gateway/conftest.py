"""All four providers behind one running application, and an organization that can pay for much."""

from collections.abc import Callable, Iterator

import pytest

from accounts.keys import NewKey
from accounts.models import Organization
from tests.emulators.fal import FalEmulator
from tests.emulators.google import GoogleEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.xai import XaiEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.gateway import Emulators, hurry
from tests.server import Api, AppServer


@pytest.fixture
def serve(serve: Callable[[], AppServer]) -> Callable[[], AppServer]:
    """Start the application when called; it asks after fal's jobs without a pause."""

    def start() -> AppServer:
        app = serve()
        hurry(app)
        return app

    return start


@pytest.fixture
def emulators(
    openai: OpenAIEmulator, google: GoogleEmulator, xai: XaiEmulator, fal: FalEmulator
) -> Emulators:
    """Every provider by its name in the settings."""
    return {"openai": openai, "google": google, "xai": xai, "fal": fal}


@pytest.fixture
def tiny(emulators: Emulators) -> Iterator[None]:
    """Draw small pictures, where many are drawn and their size does not matter."""
    for one in emulators.values():
        one.tiny = True
    yield
    for one in emulators.values():
        one.tiny = False


@pytest.fixture
def umbrella(published: None) -> Organization:
    """Carol's organization, with 1000 USD to spend."""
    return OrganizationFactory(name="Umbrella", owner__email="carol@umbrella.test", bonus="1000")


@pytest.fixture
def live_key(umbrella: Organization) -> NewKey:
    """A live key of Umbrella."""
    return KeyFactory(organization=umbrella)


@pytest.fixture
def api(connect: Callable[[str | None], Api], live_key: NewKey) -> Api:
    """A client with Umbrella's key."""
    return connect(live_key.secret)


@pytest.fixture
def begin(
    serve: Callable[[], AppServer], live_key: NewKey
) -> Iterator[Callable[..., tuple[AppServer, Api]]]:
    """Start the application when called, with a client of it, after a test has changed settings."""
    clients: list[Api] = []

    def start(key: NewKey = live_key) -> tuple[AppServer, Api]:
        app = serve()
        clients.append(Api(app.origin, key.secret))
        return app, clients[-1]

    yield start
    for client in clients:
        client.http.close()
