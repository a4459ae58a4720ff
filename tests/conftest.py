"""Fixtures: a database per test, the emulators, the application on a socket, and some people."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.contenttypes.management import create_contenttypes
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.db.models.signals import post_migrate
from django.test import Client, TransactionTestCase
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import PriceState, PriceVersion
from billing.stripe import client as stripe_client
from billing.stripe.client import Stripe
from geekhub.server import Door
from images.catalog.skus import price_list
from tests import services
from tests.emptying import empty
from tests.emulators.fal import FalEmulator
from tests.emulators.google import GoogleEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.stripe import StripeEmulator
from tests.emulators.xai import XaiEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.run import ELSEWHERE, SHARED
from tests.server import Api, AppServer

# Tests in these folders that take no database fixture run beside one of the two databases, the
# others beside both. The browser is on SQLite alone, and so both take about the same time.
ONCE = {
    "tests/lib/": "postgresql",
    "tests/images/providers/": "postgresql",
    "tests/test_emulators/": "sqlite",
    "tests/test_clients/": "sqlite",
}
# Walks over all pages, stores, and requests whose providers fail. They do use the database, but
# with no query that other tests do not try on both.
EITHER = {
    "tests/pages/test_walk.py": "postgresql",
    "tests/pages/test_addresses.py": "postgresql",
    "tests/pages/test_all_pages.py": "postgresql",
    "tests/pages/test_forms_survive.py": "postgresql",
    "tests/pages/test_translations.py": "postgresql",
    "tests/pages/test_audit.py": "postgresql",
    "tests/pages/test_people.py": "postgresql",
    "tests/images/test_storage": "postgresql",
    "tests/api/test_dalle.py": "postgresql",
    "tests/pages/test_playground.py": "sqlite",
    "tests/api/test_pixels.py": "sqlite",
    "tests/gateway/": "sqlite",
    "tests/api/test_bodies.py": "sqlite",
    "tests/api/test_edits.py": "sqlite",
    "tests/api/test_messages.py": "sqlite",
    "tests/api/test_bad_input.py": "sqlite",
}
DATABASE = {"db", "transactional_db", "django_db_setup"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the other run has and what would be the same here; see tests.run."""
    elsewhere = os.environ.get(ELSEWHERE)
    once = tuple(path for path, database in ONCE.items() if database == elsewhere)
    either = tuple(path for path, database in EITHER.items() if database == elsewhere)
    for item in items:
        used = DATABASE.intersection(getattr(item, "fixturenames", ()))
        asks = used or item.get_closest_marker("django_db")
        if item.nodeid.startswith(either) or (item.nodeid.startswith(once) and not asks):
            item.add_marker(pytest.mark.skip(reason=f"{SHARED} {elsewhere}"))


@pytest.fixture(scope="session")
def _openai() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def _google() -> Iterator[GoogleEmulator]:
    with GoogleEmulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def _xai() -> Iterator[XaiEmulator]:
    with XaiEmulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def _fal() -> Iterator[FalEmulator]:
    with FalEmulator() as emulator:
        yield emulator


@pytest.fixture
def openai(_openai: OpenAIEmulator) -> OpenAIEmulator:
    """OpenAI's Images API, without memory of other tests."""
    _openai.reset()
    return _openai


@pytest.fixture
def google(_google: GoogleEmulator) -> GoogleEmulator:
    """Google's Gemini API, without memory of other tests."""
    _google.reset()
    return _google


@pytest.fixture
def xai(_xai: XaiEmulator) -> XaiEmulator:
    """xAI's images API, without memory of other tests."""
    _xai.reset()
    return _xai


@pytest.fixture
def fal(_fal: FalEmulator) -> FalEmulator:
    """fal.ai, without memory of other tests."""
    _fal.reset()
    return _fal


@pytest.fixture
def providers(
    settings: Settings,
    openai: OpenAIEmulator,
    google: GoogleEmulator,
    xai: XaiEmulator,
    fal: FalEmulator,
) -> None:
    """Point the settings at the emulators."""
    settings.PROVIDERS = {
        "openai": {"key": openai.key, "base_url": openai.url},
        "google": {"key": google.key, "base_url": google.url},
        "xai": {"key": xai.key, "base_url": xai.url},
        "fal": {"key": fal.key, "queue_base_url": fal.queue_url},
    }
    settings.PROVIDER_DOWNLOAD_HOSTS = [one.origin for one in (openai, google, xai, fal)]


