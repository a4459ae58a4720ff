"""Every provider there is: what people call it, and how it is made with its connections."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

from geekhub.lib import http
from images.providers import fal, google, openai, xai
from images.providers.base import Provider
from images.providers.downloads import Downloads

CONNECT_SECONDS = 5.0
READ_SECONDS = 120.0


def _client(base_url: str, headers: dict[str, str]) -> httpx.AsyncClient:
    return http.client(
        base_url=base_url, headers=headers, connect=CONNECT_SECONDS, read=READ_SECONDS
    )


def _openai(config: Mapping[str, str], downloads: Downloads) -> Provider:
    client = _client(config["base_url"], openai.headers(config["key"]))
    return openai.OpenAI(http=client, downloads=downloads)


def _google(config: Mapping[str, str], downloads: Downloads) -> Provider:
    client = _client(config["base_url"], google.headers(config["key"]))
    return google.Google(http=client, downloads=downloads)


def _xai(config: Mapping[str, str], downloads: Downloads) -> Provider:
    client = _client(config["base_url"], xai.headers(config["key"]))
    return xai.XAI(http=client, downloads=downloads)


def _fal(config: Mapping[str, str], downloads: Downloads) -> Provider:
    client = _client(config["queue_base_url"], fal.headers(config["key"]))
    return fal.Fal(http=client, downloads=downloads, queue_url=config["queue_base_url"])


@dataclass(frozen=True, slots=True)
class Registered:
    """A provider as it is called by people, and how it is made from its settings."""

    owner: str
    make: Callable[[Mapping[str, str], Downloads], Provider]


PROVIDERS: Mapping[str, Registered] = {
    "openai": Registered("OpenAI", _openai),
    "google": Registered("Google", _google),
    "xai": Registered("xAI", _xai),
    "fal": Registered("fal.ai", _fal),
}
OWNERS: Mapping[str, str] = {name: provider.owner for name, provider in PROVIDERS.items()}
