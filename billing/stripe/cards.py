"""The card on file: given in Stripe's Checkout or portal, shown by us in two words.

Checkout saves a card for its subscription only. A recharge that nobody clicks charges the
customer's default card, so the first one is made that as well.
"""

from datetime import datetime

from accounts.models import Organization
from billing.models import BillingAccount
from billing.stripe import operations
from billing.stripe.client import Stripe, plain


def mirror(stripe: Stripe, customer: str, *, now: datetime, offered: str | None = None) -> None:
    """Copy which card is the customer's default one; raises StripeFailure.

    `offered`, a card of the customer, is made the default one if there is none.
    """
    account = BillingAccount.objects.filter(stripe_customer=customer).first()
    if account is None:
        return  # none of ours
    found = plain(stripe.call(stripe.v1.customers.retrieve, customer))
    if found.get("deleted"):
        brand, last4 = "", ""
    else:
        card = found["invoice_settings"]["default_payment_method"]
        if card is None and offered:
            card = _adopt(stripe, account.organization, customer, offered, now=now)
        brand, last4 = _shown(stripe, card) if card else ("", "")
    BillingAccount.objects.filter(pk=account.pk).update(card_brand=brand, card_last4=last4)


def _adopt(
    stripe: Stripe, organization: Organization, customer: str, card: str, *, now: datetime
) -> str:
    """Make a card of the customer its default one, once, and return it; raises StripeFailure."""
    operation = operations.plan(
        "default_card",
        f"default_card:{customer}:{card}",
        organization=organization,
        customer=customer,
        card=card,
    )
    return operations.run(stripe, operation, now=now)


def _shown(stripe: Stripe, card: str) -> tuple[str, str]:
    """Return a card's brand and last four digits, or the kind of another means of payment."""
    found = plain(stripe.call(stripe.v1.payment_methods.retrieve, card))
    if found["type"] != "card":
        return found["type"], ""
    return found["card"]["brand"], found["card"]["last4"]
