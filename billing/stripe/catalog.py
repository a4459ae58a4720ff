"""The catalogue in Stripe: a product per sku; a meter and a price per price version.

    draft -> product, meter, price -> items on all running subscriptions -> active -> retired

A version is quoted when Stripe can bill it, not before. Each object is an operation with a key of
its own, so this may stop anywhere, run again, and run on two hosts at once. Nothing that exists is
changed: another price is another version with objects of its own.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypedDict

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import F, Max, Q

from billing.models import (
    Hold,
    HoldState,
    Invoice,
    LedgerEntry,
    MeterEvent,
    MeterState,
    PriceException,
    PriceState,
    PriceVersion,
    StripeOperation,
    Subscription,
)
from billing.models.prices import UNIT
from billing.spending import prices as published
from billing.stripe import operations, subscriptions
from billing.stripe.client import Stripe, StripeFailure, StripeRefused, is_connected, plain
from billing.stripe.operations import KINDS, Kind
from geekhub.lib import money
from geekhub.lib.moments import from_epoch
from geekhub.lib.money import MICRO_PER_CENT

# The longest that Stripe can hold back the last invoice of a subscription, and a day.
LAST_INVOICE = timedelta(days=4)
# Requests and Checkout pages that began with a version may go on for so long.
QUIET = timedelta(days=2)
# Under which name Stripe's products and prices have their sku: those that exist keep it.
METADATA = "model"
UNSETTLED = (MeterState.PENDING, MeterState.SENDING, MeterState.UNCERTAIN)


class Product(TypedDict):
    """The parameters of a product in Stripe, one for each SKU."""

    sku: str
    name: str


def check_mode() -> None:
    """Refuse a live key beside a test catalogue, or the other way: raises ImproperlyConfigured."""
    if not is_connected():
        return
    live = settings.STRIPE_LIVEMODE
    if PriceVersion.objects.filter(livemode=not live).exists():
        ours, theirs = ("live", "test") if live else ("test", "live")
        raise ImproperlyConfigured(
            f"STRIPE_SECRET_KEY is a {ours} key, but the prices of this database have their "
            f"objects in Stripe's {theirs} mode"
        )


def sync(
    stripe: Stripe, prices: Mapping[str, int], *, now: datetime, names: Mapping[str, str]
) -> list[str]:
    """Publish the prices (micro-USD by sku) and bring them to Stripe; return what was done.

    What Stripe does not answer is said and left to `resume`; until then the old price counts.
    `names` are the skus' names for invoices. Raises ImproperlyConfigured as check_mode().
    """
    check_mode()
    done = price_changes(prices)
    # The products are planned with the versions: whoever comes later knows what is to be made.
    with transaction.atomic():
        published.publish(prices, PriceState.DRAFT)
        for sku in prices:
            product = Product(sku=sku, name=names.get(sku, sku))
            operations.plan("product", f"product:{sku}", **product)
    return done + resume(stripe, now) + retire(stripe, now)


def resume(stripe: Stripe, now: datetime) -> list[str]:
    """Go on with versions that Stripe does not have yet; return what was done, a line each.

    For the worker; there is nothing to do, and nothing is asked of Stripe, when all is done.
    """
    done = []
    for version in _unfinished():
        try:
            if not version.stripe_price:
                _make_objects(stripe, version, now)
                done.append(f"{version}: made in Stripe")
            if version.state == PriceState.DRAFT:
                lacking = subscriptions.add_items(stripe, version, now)
                if subscriptions.activate(version, now=now):
                    without = f", {lacking} subscriptions without it" if lacking else ""
                    done.append(f"{version}: active{without}")
        except StripeFailure as error:
            done.append(f"{version}: waits for Stripe: {error}")
    return done


def retire(stripe: Stripe, now: datetime) -> list[str]:
    """Take versions that no invoice can carry any more out of Stripe; return them, a line each.

    Its item makes room on the subscriptions, and its price and meter are switched off. What fails
    is left to the next time.
    """
    done = []
    for version in PriceVersion.objects.exclude(state=PriceState.RETIRED).order_by("pk"):
        if not _is_over(version, now):
            continue
        try:
            _remove_objects(stripe, version, now)
        except StripeFailure as error:
            done.append(f"{version}: still in Stripe: {error}")
            continue
        PriceVersion.objects.filter(pk=version.pk, state=version.state).update(
            state=PriceState.RETIRED
        )
        done.append(f"{version}: retired")
    return done


def price_changes(prices: Mapping[str, int]) -> list[str]:
    """Return how the prices differ from the published ones, a line each."""
    return [
        f"{sku}: {'new' if before is None else money.to_usd(before)} -> "
        f"{money.to_usd(after)} USD per {UNIT}"
        for sku, (before, after) in sorted(published.pending(prices).items())
    ]


def pending(prices: Mapping[str, int]) -> list[str]:
    """Return what sync() would do, a line each, without asking Stripe."""
    return price_changes(prices) + [
        f"{version}: to be {'activated' if version.stripe_price else 'made in Stripe'}"
        for version in _unfinished(prices)
    ]


# --- What is to be made -------------------------------------------------------------------------


def _unfinished(skus: Collection[str] | None = None) -> list[PriceVersion]:
    """Return what is quoted and not in Stripe, and the newest drafts, each after what it follows.

    Of all skus that `sync` was told of, or of the ones that it would be.
    """
    if skus is None:
        skus = _products()
    known = PriceVersion.objects.filter(sku__in=skus).order_by("version")
    quoted = {v.sku: v for v in known.filter(state=PriceState.ACTIVE)}
    newest = {v.sku: v for v in known}
    drafts = [v for v in newest.values() if v.state == PriceState.DRAFT]
    return sorted([v for v in quoted.values() if not v.stripe_price] + drafts, key=lambda v: v.pk)


def _products() -> set[str]:
    """Return the SKUs that have a product in Stripe, or are to have one."""
    planned = StripeOperation.objects.filter(kind="product")
    rows: Iterable[Product] = planned.values_list("parameters", flat=True)
    return {product["sku"] for product in rows}


def _make_objects(stripe: Stripe, version: PriceVersion, now: datetime) -> None:
    same_mode = PriceVersion.objects.filter(
        Q(livemode=None) | Q(livemode=stripe.livemode), pk=version.pk
    )
    if not same_mode.update(livemode=stripe.livemode):
        raise ImproperlyConfigured(f"{version} has its objects in Stripe's other mode")
    product = StripeOperation.objects.get(key=f"product:{version.sku}")
    version.stripe_product = operations.run(stripe, product, now=now)
    meter = operations.plan(
        "meter", f"meter:{version.pk}", event_name=version.event_name, display_name=str(version)
    )
    version.stripe_meter = operations.run(stripe, meter, now=now)
    price = operations.plan(
        "price",
        f"price:{version.pk}",
        product=version.stripe_product,
        meter=version.stripe_meter,
        lookup_key=f"geekhub_{version.event_name}",
        unit_cents=f"{Decimal(version.unit_micro) / MICRO_PER_CENT:f}",
        sku=version.sku,
        version=version.version,
    )
    version.stripe_price = operations.run(stripe, price, now=now)
    version.save(update_fields=["stripe_product", "stripe_meter", "stripe_price"])


# --- What is over -------------------------------------------------------------------------------


def _is_over(version: PriceVersion, now: datetime) -> bool:
    """Whether nobody can be quoted the version any more, and every invoice of it is final."""
    newer = PriceVersion.objects.filter(sku=version.sku, version__gt=version.version)
    if version.state == PriceState.DRAFT:
        # Nobody was ever quoted it; and from here on nobody will be, since it is not the newest.
        with transaction.atomic():
            subscriptions.lock_prices()
            draft = PriceVersion.objects.filter(pk=version.pk, state=PriceState.DRAFT)
            return draft.exists() and newer.exists()
    follower = newer.filter(state=PriceState.ACTIVE).order_by("version").first()
    if follower is None or PriceException.objects.filter(price_version=version).exists():
        return False
    used = LedgerEntry.objects.filter(price_version=version)
    unfrozen = used.filter(
        organization__billing_account__metered_from__isnull=False,
        pk__gt=F("organization__billing_account__frozen_through"),
    )
    events = MeterEvent.objects.filter(price_version=version)
    if _is_held(version) or unfrozen.exists() or events.filter(state__in=UNSETTLED).exists():
        return False
    last_event = events.aggregate(last=Max("timestamp"))["last"]
    last = max(follower.effective_from, last_event or follower.effective_from)
    if now < last + QUIET:
        return False
    carriers = Subscription.objects.filter(items__has_key=version.stripe_price)
    return all(_has_billed(subscription, version, last, now) for subscription in carriers)


def _is_held(version: PriceVersion) -> bool:
    held = Hold.objects.filter(state=HoldState.HELD).values_list("quotes", flat=True)
    return any(quote[0] == version.pk for quotes in held for quote in quotes.values())


def _has_billed(
    subscription: Subscription, version: PriceVersion, last: datetime, now: datetime
) -> bool:
    """Whether the invoice that carries the version's usage of that moment is final."""
    invoices = Invoice.objects.filter(organization=subscription.organization_id)
    if invoices.filter(status="draft").exists():
        return False
    if subscription.ended_at is not None:
        return subscription.ended_at + LAST_INVOICE < now
    added = from_epoch(subscription.items[version.stripe_price][1])
    return added > last or invoices.filter(period_start__lte=last, period_end__gt=last).exists()


