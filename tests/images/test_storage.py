"""What every store does, whichever it is.

The same tests run against the folder, against the emulator, and against a real server when
SUPABASE_TEST_URL and SUPABASE_TEST_KEY name one (SUPABASE_TEST_BUCKET, by default
`generated-images`, must be public and take any type).
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import ContentFile, File

from images.stores.contract import ImageStore, NameTaken, StorageUnavailable
from images.stores.local import LocalStorage
from images.stores.supabase import SupabaseStorage
from tests.emulators.supabase import SupabaseEmulator

type Store = LocalStorage | SupabaseStorage

BAD_NAMES = [
    *("ünï.png", "图.png", "a~b.png", "a#b.png", "a%20b.png", "a[1].png", "a\nb.png"),
    *("/a.png", "a//b.png", "a/", ".", "..", "a/../b.png", "a/./b.png", ".hidden", "a/.b/c.png"),
    f"{'a' * 256}.png",
]


@pytest.fixture(scope="module")
def emulator() -> Iterator[SupabaseEmulator]:
    with SupabaseEmulator() as running:
        yield running


@pytest.fixture(params=["folder", "emulator", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield LocalStorage(location=tmp_path / "images", base_url="http://testserver/pictures/")
        return
    # A folder for each test: a real server's bucket has other things in it.
    location = f"tests/{uuid4()}"
    if request.param == "emulator":
        running: SupabaseEmulator = request.getfixturevalue("emulator")
        running.reset()
        url, key, bucket = running.url, running.secret_key, running.bucket
    else:
        url, key = os.environ.get("SUPABASE_TEST_URL", ""), os.environ.get("SUPABASE_TEST_KEY", "")
        bucket = os.environ.get("SUPABASE_TEST_BUCKET", "generated-images")
        if not url or not key:
            pytest.skip("SUPABASE_TEST_URL and SUPABASE_TEST_KEY are not set")
    remote = SupabaseStorage(url=url, key=key, bucket=bucket, location=location)
    yield remote
    for name in _everything(remote):
        remote.delete(name)
    remote.close()


def _everything(store: Store, folder: str = "") -> Iterator[str]:
    folders, files = store.listdir(folder)
    yield from (f"{folder}{file}" for file in files)
    for inner in folders:
        yield from _everything(store, f"{folder}{inner}/")


def run[T](store: ImageStore, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` in an event loop of its own and give back what the store has in it."""

    async def main() -> T:
        try:
            return await work()
        finally:
            await store.aclose()

    return asyncio.run(main())


def new_name() -> str:
    return f"{uuid4()}/{uuid4()}/0.png"


def content(store: Store, name: str) -> bytes:
    with store.open(name) as file:
        data = file.read()
    assert isinstance(data, bytes)
    return data


def test_what_is_saved_can_be_opened(store: Store) -> None:
    name = new_name()
    assert not store.exists(name)
    assert store.save(name, ContentFile(b"picture")) == name
    assert store.exists(name)
    assert store.size(name) == 7
    assert content(store, name) == b"picture"
    assert run(store, lambda: store.aread(name)) == b"picture"


def test_what_is_saved_asynchronously_can_be_opened(store: Store) -> None:
    name = new_name()

    async def work() -> bytes:
        assert await store.asave(name, b"picture", "image/png") == name
        return await store.aread(name)

    assert run(store, work) == b"picture"
    assert content(store, name) == b"picture"
    assert store.size(name) == 7


def test_an_empty_file(store: Store) -> None:
    one, other = new_name(), new_name()
    store.save(one, ContentFile(b""))
    run(store, lambda: store.asave(other, b"", "image/png"))
    assert [content(store, one), content(store, other), store.size(one)] == [b"", b"", 0]


def test_text_is_kept_as_utf_8(store: Store) -> None:
    name = store.save(new_name(), ContentFile("ñandú"))
    assert content(store, name) == "ñandú".encode()


def test_a_file_that_was_read_before_is_saved_from_its_start(store: Store) -> None:
    file = ContentFile(b"picture")
    file.read()
    assert content(store, store.save(new_name(), file)) == b"picture"


def test_a_taken_name_gives_another(store: Store) -> None:
    name = new_name()
    store.save(name, ContentFile(b"first"))
    second = store.save(name, ContentFile(b"second"))
    assert second != name
    assert second.endswith(".png")
    assert Path(second).parent == Path(name).parent
    assert [content(store, name), content(store, second)] == [b"first", b"second"]


def test_an_asynchronous_save_never_overwrites(store: Store) -> None:
    name = new_name()

    async def work() -> None:
        await store.asave(name, b"first", "image/png")
        with pytest.raises(NameTaken) as refusal:
            await store.asave(name, b"second", "image/png")
        assert refusal.value.status == 409

    run(store, work)
    assert content(store, name) == b"first"


def test_the_longest_name_allowed_is_kept_to(store: Store) -> None:
    name = store.save(f"folder/{'a' * 60}.png", ContentFile(b"picture"), max_length=40)
    assert len(name) <= 40
    assert content(store, name) == b"picture"


def test_deleted_is_gone(store: Store) -> None:
    one, other = new_name(), new_name()
    for name in (one, other):
        store.save(name, ContentFile(b"picture"))
    store.delete(one)
    run(store, lambda: store.adelete(other))
    assert not store.exists(one)
    assert not store.exists(other)
    assert store.listdir("") == ([], [])


def test_what_is_missing(store: Store) -> None:
    name = new_name()
    for call in (store.size, store.get_created_time, store.get_modified_time, store.open):
        with pytest.raises(FileNotFoundError):
            call(name)
    with pytest.raises(FileNotFoundError):
        run(store, lambda: store.aread(name))
    assert not store.exists(name)
    assert store.listdir(name) == ([], [])
    store.delete(name)
    run(store, lambda: store.adelete(name))


