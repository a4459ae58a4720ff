"""The traps of Supabase Storage, each met by a test that fails without its guard.

Timeouts are long against what a call takes and short against the test's patience: a call that
hangs on a dead connection runs into one and fails the test.
"""

import asyncio
import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from django.core.exceptions import ImproperlyConfigured, SuspiciousFileOperation
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.test import Client
from pytest_django.fixtures import Settings
from storages.backends.s3 import S3Storage

from images.stores.contract import NameTaken, StorageError, StorageRefused, StorageUnavailable
from images.stores.supabase import SupabaseStorage
from tests.emulators.supabase import PLAIN, PREFIX, ROWS, SupabaseEmulator, Trouble

PICTURE = os.urandom(1_500_000)


@pytest.fixture(scope="module")
def running() -> Iterator[SupabaseEmulator]:
    with SupabaseEmulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(running: SupabaseEmulator) -> Iterator[SupabaseEmulator]:
    running.reset()
    yield running
    running.always(Trouble())
    running.wait_for_no_connection()


@pytest.fixture
def make(emulator: SupabaseEmulator) -> Iterator[Callable[..., SupabaseStorage]]:
    made: list[SupabaseStorage] = []

    def make(**options: Any) -> SupabaseStorage:
        defaults = {"url": emulator.url, "key": emulator.secret_key, "bucket": emulator.bucket}
        made.append(SupabaseStorage(**{**defaults, "timeout": 5, "backoff": 0.01, **options}))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make: Callable[..., SupabaseStorage]) -> SupabaseStorage:
    return make()


@pytest.fixture
def once(make: Callable[..., SupabaseStorage]) -> SupabaseStorage:
    """A store that tries once, so that nothing that hangs is made good by another attempt."""
    return make(attempts=1)


def run[T](store: SupabaseStorage, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        try:
            return await work()
        finally:
            await store.aclose()

    return asyncio.run(main())


def new_name() -> str:
    return f"{uuid4()}/{uuid4()}/0.png"


def fetch(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False)


# --- Errors are HTTP 400 with the status inside ----------------------------------------------


@pytest.mark.parametrize("codes", [True, False], ids=["code", "before code"])
def test_only_a_missing_object_is_missing(
    emulator: SupabaseEmulator, store: SupabaseStorage, codes: bool
) -> None:
    emulator.codes = codes
    assert not store.exists("a/b.png")
    emulator.drop_bucket()
    for call in (store.exists, store.size, store.open, store.delete):
        with pytest.raises(StorageRefused) as refusal:
            call("a/b.png")
        assert refusal.value.status == 404


@pytest.mark.parametrize("codes", [True, False], ids=["code", "before code"])
def test_a_taken_name_is_told_from_other_refusals(
    emulator: SupabaseEmulator, store: SupabaseStorage, codes: bool
) -> None:
    emulator.codes = codes
    assert store.save("a/b.png", ContentFile(b"x")) == "a/b.png"
    assert store.save("a/b.png", ContentFile(b"x")) != "a/b.png"
    emulator.limit(types=["image/webp"])
    with pytest.raises(StorageRefused) as refusal:
        store.save("a/c.png", ContentFile(b"x"))
    assert refusal.value.status == 415
    assert refusal.value.code == ("InvalidMimeType" if codes else "invalid_mime_type")


@pytest.mark.parametrize("name", sorted(ROWS | PLAIN))
def test_what_may_pass_is_tried_again_and_what_will_not_is_not(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage], name: str
) -> None:
    """Each answer the server or a gateway can give to an upload, three times in a row."""
    store = make(attempts=3)
    if name in PLAIN:
        passing = PLAIN[name][0] in (429, 502)
    else:
        passing = int(ROWS[name]["fields"]["statusCode"]) in (429, 500, 503, 544)
    emulator.queue(*[Trouble(error=name)] * 3)

    async def work() -> None:
        with pytest.raises((StorageError, FileNotFoundError)) as failure:
            await store.asave("a/b.png", b"x", "image/png")
        assert isinstance(failure.value, StorageUnavailable) is (passing or name.startswith("200"))

    run(store, work)
    assert len(emulator.requests) == (3 if passing else 1)
    assert emulator.objects == {}


