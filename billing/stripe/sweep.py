"""What could have changed is looked at again, as if events were lost."""

import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from billing.models import Invoice, Subscription
from billing.stripe import invoices, recharges
from billing.stripe.client import Stripe, StripeUnknown
from billing.stripe.handlers import mirror_subscription
from billing.stripe.inbox import MOST_LOST, running_clock
from billing.stripe.invoices import UnknownCustomer

log = logging.getLogger("geekhub.billing")
OVERLAP = timedelta(days=1)


def sweep(stripe: Stripe, *, since: datetime, now: datetime) -> int:
    """Look at what could have changed since then, as if events were lost; return how much it was.

    Stripe's lists know only when a thing was made, so everything of ours that is not final is
    fetched again as well. What fails is left to the next night. Raises StripeFailure when the
    lists fail, or Stripe is away.
    """
    clock, seen, lost = running_clock(now), 0, 0
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
    "subscription": mirror_subscription,
    "invoice": lambda stripe, name, now: invoices.mirror(stripe, name, now=now),
    "checkout": lambda stripe, name, now: recharges.completed(stripe, name, now=now),
}
