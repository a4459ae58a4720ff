"""Fetches pictures from the URLs in providers' answers.

Such a URL is input from outside: only https to a listed host, no redirects, and no address inside
our own network. A listed origin such as `http://127.0.0.1:9000` allows exactly that origin.
"""

import asyncio
from collections.abc import Iterable
from urllib.parse import urlsplit

import httpx

from geekhub.lib import http
from geekhub.lib.addresses import is_address
from images.pixels import pictures

ATTEMPTS = 3
SECONDS_EACH = 30.0


class DownloadRefused(Exception):
    """The picture was not fetched; the message is for an operator."""


class Downloads:
    """Downloads from an allow-list of host names (`*.example.com` for subdomains) and origins."""

    def __init__(self, allowed: Iterable[str]) -> None:
        entries = [entry.lower().rstrip("/") for entry in allowed]
        self._origins = {entry for entry in entries if "://" in entry}
        self._hosts = {entry for entry in entries if "://" not in entry}
        self._public = http.client(connect=5, read=15, resolver=http.PublicResolver())
        self._exact = http.client(connect=5, read=15)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._public.aclose()
        await self._exact.aclose()

    async def get(self, url: str) -> bytes:
        """Return the body at `url`, at most `pictures.MAX_BYTES`; raises DownloadRefused."""
        client = self._client_for(url)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(SECONDS_EACH), client.stream("GET", url) as response:
                    if response.status_code == httpx.codes.OK:
                        return await http.read_at_most(response, pictures.MAX_BYTES)
                    if response.status_code < 500 or attempt == ATTEMPTS:
                        raise DownloadRefused(f"HTTP {response.status_code}")
            except (httpx.HTTPError, TimeoutError) as error:
                # Fetching again is free; the picture is already drawn and paid for.
                if attempt == ATTEMPTS:
                    raise DownloadRefused(f"{type(error).__name__}: {error}") from error
            except http.BodyTooLarge as error:
                raise DownloadRefused(f"over {pictures.MAX_BYTES} bytes") from error
            except (httpx.InvalidURL, ValueError) as error:
                # urlsplit takes what neither httpx nor the resolver does: control characters,
                # empty labels, broken punycode.
                raise DownloadRefused(f"not a URL: {error}") from error
            await asyncio.sleep(0.2 * attempt)
        raise DownloadRefused("no attempt left")

    def _client_for(self, url: str) -> httpx.AsyncClient:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise DownloadRefused("not a URL") from error
        if f"{parts.scheme}://{parts.netloc}".lower() in self._origins:
            return self._exact
        listed = host in self._hosts or any(
            entry.startswith("*.") and host.endswith(entry[1:]) for entry in self._hosts
        )
        if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc or not listed:
            raise DownloadRefused(f"{parts.scheme}://{host} is not on the list")
        if is_address(host):
            # No resolver is asked for it, so none would refuse a private one.
            raise DownloadRefused(f"{host} is no name; list its whole origin")
        return self._public
