"""What Stripe tells: into the inbox at once, worked on later, by fetching what it is about.

An event is a row before it is anything else, once per id. A worker takes it by a guarded update
and gives its object's id to the handler of its type; a handler fetches the object from Stripe, so
it does not matter in which order events come, or how often. Whatever is lost, `sweep` finds.
"""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.csrf import csrf_exempt
from prometheus_client import Counter

from accounts.models import Organization
from billing import cards, invoices, recharges, standing, subscriptions
from billing.invoices import UnknownCustomer
from billing.models import (
    BillingAccount,
    Difference,
    DifferenceState,
    Invoice,
    StripeEvent,
    Subscription,
)
from billing.stripe_client import (
    BadSignature,
    Stripe,
    StripeBusy,
    StripeRefused,
    StripeUnknown,
    is_connected,
    plain,
    verify,
)
from geekhub.lib.moments import from_epoch

log = logging.getLogger("geekhub.billing")

MAX_BODY = 1024 * 1024
LEASE = timedelta(minutes=5)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(hours=6)
# With those pauses it is three days until nobody expects any more that we come to know it.
MOST_ATTEMPTS = 20
OVERLAP = timedelta(days=1)
# So many lost calls in a row mean that Stripe is away; each costs the worker seconds.
MOST_LOST = 3

DELIVERIES = Counter(
    "geekhub_stripe_deliveries_total", "Deliveries to the webhook, by our answer.", ["answer"]
)

MOST_DEPTH = 100
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# What reading something that is no event raises.
NO_EVENT = (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError)

type Handler = Callable[[Stripe, StripeEvent, datetime], None]


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
        _tell_staff(
            "stripe_event", f"no_event:{digest}", "no event", 1, timezone.now(), note=_text(note)
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
            return _text(value)
        case float() if not math.isfinite(value):
            return str(value)
        case list():
            return [_storable(one, depth + 1) for one in value]
        case dict():
            return {_text(name): _storable(one, depth + 1) for name, one in value.items()}
        case _:
            return value


def _text(value: str) -> str:
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


def process_due(stripe: Stripe, *, now: datetime, limit: int = 100) -> int:
    """Work on the events that are due, the oldest first; return how many are done with.

    One that fails is put off and the others go on, unless it is Stripe that is away.
    """
    done = lost = 0
    clock = _clock(now)
    due = StripeEvent.objects.filter(processed_at=None, next_at__lte=now)
    for event in due.order_by("next_at", "created", "pk")[:limit]:
        mine = StripeEvent.objects.filter(
            pk=event.pk, processed_at=None, attempts=event.attempts, next_at=event.next_at
        )
        if not mine.update(attempts=F("attempts") + 1, next_at=clock() + LEASE):
            continue
        event.attempts += 1
        try:
            done += _process(stripe, event, clock)
        except StripeUnknown:
            lost += 1
            if lost == MOST_LOST:
                break
        else:
            lost = 0
    return done


def _process(stripe: Stripe, event: StripeEvent, clock: Callable[[], datetime]) -> bool:
    """Run the handler and write down what came of it; raises StripeUnknown after that."""
    try:
        if (handler := _handler(event.type)) is not None:
            handler(stripe, event, clock())
    except UnknownCustomer as error:
        return _put_off(event, error, clock(), give_up=True)
    except StripeRefused as error:
        if error.missing and _deleted(event):
            return _done(event, clock())
        return _put_off(event, error, clock(), give_up=True)
    except StripeUnknown as error:
        _put_off(event, error, clock(), give_up=False)
        raise
    except StripeBusy as error:
        return _put_off(event, error, clock(), give_up=False)
    except Exception as error:
        log.exception("the Stripe event %s failed", event)
        return _put_off(event, error, clock(), give_up=False)
    return _done(event, clock())


def _done(event: StripeEvent, now: datetime, error: str = "") -> bool:
    StripeEvent.objects.filter(pk=event.pk, processed_at=None).update(processed_at=now, error=error)
    return True


def _put_off(event: StripeEvent, error: Exception, now: datetime, *, give_up: bool) -> bool:
    text = f"{type(error).__name__}: {error}"[:500]
    if give_up and event.attempts >= MOST_ATTEMPTS:
        log.error("the Stripe event %s is given up: %s", event, text)
        _tell_staff("stripe_event", f"stripe_event:{event.pk}", event.type, 1, now, note=text)
        return _done(event, now, error=text)
    pause = min(FIRST_PAUSE * 2 ** min(event.attempts - 1, 10), LONGEST_PAUSE)
    still_open = StripeEvent.objects.filter(pk=event.pk, processed_at=None)
    still_open.update(next_at=now + pause, error=text)
    return False


def _deleted(event: StripeEvent) -> bool:
    """Whether Stripe has told that the object is gone: then older news of it mean nothing."""
    kind = event.type.rpartition(".")[0]
    return StripeEvent.objects.filter(object_id=event.object_id, type=f"{kind}.deleted").exists()


def _clock(now: datetime) -> Callable[[], datetime]:
    """Return a clock that goes on from `now`: fetches of one round have an order, too."""
    began = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - began)


# Handlers


