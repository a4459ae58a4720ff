"""`Authorization: Bearer ghub_sk_…`"""

from typing import Any

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts import keys
from accounts.models import ApiKey
from geekhub.lib import addresses
from images.api.errors import ApiError
from images.api.requests import ApiRequest
from images.policies.bad_keys import digest_of


class ApiKeyAuthentication(BaseAuthentication):
    """Sets `request.auth` to the ApiKey; raises the errors of `accounts.keys.authenticate`."""

    def authenticate(self, request: Request) -> tuple[Any, ApiKey]:
        return None, keys.authenticate(_secret(request))

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


async def knock(request: ApiRequest) -> None:
    """Refuse a key that cannot be right before anybody asks the database for it.

    Raises ApiError, InvalidKey or RevokedKey, or TooManyBadKeys in their place.
    """
    secret, bad_keys = _secret(request), request.gateway.bad_keys
    digest = request.digest = digest_of(secret)
    try:
        if not keys.SHAPE.fullmatch(secret) or bad_keys.is_unknown(digest):
            raise keys.InvalidKey
        async with bad_keys.turn(digest, addresses.of(request, settings.TRUSTED_PROXIES)) as queued:
            if queued:
                await request.gateway.db.run(keys.authenticate, secret)
    except keys.KeyRefused as error:
        note_refused(request, error)
        raise


def note_refused(request: ApiRequest, error: keys.KeyRefused) -> None:
    """Remember that a key opened nothing; raises TooManyBadKeys when there were many."""
    if isinstance(error, keys.InvalidKey):
        request.gateway.bad_keys.note_unknown(request.digest)
    request.gateway.bad_keys.count(addresses.of(request, settings.TRUSTED_PROXIES))


def note_good(request: ApiRequest) -> None:
    """Remember that a key opened."""
    request.gateway.bad_keys.note_good(request.digest)


def _secret(request: Request | ApiRequest) -> str:
    header = request.headers.get("authorization", "")
    scheme, _, secret = header.partition(" ")
    if not header:
        raise ApiError(
            "missing_api_key", "Send your API key as Authorization: Bearer ghub_sk_live_…"
        )
    if scheme.lower() != "bearer":
        raise ApiError(
            "invalid_api_key",
            "The Authorization header must be Bearer and a key: Bearer ghub_sk_live_…",
        )
    return secret.strip()
