"""Where an organization wants alerts posted, and how they are signed."""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import URLValidator
from django.db import transaction
from django.utils.translation import gettext

from accounts import audit
from accounts.models import Organization, User
from billing.models import AlertEndpoint
from geekhub.lib import http
from geekhub.lib.addresses import is_address

SIGNATURE = "GeekHub-Signature"
URL_LENGTH = 500
POST_SECONDS = 10.0


class EndpointRefused(ValueError):
    """An address that alerts cannot be sent to; the message is safe to show."""


def set_endpoint(organization: Organization, url: str, actor: User | None) -> str:
    """Have the organization's alerts sent to an address as well; return the secret, shown once.

    Every call makes a new secret. Raises EndpointRefused.
    """
    client_for(url)
    secret = f"ghub_whsec_{secrets.token_urlsafe(32)}"
    with transaction.atomic():
        AlertEndpoint.objects.update_or_create(
            organization=organization, defaults={"url": url, "secret": secret}
        )
        audit.record("alerts.endpoint_set", organization=organization, actor=actor, url=url)
    return secret


def remove_endpoint(organization: Organization, actor: User | None) -> None:
    """Send alerts by e-mail only; removing twice changes nothing."""
    with transaction.atomic():
        if AlertEndpoint.objects.filter(organization=organization).delete()[0]:
            audit.record("alerts.endpoint_removed", organization=organization, actor=actor)


def sign(body: bytes, secret: str, *, at: datetime) -> str:
    """Return the header that proves the body is ours: `t=1795348800,v1=6f2c…`."""
    stamp = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def client_for(url: str) -> Callable[[], httpx.AsyncClient]:
    """Return how to reach an address: by https at a public name, or at a listed origin.

    Raises EndpointRefused. A name that leads into our own network is refused when it is resolved.
    """
    try:
        URLValidator(schemes=["http", "https"])(url)
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except (ValidationError, ValueError) as error:
        raise EndpointRefused(gettext("This is not a URL.")) from error
    if len(url) > URL_LENGTH:
        words = gettext("The URL is longer than %d characters.")
        raise EndpointRefused(words % URL_LENGTH)
    if f"{parts.scheme}://{parts.netloc}" in settings.ALERT_LOCAL_ORIGINS:
        return _exact_client
    if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc:
        raise EndpointRefused(
            gettext("The URL must start with https:// and have no port or password.")
        )
    if is_address(host):
        # No resolver is asked for it, so none would refuse a private one.
        raise EndpointRefused(gettext("The URL must contain a host name, not an IP address."))
    return _public_client


def _exact_client() -> httpx.AsyncClient:
    return http.client(connect=POST_SECONDS, read=POST_SECONDS)


def _public_client() -> httpx.AsyncClient:
    return http.client(connect=POST_SECONDS, read=POST_SECONDS, resolver=http.PublicResolver())
