"""`Authorization: Bearer ghub_sk_…`"""

from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts import keys
from accounts.models import ApiKey
from images.api.errors import ApiError


class ApiKeyAuthentication(BaseAuthentication):
    """Sets `request.auth` to the ApiKey; raises the errors of `accounts.keys.authenticate`."""

    def authenticate(self, request: Request) -> tuple[Any, ApiKey]:
        header = request.headers.get("authorization", "")
        scheme, _, secret = header.partition(" ")
        if not header:
            raise ApiError(
                "missing_api_key", "Send your API key as Authorization: Bearer ghub_sk_live_…"
            )
        if scheme.lower() != "bearer":
            raise ApiError("invalid_api_key", "The Authorization header must be Bearer and a key.")
        return None, keys.authenticate(secret.strip())

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
