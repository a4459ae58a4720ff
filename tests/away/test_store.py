"""The picture store away or hanging: pages are shown without what it holds, in words, in time."""

import io
import zipfile
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.files.storage import storages
from django.core.management import call_command
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import Organization
from images.models import Generation, Image
from tests.away import Wire, urls
from tests.emulators.supabase import SupabaseEmulator
from tests.factories import KeyFactory
from tests.images.requests import make_request
from tests.pages import owner_of
from tests.pages.visitor import Visitor
from tests.server import AppServer

AWAY = "Image storage can&#x27;t be reached right now."


@pytest.fixture(params=["refused", "hanging"])
def away(
    request: pytest.FixtureRequest, settings: Settings, serve: Callable[[], AppServer]
) -> Iterator[AppServer]:
    """The application with pictures in Supabase, which is away."""
    with (
        SupabaseEmulator() as supabase,
        Wire("127.0.0.1", urlsplit(supabase.url).port or 0) as wire,
    ):
        supabase.refuse_connections()
        if request.param == "hanging":
            wire.hang()
        buckets: dict[str, dict[str, Any]] = {
            "images": {"bucket": "generated-images"},
            "private_images": {"bucket": "private-images", "expires_in": 3600},
        }
        options = {
            "url": f"http://127.0.0.1:{wire.port}",
            "key": supabase.secret_key,
            "timeout": 0.3,
            "backoff": 0.01,
        }
        settings.STORAGES = settings.STORAGES | {
            name: {
                "BACKEND": "images.stores.supabase.SupabaseStorage",
                "OPTIONS": options | bucket,
            }
            for name, bucket in buckets.items()
        }
        yield serve()
        for name in buckets:
            storages[name].close()


@pytest.fixture
def drawn(acme: Organization) -> Generation:
    """A request of Acme with a public and a private picture."""
    key = KeyFactory(organization=acme).row
    request = make_request(key, timezone.now(), n=2, delivered=2, pictures=True)
    hidden = request.images.get(index=1)
    Image.objects.filter(pk=hidden.pk).update(name=f"private/{hidden.name}")
    return request


@pytest.fixture
def owner(away: AppServer, acme: Organization) -> Iterator[Visitor]:
    visitor = Visitor(away, owner_of(acme))
    with visitor.http:
        yield visitor


def test_pages_are_shown_without_their_pictures(drawn: Generation, owner: Visitor) -> None:
    public, private = (f"{drawn.request_id}-{index}" for index in (0, 1))
    assert "/storage/v1/object/public/" in owner.get(f"/dashboard/gallery/{public}").text
    for path in (f"/dashboard/gallery/{private}", f"/dashboard/usage/{drawn.request_id}"):
        page = owner.get(path)
        assert page.status_code == 200
        assert AWAY in page.text
    assert owner.get("/dashboard/gallery").status_code == 200
    for reference in (public, private):
        small = owner.get(f"/dashboard/gallery/{reference}/small.webp")
        assert (small.status_code, small.headers["retry-after"]) == (503, "5")
    ready = owner.get("/ready")
    assert (ready.status_code, ready.json()["checks"]["storage"]) == (503, "failed")


def test_a_zip_file_names_what_is_missing(drawn: Generation, owner: Visitor) -> None:
    answer = owner.get(
        "/dashboard/gallery/zip", params={"picture": [f"{drawn.request_id}-{n}" for n in (0, 1)]}
    )
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["missing.txt"]
        missing = archive.read("missing.txt").decode().split()
    assert [name[-6:] for name in missing] == ["-0.png", "-1.png"]


def test_a_deletion_is_done_and_its_objects_wait(drawn: Generation, owner: Visitor) -> None:
    gone = owner.post("/dashboard/gallery/delete", picture=f"{drawn.request_id}-0")
    assert gone.status_code == 302
    call_command("worker", "--once")
    image = drawn.images.get(index=0)
    assert image.deleted_at is not None
    assert image.purged_at is None


def test_no_other_page_needs_the_store(
    acme: Organization, drawn: Generation, owner: Visitor
) -> None:
    wrong = {}
    for path in urls(acme):
        if path.startswith(("/dashboard/gallery", "/dashboard/playground", "/storage")):
            for answer in (owner.get(path), owner.post(path)):
                if answer.status_code >= 500:
                    wrong[path] = answer.status_code
    assert wrong == {}