def test_a_refusal_says_what_the_store_said_and_never_the_key(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(key=emulator.anon_key)
    with pytest.raises(StorageRefused, match="row-level security") as refusal:
        store.save("a/b.png", ContentFile(b"x"))
    assert emulator.anon_key not in f"{refusal.value}{store!r}"


def test_head_is_never_asked(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    """HEAD says 400 and nothing else, for a missing object and for a bad key alike."""
    # A public bucket's information is for all, whatever the key.
    emulator.make_private()
    store = make(key=emulator.expired_key)
    with pytest.raises(StorageRefused) as refusal:
        store.exists("a/b.png")
    assert refusal.value.status == 403
    assert [request.method for request in emulator.requests] == ["GET"]


# --- A refused upload leaves a dead connection -----------------------------------------------


def test_the_call_after_a_refused_upload(once: SupabaseStorage) -> None:
    for _ in range(6):
        once.save("a/b.png", ContentFile(PICTURE[:900_000]))
        assert once.exists("a/b.png")


def test_the_asynchronous_call_after_a_refused_upload(once: SupabaseStorage) -> None:
    async def work() -> None:
        await once.asave("a/b.png", PICTURE, "image/png")
        for _ in range(6):
            with pytest.raises(NameTaken):
                await once.asave("a/b.png", PICTURE, "image/png")
            assert await once.aread("a/b.png") == PICTURE
            await once.asave(new_name(), PICTURE, "image/png")

    run(once, work)


def test_connections_are_kept_otherwise(emulator: SupabaseEmulator, once: SupabaseStorage) -> None:
    async def work() -> None:
        for index in range(5):
            await once.asave(f"a/{index}.png", PICTURE, "image/png")
            with pytest.raises(FileNotFoundError):
                await once.aread("a/missing.png")

    run(once, work)
    assert len({request.connection for request in emulator.requests}) == 1
    emulator.reset()
    for _ in range(5):
        assert not once.exists("a/missing.png")
    assert len({request.connection for request in emulator.requests}) == 1


def test_no_request_follows_a_synchronous_upload(
    emulator: SupabaseEmulator, once: SupabaseStorage
) -> None:
    """A refused one poisons its connection, and is seen to be refused when another may have it."""
    for _ in range(3):
        once.save("a/b.png", ContentFile(PICTURE[:1000]))
        assert once.exists("a/b.png")
    connections = [request.connection for request in emulator.requests]
    uploads = [
        number
        for number, request in enumerate(emulator.requests)
        if request.method == "POST" and request.path.startswith("/object/")
    ]
    assert len(uploads) == 5, "two were refused and named anew"
    for number in uploads:
        assert emulator.requests[number].headers["connection"] == "close"
        assert connections[number] not in connections[number + 1 :]


@pytest.mark.parametrize("size", [3_000_000, 19_000_000])
def test_a_refused_upload_too_large_for_the_sockets_is_not_waited_for(
    emulator: SupabaseEmulator, once: SupabaseStorage, size: int
) -> None:
    emulator.reads_again = 60
    data = bytes(size)
    once.save("a/b.png", ContentFile(data))
    assert once.save("a/b.png", ContentFile(data)) != "a/b.png"

    async def work() -> None:
        with pytest.raises(NameTaken):
            await once.asave("a/b.png", data, "image/png")

    begun = time.monotonic()
    run(once, work)
    assert time.monotonic() - begun < 3
    # The dead connection is read to its end now, which the next test waits for.
    emulator.reads_again = 0


def sockets_to(emulator: SupabaseEmulator) -> int:
    """How many of this process's sockets are connected to the emulator."""
    port = int(emulator.url.rpartition(":")[2])
    connections = psutil.Process().net_connections("tcp4")
    return sum(1 for each in connections if each.raddr and each.raddr.port == port)


def test_many_uploads_of_which_every_tenth_is_refused(
    emulator: SupabaseEmulator, once: SupabaseStorage
) -> None:
    """200 pictures of 1.5 MB, 32 at a time: nobody waits for anybody's refusal, nothing leaks."""
    emulator.refuse_every = 10
    slowest, most_sockets = 0.0, 0
    refused: list[str] = []

    async def work() -> None:
        free = asyncio.Semaphore(32)

        async def upload(name: str) -> None:
            nonlocal slowest, most_sockets
            async with free:
                begun = time.monotonic()
                try:
                    await once.asave(name, PICTURE, "image/png")
                except NameTaken:
                    refused.append(name)
                slowest = max(slowest, time.monotonic() - begun)
                if len(emulator.uploads) % 20 == 0:  # counting takes as long as an upload
                    most_sockets = max(most_sockets, sockets_to(emulator))

        await asyncio.gather(*(upload(new_name()) for _ in range(200)))

    run(once, work)
    assert len(emulator.uploads) == 200
    assert len(refused) == 20
    assert len(emulator.objects) == 180
    assert all(stored.data == PICTURE for stored in emulator.objects.values())
    # A call on a dead connection would have run into the timeout of five seconds.
    assert slowest < 3
    assert most_sockets <= 32
    assert sockets_to(emulator) == 0
    emulator.wait_for_no_connection()
    assert emulator.connections_open == 0


# --- What an upload says ---------------------------------------------------------------------


def test_an_upload_has_a_length_so_that_the_size_limit_holds(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    emulator.limit(size=1000)

    async def work() -> None:
        with pytest.raises(StorageRefused) as refusal:
            await store.asave("a/b.png", bytes(2000), "image/png")
        assert refusal.value.status == 413

    run(store, work)
    with pytest.raises(StorageRefused) as refusal:
        store.save("a/b.png", ContentFile(bytes(2000)))
    assert refusal.value.status == 413
    assert emulator.objects == {}
    assert [request.headers["content-length"] for request in emulator.uploads] == ["2000", "2000"]
    assert not any("transfer-encoding" in request.headers for request in emulator.uploads)


def test_too_large_is_refused_before_it_is_sent(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(max_bytes=1000)
    with pytest.raises(StorageRefused):
        store.save("a/b.png", ContentFile(bytes(1001)))

    async def work() -> None:
        with pytest.raises(StorageRefused):
            await store.asave("a/b.png", bytes(1001), "image/png")

    run(store, work)
    assert emulator.requests == []


def test_a_picture_larger_than_allowed_is_not_read_into_memory(
    make: Callable[..., SupabaseStorage],
) -> None:
    make().save("a/b.png", ContentFile(PICTURE))
    small = make(max_bytes=1000)

    async def work() -> None:
        with pytest.raises(StorageRefused):
            await small.aread("a/b.png")

    run(small, work)


def test_the_content_type_has_no_parameters(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    emulator.limit(types=["image/png"])

    async def work() -> None:
        await store.asave("a/1.png", b"x", "Image/PNG; charset=utf-8")

    run(store, work)
    with_type = ContentFile(b"x")
    with_type.content_type = "image/png; charset=utf-8"  # type: ignore[attr-defined]
    store.save("a/2", with_type)
    store.save("a/3.png", ContentFile(b"x"))
    assert {stored.content_type for stored in emulator.objects.values()} == {"image/png"}


def test_pictures_are_served_as_unchanging(store: SupabaseStorage) -> None:
    store.save("a/b.png", ContentFile(b"x"))
    answer = fetch(store.url("a/b.png"))
    assert answer.content == b"x"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "image/png"
    assert (
        fetch(store.url("a/b.png"), **{"if-none-match": answer.headers["etag"]}).status_code == 304
    )
    part = fetch(store.url("a/b.png"), range="bytes=0-0")
    assert (part.status_code, part.headers["content-range"]) == (206, "bytes 0-0/1")


def test_a_name_the_server_would_refuse_never_leaves(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(location="folder")
    for name in ("ü.png", "a~b.png", "../b.png", f"{'a' * 256}"):
        for call in (store.exists, store.delete, store.url, store.open):
            with pytest.raises(SuspiciousFileOperation):
                call(name)
    assert emulator.requests == []


# --- Keys ------------------------------------------------------------------------------------


def test_a_secret_key_goes_into_one_header(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(key=f" {emulator.secret_key}\n")
    store.save("a/b.png", ContentFile(b"x"))
    run(store, store.probe)
    for request in emulator.requests:
        assert request.headers["apikey"] == emulator.secret_key
        assert "authorization" not in request.headers
        assert request.headers["user-agent"].startswith("GeekHub/")


def test_a_legacy_key_goes_into_both_headers(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(key=emulator.service_key)
    store.save("a/b.png", ContentFile(b"x"))
    run(store, store.probe)
    for request in emulator.requests:
        assert request.headers["apikey"] == emulator.service_key
        assert request.headers["authorization"] == f"Bearer {emulator.service_key}"


@pytest.mark.parametrize("key", ["", "  ", "sb_publishable_abc"])
def test_a_key_that_cannot_work_is_no_configuration(key: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        SupabaseStorage(url="http://localhost", key=key, bucket="b")


def test_a_link_is_fetched_without_a_key(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(url=f"{emulator.url}/storage/v1/", public_url="https://cdn.example/")
    assert store.url("a/b c.png") == (
        f"https://cdn.example/storage/v1/object/public/{emulator.bucket}/a/b%20c.png"
    )
    assert make(location="/in/").url("a.png") == (
        f"{emulator.url}/storage/v1/object/public/{emulator.bucket}/in/a.png"
    )
    with pytest.raises(ValueError):
        store.url(None)
    assert emulator.requests == []


# --- Signed links ----------------------------------------------------------------------------


def test_signed_links_lead_to_the_picture(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(location="in", expires_in=60)
    emulator.make_private()
    store.save("a/b c.png", ContentFile(b"x"))
    links = [
        store.sign("a/b c.png", 60),
        store.url("a/b c.png"),
        run(store, lambda: store.asign("a/b c.png", 60)),
    ]
    many = store.sign_many(["a/b c.png", "a/missing.png"], 60)
    assert list(many) == ["a/b c.png", "a/missing.png"]
    assert many["a/missing.png"] is None
    for link in [*links, many["a/b c.png"]]:
        assert link is not None
        assert link.startswith(f"{emulator.url}/storage/v1/object/sign/{emulator.bucket}/in/a/")
        assert fetch(link).content == b"x"
        assert fetch(link + "x").status_code == 400
    assert fetch(make().url("in/a/b c.png")).status_code == 400
    with pytest.raises(FileNotFoundError):
        store.sign("a/missing.png", 60)


def test_a_link_is_signed_once_while_it_is_good(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(expires_in=1_000_000_000)
    store.save("a/b.png", ContentFile(b"x"))
    before = len(emulator.requests)
    assert len({store.url("a/b.png") for _ in range(5)}) == 1
    assert len(emulator.requests) == before + 1


# --- Deleting and listing --------------------------------------------------------------------


def test_a_delete_that_is_not_allowed_says_so(
    emulator: SupabaseEmulator, store: SupabaseStorage, make: Callable[..., SupabaseStorage]
) -> None:
    """The bulk call would answer 200 and an empty list."""
    store.save("a/b.png", ContentFile(b"x"))
    anonymous = make(key=emulator.anon_key)
    with pytest.raises(StorageRefused, match="Access denied"):
        anonymous.delete("a/b.png")

    async def work() -> None:
        with pytest.raises(StorageRefused, match="Access denied"):
            await anonymous.adelete("a/b.png")

    run(anonymous, work)
    assert "a/b.png" in emulator.objects
    for request in emulator.requests:
        assert request.method != "DELETE" or "content-type" not in request.headers


def test_a_long_list_comes_in_pages(emulator: SupabaseEmulator, store: SupabaseStorage) -> None:
    async def work() -> None:
        for start in range(0, 1200, 100):
            names = [f"a/{index:04}.png" for index in range(start, start + 100)]
            await asyncio.gather(*(store.asave(name, b"x", "image/png") for name in names))

    run(store, work)
    before = len(emulator.requests)
    folders, files = store.listdir("a")
    assert (folders, files) == ([], [f"{index:04}.png" for index in range(1200)])
    assert len(emulator.requests) == before + 2


# --- Trouble and trying again ----------------------------------------------------------------


def upserts(emulator: SupabaseEmulator) -> list[str]:
    return [request.headers["x-upsert"] for request in emulator.uploads]


def test_trouble_that_passes(emulator: SupabaseEmulator, store: SupabaseStorage) -> None:
    emulator.queue(Trouble(error="503"), Trouble(error="544"), Trouble(error="429"))
    run(store, lambda: store.asave("a/b.png", PICTURE, "image/png"))
    assert upserts(emulator) == ["false", "true", "true", "true"]
    assert emulator.objects["a/b.png"].data == PICTURE


@pytest.mark.parametrize("drop", ["before", "after"])
def test_an_answer_that_is_lost(
    emulator: SupabaseEmulator, store: SupabaseStorage, drop: Any
) -> None:
    emulator.queue(Trouble(drop=drop))
    run(store, lambda: store.asave("a/b.png", PICTURE, "image/png"))
    assert upserts(emulator) == ["false", "true"]
    assert list(emulator.objects) == ["a/b.png"]


def test_trouble_that_stays(emulator: SupabaseEmulator, store: SupabaseStorage) -> None:
    emulator.always(Trouble(error="502_html"))

    async def work() -> None:
        with pytest.raises(StorageUnavailable, match="502"):
            await store.asave("a/b.png", PICTURE, "image/png")

    run(store, work)
    assert len(emulator.uploads) == 4
    with pytest.raises(StorageUnavailable):
        store.save("a/b.png", ContentFile(PICTURE[:1000]))
    assert len(emulator.uploads) == 8
    for call in (store.exists, store.delete, store.open):
        with pytest.raises(StorageUnavailable):
            call("a/b.png")
    assert len(emulator.requests) == 20


def test_a_store_that_cannot_be_reached(emulator: SupabaseEmulator, store: SupabaseStorage) -> None:
    async def work() -> None:
        await store.asave("a/1.png", b"x", "image/png")
        emulator.refuse_connections()
        try:
            with pytest.raises(StorageUnavailable):
                await store.asave("a/2.png", b"x", "image/png")
            with pytest.raises(StorageUnavailable):
                await store.probe()
        finally:
            emulator.accept_connections()
        await store.probe()
        await store.asave("a/2.png", b"x", "image/png")

    run(store, work)
    assert set(emulator.objects) == {"a/1.png", "a/2.png"}


def test_a_store_that_comes_back_in_time(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(attempts=50, backoff=0.01)
    emulator.refuse_connections()
    with ThreadPoolExecutor(1) as thread:
        saving = thread.submit(run, store, lambda: store.asave("a/b.png", b"x", "image/png"))
        emulator.accept_connections()
        saving.result(10)
    assert list(emulator.objects) == ["a/b.png"]


def test_the_deadline_ends_a_silent_call(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store, gate = make(timeout=30), threading.Event()
    emulator.always(Trouble(gate=gate))

    async def work() -> float:
        now = asyncio.get_running_loop().time
        begun = now()
        with pytest.raises(StorageUnavailable):
            await store.asave("a/b.png", PICTURE, "image/png", begun + 2)
        return now() - begun

    assert run(store, work) < 10
    assert len(emulator.uploads) == 1
    gate.set()


def test_no_attempt_is_begun_after_the_deadline(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(backoff=30)
    emulator.queue(Trouble(error="503"))

    async def work() -> float:
        now = asyncio.get_running_loop().time
        begun = now()
        with pytest.raises(StorageUnavailable, match="503"):
            await store.asave("a/b.png", b"x", "image/png", begun + 10)
        return now() - begun

    assert run(store, work) < 5


@pytest.mark.parametrize("size", [1, 19_000_000], ids=["waiting", "still sending"])
def test_a_silent_attempt_is_given_up_for_the_next(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage], size: int
) -> None:
    gate = threading.Event()
    emulator.queue(Trouble(gate=gate))
    store = make(timeout=1)
    run(store, lambda: store.asave("a/b.png", bytes(size), "image/png"))
    assert upserts(emulator) == ["false", "true"]
    gate.set()


def test_a_cancelled_upload_ends_its_connection(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    gate = threading.Event()
    emulator.queue(Trouble(gate=gate))

    async def work() -> None:
        saving = asyncio.create_task(store.asave("a/1.png", PICTURE, "image/png"))
        await asyncio.to_thread(emulator.wait_for_requests, 1)
        saving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await saving
        assert sockets_to(emulator) == 0
        gate.set()
        await store.asave("a/2.png", PICTURE, "image/png")

    run(store, work)
    assert "a/2.png" in emulator.objects


def test_django_s_save_tries_again_but_never_overwrites(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    emulator.queue(Trouble(error="503"))
    assert store.save("a/1.png", ContentFile(b"one")) == "a/1.png"
    emulator.queue(Trouble(drop="after"))
    other = store.save("a/2.png", ContentFile(b"two"))
    assert other != "a/2.png"
    assert emulator.objects[other].data == b"two"
    assert set(upserts(emulator)) == {"false"}


def test_a_file_that_breaks_off_is_read_again(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    store.save("a/b.png", ContentFile(PICTURE))
    emulator.queue(Trouble(drop="before"), Trouble(error="503"))
    with store.open("a/b.png") as file:
        assert file.read() == PICTURE
    with pytest.raises(ValueError):
        store.open("a/b.png", "wb")


# --- Processes and loops ---------------------------------------------------------------------


def test_a_child_process_makes_its_own_connections(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    assert not store.exists("a/1.png")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        child = os.fork()
    if child == 0:
        done = 1
        with contextlib.suppress(BaseException):
            done = int(store.exists("a/2.png"))
        os._exit(done)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not store.exists("a/3.png")
    first, second, third = (request.connection for request in emulator.requests)
    assert first == third != second


# --- The bucket ------------------------------------------------------------------------------


def test_the_bucket_is_made_and_then_only_checked(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    emulator.drop_bucket()
    types = ["image/webp", "image/png"]
    assert store.ensure_bucket(size_limit=1000, mime_types=types) == []
    assert store.ensure_bucket(size_limit=1000, mime_types=types[::-1]) == []
    writes = [request.method for request in emulator.requests if request.method != "GET"]
    assert writes == ["POST"]
    assert store.ensure_bucket(size_limit=2000, mime_types=["image/png"]) == [
        "file_size_limit is 1000, should be 2000",
        "allowed_mime_types is ['image/png', 'image/webp'], should be ['image/png']",
    ]


def test_a_bucket_that_should_be_private(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    store = make(expires_in=60)
    differences = store.ensure_bucket(size_limit=1000, mime_types=["image/png"])
    assert differences[0] == "public is True, should be False"
    emulator.drop_bucket()
    assert store.ensure_bucket(size_limit=1000, mime_types=["image/png"]) == []


def test_a_bucket_made_by_another_process_at_the_same_moment(
    emulator: SupabaseEmulator, store: SupabaseStorage
) -> None:
    emulator.queue(Trouble(error="no_bucket"))
    differences = store.ensure_bucket(size_limit=1000, mime_types=["image/png"])
    assert differences[0] == "file_size_limit is None, should be 1000"


def test_probe_tells_what_is_wrong(
    emulator: SupabaseEmulator, make: Callable[..., SupabaseStorage]
) -> None:
    async def probed(store: SupabaseStorage) -> str:
        try:
            await store.probe()
        except StorageError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            await store.aclose()
        return "fine"

    assert asyncio.run(probed(make())) == "fine"
    emulator.queue(Trouble(error="503"))
    assert asyncio.run(probed(make())).startswith("StorageUnavailable")
    assert "exp" in asyncio.run(probed(make(key=emulator.expired_key)))
    assert "AccessDenied" in asyncio.run(probed(make(key="sb_secret_wrong")))
    emulator.drop_bucket()
    assert "NoSuchBucket" in asyncio.run(probed(make()))


@pytest.mark.parametrize("key", ["sb_secret_wrong", "a.b.c"])
def test_a_wrong_key_is_not_taken_for_a_missing_object(
    emulator: SupabaseEmulator,
    store: SupabaseStorage,
    make: Callable[..., SupabaseStorage],
    key: str,
) -> None:
    """The bucket is public, whose objects are shown to all; what we ask for is not."""
    store.save("a/b.png", ContentFile(b"x"))
    wrong = make(key=key)
    for call in (wrong.exists, wrong.size):
        for name in ("a/b.png", "a/missing.png"):
            with pytest.raises(StorageRefused):
                call(name)


# --- The alternative: django-storages on Supabase's S3 interface -----------------------------


def test_django_storages_on_s3_gives_public_links(emulator: SupabaseEmulator) -> None:
    """The options docs/operations.md gives; `custom_domain` makes the links public ones."""
    host = emulator.url.removeprefix("http://")
    store = S3Storage(
        endpoint_url=f"{emulator.url}{PREFIX}/s3",
        access_key=emulator.S3_KEY_ID,
        secret_key=emulator.S3_SECRET,
        region_name=emulator.S3_REGION,
        bucket_name=emulator.bucket,
        addressing_style="path",
        signature_version="s3v4",
        default_acl=None,
        file_overwrite=False,
        querystring_auth=False,
        url_protocol="http:",
        custom_domain=f"{host}{PREFIX}/object/public/{emulator.bucket}",
        object_parameters={"CacheControl": "public, max-age=31536000, immutable"},
    )
    name = store.save("a/b c.png", ContentFile(PICTURE))
    assert store.url(name) == (
        f"{emulator.url}{PREFIX}/object/public/{emulator.bucket}/a/b%20c.png"
    )
    answer = fetch(store.url(name))
    assert answer.content == PICTURE
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert store.exists(name)
    assert not store.exists("a/missing.png")
    assert store.size(name) == len(PICTURE)
    assert store.listdir("") == (["a"], [])
    assert store.listdir("a") == ([], ["b c.png"])
    assert store.save(name, ContentFile(b"x")) != name
    with store.open(name) as file:
        assert file.read() == PICTURE
    store.delete(name)
    assert not store.exists(name)
    store.connection.meta.client.close()


# --- What else the emulator plays, for tests of other parts ----------------------------------


def test_the_emulator_s_other_calls(emulator: SupabaseEmulator, store: SupabaseStorage) -> None:
    for name in ("a/1.png", "a/b/2.png"):
        store.save(name, ContentFile(PICTURE[:1000]))
    bucket = emulator.bucket
    headers = {"apikey": emulator.secret_key}
    with httpx.Client(base_url=emulator.url + PREFIX, headers=headers, trust_env=False) as http:

        def call(method: str, path: str, fields: Any = None, status: int = 200, **head: Any) -> Any:
            answer = http.request(method, path, json=fields, headers=head)
            assert answer.status_code == status, answer.text
            return answer.json() if answer.content else answer

        rows = call("POST", f"/object/list/{bucket}", {"prefix": "a"})
        assert [(row["name"], row["id"] is None) for row in rows] == [("1.png", False), ("b", True)]
        move = {"bucketId": bucket, "sourceKey": "a/1.png", "destinationKey": "a/b/2.png"}
        assert call("POST", "/object/move", move, 400)["code"] == "ResourceAlreadyExists"
        move["destinationKey"] = "c.png"
        assert call("POST", "/object/copy", move)["Key"] == f"{bucket}/c.png"
        assert call("DELETE", f"/bucket/{bucket}", status=400)["code"] == "ResourceNotEmpty"
        keys = {"prefixes": ["a/1.png", "missing.png"]}
        anonymous: dict[str, Any] = {"authorization": f"Bearer {emulator.anon_key}"}
        assert call("DELETE", f"/object/{bucket}", keys, **anonymous) == []
        assert [row["name"] for row in call("DELETE", f"/object/{bucket}", keys)] == ["a/1.png"]
        assert set(emulator.objects) == {"a/b/2.png", "c.png"}
        assert call("HEAD", f"/object/{bucket}/a/1.png", status=400).content == b""
        length = call("HEAD", f"/object/public/{bucket}/c.png").headers["content-length"]
        assert length == "1000"
        download = http.get(f"/object/public/{bucket}/c.png?download=my%20cat.png")
        assert "filename=my%20cat.png" in download.headers["content-disposition"]
        tail = http.get(f"/object/public/{bucket}/c.png", headers={"range": "bytes=-10"})
        assert (tail.status_code, tail.content) == (206, PICTURE[990:1000])
        over: dict[str, Any] = {"range": "bytes=5000-"}
        assert call("GET", f"/object/public/{bucket}/c.png", status=416, **over)
        assert call("GET", "/nonsense", status=404)["statusCode"] == 404
        sb_only: dict[str, Any] = {"apikey": "", "authorization": f"Bearer {emulator.secret_key}"}
        answer = call("GET", f"/bucket/{bucket}", status=400, **sb_only)
        assert (answer["statusCode"], answer["message"]) == ("403", "Invalid Compact JWS")
        # Refused or not, what is sent in chunks has no size that could be too large.
        call("PUT", f"/bucket/{bucket}", {"file_size_limit": "1MB", "public": True})
        chunks = http.post(f"/object/{bucket}/d.png", content=iter([bytes(2_000_000)]))
        assert chunks.status_code == 200
        call("POST", f"/bucket/{bucket}/empty", {})
        call("DELETE", f"/bucket/{bucket}")
        assert call("GET", "/bucket") == []
        assert http.get("/status").status_code == 200


def test_a_page_server_asks_whether_the_store_is_there_and_keeps_no_connection(
    client: Client, settings: Settings, db: None
) -> None:
    with SupabaseEmulator() as supabase:
        settings.STORAGES = {
            **settings.STORAGES,
            "images": {
                "BACKEND": "images.stores.supabase.SupabaseStorage",
                "OPTIONS": {
                    "url": supabase.url,
                    "key": supabase.secret_key,
                    "bucket": supabase.bucket,
                },
            },
        }
        for _ in range(3):
            assert client.get("/ready").json()["checks"]["storage"] == "ok"
        store = storages["images"]
        assert isinstance(store, SupabaseStorage)
        assert len(store._client._aclients) == 0
        store.close()