def _remove_objects(stripe: Stripe, version: PriceVersion, now: datetime) -> None:
    if not version.stripe_price:
        return
    running = Subscription.objects.filter(ended_at=None, items__has_key=version.stripe_price)
    for subscription in running.select_related("organization"):
        removal = operations.plan(
            "item_end",
            f"item_end:{subscription.stripe_id}:{version.pk}",
            organization=subscription.organization,
            item=subscription.items[version.stripe_price][0],
        )
        operations.run(stripe, removal, now=now)
        subscriptions.mirror(stripe, subscription.stripe_id, now=now)
    for kind, name in (("price_end", version.stripe_price), ("meter_end", version.stripe_meter)):
        operations.run(stripe, operations.plan(kind, f"{kind}:{version.pk}", object=name), now=now)


# --- How each is made, and found again ----------------------------------------------------------

Make = Callable[[Stripe, StripeOperation, str], str]
Find = Callable[[Stripe, StripeOperation], str | None]


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


def _look_again(stripe: Stripe, operation: StripeOperation) -> str | None:
    return None  # making it looks first whether it is made


def _make_item_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    item = str(operation.parameters["item"])
    try:
        # Without more said, Stripe bills what was used and not invoiced yet.
        stripe.call(stripe.v1.subscription_items.delete, item, key=key)
    except StripeRefused as error:
        if not error.missing:
            raise
    return item


def _make_price_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    price = str(operation.parameters["object"])
    stripe.call(stripe.v1.prices.update, price, {"active": False}, key=key)
    return price


def _make_meter_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    meter = str(operation.parameters["object"])
    if stripe.call(stripe.v1.billing.meters.retrieve, meter).status == "active":
        stripe.call(stripe.v1.billing.meters.deactivate, meter, key=key)
    return meter


KINDS["product"] = Kind(find=_find_product, make=_or_found(_make_product, _find_product))
KINDS["meter"] = Kind(find=_find_meter, make=_or_found(_make_meter, _find_meter))
KINDS["price"] = Kind(find=_find_price, make=_or_found(_make_price, _find_price))
KINDS["item_end"] = Kind(find=_look_again, make=_make_item_end)
KINDS["price_end"] = Kind(find=_look_again, make=_make_price_end)
KINDS["meter_end"] = Kind(find=_look_again, make=_make_meter_end)
