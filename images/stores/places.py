"""Which store has a bucket, and with which options: an entry of the settings' STORAGES."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What the environment says of Supabase, and the folder that is used without it.

    `url` is empty without Supabase. With an S3 key the S3 interface is used, else the REST one.
    `public_url` is what links begin with.
    """

    url: str
    key: str
    public_url: str
    s3_key_id: str
    s3_secret: str
    s3_region: str
    local: Path

    def public(self, bucket: str, folder: str) -> dict[str, Any]:
        """Return the store of a bucket whose links never expire."""
        return self._store(bucket, folder, "public", None)

    def signed(self, bucket: str, folder: str, expires_in: int) -> dict[str, Any]:
        """Return the store of a bucket whose links work for `expires_in` seconds."""
        return self._store(bucket, folder, "sign", expires_in)

    def _store(self, bucket: str, folder: str, kind: str, expires_in: int | None) -> dict[str, Any]:
        if self.s3_key_id:
            return self._s3(bucket, expires_in)
        if self.url:
            options = {"url": self.url, "key": self.key, "public_url": self.public_url}
            return {
                "BACKEND": "images.stores.supabase.SupabaseStorage",
                "OPTIONS": {**options, "bucket": bucket, "expires_in": expires_in},
            }
        return {
            "BACKEND": "images.stores.local.LocalStorage",
            "OPTIONS": {
                "location": self.local / folder,
                "base_url": f"{self.public_url}/storage/v1/object/{kind}/{bucket}/",
                "expires_in": expires_in,
            },
        }

    def _s3(self, bucket: str, expires_in: int | None) -> dict[str, Any]:
        public = urlsplit(self.public_url)
        links: dict[str, Any] = {"querystring_auth": True, "querystring_expire": expires_in}
        if expires_in is None:
            # The S3 address is never public; these links are.
            domain = f"{public.netloc}/storage/v1/object/public/{bucket}"
            links = {"custom_domain": domain, "url_protocol": f"{public.scheme}:"}
        return {
            "BACKEND": "images.stores.s3.S3ImageStorage",
            "OPTIONS": {
                "endpoint_url": f"{self.url}/storage/v1/s3",
                "access_key": self.s3_key_id,
                "secret_key": self.s3_secret,
                "region_name": self.s3_region,
                "bucket_name": bucket,
                "addressing_style": "path",
                "signature_version": "s3v4",
                "object_parameters": {"CacheControl": "public, max-age=31536000, immutable"},
                "querystring_auth": False,
                **links,
            },
        }
