"""The gallery: what is found, taken along, deleted and forgotten, and by whom."""

import asyncio
import hashlib
import io
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from PIL import Image as Pillow
from pytest_django.fixtures import Settings

from accounts.models import ApiKey, AuditEvent, Organization, Role
from billing.models import LedgerEntry
from geekhub.lib.ids import new_request_id
from images.gallery import archive, browse, deletion, retention
from images.gallery.deletion import BATCH
from images.models import Generation, GenerationStatus, Image
from images.pages.gallery import PAGE
from images.pixels.pictures import inspect, shrink
from images.pixels.turns import ALONE
from images.stores.contract import ImageStore
from images.stores.supabase import SupabaseStorage
from tests.emulators.base import make_bomb, make_picture
from tests.emulators.supabase import SupabaseEmulator
from tests.factories import KeyFactory
from tests.images.requests import make_request
from tests.images.test_shown import with_exif
from tests.lib import dead_port
from tests.pages import log_in, member_of, owner_of
from tests.pages.visitor import Visitor
from tests.server import Api, AppServer

FLUX = "fal/flux-1.1-pro"
PNG = b"\x89PNG\r\n\x1a\n and so on"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def picture(key: ApiKey, *, pictures: int = 1, private: bool = False, **fields: Any) -> Generation:
    """Return a request that delivered, as images/drawing/charge.py would have written it."""
    row = Generation.objects.create(
        request_id=new_request_id(),
        organization=key.organization,
        api_key=key,
        sandbox=True,
        owner=uuid.uuid4(),
        status=GenerationStatus.SUCCEEDED,
        requested=[FLUX],
        n=pictures,
        delivered=pictures,
        fingerprint="",
        deadline_at=timezone.now(),
        **{
            "model": FLUX,
            "prompt": "a red kite",
            "parameters": {},
            "created_at": timezone.now(),
            **fields,
        },
    )
    Image.objects.bulk_create(
        Image(
            generation=row,
            index=index,
            name=f"{'private/' if private else ''}{key.organization_id}/{row.pk}/{index}.png",
            mime_type="image/png",
            width=1024,
            height=768,
            bytes=1000,
            sha256="0" * 64,
            revised_prompt=f"{row.prompt}, revised",
        )
        for index in range(pictures)
    )
    return row


@pytest.fixture
def key(acme: Organization) -> ApiKey:
    """A sandbox key of Acme, without a server."""
    return KeyFactory(organization=acme, sandbox=True).row


@pytest.fixture
def alice(client: Client, acme: Organization) -> Client:
    """Acme's owner."""
    return log_in(client, owner_of(acme))


def shown(page: Any) -> list[str]:
    return [image.reference for image in page.context["images"]]


# --- Find -------------------------------------------------------------------------------------


def test_load_more_shows_each_picture_once_though_times_are_equal(
    alice: Client, key: ApiKey
) -> None:
    for _ in range(PAGE):
        picture(key, pictures=3, created_at=NOON)
    seen: list[str] = []
    after, pages = "", 0
    while pages == 0 or after:
        page = alice.get("/dashboard/gallery", {"after": after} if after else {})
        assert len(page.content) < 150_000
        seen += shown(page)
        after = page.context["after"]
        pages += 1
    assert pages == 3
    assert len(seen) == len(set(seen)) == 3 * PAGE
    assert 'rel="next"' not in page.text
    # Newest first, and the pictures of a request in their order.
    late = picture(key, pictures=2)
    first = shown(alice.get("/dashboard/gallery"))
    assert first[:2] == [f"{late.request_id}-0", f"{late.request_id}-1"]


