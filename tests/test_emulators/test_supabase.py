"""The Supabase emulator lets in and keeps out whom the real server does.

What its answers look like is held against the real one in tests/images and by the official clients
in tests/test_clients.
"""

from collections.abc import Iterator

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.emulators.supabase import PREFIX, SupabaseEmulator


@pytest.fixture(scope="module")
def server() -> Iterator[SupabaseEmulator]:
    with SupabaseEmulator() as emulator:
        yield emulator


@pytest.fixture
def supabase(server: SupabaseEmulator) -> SupabaseEmulator:
    server.reset()
    return server


def keys(supabase: SupabaseEmulator) -> dict[str, dict[str, str]]:
    bearer = {"service": supabase.service_key, "anon": supabase.anon_key}
    bearer |= {"expired": supabase.expired_key, "wrong": "a.b.c"}
    return {"none": {}, **{who: {"Authorization": f"Bearer {key}"} for who, key in bearer.items()}}


def statuses(
    http: httpx.Client, supabase: SupabaseEmulator, method: str, path: str
) -> dict[str, int]:
    """What each key is answered."""
    return {
        who: http.request(
            method,
            f"{supabase.url}{PREFIX}{path}",
            headers=headers,
            json={"prefix": ""} if method == "POST" else None,
        ).status_code
        for who, headers in keys(supabase).items()
    }


def kept(http: httpx.Client, supabase: SupabaseEmulator) -> str:
    path = f"{supabase.bucket}/a.png"
    url = f"{supabase.url}{PREFIX}/object/{path}"
    http.post(url, content=b"x", headers=keys(supabase)["service"]).raise_for_status()
    return path


EVERYBODY = {"none": 200, "service": 200, "anon": 200, "expired": 200, "wrong": 200}


def test_information_on_a_public_bucket_is_for_all(
    http: httpx.Client, supabase: SupabaseEmulator
) -> None:
    path = kept(http, supabase)
    assert statuses(http, supabase, "GET", f"/object/info/{path}") == EVERYBODY
    only = {"none": 400, "service": 200, "anon": 200, "expired": 400, "wrong": 400}
    assert statuses(http, supabase, "GET", f"/object/info/authenticated/{path}") == only
    supabase.make_private()
    only["anon"] = 400
    for route in ("info", "info/authenticated"):
        assert statuses(http, supabase, "GET", f"/object/{route}/{path}") == only


def test_a_list_looks_at_the_key(http: httpx.Client, supabase: SupabaseEmulator) -> None:
    kept(http, supabase)
    path = f"/object/list/{supabase.bucket}"
    assert statuses(http, supabase, "POST", path) == {
        "none": 400,
        "service": 200,
        "anon": 200,
        "expired": 400,
        "wrong": 400,
    }
    url = f"{supabase.url}{PREFIX}{path}"
    listed = http.post(url, headers=keys(supabase)["anon"], json={"prefix": ""})
    assert listed.json() == []


def test_s3_tells_a_bucket_that_is_there(supabase: SupabaseEmulator) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"{supabase.url}{PREFIX}/s3",
        region_name=supabase.S3_REGION,
        aws_access_key_id=supabase.S3_KEY_ID,
        aws_secret_access_key=supabase.S3_SECRET,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
    answer = client.head_bucket(Bucket=supabase.bucket)
    assert answer["BucketRegion"] == supabase.S3_REGION
    with pytest.raises(ClientError) as caught:
        client.head_bucket(Bucket="none")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
