"""The endpoint that Stripe calls: check, keep, answer."""

import hashlib
import json
import logging
import math
import re
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.csrf import csrf_exempt
from prometheus_client import Counter

from billing.models import StripeEvent
from billing.stripe.client import BadSignature, is_connected, verify
from billing.stripe.differences import open_difference
from geekhub.lib.moments import from_epoch

log = logging.getLogger("geekhub.billing")
MAX_BODY = 1024 * 1024
DELIVERIES = Counter(
    "geekhub_stripe_deliveries_total", "Deliveries to the webhook, by our answer.", ["answer"]
)
MOST_DEPTH = 100
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# What reading something that is no event raises.
NO_EVENT = (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError)


class Unacceptable(Exception):
    """A delivery we do not take; `status` is our answer, the text is for the operator."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@csrf_exempt
def receive(request: HttpRequest) -> HttpResponse:
    """Take a delivery into the inbox; what it means is found out later."""
    try:
        _take(_signed(request))
    except Unacceptable as error:
        DELIVERIES.labels(error.status).inc()
        log.warning("a delivery to the Stripe webhook was refused: %s", error)
        answer = HttpResponse(f"{error}\n", status=error.status, content_type="text/plain")
        if error.status == 405:
            answer["Allow"] = "POST"
        return answer
    DELIVERIES.labels(200).inc()
    return HttpResponse("ok\n", content_type="text/plain")


def _signed(request: HttpRequest) -> bytes:
    """Return the body of a delivery that Stripe has signed; raises Unacceptable."""
    if request.method != "POST":
        raise Unacceptable(405, "Stripe's events are sent by POST.")
    if not is_connected():
        raise Unacceptable(404, "This deployment has no STRIPE_SECRET_KEY, so no webhook.")
    # Not `request.body`: its limit is the one of the pages, and trusts the header.
    body = request.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise Unacceptable(413, f"The body is larger than {MAX_BODY} bytes.")
    try:
        verify(body, request.headers.get("Stripe-Signature", ""))
    except BadSignature as error:
        raise Unacceptable(
            400,
            "No secret in STRIPE_WEBHOOK_SECRET signed this in the last five minutes. Each of "
            "Stripe's destinations has a secret of its own.",
        ) from error
    return body


def _take(body: bytes) -> None:
    """Keep what Stripe has signed: as an event to work on, or for a person to look at.

    What is no event will not become one, so Stripe is not asked to send it again for three days.
    """
    try:
        event = _event(_storable(json.loads(body.decode())))
    except (*NO_EVENT, RecursionError) as error:
        digest = hashlib.sha256(body).hexdigest()
        log.error("Stripe signed what is no event (%s): %.500r", error, body)
        note = f"{type(error).__name__}: {error}; {body[:300]!r}"
        open_difference(
            "stripe_event",
            f"no_event:{digest}",
            "no event",
            1,
            timezone.now(),
            note=storable_text(note),
        )
        return
    StripeEvent.objects.bulk_create([event], ignore_conflicts=True)


def _storable(value: Any, depth: int = 1) -> Any:
    """Return a JSON value as any database stores it; raises ValueError when it is nested too deep.

    The payload is for people to look at: what an event is about is fetched from Stripe.
    """
    if depth > MOST_DEPTH:
        raise ValueError("nested too deep")
    match value:
        case str():
            return storable_text(value)
        case float() if not math.isfinite(value):
            return str(value)
        case list():
            return [_storable(one, depth + 1) for one in value]
        case dict():
            return {storable_text(name): _storable(one, depth + 1) for name, one in value.items()}
        case _:
            return value


def storable_text(value: str) -> str:
    """Return the text without a NUL or half of a surrogate pair, which PostgreSQL does not take."""
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


def _event(sent: Any) -> StripeEvent:
    """Return the row of a snapshot or thin event; raises NO_EVENT when it is none."""
    thin = sent["object"] == "v2.core.event"
    about = (sent.get("related_object") if thin else sent["data"]["object"]) or {}
    event = StripeEvent(
        id=_name(sent["id"]),
        type=_name(sent["type"]),
        object_id=_name(about["id"]) if about.get("id") else "",
        thin=thin,
        livemode=sent["livemode"],
        created=_created(sent["created"]),
        payload=sent,
    )
    if not isinstance(event.livemode, bool):
        raise TypeError("no mode")
    if event.livemode is not settings.STRIPE_LIVEMODE:
        ours, theirs = ("live", "test")[:: 1 if settings.STRIPE_LIVEMODE else -1]
        raise Unacceptable(400, f"The event is of {theirs} mode, STRIPE_SECRET_KEY of {ours} mode.")
    # Due at once, also by the clock of whoever lives in Stripe's time.
    event.next_at = min(event.created, timezone.now())
    return event


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        raise ValueError("not a name")
    if not value.isascii() or not value.isprintable():
        raise ValueError("not a name of Stripe's")
    return value


def _created(value: Any) -> datetime:
    """Return when it happened: v1 writes epoch seconds, v2 RFC 3339."""
    if not isinstance(value, str):
        return from_epoch(value)
    moment = parse_datetime(value)
    if moment is None or moment.tzinfo is None:
        raise ValueError("not a time")
    return moment.astimezone(UTC)
