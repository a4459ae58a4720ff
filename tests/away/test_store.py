"""The picture store away or hanging: pages are shown without what it holds, in words, in time."""

import io
import time
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.files.storage import storages
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import Organization
from images.models import Generation, Image
from tests.away import PROVING, Wire, ask, urls
from tests.away.conftest import People
from tests.emulators.supabase import SupabaseEmulator
from tests.factories import KeyFactory
from tests.images.requests import make_request

AWAY = "The picture store can&#x27;t be reached right now."


@pytest.fixture(params=["refused", "hanging"])
def away(request: pytest.FixtureRequest, settings: Settings) -> Iterator[float]:
    """Pictures are in Supabase, which is away; yield how long a call to it takes at most."""
    with SupabaseEmulator() as supabase, Wire("127.0.0.1", urlsplit(supabase.url).port or 0) as wire:
        if request.param == "refused":
            supabase.refuse_connections()
        wire.hang() if request.param == "hanging" else wire.flow()
        options = {
            "url": f"http://127.0.0.1:{wire.port}",
            "key": supabase.secret_key,
            "timeout": 0.3,
            "backoff": 0.01,
        }
        buckets: dict[str, dict[str, Any]] = {
            "images": {"bucket": "generated-images"},
            "private_images": {"bucket": "private-images", "expires_in": 3600},
        }
        settings.STORAGES = {
            **settings.STORAGES,
            **{
                name: {
                    "BACKEND": "images.storage.SupabaseStorage",
                    "OPTIONS": {**options, **bucket},
                }
                for name, bucket in buckets.items()
            },
        }
        yield 2 * options["timeout"]
        for name in buckets:
            storages[name].close()


@pytest.fixture
def private(acme: Organization) -> Generation:
    """A request with a private picture, of Acme."""
    key = KeyFactory(organization=acme, private=True).row
    request = make_request(key, timezone.now(), pictures=True)
    (image,) = request.images.all()
    Image.objects.filter(pk=image.pk).update(name=f"private/{image.name}")
    return request
