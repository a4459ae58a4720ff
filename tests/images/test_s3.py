"""Supabase's S3 interface as the store of the whole application."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from django.core.files.storage import storages
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from images.models import Image
from tests.emulators.supabase import SupabaseEmulator
from tests.server import Api, AppServer


@pytest.fixture
def supabase() -> Iterator[SupabaseEmulator]:
    """Supabase Storage with an empty public bucket."""
    with SupabaseEmulator() as emulator:
        yield emulator


@pytest.fixture
def remote(
    settings: Settings, serve: Callable[[], AppServer], supabase: SupabaseEmulator
) -> Iterator[AppServer]:
    """The application, keeping pictures over S3."""
    host = supabase.url.removeprefix("http://")
    settings.STORAGES = {
        **settings.STORAGES,
        "images": {
            "BACKEND": "images.stores.s3.S3ImageStorage",
            "OPTIONS": {
                "endpoint_url": f"{supabase.url}/storage/v1/s3",
                "access_key": supabase.S3_KEY_ID,
                "secret_key": supabase.S3_SECRET,
                "region_name": supabase.S3_REGION,
                "bucket_name": "generated-images",
                "addressing_style": "path",
                "signature_version": "s3v4",
                "object_parameters": {"CacheControl": "public, max-age=31536000, immutable"},
                "querystring_auth": False,
                "custom_domain": f"{host}/storage/v1/object/public/generated-images",
                "url_protocol": "http:",
            },
        },
    }
    yield serve()
    storages["images"].connection.meta.client.close()


def test_a_picture_over_s3_has_the_same_public_address(
    remote: AppServer, supabase: SupabaseEmulator, live_key: NewKey
) -> None:
    api = Api(remote.origin, live_key.secret)
    body = api.draw(response_format="b64_json").json()
    row = body["data"][0]

    name = Image.objects.get().name
    assert row["url"] == f"{supabase.url}/storage/v1/object/public/generated-images/{name}"
    shown = httpx.get(row["url"])
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert len(shown.content) == row["bytes"]

    assert api.http.delete(f"images/{body['id']}").json()["deleted"] == [0]
    api.http.close()
    assert httpx.get(row["url"]).status_code == 400
    assert supabase.objects == {}


def test_a_missing_bucket_or_a_wrong_key_is_not_ready(
    remote: AppServer, supabase: SupabaseEmulator
) -> None:
    def ready() -> str:
        checks: dict[str, str] = httpx.get(f"{remote.origin}/ready", timeout=30).json()["checks"]
        return checks["storage"]

    assert ready() == "ok"
    supabase.drop_bucket()
    assert ready() == "failed"
    supabase.reset()
    assert ready() == "ok"
    supabase.S3_KEY_ID = "another"
    assert ready() == "failed"
