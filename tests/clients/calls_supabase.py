"""What supabase's users call of its storage, which is the package storage3."""

import os
from typing import Any

import supabase
from storage3.exceptions import StorageApiError

URL, KEY = os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"]
storage = supabase.create_client(URL, KEY).storage
bucket = storage.from_(os.environ["SUPABASE_BUCKET"])


def upload(path: str, data: bytes, kind: str, options: dict[str, Any] | None = None) -> Any:
    return bucket.upload(path, data, {"content-type": kind, **(options or {})})


def replace(path: str, data: bytes, kind: str) -> Any:
    return bucket.update(path, data, {"content-type": kind})


def upload_link(path: str) -> Any:
    return bucket.create_signed_upload_url(path)


def upload_signed(path: str, token: str, data: bytes, kind: str) -> Any:
    return bucket.upload_to_signed_url(path, token, data, {"content-type": kind})


def download(path: str) -> Any:
    return bucket.download(path)


def names(path: str, options: dict[str, Any] | None = None) -> Any:
    return [row["name"] for row in bucket.list(path, options)]


def info(path: str) -> Any:
    return bucket.info(path)


def exists(path: str) -> Any:
    return bucket.exists(path)


def move(source: str, target: str) -> Any:
    return bucket.move(source, target)


def copy(source: str, target: str) -> Any:
    return bucket.copy(source, target)


def remove(paths: list[str]) -> Any:
    return [row["name"] for row in bucket.remove(paths)]


def sign(path: str, seconds: int) -> Any:
    return bucket.create_signed_url(path, seconds)["signedURL"]


def sign_many(paths: list[str], seconds: int) -> Any:
    return [row["error"] for row in bucket.create_signed_urls(paths, seconds)]


def public_url(path: str) -> Any:
    return bucket.get_public_url(path)


def buckets() -> Any:
    return [row.name for row in storage.list_buckets()]


def make_bucket(name: str) -> Any:
    storage.create_bucket(name, options={"public": True, "allowed_mime_types": ["image/png"]})
    storage.update_bucket(name, options={"public": False})
    made = storage.get_bucket(name)
    return [made.name, made.public, made.allowed_mime_types]


def drop_bucket(name: str) -> Any:
    storage.empty_bucket(name)
    return storage.delete_bucket(name)


def explain(error: Exception) -> dict[str, Any]:
    if not isinstance(error, StorageApiError):
        return {"message": str(error)}
    return {"status": str(error.status), "message": error.message}
