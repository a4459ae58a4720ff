"""supabase for Python, which is storage3, and supabase-js against the emulator of the storage."""

import base64
from collections.abc import Iterator

import httpx
import pytest

from tests.clients import Client, Raised
from tests.emulators.supabase import PREFIX, SupabaseEmulator
from tests.test_clients.conftest import Start

PICTURE, PNG = b"\x89PNG picture", "image/png"


@pytest.fixture(scope="module")
def server() -> Iterator[SupabaseEmulator]:
    with SupabaseEmulator() as emulator:
        yield emulator


@pytest.fixture
def supabase(server: SupabaseEmulator) -> SupabaseEmulator:
    server.reset()
    return server


@pytest.fixture(scope="module", params=["newest", "node"])
def client(request: pytest.FixtureRequest, server: SupabaseEmulator, start: Start) -> Client:
    environment = {
        "SUPABASE_URL": server.url,
        "SUPABASE_KEY": server.service_key,
        "SUPABASE_BUCKET": server.bucket,
    }
    return start(request.param, "supabase", environment)


def upload(client: Client, path: str, data: bytes = PICTURE) -> None:
    client("upload", path=path, data=data, kind=PNG)


def test_uploads_and_downloads(client: Client, supabase: SupabaseEmulator) -> None:
    answer = client("upload", path="a/b.png", data=PICTURE, kind=PNG)
    assert answer["path"] == "a/b.png"
    assert {answer.get(name) for name in ("full_path", "fullPath")} - {None} == {
        f"{supabase.bucket}/a/b.png"
    }
    assert supabase.objects == {"a/b.png": (PICTURE, PNG, "max-age=3600")}
    assert base64.b64decode(client("download", path="a/b.png")) == PICTURE
    client("replace", path="a/b.png", data=b"another", kind="image/webp")
    assert supabase.objects == {"a/b.png": (b"another", "image/webp", "max-age=3600")}


@pytest.mark.parametrize("size", [100, 60_000])
def test_works_on_after_a_refused_upload(
    client: Client, supabase: SupabaseEmulator, size: int
) -> None:
    upload(client, "a.png")
    for _ in range(3):
        with pytest.raises(Raised, match="The resource already exists") as caught:
            upload(client, "a.png", bytes(size))
        assert str(caught.value.status) == "409"
        assert base64.b64decode(client("download", path="a.png")) == PICTURE
    assert [request.method for request in supabase.requests] == ["POST"] + ["POST", "GET"] * 3


def test_a_form_with_metadata(client: Client, supabase: SupabaseEmulator) -> None:
    options = {"metadata": {"n": 1}, "cacheControl": "60", "cache-control": "60"}
    if client.node:
        client("upload_form", path="a.png", data=PICTURE, kind=PNG, options=options)
    else:
        del options["cacheControl"]
        client("upload", path="a.png", data=PICTURE, kind=PNG, options=options)
    headers = supabase.uploads[0].headers
    assert headers["content-type"].startswith("multipart/form-data; boundary=")
    assert supabase.objects == {"a.png": (PICTURE, PNG, "max-age=60")}
    assert client("info", path="a.png")["metadata"] == {"n": 1}


def test_a_form_is_held_to_the_bucket_s_limits(client: Client, supabase: SupabaseEmulator) -> None:
    supabase.limit(size=8, types=[PNG])
    call = "upload_form" if client.node else "upload"
    with pytest.raises(Raised, match="exceeded the maximum allowed size"):
        client(call, path="a.png", data=PICTURE, kind=PNG)
    with pytest.raises(Raised, match="mime type image/gif is not supported"):
        client(call, path="a.gif", data=b"x", kind="image/gif")
    assert supabase.objects == {}


def test_a_signed_upload(client: Client, supabase: SupabaseEmulator) -> None:
    link = client("upload_link", path="a/b.png")
    asked = {"path": "a/b.png", "data": PICTURE, "kind": PNG}
    with pytest.raises(Raised, match="signature verification failed"):
        client("upload_signed", **asked, token=f"{link['token']}x")
    client("upload_signed", **asked, token=link["token"])
    assert supabase.objects["a/b.png"].data == PICTURE
    with pytest.raises(Raised, match="The resource already exists"):
        client("upload_signed", **asked, token=link["token"])
    with pytest.raises(Raised, match="The resource already exists"):
        client("upload_link", path="a/b.png")


def test_lists(client: Client, supabase: SupabaseEmulator) -> None:
    for path in ("a/1.png", "a/2.png", "a/deep/3.png", "b.png"):
        upload(client, path)
    assert client("names", path="a") == ["1.png", "2.png", "deep"]
    assert client("names", path="") == ["a", "b.png"]
    options = {"limit": 1, "offset": 1, "sortBy": {"column": "name", "order": "desc"}}
    assert client("names", path="a", options=options) == ["2.png"]


def test_info_move_copy_remove(client: Client, supabase: SupabaseEmulator) -> None:
    upload(client, "a.png")
    info = client("info", path="a.png")
    assert (info["name"], info["size"]) == ("a.png", len(PICTURE))
    assert client("exists", path="a.png") is True
    assert client("exists", path="none.png") is False
    with pytest.raises(Raised, match="Object not found") as caught:
        client("info", path="none.png")
    assert str(caught.value.status) == "404"
    client("copy", source="a.png", target="b.png")
    client("move", source="a.png", target="c.png")
    assert sorted(supabase.objects) == ["b.png", "c.png"]
    assert client("remove", paths=["b.png", "none.png"]) == ["b.png"]
    assert list(supabase.objects) == ["c.png"]


def test_links(client: Client, supabase: SupabaseEmulator) -> None:
    upload(client, "a/b.png")
    public = client("public_url", path="a/b.png")
    assert public == f"{supabase.url}{PREFIX}/object/public/{supabase.bucket}/a/b.png"
    signed = client("sign", path="a/b.png", seconds=60)
    for url in (public, signed):
        assert httpx.get(url, trust_env=False).content == PICTURE
    first, second = client("sign_many", paths=["a/b.png", "none.png"], seconds=60)
    assert first is None
    assert second == "Either the object does not exist or you do not have access to it"


def test_buckets(client: Client, supabase: SupabaseEmulator) -> None:
    assert client("make_bucket", name="more") == ["more", False, [PNG]]
    assert sorted(client("buckets")) == sorted([supabase.bucket, "more"])
    client("drop_bucket", name="more")
    assert client("buckets") == [supabase.bucket]
    with pytest.raises(Raised, match="Bucket not found"):
        client("drop_bucket", name="more")
