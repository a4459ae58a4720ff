"""Every kind of write to Stripe other than usage: how it is found again, and how it is made.

Each is planned and run by `billing.stripe.operations`, which knows it by its row in KINDS. What is
planned lies in the row's parameters.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypedDict

from django.db.models import Q

from billing.models import AccountStatus, BillingAccount, StripeOperation
from billing.stripe.client import Stripe, StripeRefused, plain
from geekhub.lib.money import MICRO_PER_CENT

# Under which name Stripe's products and prices have their sku: those that exist keep it.
METADATA = "model"
# The statuses of a subscription that has ended.
ENDED = ("canceled", "incomplete_expired")
# What our PaymentIntents and sessions say they are for.
BY_OWNER, AUTOMATIC = "recharge", "automatic_recharge"

Find = Callable[[Stripe, StripeOperation], str | None]
Make = Callable[[Stripe, StripeOperation, str], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of write is found again, and how it is made; both return the Stripe id."""

    find: Find
    make: Make


class Product(TypedDict):
    """The parameters of a product in Stripe, one for each SKU."""

    sku: str
    name: str


class Recharge(TypedDict):
    """The parameters of an automatic recharge; `day` is the UTC day whose cap it counts against."""

    customer: str
    card: str
    micro: int
    day: str


# --- The customer, and the card on file ----------------------------------------------------------


def _find_customer(stripe: Stripe, operation: StripeOperation) -> str | None:
    email = operation.parameters["email"]
    of_email = {"email": email} if email else {}
    for customer in stripe.each(stripe.v1.customers.list, **of_email):
        if plain(customer.metadata).get("organization") == str(operation.organization_id):
            return str(customer.id)
    return None


