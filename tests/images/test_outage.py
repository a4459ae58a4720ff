"""The store goes away under load: nothing charged that cannot be fetched, and it heals itself."""

import asyncio
import io
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.core.files.storage import storages
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import BillingAccount, Hold, HoldState, LedgerEntry
from images.gallery import archive, deletion
from images.gallery.deletion import PARALLEL
from images.models import Generation, Image
from images.pixels.turns import ALONE
from images.stores import configured
from images.stores.spool import Spool
from tests.emulators.supabase import SupabaseEmulator, Trouble
from tests.factories import KeyFactory
from tests.server import Api, AppServer


@pytest.fixture
def supabase() -> Iterator[SupabaseEmulator]:
    """Supabase Storage with an empty public bucket."""
    with SupabaseEmulator() as emulator:
        yield emulator


@pytest.fixture
def remote(
    settings: Settings, serve: Callable[[], AppServer], supabase: SupabaseEmulator
) -> Iterator[Callable[[], AppServer]]:
    """Keep pictures in Supabase; start the application when called."""
    options = {
        "url": supabase.url,
        "key": supabase.secret_key,
        "attempts": 2,
        "backoff": 0.01,
    }
    settings.STORAGES = {
        **settings.STORAGES,
        "images": {
            "BACKEND": "images.stores.supabase.SupabaseStorage",
            "OPTIONS": {**options, "bucket": "generated-images"},
        },
        "private_images": {
            "BACKEND": "images.stores.supabase.SupabaseStorage",
            "OPTIONS": {**options, "bucket": "private-images", "expires_in": 3600},
        },
    }
    yield serve
    storages["images"].close()
    storages["private_images"].close()


def burst(app: AppServer, key: NewKey, count: int) -> list[httpx.Response]:
    """Return the answers to `count` requests sent together."""

    def draw(_: int) -> httpx.Response:
        client = Api(app.origin, key.secret)
        try:
            return client.draw()
        finally:
            client.http.close()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(draw, range(count)))


def test_a_picture_is_public_in_the_bucket_under_its_final_name(
    remote: Callable[[], AppServer], supabase: SupabaseEmulator, live_key: NewKey
) -> None:
    (answer,) = burst(remote(), live_key, 1)

    row = answer.json()["data"][0]
    name = Image.objects.get().name
    assert row["url"] == f"{supabase.url}/storage/v1/object/public/generated-images/{name}"
    picture = httpx.get(row["url"])
    assert picture.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert len(picture.content) == row["bytes"]
    assert len(supabase.uploads) == 1


def test_an_outage_releases_and_charges_nothing_by_default(
    remote: Callable[[], AppServer], supabase: SupabaseEmulator, live_key: NewKey
) -> None:
    app = remote()
    supabase.always(Trouble(error="502_html"))

    answers = burst(app, live_key, 10)

    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["error"]["code"] for answer in answers} == {"service_unavailable"}
    assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}
    assert not LedgerEntry.objects.filter(kind="consumption").exists()
    assert not Image.objects.exists()
    assert set(Hold.objects.values_list("state", flat=True)) == {HoldState.RELEASED}
    assert BillingAccount.objects.get().held_micro == 0

    supabase.reset()
    assert {answer.status_code for answer in burst(app, live_key, 3)} == {200}


def test_with_a_spool_an_outage_costs_nobody_anything(
    remote: Callable[[], AppServer],
    supabase: SupabaseEmulator,
    live_key: NewKey,
    settings: Settings,
) -> None:
    settings.STORAGE_OUTAGE = "spool"
    app = remote()
    supabase.refuse_connections()

    answers = burst(app, live_key, 10)

    assert {answer.status_code for answer in answers} == {200}
    assert LedgerEntry.objects.filter(kind="consumption").count() == 10
    urls = [answer.json()["data"][0]["url"] for answer in answers]
    for url in urls:
        waiting = httpx.get(app.origin + "/storage/" + url.partition("/storage/")[2])
        assert (waiting.status_code, waiting.headers["content-type"]) == (200, "image/png")
    call_command("worker", "--once")
    spool = configured.spool()
    assert spool is not None
    assert len(list(spool.names())) == 10, "still away, nothing lost"

    supabase.accept_connections()
    call_command("worker", "--once")
    call_command("worker", "--once")

    assert list(spool.names()) == []
    assert len(supabase.objects) == 10
    assert {httpx.get(url).status_code for url in urls} == {200}
    assert Generation.objects.filter(status="succeeded").count() == 10


def test_a_full_spool_releases(
    remote: Callable[[], AppServer],
    supabase: SupabaseEmulator,
    live_key: NewKey,
    settings: Settings,
) -> None:
    settings.STORAGE_OUTAGE = "spool"
    settings.SPOOL_MAX_BYTES = 100
    app = remote()
    supabase.refuse_connections()

    (answer,) = burst(app, live_key, 1)

    assert answer.status_code == 503
    assert not LedgerEntry.objects.filter(kind="consumption").exists()


