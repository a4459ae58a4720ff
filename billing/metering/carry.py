"""Which invoice carries an event, and with which timestamp."""

from datetime import datetime, timedelta

from django.db.models import F

from billing.models import Invoice, MeterEvent, Subscription
from geekhub.lib.moments import from_epoch

# Stripe takes timestamps of the past 35 days.
OLDEST = timedelta(days=34)
# How long our copies of a new period's subscription and invoice may be under way. A draft invoice
# stays one for an hour at least, so that waiting loses nothing.
COPIES_LATE = timedelta(minutes=30)


class NotYet(Exception):
    """An event cannot be sent now, and can be later."""


class NoInvoice(Exception):
    """No invoice will ever carry the event."""


def carried_timestamp(event: MeterEvent, now: datetime) -> datetime:
    """Return the timestamp with which an invoice carries the event: its own, or one of now.

    Stripe bills what lies in a period whose invoice is not final and comes after the item was
    added; what does not is moved into the running period, once. Raises NotYet or NoInvoice.
    """
    subscription = (
        Subscription.objects.filter(organization=event.organization_id)
        .order_by(F("ended_at").desc(nulls_first=True))
        .first()
    )
    if subscription is None or not event.organization.billing_account.stripe_customer:
        raise NotYet("there is no subscription")
    running = subscription.ended_at is None
    item = subscription.items.get(event.price_version.stripe_price)
    if item is None:
        if running:
            raise NotYet("the subscription has no item for this price")
        raise NoInvoice("the subscription ended without an item for this price")
    added = from_epoch(item[1])
    sent = event.timestamp.replace(microsecond=0)  # Stripe knows whole seconds
    start, end = subscription.period_start, subscription.period_end
    in_period = running and start <= now < end
    if sent >= added and sent > now - OLDEST:
        if in_period and start <= sent:
            return event.timestamp
        invoices = Invoice.objects.filter(
            organization=event.organization_id,
            billing_reason="subscription_cycle",  # no other takes usage that comes later
            period_start__lte=sent,
            period_end__gt=sent,
        )
        statuses = set(invoices.values_list("status", flat=True))
        if "draft" in statuses:
            return event.timestamp
        turned = start if in_period else (subscription.ended_at or end)
        if not statuses and now < turned + COPIES_LATE:
            raise NotYet("the invoice of its period is not known yet")
    if not running:
        raise NoInvoice("the subscription has ended")
    if not in_period:
        raise NotYet("the running period is not known yet")
    if event.restamped_from is not None:
        raise NoInvoice("it was moved into a later period once before")
    return max(now, added)
