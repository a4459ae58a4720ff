"""The door to Stripe: the only module that imports its SDK.

Nothing here decides anything; it sends one call and says in our words what became of it. The SDK
is told not to retry: whoever calls has a row that knows what was tried.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import stripe
from django.conf import settings

if TYPE_CHECKING:
    from stripe._v1_services import V1Services
    from stripe._v2_services import V2Services

# The version of the API whose shapes the code below this module reads.
API_VERSION = "2026-10-28.endive"
CONNECT_SECONDS, READ_SECONDS = 3, 10

stripe.enable_telemetry = False
# Two lines a call, and on DEBUG the bodies, with links that are secrets.
logging.getLogger("stripe").setLevel(logging.WARNING)


class StripeFailure(Exception):
    """A call that did not succeed.

    StripeFailure
    ├── StripeUnknown       lost on the way, or Stripe's fault: it may have been done
    ├── StripeBusy          429 or 409: it was not done, and can be tried again
    └── StripeRefused       it was not done, and never will be as it is
    """


class StripeUnknown(StripeFailure):
    """Nobody can say whether it was done: a broken connection, a timeout, a 5xx.

    `answered` tells that Stripe did answer, which it would do again for the same idempotency key.
    """

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class StripeBusy(StripeFailure):
    """It was not done: too many calls, a lock, or the same idempotency key in flight."""


class StripeRefused(StripeFailure):
    """Stripe said no. `code` is Stripe's word for it, often empty; `status` is of HTTP."""

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message)
        self.code, self.status = code, status

    @property
    def missing(self) -> bool:
        """Whether the object does not exist."""
        return self.code == "resource_missing" or self.status == 404


class NotConnected(Exception):
    """No STRIPE_SECRET_KEY is set: billing is local."""


class BadSignature(Exception):
    """A delivery that Stripe did not sign with one of our secrets, or too long ago."""


@dataclass(frozen=True, slots=True)
class Stripe:
    """A connection. `v1` and `v2` are the SDK's services; every call goes through `call`."""

    client: stripe.StripeClient
    livemode: bool

    @property
    def v1(self) -> "V1Services":
        """The SDK's services of the first API."""
        return self.client.v1

    @property
    def v2(self) -> "V2Services":
        """The SDK's services of the second API."""
        return self.client.v2

    def call[T](self, method: Callable[..., T], *arguments: Any, key: str | None = None) -> T:
        """Return what the SDK's `method` returns; `key` is the Idempotency-Key.

        Raises StripeUnknown, StripeBusy or StripeRefused.
        """
        options = {"options": {"idempotency_key": key}} if key else {}
        try:
            return method(*arguments, **options)
        except stripe.RateLimitError as error:
            raise StripeBusy(_words(error)) from error
        except stripe.APIConnectionError as error:
            raise StripeUnknown(_words(error)) from error
        except stripe.StripeError as error:
            raise _translate(error) from error

    def each(self, method: Callable[..., Any], *path: str, **filters: Any) -> Iterator[Any]:
        """Yield what a list of Stripe's holds, over all its pages; raises as `call` does."""
        parameters = {"limit": 100, **filters}
        while True:
            page = self.call(method, *path, parameters)
            yield from page.data
            if not page.has_more or not page.data:
                return
            parameters["starting_after"] = page.data[-1].id


def connect() -> Stripe:
    """Return a connection with the settings' key; raises NotConnected without one."""
    if not settings.STRIPE_SECRET_KEY:
        raise NotConnected
    client = stripe.StripeClient(
        settings.STRIPE_SECRET_KEY,
        stripe_version=API_VERSION,
        base_addresses={
            "api": settings.STRIPE_API_BASE,
            "meter_events": settings.STRIPE_METER_EVENTS_BASE,
        },
        http_client=stripe.RequestsClient(timeout=(CONNECT_SECONDS, READ_SECONDS)),
        max_network_retries=0,
    )
    return Stripe(client, settings.STRIPE_LIVEMODE)


def is_connected() -> bool:
    """Return whether a key is set."""
    return bool(settings.STRIPE_SECRET_KEY)


def verify(body: bytes, signature: str, tolerance_seconds: int = 300) -> None:
    """Check that Stripe signed these very bytes within the tolerance; raises BadSignature.

    Each configured secret is tried: snapshot and thin destinations have their own, and so do the
    old and the new one while they are rotated.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadSignature("not text") from error
    if not signature.isascii():
        raise BadSignature("not a signature")  # the SDK's comparison cannot take it
    for secret in settings.STRIPE_WEBHOOK_SECRETS:
        try:
            stripe.WebhookSignature.verify_header(text, signature, secret, tolerance_seconds)
        except stripe.SignatureVerificationError:
            continue
        return
    raise BadSignature("no secret of ours signed this")


def plain(value: Any) -> Any:
    """Return an SDK object as dicts, lists and plain values."""
    return value.to_dict() if isinstance(value, stripe.StripeObject) else value


def _translate(error: stripe.StripeError) -> StripeFailure:
    status = error.http_status or 0
    detail: Mapping[str, Any] = {}
    if isinstance(error.json_body, Mapping) and isinstance(error.json_body.get("error"), Mapping):
        detail = error.json_body["error"]
    if status in (409, 429):
        return StripeBusy(_words(error))
    if status >= 500 or not 400 <= status < 500:
        return StripeUnknown(_words(error), answered=bool(status))
    return StripeRefused(_words(error), code=str(detail.get("code") or ""), status=status)


def _words(error: stripe.StripeError) -> str:
    return str(error.user_message or error)[:500]
