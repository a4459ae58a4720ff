"""What nobody's picture is goes, a day after its request ended; a picture never does."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.core.management import call_command
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import ApiKey, Organization
from billing.models import JobRun
from geekhub.staff.figures import job_health
from geekhub.work import due
from geekhub.work.jobs import current
from images.gallery import orphans
from images.models import Generation, Image
from tests.emulators.supabase import SupabaseEmulator, Trouble
from tests.factories import KeyFactory
from tests.images.requests import make_request

NOW = datetime.fromisoformat("2026-11-28T12:00:00+00:00")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# The second after which make_request() ends its requests.
A_SECOND = timedelta(seconds=1)


@pytest.fixture
def supabase() -> Iterator[SupabaseEmulator]:
    """Supabase Storage with an empty public bucket."""
    with SupabaseEmulator() as emulator:
        yield emulator


@pytest.fixture(params=["local", "supabase"])
def store(request: pytest.FixtureRequest, settings: Settings, tmp_path: Any) -> Iterator[Any]:
    """The store of public pictures."""
    places: dict[str, dict[str, Any]] = {
        name: {
            "BACKEND": "images.stores.local.LocalStorage",
            "OPTIONS": {"location": tmp_path / name, "base_url": "http://pictures.test/"},
        }
        for name in ("images", "private_images")
    }
    if request.param == "supabase":
        emulator = request.getfixturevalue("supabase")
        places["images"] = {
            "BACKEND": "images.stores.supabase.SupabaseStorage",
            "OPTIONS": {
                "url": emulator.url,
                "key": emulator.secret_key,
                "bucket": emulator.bucket,
                "backoff": 0.01,
            },
        }
    settings.STORAGES = {**settings.STORAGES, **places}
    yield storages["images"]
    if request.param == "supabase":
        storages["images"].close()


@pytest.fixture
def key(acme: Organization) -> ApiKey:
    return KeyFactory(organization=acme).row


def put(request: Generation, index: int, *, private: bool = False) -> str:
    """Keep an object in the request's folder, whether it is one of its pictures or not."""
    name = f"{request.organization_id}/{request.pk}/{index}.png"
    name = f"private/{name}" if private else name
    return str(storages["private_images" if private else "images"].save(name, ContentFile(b"x")))


def record(request: Generation, index: int, name: str) -> None:
    """Write down that the object is a picture of the request."""
    Image.objects.create(
        generation=request, index=index, name=name, mime_type="image/png", width=1, height=1,
        bytes=1, sha256="0" * 64,
    )  # fmt: skip


def test_an_orphan_goes_a_day_after_its_request_failed(store: Any, key: ApiKey) -> None:
    failed = make_request(key, NOW - DAY - A_SECOND, error="internal_error")
    orphan = put(failed, 0)
    # Its request ended at the very moment, or a little later.
    young = put(make_request(key, NOW - DAY, error="internal_error"), 0)

    assert orphans.sweep(NOW - A_SECOND) == 0
    assert store.exists(orphan)
    assert orphans.sweep(NOW + timedelta(microseconds=1)) == 1
    assert not store.exists(orphan)
    assert store.exists(young)
    assert orphans.sweep(NOW + DAY) == 1
    assert not store.exists(young)


def test_a_picture_stays_and_what_lies_beside_it_goes(store: Any, key: ApiKey) -> None:
    part = make_request(key, NOW - 2 * DAY, n=4, delivered=2)
    pictures = [put(part, index) for index in range(2)]
    for index, name in enumerate(pictures):
        record(part, index, name)
    beside = put(part, 2)
    whole = make_request(key, NOW - 2 * DAY, n=1, delivered=1)
    record(whole, 0, put(whole, 0))
    foreign = str(store.save("notes/readme.txt", ContentFile(b"ours too")))

    assert orphans.sweep(NOW) == 1
    assert not store.exists(beside)
    for name in [*pictures, *Image.objects.values_list("name", flat=True), foreign]:
        assert store.exists(name), name


def test_a_request_that_runs_holds_up_the_rest(store: Any, key: ApiKey) -> None:
    """However old it is: its process may be about to store, and those after it are for later."""
    running = make_request(key, NOW - 3 * DAY, running=True)
    half = put(running, 0)
    after = put(make_request(key, NOW - 2 * DAY, error="internal_error"), 0)
    assert orphans.sweep(NOW) == 0
    assert store.exists(half)
    # It is settled as abandoned: a day later it is as any other.
    Generation.objects.filter(pk=running.pk).update(status="failed", finished_at=NOW)
    assert orphans.sweep(NOW + HOUR) == 0
    assert store.exists(half)
    assert orphans.sweep(NOW + DAY + A_SECOND) == 2
    assert not store.exists(half)
    assert not store.exists(after)


def test_each_request_is_looked_at_once_and_so_many_at_a_time(
    supabase: SupabaseEmulator, settings: Settings, test_key: NewKey
) -> None:
    key = test_key.row
    settings.STORAGES = {
        **settings.STORAGES,
        "images": {
            "BACKEND": "images.stores.supabase.SupabaseStorage",
            "OPTIONS": {"url": supabase.url, "key": supabase.secret_key, "bucket": supabase.bucket},
        },
    }
    many = orphans.BATCH + 3
    for number in range(many):
        make_request(key, NOW - 20 * DAY + number * A_SECOND, error="internal_error")
    make_request(key, NOW - 2 * DAY, error="internal_error")
    looked = []
    for _ in range(5):
        before = len(supabase.requests)
        assert orphans.sweep(NOW) == 0
        looked.append(len(supabase.requests) - before)
    # The last of a batch is looked at twice, for another of the same moment.
    assert looked == [orphans.BATCH, 4, 1, 0, 0]
    storages["images"].close()


def test_a_private_orphan_is_looked_for_where_it_is(store: Any, acme: Organization) -> None:
    hidden = KeyFactory(organization=acme, private=True).row
    orphan = put(make_request(hidden, NOW - 2 * DAY, error="internal_error"), 0, private=True)
    assert storages["private_images"].exists(orphan)
    assert orphans.sweep(NOW) == 1
    assert not storages["private_images"].exists(orphan)


def test_while_the_store_is_away_nothing_is_passed_over(
    supabase: SupabaseEmulator, store: Any, key: ApiKey
) -> None:
    if not hasattr(store, "bucket"):
        pytest.skip("a folder is never away")
    orphan = put(make_request(key, NOW - 2 * DAY, error="internal_error"), 0)
    (job,) = [one for one in current() if one.run is orphans.sweep]
    supabase.always(Trouble(error="502_html"))
    assert due.run_if_due(job, now=NOW) is None
    assert orphan in supabase.objects
    supabase.always(Trouble())
    assert due.run_if_due(job, now=NOW + due.AGAIN) == 1
    assert orphan not in supabase.objects


def test_the_worker_does_it_and_staff_see_when(store: Any, key: ApiKey) -> None:
    put(make_request(key, timezone.now() - 2 * DAY, error="internal_error"), 0)
    out = StringIO()
    call_command("worker", "--once", stdout=out)
    assert "orphans removed: 1\n" in out.getvalue()
    assert JobRun.objects.filter(name=orphans.CURSOR).exists()
    title = "files that belong to no image removed"
    (seen,) = [one for one in job_health(timezone.now()) if str(one.title) == title]
    assert seen.begun is not None
    assert not seen.late