def _make_customer(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    made = stripe.call(
        stripe.v1.customers.create,
        {
            **({"email": wanted["email"]} if wanted["email"] else {}),
            "name": wanted["name"],
            "metadata": {"organization": str(operation.organization_id)},
        },
        key=key,
    )
    return made.id


def _make_default_card(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    settings = {"invoice_settings": {"default_payment_method": wanted["card"]}}
    stripe.call(stripe.v1.customers.update, wanted["customer"], settings, key=key)
    return str(wanted["card"])


# --- The catalogue: products, meters and prices --------------------------------------------------


def _or_found(make: Make, find: Find) -> Make:
    """Take what is there already and is exactly what would be made.

    It was made from another database, or by a call that came too late for its idempotency key.
    """

    def make_or_find(stripe: Stripe, operation: StripeOperation, key: str) -> str:
        try:
            return make(stripe, operation, key)
        except StripeRefused:
            if found := find(stripe, operation):
                return found
            raise

    return make_or_find


def _product_id(sku: str) -> str:
    return "geekhub_" + re.sub(r"[^A-Za-z0-9]", "-", sku)


def _find_product(stripe: Stripe, operation: StripeOperation) -> str | None:
    sku = operation.parameters["sku"]
    try:
        found = stripe.call(stripe.v1.products.retrieve, _product_id(sku))
    except StripeRefused as error:
        if error.missing:
            return None
        raise
    return found.id if plain(found.metadata).get(METADATA) == sku else None


def _make_product(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    sku = operation.parameters["sku"]
    wanted = {
        "id": _product_id(sku),
        "name": operation.parameters["name"],
        "metadata": {METADATA: sku},
    }
    return stripe.call(stripe.v1.products.create, wanted, key=key).id


def _find_meter(stripe: Stripe, operation: StripeOperation) -> str | None:
    wanted = operation.parameters
    for meter in stripe.each(stripe.v1.billing.meters.list):
        # The display name has the whole sku.
        if (meter.event_name, meter.display_name) == (wanted["event_name"], wanted["display_name"]):
            return str(meter.id)
    return None


def _make_meter(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters | {"default_aggregation": {"formula": "sum"}}
    return stripe.call(stripe.v1.billing.meters.create, wanted, key=key).id


def _find_price(stripe: Stripe, operation: StripeOperation) -> str | None:
    wanted = operation.parameters
    for price in stripe.each(stripe.v1.prices.list, lookup_keys=[wanted["lookup_key"]]):
        row: dict[str, Any] = plain(price)
        same_meter = (row["recurring"] or {}).get("meter") == wanted["meter"]
        if same_meter and Decimal(row["unit_amount_decimal"]) == Decimal(wanted["unit_cents"]):
            return str(row["id"])
    return None


def _make_price(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    recurring = {"interval": "month", "usage_type": "metered", "meter": wanted["meter"]}
    made = stripe.call(
        stripe.v1.prices.create,
        {
            "currency": "usd",
            "product": wanted["product"],
            "unit_amount_decimal": wanted["unit_cents"],
            "recurring": recurring,
            "lookup_key": wanted["lookup_key"],
            # Our prices are without tax; it can be said only once.
            "tax_behavior": "exclusive",
            "metadata": {METADATA: wanted["sku"], "version": str(wanted["version"])},
        },
        key=key,
    )
    return made.id


def _make_price_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    price = str(operation.parameters["object"])
    stripe.call(stripe.v1.prices.update, price, {"active": False}, key=key)
    return price


def _make_meter_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    meter = str(operation.parameters["object"])
    if stripe.call(stripe.v1.billing.meters.retrieve, meter).status == "active":
        stripe.call(stripe.v1.billing.meters.deactivate, meter, key=key)
    return meter


# --- Subscriptions and their items ---------------------------------------------------------------


def _find_cancelled(stripe: Stripe, operation: StripeOperation) -> str | None:
    name = operation.parameters["subscription"]
    found = stripe.call(stripe.v1.subscriptions.retrieve, name)
    return name if found.status in ENDED else None


def _make_cancelled(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    name = operation.parameters["subscription"]
    return stripe.call(stripe.v1.subscriptions.cancel, name, key=key).id


def _find_item(stripe: Stripe, operation: StripeOperation) -> str | None:
    wanted = operation.parameters
    rows = stripe.each(stripe.v1.subscription_items.list, subscription=wanted["subscription"])
    return next((str(row.id) for row in rows if row.price.id == wanted["price"]), None)


def _make_item(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    made = stripe.call(stripe.v1.subscription_items.create, operation.parameters, key=key)
    return made.id


def _make_item_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    item = str(operation.parameters["item"])
    try:
        # Without more said, Stripe bills what was used and not invoiced yet.
        stripe.call(stripe.v1.subscription_items.delete, item, key=key)
    except StripeRefused as error:
        if not error.missing:
            raise
    return item


# --- Money: recharges, credit, debts, credit notes -----------------------------------------------


def _find_recharge(stripe: Stripe, operation: StripeOperation) -> str | None:
    customer = {"customer": operation.parameters["customer"]}
    for intent in stripe.each(stripe.v1.payment_intents.list, **customer):
        if plain(intent)["metadata"].get("operation") == operation.key:
            return str(intent.id)
    return None


def _make_recharge(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    """Return the PaymentIntent, paid or declined: its status tells which, when it is settled.

    Nothing is made, and nothing returned, when the owner has ended automatic recharges since.
    """
    wanted = operation.parameters
    asked = BillingAccount.objects.filter(
        ~Q(status=AccountStatus.SUSPENDED), ~Q(recharge_below_micro=None)
    )
    if not asked.filter(pk=operation.organization_id).exists():
        return ""
    try:
        made = stripe.call(
            stripe.v1.payment_intents.create,
            {
                "amount": wanted["micro"] // MICRO_PER_CENT,
                "currency": "usd",
                "customer": wanted["customer"],
                "payment_method": wanted["card"],
                "off_session": True,
                "confirm": True,
                "description": "Geek Hub balance, automatic recharge",
                "metadata": {
                    "organization": str(operation.organization_id),
                    "operation": operation.key,
                    "micro": str(wanted["micro"]),
                    "kind": AUTOMATIC,
                },
            },
            key=key,
        )
    except StripeRefused as refusal:
        # 402: the bank said no, and the PaymentIntent stands there unpaid.
        found = _find_recharge(stripe, operation) if refusal.status == 402 else None
        if found is None:
            raise
        return found
    return str(made.id)


def _metadata(operation: StripeOperation) -> dict[str, str]:
    return {"operation": operation.key, "organization": str(operation.organization_id)}


def _ours(rows: Iterable[Any], operation: StripeOperation) -> str | None:
    for row in rows:
        if plain(row.metadata).get("operation") == operation.key:
            return str(row.id)
    return None


def _find_grant(stripe: Stripe, operation: StripeOperation) -> str | None:
    customer = operation.parameters["customer"]
    rows = stripe.each(stripe.v1.billing.credit_grants.list, customer=customer)
    return _ours(rows, operation)


def _make_grant(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    amount = {"currency": "usd", "value": wanted["cents"]}
    made = stripe.call(
        stripe.v1.billing.credit_grants.create,
        {
            "customer": wanted["customer"],
            "amount": {"type": "monetary", "monetary": amount},
            "applicability_config": {"scope": {"price_type": "metered"}},
            "category": wanted["category"],
            "name": wanted["name"],
            "metadata": _metadata(operation),
        },
        key=key,
    )
    return made.id


def _make_grant_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    name = str(operation.parameters["object"])
    credit = stripe.call(stripe.v1.billing.credit_grants.retrieve, name)
    if credit.voided_at is None and credit.expires_at is None:
        stripe.call(stripe.v1.billing.credit_grants.expire, name, key=key)
    return name


def _find_invoice_item(stripe: Stripe, operation: StripeOperation) -> str | None:
    customer = operation.parameters["customer"]
    return _ours(stripe.each(stripe.v1.invoice_items.list, customer=customer), operation)


def _make_invoice_item(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    made = stripe.call(
        stripe.v1.invoice_items.create,
        {
            "customer": wanted["customer"],
            "subscription": wanted["subscription"],
            "amount": wanted["cents"],
            "currency": "usd",
            "description": wanted["description"],
            "metadata": _metadata(operation),
        },
        key=key,
    )
    return made.id


def _make_invoice_item_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    name = str(operation.parameters["object"])
    try:
        item = stripe.call(stripe.v1.invoice_items.retrieve, name)
        if item.invoice is None:
            stripe.call(stripe.v1.invoice_items.delete, name, key=key)
    except StripeRefused as error:
        if not error.missing:
            raise
    return name


def _find_note(stripe: Stripe, operation: StripeOperation) -> str | None:
    invoice = operation.parameters["invoice"]
    return _ours(stripe.each(stripe.v1.credit_notes.list, invoice=invoice), operation)


def _make_note(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    # Whether it is paid is asked now, since it may have been paid after the note was planned.
    invoice = plain(stripe.call(stripe.v1.invoices.retrieve, wanted["invoice"]))
    to_customer = {"credit_amount": wanted["cents"]} if invoice["status"] == "paid" else {}
    made = stripe.call(
        stripe.v1.credit_notes.create,
        {
            "invoice": wanted["invoice"],
            "amount": wanted["cents"],
            "memo": wanted["memo"],
            "metadata": _metadata(operation),
            **to_customer,
        },
        key=key,
    )
    return made.id


def _make_again(stripe: Stripe, operation: StripeOperation) -> str | None:
    return None  # made a second time, it changes nothing: it looks first, or it sets what is set


KINDS: dict[str, Kind] = {
    "customer": Kind(_find_customer, _make_customer),
    "default_card": Kind(_make_again, _make_default_card),
    "product": Kind(_find_product, _or_found(_make_product, _find_product)),
    "meter": Kind(_find_meter, _or_found(_make_meter, _find_meter)),
    "meter_end": Kind(_make_again, _make_meter_end),
    "price": Kind(_find_price, _or_found(_make_price, _find_price)),
    "price_end": Kind(_make_again, _make_price_end),
    "cancel": Kind(_find_cancelled, _make_cancelled),
    "item": Kind(_find_item, _make_item),
    "item_end": Kind(_make_again, _make_item_end),
    "recharge": Kind(_find_recharge, _make_recharge),
    "credit_grant": Kind(_find_grant, _make_grant),
    "credit_grant_end": Kind(_make_again, _make_grant_end),
    "invoice_item": Kind(_find_invoice_item, _make_invoice_item),
    "invoice_item_end": Kind(_make_again, _make_invoice_item_end),
    "credit_note": Kind(_find_note, _make_note),
}