def test_a_private_picture_that_has_no_address_is_not_charged(
    settings: Settings, serve: Callable[[], AppServer], acme: Organization
) -> None:
    with SupabaseEmulator(bucket="private-images") as supabase:
        supabase.make_private()
        options = {"url": supabase.url, "key": supabase.secret_key, "attempts": 1}
        bucket = {"bucket": "private-images", "expires_in": 3600}
        settings.STORAGES = {
            **settings.STORAGES,
            "private_images": {
                "BACKEND": "images.stores.supabase.SupabaseStorage",
                "OPTIONS": options | bucket,
            },
        }
        app = serve()
        # The picture is taken, and then no address is given for it.
        supabase.queue(Trouble(), Trouble(error="502_html"))
        (answer,) = burst(app, KeyFactory(organization=acme, private=True), 1)
        storages["private_images"].close()

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert answer.headers["x-should-retry"] == "false"
    assert len(supabase.uploads) == 1
    assert not LedgerEntry.objects.filter(kind="consumption").exists()
    assert not Image.objects.exists()


def test_verify_storage_finds_what_is_missing_wrong_or_nobodys(
    remote: Callable[[], AppServer], supabase: SupabaseEmulator, live_key: NewKey
) -> None:
    burst(remote(), live_key, 3)
    out = StringIO()
    call_command("verify_storage", stdout=out)
    assert out.getvalue() == ""
    missing, wrong, _ = Image.objects.order_by("pk")
    storages["images"].delete(missing.name)
    Image.objects.filter(pk=wrong.pk).update(bytes=1)

    with pytest.raises(CommandError, match="2 differences"):
        call_command("verify_storage", stdout=out)

    assert out.getvalue().splitlines() == [
        f"missing: {missing.name}",
        f"wrong size: {wrong.name}",
    ]


def test_ensure_bucket_creates_and_then_finds_nothing_to_do(
    remote: Any, supabase: SupabaseEmulator
) -> None:
    supabase.drop_bucket()
    out = StringIO()

    call_command("ensure_bucket", stdout=out)
    call_command("ensure_bucket", stdout=out)

    assert out.getvalue() == ""
    supabase.make_private()
    with pytest.raises(CommandError, match="not as it should be"):
        call_command("ensure_bucket", stdout=out)
    assert out.getvalue().splitlines() == ["generated-images: public is False, should be True"]


def test_a_picture_that_was_deleted_while_it_waited_is_in_no_store(
    remote: Callable[[], AppServer],
    supabase: SupabaseEmulator,
    live_key: NewKey,
    settings: Settings,
) -> None:
    settings.STORAGE_OUTAGE = "spool"
    app = remote()
    supabase.refuse_connections()
    burst(app, live_key, 2)
    gone, stays = Image.objects.order_by("pk")
    # As another host does it, which finds nothing in the store and cannot see this spool.
    deletion.mark_deleted(Generation.objects.get(images=gone))
    Generation.objects.get(images=gone)
    deletion.mark_purged([gone])

    supabase.accept_connections()
    call_command("worker", "--once")

    assert list(supabase.objects) == [stays.name]
    spool = configured.spool()
    assert spool is not None
    assert list(spool.names()) == []


def test_a_picture_that_leaves_the_spool_while_it_is_counted_counts_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=100)
    asyncio.run(spool.put("a/stays.png", b"x" * 7, "image/png"))
    # A file that is listed and not there any more.
    Path(tmp_path, "a", "gone.png").symlink_to(tmp_path / "nowhere")
    assert spool.size() == 7
    assert list(spool.names()) == ["a/stays.png"]
    asyncio.run(spool.put("a/fits.png", b"x" * 93, "image/png"))


def test_the_first_picture_that_the_store_does_not_give_ends_the_asking(
    remote: Callable[[], AppServer], supabase: SupabaseEmulator, live_key: NewKey
) -> None:
    """Each might be waited for as long as the first: a file of a hundred, a round of the worker."""
    burst(remote(), live_key, 20)
    images = list(Image.objects.select_related("generation"))
    supabase.reset()
    supabase.always(Trouble(error="502_html"))

    async def work() -> bytes:
        store = configured.image_store()
        try:
            assert await deletion.purge(store, images) == []
            purging = len(supabase.requests)
            assert 0 < purging <= 2 * PARALLEL
            data = b"".join([part async for part in archive.zipped(store, ALONE, images)])
            assert len(supabase.requests) - purging == 2
            return data
        finally:
            await store.aclose()

    with zipfile.ZipFile(io.BytesIO(asyncio.run(work()))) as file:
        assert len(file.read("missing.txt").splitlines()) == 20


def test_a_spooled_picture_of_a_request_that_failed_is_in_no_store(
    remote: Callable[[], AppServer],
    supabase: SupabaseEmulator,
    live_key: NewKey,
    settings: Settings,
) -> None:
    settings.STORAGE_OUTAGE = "spool"
    app = remote()
    supabase.refuse_connections()
    burst(app, live_key, 2)
    lost, stays = Image.objects.order_by("pk")
    # As a process leaves it that is killed between the spool and the charge.
    request = lost.generation_id
    lost.delete()
    Generation.objects.filter(pk=request).update(status="failed", delivered=0, cost_micro=0)

    supabase.accept_connections()
    call_command("worker", "--once")

    assert list(supabase.objects) == [stays.name]
