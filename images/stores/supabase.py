"""Pictures in a bucket of Supabase Storage, over its REST interface.

What is said of Supabase's answers was observed on Supabase Storage, August 2026.
"""

import contextlib
import functools
import mimetypes
import re
import tempfile
import time
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from django.conf import settings
from django.core.files.base import ContentFile, File
from django.core.files.storage import Storage
from django.utils import timezone
from django.utils.deconstruct import deconstructible
from django.utils.encoding import filepath_to_uri

from images.pixels import pictures
from images.stores.contract import (
    NAMES,
    NameTaken,
    StorageRefused,
    StorageUnavailable,
    ascii_name,
    check_name,
)
from images.stores.supabase_client import (
    SupabaseClient,
    making_sense,
    parsed,
    storage_address,
)

# A page waits for the links it shows.
LINK_SECONDS = 4.0


@deconstructible
class SupabaseStorage(Storage):
    """Pictures in a bucket of Supabase Storage, over its REST interface.

    Options (times in seconds, sizes in bytes):
    `url` is the project's address, with or without `/storage/v1`; `key` a secret key
    (`sb_secret_...`) or a legacy service_role JWT; `bucket` the bucket's name.
    `public_url` is the host in links, such as a CDN in front of the project; the default is `url`.
    `location` is a folder of the bucket under which every name lies.
    `expires_in` makes `url()` sign links for that long, for a private bucket.
    `timeout` bounds one attempt of an asynchronous call, and all of them twice as long; it bounds
    each read and write of a synchronous one, which is not tried again after so long. `attempts` and
    `backoff` say how often a call is tried, and the pause before the second.
    `max_bytes` is the largest upload, refused before it is sent.
    """

    def __init__(
        self,
        *,
        url: str,
        key: str,
        bucket: str,
        public_url: str = "",
        location: str = "",
        cache_control: str = "public, max-age=31536000, immutable",
        expires_in: int | None = None,
        connect_timeout: float = 5,
        timeout: float = 30,
        attempts: int = 4,
        backoff: float = 0.2,
        max_bytes: int = pictures.MAX_BYTES,
    ) -> None:
        self.bucket = bucket
        self.public_base = storage_address(public_url or url)
        self.location = location.strip("/")
        self.cache_control = cache_control
        self.expires_in = expires_in
        self.max_bytes = max_bytes
        self._client = SupabaseClient(
            url=url,
            key=key,
            connect_timeout=connect_timeout,
            timeout=timeout,
            attempts=attempts,
            backoff=backoff,
            max_bytes=max_bytes,
        )
        # A link is signed again when half its time is over, so that one handed out has the rest.
        self._sign_once = functools.lru_cache(4096)(
            lambda name, _half: self.sign(name, self.expires_in or 0)
        )

    # --- Names and addresses ----------------------------------------------------------------

    def get_valid_name(self, name: str) -> str:
        return ascii_name(name)

    def is_name_available(self, name: str, max_length: int | None = None) -> bool:
        """Look at the length only: the server refuses a name that is taken, at no extra call."""
        return not (max_length and len(name) > max_length)

    def url(self, name: str | None) -> str:
        """Return the public link, which needs no call; with `expires_in` one signed for it."""
        if not name:
            raise ValueError("a picture without a name has no URL")
        if self.expires_in is not None:
            return self._sign_once(name, time.monotonic() // (self.expires_in / 2))
        return f"{self.public_base}/object/public/{self._place(name)}"

    def sign(self, name: str, expires_in: int) -> str:
        """Return a link that works for `expires_in` seconds. Raises FileNotFoundError."""
        answer = self._json(
            "POST", f"/object/sign/{self._place(name)}", json={"expiresIn": expires_in}
        )
        return self.public_base + _signed(answer)

    def sign_many(self, names: Collection[str], expires_in: int) -> dict[str, str | None]:
        """Return a link for each name as `sign` does, in one call; None for a missing one."""
        keys = {self._key(name): name for name in names}
        answer = self._json(
            "POST",
            f"/object/sign/{self.bucket}",
            json={"expiresIn": expires_in, "paths": list(keys)},
            seconds=min(self._client.seconds, LINK_SECONDS),
        )
        # The address is relative to the storage server, not to the host.
        with making_sense():
            return {
                keys[row["path"]]: row["signedURL"] and self.public_base + _signed(row)
                for row in answer
            }

    async def alink(self, name: str) -> str:
        """See ImageStore; a private bucket is asked for a signed address."""
        return (
            self.url(name) if self.expires_in is None else await self.asign(name, self.expires_in)
        )

    async def asign(self, name: str, expires_in: int) -> str:
        """See `sign`."""
        body = await self._client.asend(
            "POST", f"/object/sign/{self._place(name)}", json={"expiresIn": expires_in}
        )
        return self.public_base + _signed(parsed(body))

    def _key(self, name: str) -> str:
        return check_name(f"{self.location}/{name}" if self.location else name)

    def _place(self, name: str) -> str:
        return f"{self.bucket}/{filepath_to_uri(self._key(name))}"

    # --- The request path -------------------------------------------------------------------

    async def asave(
        self, name: str, data: bytes, content_type: str, deadline: float | None = None
    ) -> str:
        """See ImageStore. A retry overwrites: the first attempt may have been kept, unanswered."""
        headers = self._upload_headers(name, len(data), content_type)
        body = await self._client.asend(
            "POST", f"/object/{self._place(name)}", headers=headers, data=data, deadline=deadline
        )
        _check_stored(body)
        return name

    async def aread(self, name: str) -> bytes:
        return await self._client.asend("GET", f"/object/authenticated/{self._place(name)}")

    async def adelete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._client.asend("DELETE", f"/object/{self._place(name)}")

    async def probe(self) -> None:
        """Ask for the bucket, once: the store answers, the key is good, the bucket is there."""
        await self._client.asend("GET", f"/bucket/{self.bucket}", attempts=1)

    async def aclose(self) -> None:
        await self._client.aclose()

    # --- Django's storage interface ---------------------------------------------------------

    def _save(self, name: str, content: "File[Any]") -> str:
        """Keep `content`, under another name if this one is taken; never overwrites.

        The names Django gives are not unique, so a retry does not overwrite either: when the first
        attempt was kept but its answer was lost, the second takes another name.
        """
        content.seek(0)
        if isinstance(content.read(0), str):  # whose size is in letters
            content = ContentFile(content.read().encode(), content.name)
        kind = getattr(content, "content_type", None) or mimetypes.guess_type(name)[0]
        headers = self._upload_headers(name, content.size, kind or "application/octet-stream")
        for _ in range(NAMES):
            path = f"/object/{self._place(name)}"
            try:
                # A refused body that the sockets' buffers cannot swallow is never read, and this
                # client writes all of it before it reads the answer: it would wait for `timeout`.
                if content.size > _SWALLOWED and self.exists(name):
                    raise NameTaken(name)
                _check_stored(self._client.send("POST", path, headers=headers, content=content))
            except NameTaken:
                taken = PurePosixPath(name)
                other = self.get_alternative_name(taken.stem, taken.suffix)
                name = str(taken.with_name(other))
            else:
                return name
        raise StorageUnavailable(f"no free name like {name}")

    def _open(self, name: str, mode: str = "rb") -> "File[bytes]":
        if mode != "rb":
            raise ValueError("a picture can be opened for reading only")
        file = tempfile.SpooledTemporaryFile(max_size=1024 * 1024)  # noqa: SIM115 - handed out
        try:
            self._client.send("GET", f"/object/authenticated/{self._place(name)}", into=file)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return File(file, name)

    def delete(self, name: str) -> None:
        """Delete one object by the call that says so when the key may not."""
        if not name:
            raise ValueError("the name of the picture to delete is empty")
        with contextlib.suppress(FileNotFoundError):
            self._client.send("DELETE", f"/object/{self._place(name)}")

    def exists(self, name: str) -> bool:
        """Return whether the object is there; only "no such object" is a no, all else raises.

        HEAD cannot tell a missing object from a bad key, so the object's information is asked for,
        by the route that looks at the key.
        """
        try:
            self._info(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        with making_sense():
            return int(self._info(name)["size"])

    def get_created_time(self, name: str) -> datetime:
        with making_sense():
            return _moment(self._info(name)["created_at"])

    def get_modified_time(self, name: str) -> datetime:
        with making_sense():
            return _moment(self._info(name)["last_modified"])

    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        """Return the folders and files right under `path`; of a missing folder none."""
        parts = [part for part in (self.location, path.strip("/")) if part]
        prefix = check_name("/".join(parts)) + "/" if parts else ""
        folders: list[str] = []
        files: list[str] = []
        query = {"prefix": prefix, "limit": 1000, "with_delimiter": True}
        while True:
            page = self._json("POST", f"/object/list-v2/{self.bucket}", json=query)
            with making_sense():
                folders += [row["name"].removeprefix(prefix).rstrip("/") for row in page["folders"]]
                files += [row["name"].removeprefix(prefix) for row in page["objects"]]
                if not page["hasNext"]:
                    return folders, files
                if page["nextCursor"] == query.get("cursor"):
                    raise ValueError("the list does not go on")
                query["cursor"] = page["nextCursor"]

    def ensure_bucket(self, *, size_limit: int, mime_types: Iterable[str]) -> list[str]:
        """Create the bucket, or return in what an existing one differs, as bucket_differences."""
        types = sorted(mime_types)
        try:
            return self.bucket_differences(size_limit=size_limit, mime_types=types)
        except StorageRefused as error:
            if error.status != 404:
                raise
        new = {"id": self.bucket, "name": self.bucket, **self._wanted(size_limit, types)}
        try:
            self._json("POST", "/bucket", json=new)
        except NameTaken:  # by another process at the same moment
            return self.bucket_differences(size_limit=size_limit, mime_types=types)
        return []

    def bucket_differences(self, *, size_limit: int, mime_types: Iterable[str]) -> list[str]:
        """Return in what the bucket differs from what it should be, one text each.

        `size_limit` is in bytes; `mime_types` are all that may be uploaded. With `expires_in` the
        bucket is to be private, otherwise public. Raises StorageRefused without a bucket.
        """
        found = self._json("GET", f"/bucket/{self.bucket}")
        with making_sense():
            found["allowed_mime_types"] = sorted(found.get("allowed_mime_types") or [])
        wanted = self._wanted(size_limit, sorted(mime_types))
        return [
            f"{name} is {found.get(name)!r}, should be {value!r}"
            for name, value in wanted.items()
            if found.get(name) != value
        ]

    def _wanted(self, size_limit: int, mime_types: list[str]) -> dict[str, Any]:
        return {
            "public": self.expires_in is None,
            "file_size_limit": size_limit,
            "allowed_mime_types": mime_types,
        }

    def close(self) -> None:
        """Close the synchronous client's connections; the next call makes new ones."""
        self._client.close()

    def _info(self, name: str) -> Any:
        # The shorter `/object/info/` answers for a public bucket whatever key is sent
        # (supabase/storage 4fa61fb, getObjectInfo.ts, allowInvalidJwt; read 28 November 2026).
        return self._json("GET", f"/object/info/authenticated/{self._place(name)}")

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return parsed(self._client.send(method, path, **options))

    def _upload_headers(self, name: str, size: int, content_type: str) -> dict[str, str]:
        if size > self.max_bytes:
            raise StorageRefused(
                f"{name} has {size} bytes, more than {self.max_bytes}",
                status=413,
                code="EntityTooLarge",
            )
        return {
            # Without a length the body goes out in chunks, past the bucket's size limit.
            "Content-Length": str(size),
            # Compared with the bucket's allowed types letter by letter, parameters included.
            "Content-Type": content_type.partition(";")[0].strip().lower(),
            # Kept and served word for word.
            "Cache-Control": self.cache_control,
            "x-upsert": "false",
        }


# More than this may not fit in the buffers of the two sockets (seen: 1.5 MB still does).
_SWALLOWED = 1024 * 1024
_LINK = re.compile(r"/[!-~]{1,8000}", re.ASCII)


def _signed(answer: Any) -> str:
    """Return the path and query of a signed link."""
    with making_sense():
        link = answer["signedURL"]
        if not _LINK.fullmatch(link):
            raise ValueError("no signed link")
        return str(link)


def _check_stored(body: bytes) -> None:
    answer = parsed(body)
    if not isinstance(answer, dict) or "Key" not in answer:
        raise StorageUnavailable("the store did not confirm the upload")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if settings.USE_TZ else timezone.make_naive(moment)
