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


class ApiKeyAuthentication(BaseAuthentication):
    """Sets `request.auth` to the ApiKey.

    Raises the errors of `accounts.keys.authenticate`, and `guardrail_blocked` for a key that is
    paused or used from outside its networks.
    """

    def authenticate(self, request: Request) -> tuple[Any, ApiKey]:
        key = keys.authenticate(_secret(request))
        _check_guardrails(key, request)
        return None, key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


async def knock(request: ApiRequest) -> None:
    """Refuse a key that cannot be right before anybody asks the database for it.

    Raises ApiError, InvalidKey or RevokedKey, or TooManyBadKeys in their place.
    """
    secret, bad_keys = _secret(request), request.gateway.bad_keys
    try:
        if not keys.SHAPE.fullmatch(secret) or bad_keys.is_unknown(secret):
            raise keys.InvalidKey
        async with bad_keys.turn(secret, addresses.of(request, settings.TRUSTED_PROXIES)) as queued:
            if queued:
                await request.gateway.db.run(keys.authenticate, secret)
    except keys.KeyRefused as error:
        note_refused(request, error)
        raise


def note_refused(request: ApiRequest, error: keys.KeyRefused) -> None:
    """Remember that a key opened nothing; raises TooManyBadKeys when there were many."""
    if isinstance(error, keys.InvalidKey):
        request.gateway.bad_keys.note_unknown(_secret(request))
    request.gateway.bad_keys.count(addresses.of(request, settings.TRUSTED_PROXIES))


def note_good(request: ApiRequest) -> None:
    """Remember that a key opened."""
    request.gateway.bad_keys.note_good(_secret(request))


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


def _check_guardrails(key: ApiKey, request: Request) -> None:
    if key.allowed_ips:
        address = addresses.of(request, settings.TRUSTED_PROXIES)
        if not addresses.within(address, key.allowed_ips):
            raise ApiError(
                "guardrail_blocked",
                f"This API key cannot be used from {address or 'an unknown address'}: its "
                f"allowed IP ranges are {', '.join(key.allowed_ips)}.",
                retry=False,
            )
    if key.paused_at is not None:
        raise ApiError(
            "guardrail_blocked",
            f"This API key is paused. {key.paused_reason} An owner can resume it on the keys page "
            "of the dashboard.",
            retry=False,
        )