def test_filters_find_exactly_what_they_say(alice: Client, key: ApiKey, acme: Organization) -> None:
    other_key = KeyFactory(organization=acme, name="other", sandbox=True).row
    now = timezone.now()
    rows = {
        "kite": picture(key, prompt="A Red KITE over 100% sea"),
        "boat": picture(key, prompt="a red boat", model="openai/gpt-image-2"),
        "other": picture(other_key, prompt="a blue kite"),
        "old": picture(key, prompt="a red kite long ago", created_at=now - timedelta(days=91)),
    }

    def found(**query: str) -> set[str]:
        ids = {one.rsplit("-", 1)[0] for one in shown(alice.get("/dashboard/gallery", query))}
        return {name for name, row in rows.items() if row.request_id in ids}

    assert found() == {"kite", "boat", "other", "old"}
    assert found(q="red kite") == {"kite"}
    assert found(q="KITE") == {"kite", "other"}
    assert found(q="100%") == {"kite"}
    assert found(q="%") == {"kite"}
    assert found(q="_") == set()
    assert found(q="kite", since="2020-01-01") == {"kite", "other", "old"}
    assert found(model="openai/gpt-image-2") == {"boat"}
    assert found(key=str(other_key.pk)) == {"other"}
    today = timezone.localdate().isoformat()
    assert found(since=today) == {"kite", "boat", "other"}
    assert found(until=(now - timedelta(days=90)).date().isoformat()) == {"old"}
    # An invalid filter is reported, and shows no other organization's images.
    page = alice.get("/dashboard/gallery", {"key": str(uuid.uuid4()), "since": "tomorrow"})
    assert page.status_code == 200
    assert "Enter a valid date." in page.text


def test_days_are_the_viewers(alice: Client, key: ApiKey) -> None:
    # 03:00 UTC on the second is 21:00 on the first in Mexico City.
    picture(key, created_at=datetime(2026, 6, 2, 3, tzinfo=UTC))
    day = {"since": "2026-06-01", "until": "2026-06-01"}
    assert shown(alice.get("/dashboard/gallery", day)) == []
    alice.cookies["timezone"] = "America/Mexico_City"
    assert len(shown(alice.get("/dashboard/gallery", day))) == 1


def test_nothing_of_another_organization_is_shown(
    alice: Client, acme: Organization, globex: Organization
) -> None:
    theirs = picture(KeyFactory(organization=globex, sandbox=True).row)
    reference = f"{theirs.request_id}-0"
    assert shown(alice.get("/dashboard/gallery")) == []
    assert alice.get("/dashboard/gallery", {"after": reference}).status_code == 404
    assert alice.get(f"/dashboard/gallery/{reference}").status_code == 404
    assert alice.get("/dashboard/gallery/zip", {"picture": reference}).status_code == 404
    for send in (alice.get, alice.post):
        assert send("/dashboard/gallery/delete", {"picture": reference}).status_code == 404
    assert Image.objects.get().deleted_at is None


def test_a_picture_tells_all_that_is_known(alice: Client, key: ApiKey) -> None:
    row = picture(key, pictures=2, prompt="<i>a kite</i>", parameters={"seed": 0})
    page = alice.get(f"/dashboard/gallery/{row.request_id}-1").text
    for told in ("&lt;i&gt;a kite&lt;/i&gt;", "revised", "1024 × 768", row.request_id, key.name):
        assert told in page
    assert "<dt>Seed</dt><dd>0</dd>" in page
    assert alice.get(f"/dashboard/gallery/{row.request_id}-2").status_code == 404


# --- Take along -------------------------------------------------------------------------------


@pytest.fixture
def visitor(app: AppServer, acme: Organization) -> Iterator[Visitor]:
    """Acme's owner, in front of the real application."""
    made = Visitor(app, owner_of(acme))
    yield made
    made.http.close()


def test_a_zip_file_has_the_pictures_as_they_are(
    visitor: Visitor, sandbox: Api, acme: Organization, tmp_path: Any
) -> None:
    sandbox.draw(n=2, prompt="a kite", model=FLUX).raise_for_status()
    sandbox.draw(prompt="a boat", model=FLUX, output_format="jpeg").raise_for_status()
    images = browse.pick(acme, [one.reference for one in Image.objects.all()])
    lost = images[-1]
    (tmp_path / "images" / lost.name).unlink()
    answer = visitor.get(
        "/dashboard/gallery/zip", params={"picture": [one.reference for one in images]}
    )
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"].startswith('attachment; filename="pictures-')
    with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
        assert file.testzip() is None
        digests = {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}
        assert file.read("missing.txt").decode() == f"{archive.file_name(lost)}\n"
    del digests["missing.txt"]
    assert digests == {archive.file_name(one): one.sha256 for one in images[:-1]}
    assert {name.rsplit(".")[-1] for name in digests} == {"jpg", "png"}


