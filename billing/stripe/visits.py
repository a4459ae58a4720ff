"""Ways to Stripe's own pages, and back: what a person did there is known at once.

The webhook tells the same, sooner or later; whoever comes first writes it, and the other finds it
written.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from accounts import audit
from accounts.models import Organization, User
from billing.models import BillingAccount
from billing.stripe import cards, customers, recharges, subscriptions
from billing.stripe.client import Stripe, StripeRefused, plain
from billing.stripe.customers import AlreadySubscribed
from geekhub.lib.money import MICRO_PER_CENT


class NotTheirs(Exception):
    """The organization has no such session in Stripe."""


class Came(StrEnum):
    """What somebody comes back from."""

    PAID = "paid"
    PENDING = "pending"
    UNPAID = "unpaid"
    SUBSCRIBED = "subscribed"


@dataclass(frozen=True, slots=True)
class Visit:
    """How a visit to Stripe's payment page ended; the amount, without tax, is micro-USD."""

    came: Came
    micro: int = 0


def to_card(
    stripe: Stripe,
    organization: Organization,
    success_url: str,
    back_url: str,
    actor: User,
    *,
    now: datetime,
) -> str:
    """Return the page where a card is given; who has a subscription changes it in the portal.

    Raises NothingToSell or StripeFailure.
    """
    try:
        url = customers.card_checkout(stripe, organization, success_url, back_url, now)
    except AlreadySubscribed:
        return to_portal(stripe, organization, back_url, actor)
    audit.record("billing.card_begun", organization=organization, actor=actor)
    return url


def to_portal(stripe: Stripe, organization: Organization, back_url: str, actor: User) -> str:
    """Return a short-lived page of Stripe's portal. Raises NoCustomer or StripeFailure."""
    url = customers.portal(stripe, organization, back_url)
    audit.record("billing.portal_opened", organization=organization, actor=actor)
    return url


def from_checkout(
    stripe: Stripe, organization: Organization, session_id: str, *, now: datetime
) -> Visit:
    """Copy what the organization's Checkout session came to. Raises NotTheirs or StripeFailure."""
    customer = BillingAccount.objects.get(pk=organization.pk).stripe_customer
    try:
        session = plain(stripe.call(stripe.v1.checkout.sessions.retrieve, session_id))
    except StripeRefused as error:
        if error.missing:
            raise NotTheirs(session_id) from error
        raise
    if not customer or session["customer"] != customer:
        raise NotTheirs(session_id)
    if session["mode"] == "subscription" and session["subscription"]:
        subscriptions.mirror(stripe, session["subscription"], now=now)
        return Visit(Came.SUBSCRIBED)
    if session["mode"] != "payment" or session["status"] != "complete":
        return Visit(Came.UNPAID)
    if session["payment_status"] != "paid":
        return Visit(Came.PENDING)
    recharges.completed(stripe, session_id, now=now)
    tax = (session["total_details"] or {}).get("amount_tax") or 0
    return Visit(Came.PAID, (session["amount_total"] - tax) * MICRO_PER_CENT)


def from_portal(stripe: Stripe, organization: Organization, *, now: datetime) -> None:
    """Copy what may have been changed in the portal: card, subscription. Raises StripeFailure."""
    account = BillingAccount.objects.get(pk=organization.pk)
    if running := subscriptions.live(organization):
        subscriptions.mirror(stripe, running.stripe_id, now=now)
    if account.stripe_customer:
        cards.mirror(stripe, account.stripe_customer, now=now)