def _invoice(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    if event.object_id:  # an upcoming one has no id yet
        invoices.mirror(stripe, event.object_id, now=now)


def _subscription(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    _mirror_subscription(stripe, event.object_id, now)


def _mirror_subscription(stripe: Stripe, stripe_id: str, now: datetime) -> None:
    """Copy a subscription; if Stripe gave up to collect for it, what it is owed comes first."""
    seen = subscriptions.fetch(stripe, stripe_id, now=now)
    if seen is None:
        raise UnknownCustomer(f"no organization has the subscription {stripe_id!r}")
    status, answer = seen.copy.status, seen.answer
    gave_up = (answer["cancellation_details"] or {}).get("reason") == "payment_failed"
    if status == "unpaid" or (status == "canceled" and gave_up):
        if answer["latest_invoice"]:
            invoices.mirror(stripe, answer["latest_invoice"], now=now)
        standing.collection_ended(seen.copy.organization)


def _checkout(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    session = stripe.call(stripe.v1.checkout.sessions.retrieve, event.object_id)
    if session.mode == "subscription" and session.subscription:
        _mirror_subscription(stripe, str(session.subscription), now)
    elif session.mode == "payment":
        recharges.completed(stripe, event.object_id, now=now)


def _payment(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    recharges.succeeded(stripe, event.object_id, now=now)


def _credit_note(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    note = stripe.call(stripe.v1.credit_notes.retrieve, event.object_id)
    invoices.mirror(stripe, str(note.invoice), now=now)


def _customer_updated(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    if BillingAccount.objects.filter(stripe_customer=event.object_id).exists():
        cards.mirror(stripe, event.object_id, now=now)


def _customer_deleted(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    """Nobody but a person can tell what that was meant for; usage cannot be billed meanwhile."""
    account = BillingAccount.objects.filter(stripe_customer=event.object_id).first()
    if account is not None:
        log.error("the customer %s was deleted in Stripe", event.object_id)
        key = f"customer_deleted:{event.object_id}"
        _tell_staff(
            "customer_deleted", key, event.object_id, 1, now, organization=account.organization
        )


def _meter_error(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    """Keep the report and tell staff: it holds samples only, so nothing is decided from it."""
    report = plain(stripe.call(stripe.v2.core.events.retrieve, event.pk))
    reason = report["data"]["reason"]
    codes = ", ".join(sorted({kind["code"] for kind in reason["error_types"]}))
    StripeEvent.objects.filter(pk=event.pk).update(payload=report)
    log.error("Stripe dropped usage (%s): %s", event.object_id or "no meter", codes)
    key = f"meter_error:{event.object_id or 'no_meter'}:{codes}"
    _tell_staff("meter_error", key, codes, reason["error_count"], now)


def _tell_staff(
    kind: str,
    key: str,
    subject: str,
    found: int,
    now: datetime,
    *,
    note: str = "",
    organization: Organization | None = None,
) -> None:
    """Open a difference on the staff's page, or count it once more on the open one."""
    told = Difference.objects.filter(key=key[:200], state=DifferenceState.OPEN)
    if not told.update(seen=F("seen") + 1, found=found, last_seen_at=now):
        difference = Difference(
            key=key[:200],
            kind=kind,
            organization=organization,
            subject=subject[:200],
            expected=0,
            found=found,
            note=note[:500],
            last_seen_at=now,
        )
        Difference.objects.bulk_create([difference], ignore_conflicts=True)


# By the beginning of the type; of what is not here there is nothing to do.
HANDLERS: dict[str, Handler] = {
    "invoice.": _invoice,
    "customer.subscription.": _subscription,
    "customer.updated": _customer_updated,
    "customer.deleted": _customer_deleted,
    "checkout.session.completed": _checkout,
    "checkout.session.async_payment_succeeded": _checkout,
    "payment_intent.succeeded": _payment,
    "credit_note.": _credit_note,
    "v1.billing.meter.error_report_triggered": _meter_error,
    "v1.billing.meter.no_meter_found": _meter_error,
}


def _handler(kind: str) -> Handler | None:
    return next((work for begin, work in HANDLERS.items() if kind.startswith(begin)), None)


def sweep(stripe: Stripe, *, since: datetime, now: datetime) -> int:
    """Look at what could have changed since then, as if events were lost; return how much it was.

    Stripe's lists know only when a thing was made, so everything of ours that is not final is
    fetched again as well. What fails is left to the next night. Raises StripeFailure when the
    lists fail, or Stripe is away.
    """
    clock, seen, lost = _clock(now), 0, 0
    for kind, stripe_id in _changed(stripe, since - OVERLAP):
        try:
            SWEPT[kind](stripe, stripe_id, clock())
        except UnknownCustomer:
            continue  # the account may have customers who are none of ours
        except StripeUnknown as error:
            log.warning("%s was not swept: %s", stripe_id, error)
            lost += 1
            if lost == MOST_LOST:
                raise
        except Exception:
            log.exception("%s was not swept", stripe_id)
        else:
            seen, lost = seen + 1, 0
    return seen


def _changed(stripe: Stripe, since: datetime) -> Iterator[tuple[str, str]]:
    """Yield (kind, Stripe id), subscriptions first."""
    made = {"gte": int(since.timestamp())}
    listed = stripe.each(stripe.v1.subscriptions.list, created=made, status="all")
    running = Subscription.objects.filter(ended_at=None)
    for name in {one.id for one in listed}.union(running.values_list("stripe_id", flat=True)):
        yield "subscription", name
    listed = stripe.each(stripe.v1.invoices.list, created=made)
    open_ = Invoice.objects.exclude(status__in=invoices.FINAL)
    for name in {one.id for one in listed}.union(open_.values_list("stripe_id", flat=True)):
        yield "invoice", name
    for session in stripe.each(stripe.v1.checkout.sessions.list, created=made, status="complete"):
        if session.mode == "payment":
            yield "checkout", session.id


SWEPT: dict[str, Callable[[Stripe, str, datetime], object]] = {
    "subscription": _mirror_subscription,
    "invoice": lambda stripe, name, now: invoices.mirror(stripe, name, now=now),
    "checkout": lambda stripe, name, now: recharges.completed(stripe, name, now=now),
}
