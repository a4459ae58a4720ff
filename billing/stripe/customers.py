"""Who pays in Stripe: one customer per organization, and the pages Stripe has for it."""

from datetime import UTC, datetime, timedelta

from django.conf import settings

from accounts.models import Membership, Organization, Role
from billing.models import BillingAccount
from billing.stripe import operations, subscriptions
from billing.stripe.client import Stripe, StripeRefused

# Stripe keeps a Checkout session between 30 minutes and a day; a minute for the way there.
SHORTEST_CHECKOUT, LONGEST_CHECKOUT = timedelta(minutes=31), timedelta(hours=23)


class AlreadySubscribed(Exception):
    """The organization has a running subscription: its card is changed in the portal."""


class NothingToSell(Exception):
    """No price is in Stripe yet: `sync_catalog` has to come first."""


class NoCustomer(Exception):
    """The organization is not known to Stripe yet: a card has to come first."""


def ensure(stripe: Stripe, organization: Organization, *, now: datetime) -> str:
    """Return the id of the organization's customer, made if need be, once; raises StripeFailure."""
    account = BillingAccount.objects.get(pk=organization.pk)
    if account.stripe_customer:
        return account.stripe_customer
    operation = operations.plan(
        "customer",
        f"customer:{organization.pk}",
        organization=organization,
        email=_owners_email(organization),
        name=organization.name,
    )
    customer = operations.run(stripe, operation, now=now)
    unknown = BillingAccount.objects.filter(pk=organization.pk, stripe_customer="")
    unknown.update(stripe_customer=customer)
    return customer


def card_checkout(
    stripe: Stripe, organization: Organization, success_url: str, cancel_url: str, now: datetime
) -> str:
    """Return the URL of Stripe's page where a card is given and the subscription begins.

    The page before it is closed, so that two open tabs do not subscribe twice. The subscription
    turns over at 00:00 UTC on the first, where no hour of usage is in two periods.
    Raises AlreadySubscribed, NothingToSell or StripeFailure.
    """
    if subscriptions.live(organization):
        raise AlreadySubscribed
    versions = subscriptions.sold()[: settings.STRIPE_SUBSCRIPTION_ITEMS]
    if not versions:
        raise NothingToSell
    customer = ensure(stripe, organization, now=now)
    _close_checkouts(stripe, customer)
    # Our copy may not know yet what was begun a second ago.
    for begun in stripe.each(stripe.v1.subscriptions.list, customer=customer):
        found = subscriptions.mirror(stripe, begun.id, now=now)
        if found and found.ended_at is None:
            raise AlreadySubscribed
    anchor = next_month(now)
    metadata = {"organization": str(organization.pk)}
    session = stripe.call(
        stripe.v1.checkout.sessions.create,
        {
            "mode": "subscription",
            "customer": customer,
            "line_items": [{"price": version.stripe_price} for version in versions],
            "payment_method_collection": "always",
            "success_url": success_url,
            "cancel_url": cancel_url,
            # An anchor that has passed is refused, so the page ends with the month; in its last
            # half hour Stripe keeps it longer than that, and a customer may have to begin again.
            "expires_at": int((now + _lifetime(anchor - now)).timestamp()),
            "metadata": metadata,
            "subscription_data": {
                "billing_cycle_anchor": int(anchor.timestamp()),
                "metadata": metadata,
            },
        },
    )
    return str(session.url)


def portal(stripe: Stripe, organization: Organization, return_url: str) -> str:
    """Return a short-lived URL of Stripe's portal: card, tax id, invoices, cancelling.

    Whoever has it is the customer: redirect to it, never store or log it.
    Raises NoCustomer or StripeFailure.
    """
    customer = BillingAccount.objects.get(pk=organization.pk).stripe_customer
    if not customer:
        raise NoCustomer
    session = stripe.call(
        stripe.v1.billing_portal.sessions.create,
        {"customer": customer, "return_url": return_url},
    )
    return session.url


def next_month(now: datetime) -> datetime:
    """Return the next first of a month, 00:00 UTC."""
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)


def _lifetime(left: timedelta) -> timedelta:
    return min(max(left, SHORTEST_CHECKOUT), LONGEST_CHECKOUT)


def _close_checkouts(stripe: Stripe, customer: str) -> None:
    opened = stripe.each(stripe.v1.checkout.sessions.list, customer=customer, status="open")
    for session in opened:
        if session.mode != "subscription":
            continue
        try:
            stripe.call(stripe.v1.checkout.sessions.expire, session.id)
        except StripeRefused:
            continue  # it was completed meanwhile, which its subscription tells


def _owners_email(organization: Organization) -> str:
    owners = Membership.objects.filter(organization=organization, role=Role.OWNER)
    first = owners.select_related("user").order_by("pk").first()
    return first.user.email if first else ""
