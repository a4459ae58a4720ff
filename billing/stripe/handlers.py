"""What each kind of event means, in one table."""

import logging
from collections.abc import Callable
from datetime import datetime

from billing.models import BillingAccount, StripeEvent
from billing.stripe import cards, invoices, recharges, standing, subscriptions
from billing.stripe.client import Stripe, plain
from billing.stripe.differences import open_difference
from billing.stripe.invoices import UnknownCustomer

log = logging.getLogger("geekhub.billing")
type Handler = Callable[[Stripe, StripeEvent, datetime], None]


def _invoice(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    if event.object_id:  # an upcoming one has no id yet
        invoices.mirror(stripe, event.object_id, now=now)


def _subscription(stripe: Stripe, event: StripeEvent, now: datetime) -> None:
    mirror_subscription(stripe, event.object_id, now)


def mirror_subscription(stripe: Stripe, stripe_id: str, now: datetime) -> None:
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
        mirror_subscription(stripe, str(session.subscription), now)
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
        open_difference(
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
    open_difference("meter_error", key, codes, reason["error_count"], now)


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


def handler_of(kind: str) -> Handler | None:
    return next((work for begin, work in HANDLERS.items() if kind.startswith(begin)), None)