def test_the_times_are_those_of_the_save(store: Store) -> None:
    name = store.save(new_name(), ContentFile(b"picture"))
    # A real server has a clock of its own.
    for moment in (store.get_created_time(name), store.get_modified_time(name)):
        assert abs(moment - datetime.now(UTC)) < timedelta(minutes=5)


def test_listdir(store: Store) -> None:
    for name in ("b/c/1.png", "b/c/2.png", "b/3.png", "a/4.png", "5.png"):
        store.save(name, ContentFile(b"picture"))
    assert store.listdir("") == (["a", "b"], ["5.png"])
    assert store.listdir("b") == store.listdir("b/") == (["c"], ["3.png"])
    assert store.listdir("b/c") == ([], ["1.png", "2.png"])


def test_the_url_ends_with_the_name_escaped(store: Store) -> None:
    name = store.save("a b/c&d=(1)+@,;'!$?.png", ContentFile(b"picture"))
    url = store.url(name)
    assert url.startswith("http")
    assert url.endswith("/a%20b/c%26d%3D(1)%2B%40%2C%3B'!%24%3F.png")
    assert content(store, name) == b"picture"
    assert store.size(name) == 7
    store.delete(name)
    assert not store.exists(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_cannot_be_kept_is_refused(store: Store, name: str) -> None:
    with pytest.raises(SuspiciousFileOperation):
        store.save(name, ContentFile(b"picture"))
    with pytest.raises(SuspiciousFileOperation):
        run(store, lambda: store.asave(name, b"picture", "image/png"))


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("ünï cödé.PNG", "uni_code.PNG"),
        ("图.png", "file.png"),
        (".png", "file.png"),
        ("a~#[1].tar.gz", "a1.tar.gz"),
        ("-_x y_-.webp", "-_x_y_-.webp"),
    ],
)
def test_a_person_s_file_name_is_made_to_fit(store: Store, given: str, made: str) -> None:
    assert store.get_valid_name(given) == made
    name = store.generate_filename(f"folder/{given}")
    assert store.save(name, ContentFile(b"picture")) == f"folder/{made}"


@pytest.mark.parametrize("given", ["..", "...", "图", "/"])
def test_any_file_name_is_made_to_fit(store: Store, given: str) -> None:
    assert content(store, store.save(store.get_valid_name(given), ContentFile(b"x"))) == b"x"


def test_large_files(store: Store, tmp_path: Path) -> None:
    data = os.urandom(12_000_000)
    (tmp_path / "large").write_bytes(data)
    with (tmp_path / "large").open("rb") as file:
        name = store.save(new_name(), File(file))
    assert store.size(name) == len(data)
    assert content(store, name) == data
    other = new_name()

    async def work() -> bytes:
        await store.asave(other, data, "image/png")
        return await store.aread(other)

    assert run(store, work) == data


def test_many_asynchronous_saves_at_once(store: Store) -> None:
    folder = new_name().removesuffix("0.png")
    pictures = {f"{folder}{index}.png": os.urandom(100_000) for index in range(50)}

    async def work() -> list[bytes]:
        await asyncio.gather(
            *(store.asave(name, data, "image/png") for name, data in pictures.items())
        )
        return await asyncio.gather(*(store.aread(name) for name in pictures))

    assert run(store, work) == list(pictures.values())


def test_many_saves_and_deletes_at_once_in_one_folder(store: Store) -> None:
    """The folder of the local store comes and goes while others write into it."""
    folder = new_name().removesuffix("0.png")

    def there_and_back(index: int) -> bool:
        name = store.save(f"{folder}{index}.png", ContentFile(b"%d" % index))
        same = content(store, name) == b"%d" % index
        store.delete(name)
        return same

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(there_and_back, range(200)))
    assert store.listdir(folder) == ([], [])


class _Watched(ContentFile):  # type: ignore[type-arg] # not generic at run time
    """Content in two halves, with something done in between."""

    def __init__(self, between: Callable[[], None]) -> None:
        super().__init__(bytes(200_000))
        self.between = between

    def chunks(self, chunk_size: int | None = None) -> Iterator[bytes]:
        yield bytes(100_000)
        self.between()
        yield bytes(100_000)


def test_half_a_file_is_never_there(store: Store) -> None:
    seen: list[Any] = []
    name = "folder/0.png"
    store.save(name, _Watched(lambda: seen.append((store.exists(name), store.listdir("folder")))))
    assert seen == [(False, ([], []))]
    assert store.size(name) == 200_000


def test_a_save_that_breaks_off_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError):
        store.save("folder/0.png", _Watched(fail))
    assert store.listdir("folder") == ([], [])
    assert store.save("folder/0.png", ContentFile(b"picture")) == "folder/0.png"


def test_after_the_deadline_nobody_waits(store: Store) -> None:
    async def work() -> None:
        with pytest.raises(StorageUnavailable):
            await store.asave(new_name(), b"x", "image/png", asyncio.get_running_loop().time() - 1)

    run(store, work)


def test_probe(store: Store) -> None:
    run(store, store.probe)


def test_one_store_serves_the_event_loops_of_several_threads(store: Store) -> None:
    """And one loop after another: the next test client's, for example."""
    start = threading.Barrier(4)

    def use() -> bytes:
        name = new_name()
        start.wait(10)

        async def work() -> bytes:
            await store.asave(name, name.encode(), "image/png")
            return (await store.aread(name)).removesuffix(name.encode())

        return run(store, work)

    with ThreadPoolExecutor(4) as threads:
        assert [f.result() for f in [threads.submit(use) for _ in range(8)]] == [b""] * 8
