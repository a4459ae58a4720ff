"""Pictures in Supabase Storage over its S3 interface, with django-storages.

For operators who have S3 credentials and no secret key. It costs more of our CPU per upload than
the REST interface, and the server's error codes cannot be read from it; `images.stores.supabase`
is the default.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.core.files.base import ContentFile
from storages.backends.s3 import S3Storage

from geekhub.lib.threads import OwnThreads
from images.stores.contract import StorageRefused, StorageUnavailable, check_name

# boto3's own are a minute each and four further tries (botocore 1.44.5, Config).
LIMITS = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2})


class S3ImageStorage(S3Storage):  # type: ignore[misc]
    """django-storages' backend as an ImageStore: each asynchronous call is one of a thread."""

    THREADS = 8

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.client_config: Config = self.client_config.merge(LIMITS)
        self._threads = OwnThreads(self.THREADS, "s3")

    async def asave(
        self, name: str, data: bytes, content_type: str, deadline: float | None = None
    ) -> str:
        """See ImageStore; S3 overwrites, so a name is never refused."""
        content = ContentFile(data, name=name)
        content.content_type = content_type  # type: ignore[attr-defined]
        await self._call(self.save, check_name(name), content, deadline=deadline)
        return name

    async def aread(self, name: str) -> bytes:
        """See ImageStore."""

        def read() -> bytes:
            with self.open(name) as file:
                return bytes(file.read())

        return await self._call(read)

    async def adelete(self, name: str) -> None:
        """See ImageStore."""
        await self._call(self.delete, name)

    async def alink(self, name: str) -> str:
        """See ImageStore; signing needs no call."""
        return str(self.url(name))

    async def probe(self) -> None:
        """See ImageStore; of an object, a missing one says nothing about the bucket."""
        await self._call(self.connection.meta.client.head_bucket, Bucket=self.bucket_name)

    async def aclose(self) -> None:
        """Give back the threads; boto3 keeps its connections for those that come next."""
        self._threads.close()

    async def _call[T](
        self, call: Callable[..., T], *args: Any, deadline: float | None = None, **named: Any
    ) -> T:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._threads.run(call, *args, **named)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            if status == 429 or status >= 500:
                raise StorageUnavailable(str(error)) from error
            raise StorageRefused(str(error), status=status) from error
        except (BotoCoreError, TimeoutError) as error:
            raise StorageUnavailable(str(error)) from error