def test_one_zip_file_is_bounded(alice: Client, key: ApiKey) -> None:
    row = picture(key, pictures=8)
    references = [f"{row.request_id}-{index}" for index in range(8)]
    Image.objects.update(bytes=archive.MAX_BYTES // 8 + 1)
    answer = alice.get("/dashboard/gallery/zip", {"picture": references})
    assert (answer.status_code, answer["location"]) == (302, "/dashboard/gallery")
    assert "up to 100 images and 500 MB" in alice.get("/dashboard/gallery").text
    many = [f"{picture(key).request_id}-0" for _ in range(archive.MAX_PICTURES + 1)]
    assert alice.get("/dashboard/gallery/zip", {"picture": many}).status_code == 302
    assert alice.get("/dashboard/gallery/zip").status_code == 302


# --- Delete -----------------------------------------------------------------------------------


def test_deleting_asks_first_then_marks_and_keeps_the_ledger(
    app: AppServer, visitor: Visitor, api: Api, acme: Organization
) -> None:
    api.draw(n=3, model=FLUX).raise_for_status()
    row = Generation.objects.get()
    chosen = [f"{row.request_id}-0", f"{row.request_id}-2"]
    asked = visitor.get("/dashboard/gallery/delete", params={"picture": chosen})
    assert "Delete 2 images?" in asked.text
    assert not Image.objects.exclude(deleted_at=None).exists()
    for _ in range(2):  # sent twice: the second finds nothing left to delete
        answer = visitor.post("/dashboard/gallery/delete", picture=chosen)
        assert answer.headers["location"] == "/dashboard/gallery"
    assert list(Image.objects.exclude(deleted_at=None).values_list("index", flat=True)) == [0, 2]
    event = AuditEvent.objects.get(action="pictures.deleted")
    assert (event.organization, event.actor) == (acme, owner_of(acme))
    assert event.details == {"pictures": chosen}
    assert LedgerEntry.objects.get(kind="consumption").amount_micro == -120_000
    row.refresh_from_db()
    assert row.cost_micro == 120_000
    # Its object goes with the worker's next round; a stale link is 404.
    call_command("worker", "--once")
    assert Image.objects.exclude(purged_at=None).count() == 2
    assert visitor.get(f"/dashboard/gallery/{chosen[0]}").status_code == 404


def test_one_picture_that_is_not_ours_deletes_none(
    alice: Client, key: ApiKey, globex: Organization
) -> None:
    mine = picture(key)
    theirs = picture(KeyFactory(organization=globex, sandbox=True).row)
    chosen = [f"{mine.request_id}-0", f"{theirs.request_id}-0"]
    assert alice.post("/dashboard/gallery/delete", {"picture": chosen}).status_code == 404
    assert not Image.objects.exclude(deleted_at=None).exists()
    assert not AuditEvent.objects.filter(action="pictures.deleted").exists()


def test_a_picture_of_a_request_that_still_draws_stays(alice: Client, key: ApiKey) -> None:
    row = picture(key)
    Generation.objects.filter(pk=row.pk).update(status=GenerationStatus.RUNNING)
    answer = alice.post(
        "/dashboard/gallery/delete", {"picture": f"{row.request_id}-0"}, follow=True
    )
    assert answer.status_code == 200
    assert "still running" in answer.text
    assert Image.objects.get().deleted_at is None


def test_a_viewer_sees_and_deletes_nothing(client: Client, key: ApiKey, acme: Organization) -> None:
    row = picture(key)
    log_in(client, member_of(acme, Role.VIEWER))
    page = client.get("/dashboard/gallery")
    assert len(shown(page)) == 1
    assert "/dashboard/gallery/delete" not in page.text
    answer = client.post("/dashboard/gallery/delete", {"picture": f"{row.request_id}-0"})
    assert answer.status_code == 403
    assert Image.objects.get().deleted_at is None


# --- Private images -------------------------------------------------------------------------


def test_private_pictures_are_shown_by_signed_links_made_in_one_call(
    key: ApiKey, acme: Organization, settings: Settings
) -> None:
    with SupabaseEmulator(bucket="private-images") as supabase:
        supabase.make_private()
        options = {"url": supabase.url, "key": supabase.secret_key, "bucket": supabase.bucket}
        settings.STORAGES = {
            **settings.STORAGES,
            "private_images": {
                "BACKEND": "images.stores.supabase.SupabaseStorage",
                "OPTIONS": {**options, "expires_in": 3600},
            },
        }
        picture(key, pictures=3, private=True)
        picture(key)
        images = list(Image.objects.order_by("pk"))
        store = SupabaseStorage(**options)
        for image in images[:2]:
            store.save(image.name, ContentFile(PNG))
        store.close()
        before = len(supabase.requests)
        links = browse.links(images)
        cast(SupabaseStorage, storages["private_images"]).close()
        assert len(supabase.requests) == before + 1
        # The third has no object, and the fourth is public.
        assert set(links) == {images[0].name, images[1].name, images[3].name}
        assert "/object/sign/private-images/private/" in links[images[0].name]
        assert httpx.get(links[images[0].name]).content == PNG


# --- Thumbnails -------------------------------------------------------------------------------


def small(reference: str) -> str:
    return f"/dashboard/gallery/{reference}/small.webp"


@pytest.mark.parametrize("private", [False, True])
def test_a_list_shows_small_pictures_and_reads_each_large_one_once(
    client: Client, acme: Organization, settings: Settings, private: bool
) -> None:
    live = KeyFactory(organization=acme).row
    row = picture(live, private=private)
    (image,) = Image.objects.all()
    with SupabaseEmulator(bucket="private-images" if private else "generated-images") as supabase:
        alias = "private_images" if private else "images"
        options = {"url": supabase.url, "key": supabase.secret_key, "bucket": supabase.bucket}
        settings.STORAGES = {
            **settings.STORAGES,
            alias: {"BACKEND": "images.stores.supabase.SupabaseStorage", "OPTIONS": options},
        }
        if private:
            supabase.make_private()
        store = SupabaseStorage(**options)
        store.save(image.name, ContentFile(make_picture(1600, 900, "jpeg")))
        store.close()
        log_in(client, member_of(acme, Role.VIEWER))
        address = small(f"{row.request_id}-0")
        for path in ("/dashboard/gallery", "/dashboard/usage", "/dashboard"):
            page = client.get(path).text
            assert page.count(f'src="{address}"') == 1
            assert image.name not in page
        before = len(supabase.requests)
        answers = [client.get(address) for _ in range(2)]
        assert len(supabase.requests) == before + 1
        cast(SupabaseStorage, storages[alias]).close()
    for answer in answers:
        assert (answer.status_code, answer["content-type"]) == (200, "image/webp")
        assert answer["cache-control"] == "private, max-age=604800, immutable"
        assert Pillow.open(io.BytesIO(answer.content)).size == (384, 216)


def test_a_thumbnail_that_cannot_be_is_not_found_and_none_outlives_its_picture(
    alice: Client, key: ApiKey, globex: Organization, settings: Settings, tmp_path: Path
) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "images": {
            "BACKEND": "images.stores.local.LocalStorage",
            "OPTIONS": {"location": tmp_path, "base_url": "/storage/"},
        },
    }
    row = picture(key, pictures=3)
    good, broken, _missing = (image.name for image in Image.objects.order_by("index"))
    storages["images"].save(good, ContentFile(make_picture(90, 60, "png", alpha=True)))
    storages["images"].save(broken, ContentFile(PNG))
    theirs = picture(KeyFactory(organization=globex, sandbox=True).row)
    statuses = [alice.get(small(f"{row.request_id}-{index}")).status_code for index in range(4)]
    assert statuses == [200, 404, 404, 404]
    for reference in (f"{theirs.request_id}-0", "nothing", f"{row.request_id}-9"):
        assert alice.get(small(reference)).status_code == 404

    deletion.mark_deleted(row)
    assert alice.get(small(f"{row.request_id}-0")).status_code == 404


