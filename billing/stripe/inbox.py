"""Stripe's events: into the inbox at once, worked on later.

An event is a row before it is anything else, once per id. A worker takes it by a guarded update
and gives its object's id to the handler of its type; a handler fetches the object from Stripe, so
it does not matter in which order events come, or how often. Whatever is lost, `sweep` finds.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db.models import Q

from billing.models import StripeEvent
from billing.stripe.client import Stripe, StripeBusy, StripeRefused, StripeUnknown
from billing.stripe.differences import open_difference
from billing.stripe.handlers import handler_of
from billing.stripe.invoices import UnknownCustomer
from geekhub.lib.outbox import Outbox

log = logging.getLogger("geekhub.billing")
INBOX = Outbox(
    StripeEvent,
    waiting=Q(processed_at=None),
    lease=timedelta(minutes=5),
    first_pause=timedelta(minutes=1),
    longest_pause=timedelta(hours=6),
    # With those pauses it is three days until nobody expects any more that we come to know it.
    tries=20,
    order=("next_at", "created", "pk"),
)
# So many lost calls in a row mean that Stripe is away; each costs the worker seconds.
MOST_LOST = 3


def process_due(stripe: Stripe, *, now: datetime, limit: int = 100) -> int:
    """Work on the events that are due, the oldest first; return how many are done with.

    One that fails is put off and the others go on, unless it is Stripe that is away.
    """
    done = lost = 0
    clock = running_clock(now)
    for event in INBOX.due(now)[:limit]:
        if not INBOX.claim(event, clock()):
            continue
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
        if (handler := handler_of(event.type)) is not None:
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
    if give_up and INBOX.is_last(event):
        log.error("the Stripe event %s is given up: %s", event, text)
        open_difference("stripe_event", f"stripe_event:{event.pk}", event.type, 1, now, note=text)
        return _done(event, now, error=text)
    INBOX.put_off(event, now, error=text)
    return False


def _deleted(event: StripeEvent) -> bool:
    """Whether Stripe has reported the object as deleted; older events then mean nothing."""
    kind = event.type.rpartition(".")[0]
    return StripeEvent.objects.filter(object_id=event.object_id, type=f"{kind}.deleted").exists()


def running_clock(now: datetime) -> Callable[[], datetime]:
    """Return a clock that goes on from `now`: fetches of one round have an order, too."""
    began = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - began)