@pytest.fixture(scope="session")
def _stripe_account() -> Iterator[StripeEmulator]:
    with StripeEmulator(check_contract=True) as emulator:
        yield emulator


@pytest.fixture
def stripe_account(_stripe_account: StripeEmulator, settings: Settings) -> Iterator[StripeEmulator]:
    """An empty Stripe account, which the settings point to; its clock shows the real time.

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
    return stripe_client.connect()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The Redis of this run, or one of our own."""
    if django_settings.REDIS_URL:
        yield django_settings.REDIS_URL
        return
    try:
        with services.redis() as url:
            yield url
    except services.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def _cheap_passwords(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    # The limits on logins and sign-ups are counted there, for all tests of a process.
    cache.clear()
    ContentType.objects.clear_cache()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> None:
    """Make the database, with the rows that Django itself adds.

    Not again whenever a test has emptied it, which took a quarter of the suite's time: content
    types come when they are asked for, and nothing here has permissions of Django's.
    """
    post_migrate.disconnect(create_contenttypes)
    post_migrate.disconnect(dispatch_uid="django.contrib.auth.management.create_permissions")
    # What follows a test that commits; Django's own `flush` took as long as such a test.
    TransactionTestCase._fixture_teardown = lambda self: empty()  # type: ignore[method-assign]


@pytest.fixture
def published(transactional_db: None) -> None:
    """Publish the catalogue's prices."""
    PriceVersion.objects.bulk_create(
        PriceVersion(sku=sku, version=1, unit_micro=price, state=PriceState.ACTIVE)
        for sku, price in price_list().items()
    )


@pytest.fixture
def serve(
    settings: Settings, tmp_path: Any, published: None, providers: None
) -> Iterator[Callable[..., AppServer]]:
    """Start the application when called, after a test has changed the settings; with any Door."""
    settings.DATA_DIR = tmp_path
    settings.STATIC_ROOT = tmp_path / "static"
    settings.STATIC_ROOT.mkdir()
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        "images": {
            "BACKEND": "images.stores.local.LocalStorage",
            "OPTIONS": {
                "location": tmp_path / "images",
                "base_url": "http://pictures.test/storage/v1/object/public/generated-images/",
            },
        },
        "private_images": {
            "BACKEND": "images.stores.local.LocalStorage",
            "OPTIONS": {
                "location": tmp_path / "private-images",
                "base_url": "http://pictures.test/storage/v1/object/sign/private-images/",
                "expires_in": 3600,
            },
        },
    }
    running: list[AppServer] = []

    def start(door: Door | None = None) -> AppServer:
        running.append(AppServer(door).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__(None, None, None)


@pytest.fixture
def app(serve: Callable[..., AppServer]) -> AppServer:
    """The application with the test settings."""
    return serve()


@pytest.fixture
def client(settings: Settings, tmp_path: Any) -> Client:
    """Ask for pages as a browser does, without collected static files."""
    settings.STATIC_ROOT = tmp_path / "collected"
    settings.STATIC_ROOT.mkdir()
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    cache.clear()  # its limits on logins
    return Client()


@pytest.fixture
def acme(published: None) -> Organization:
    """Alice's organization, with 10 USD to spend."""
    return OrganizationFactory(name="Acme", owner__email="alice@acme.test")


@pytest.fixture
def globex(published: None) -> Organization:
    """Bob's organization, a stranger to Acme."""
    return OrganizationFactory(name="Globex", owner__email="bob@globex.test")


@pytest.fixture
def live_key(acme: Organization) -> NewKey:
    """A live key of Acme."""
    return KeyFactory(organization=acme)


@pytest.fixture
def test_key(acme: Organization) -> NewKey:
    """A sandbox key of Acme."""
    return KeyFactory(organization=acme, name="ci-bot", sandbox=True)


@pytest.fixture
def connect(app: AppServer) -> Iterator[Callable[[str | None], Api]]:
    """Make a client of the application with any key, or none."""
    clients: list[Api] = []

    def make(secret: str | None) -> Api:
        clients.append(Api(app.origin, secret))
        return clients[-1]

    yield make
    for client in clients:
        client.http.close()


@pytest.fixture
def api(connect: Callable[[str | None], Api], live_key: NewKey) -> Api:
    """A client with Acme's live key."""
    return connect(live_key.secret)


@pytest.fixture
def sandbox(connect: Callable[[str | None], Api], test_key: NewKey) -> Api:
    """A client with Acme's sandbox key."""
    return connect(test_key.secret)