def test_a_thumbnail_is_upright_and_one_of_a_hostile_picture_is_not_found(
    alice: Client, key: ApiKey, settings: Settings, tmp_path: Path
) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "images": {
            "BACKEND": "images.stores.local.LocalStorage",
            "OPTIONS": {"location": tmp_path, "base_url": "/storage/"},
        },
    }
    whole = make_picture(900, 600, "jpeg")
    stored = [
        with_exif(whole, 6),
        with_exif(make_picture(900, 600, "png"), 8),
        make_bomb(),
        make_bomb(64, b"no pixels"),
        make_bomb(6000),
        whole[: len(whole) // 2],
        b"<svg/>",
    ]
    row = picture(key, pictures=len(stored))
    for image, data in zip(Image.objects.order_by("index"), stored, strict=True):
        storages["images"].save(image.name, ContentFile(data))
    answers = [alice.get(small(f"{row.request_id}-{index}")) for index in range(len(stored))]
    assert [one.status_code for one in answers] == [200, 200, *[404] * 5]
    for answer in answers[:2]:
        assert Pillow.open(io.BytesIO(answer.content)).size == (256, 384)


def test_while_the_store_is_away_a_thumbnail_may_be_asked_for_again(
    alice: Client, key: ApiKey, settings: Settings
) -> None:
    row = picture(key)
    options = {"url": f"http://127.0.0.1:{dead_port()}", "key": "sb_secret_x", "bucket": "b"}
    settings.STORAGES = {
        **settings.STORAGES,
        "images": {"BACKEND": "images.stores.supabase.SupabaseStorage", "OPTIONS": options},
    }
    answer = alice.get(small(f"{row.request_id}-0"))
    cast(SupabaseStorage, storages["images"]).close()
    assert (answer.status_code, answer["retry-after"]) == (503, "5")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_picture_of_any_mode_is_shrunk_and_a_small_one_is_not_stretched(mode: str) -> None:
    out = io.BytesIO()
    Pillow.new(mode, (700, 350)).save(out, "JPEG" if mode == "CMYK" else "PNG")
    for edge, size in ((100, (100, 50)), (1000, (700, 350))):
        made = Pillow.open(io.BytesIO(shrink(inspect(out.getvalue()), edge)))
        assert (made.format, made.size) == ("WEBP", size)


# --- Prompts are forgotten --------------------------------------------------------------------


def test_prompts_are_forgotten_after_their_days_and_only_those(
    key: ApiKey, acme: Organization, globex: Organization
) -> None:
    now = timezone.now()
    past = now - timedelta(days=30, minutes=1)
    old = [picture(key, created_at=past) for _ in range(BATCH + 1)]
    young = picture(key, created_at=now - timedelta(days=29, hours=23))
    theirs = picture(
        KeyFactory(organization=globex, sandbox=True).row, created_at=now - timedelta(days=400)
    )
    assert retention.forget_prompts() == 0
    acme.prompts_days = 30
    acme.save()
    assert [retention.forget_prompts() for _ in range(3)] == [BATCH, 1, 0]
    forgotten = Image.objects.filter(generation__in=old)
    assert set(forgotten.values_list("generation__prompt", "revised_prompt", "deleted_at")) == {
        ("", "", None)
    }
    for row in (young, theirs):
        row.refresh_from_db()
        assert row.prompt == "a red kite"
        assert row.images.get().revised_prompt == "a red kite, revised"


def test_the_worker_forgets_and_the_settings_page_says_when(
    alice: Client, key: ApiKey, acme: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    row = picture(key, created_at=timezone.now() - timedelta(days=8))
    form = {"name": acme.name, "keeps_prompts": "on", "on_refusal": "next", "prompts_days": "7"}
    assert alice.post("/dashboard/settings", form).status_code == 302
    call_command("worker", "--once")
    assert "prompts past their retention: 1" in capsys.readouterr().out
    row.refresh_from_db()
    assert row.prompt == ""


class Endless:
    """A store in which every picture has the same megabytes."""

    async def aread(self, name: str) -> bytes:
        return b"x" * 20_000_000


def test_who_leaves_in_the_middle_of_a_zip_file_ends_it_quietly(key: ApiKey) -> None:
    row = picture(key, pictures=2)
    images = list(Image.objects.select_related("generation").filter(generation=row))

    async def leave(after: float) -> None:
        async def take() -> None:
            async for _ in archive.zipped(cast(ImageStore, Endless()), ALONE, images):
                pass

        task = asyncio.create_task(take())
        await asyncio.wait([task], timeout=after)
        task.cancel()
        await asyncio.wait([task])
        # A busy machine may look again only when the file is whole.
        assert task.cancelled() or task.exception() is None

    for step in range(10):
        asyncio.run(leave(0.002 * step))


@pytest.mark.parametrize(
    ("many", "words"), [(1, "Its URL stops working"), (2, "Their URLs stop working")]
)
def test_the_question_before_a_deletion_counts(
    many: int, words: str, acme: Organization, client: Client
) -> None:
    row = make_request(
        KeyFactory(organization=acme).row, timezone.now(), delivered=many, pictures=True
    )
    log_in(client, owner_of(acme))
    query = "&".join(f"picture={row.request_id}-{index}" for index in range(many))
    text = client.get(f"/dashboard/gallery/delete?{query}").text
    assert words in text
    assert f"Delete {many} image" in text
