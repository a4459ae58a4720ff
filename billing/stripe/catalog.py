"""The catalogue in Stripe: a product per sku; a meter and a price per price version.

    draft -> product, meter, price -> items on all running subscriptions -> active -> retired

A version that has no item of its own (`billing.stripe.sharing`) waits for the shared one's instead.
A version is quoted when Stripe can bill it, not before. Each object is an operation with a key of
its own, so this may stop anywhere, run again, and run on two hosts at once. Nothing that exists is
changed: another price is another version with objects of its own.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

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
from billing.models.prices import SHARED_SKU, UNIT
from billing.spending import prices as published
from billing.stripe import operations, subscriptions
from billing.stripe.client import Stripe, StripeFailure, is_connected
from billing.stripe.sharing import counting
from billing.stripe.writes import Product
from geekhub.lib import money
from geekhub.lib.moments import from_epoch
from geekhub.lib.money import MICRO_PER_CENT

# The longest that Stripe can hold back the last invoice of a subscription, and a day.
LAST_INVOICE = timedelta(days=4)
# Requests and Checkout pages that began with a version may go on for so long.
QUIET = timedelta(days=2)
UNSETTLED = (MeterState.PENDING, MeterState.SENDING, MeterState.UNCERTAIN)


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
    `names` are the skus' names for invoices. Raises ImproperlyConfigured as check_mode(), and
    PriceTooFine; then nothing was published.
    """
    check_mode()
    done = price_changes(prices)
    # The products are planned with the versions: whoever comes later knows what is to be made.
    with transaction.atomic():
        published.publish(prices, PriceState.DRAFT, counting=counting)
        for sku in [*prices, *_shared()]:
            product = Product(sku=sku, name=names.get(sku, sku))
            operations.plan("product", f"product:{sku}", **product)
    return done + resume(stripe, now) + retire(stripe, now)


def resume(stripe: Stripe, now: datetime) -> list[str]:
    """Go on with versions that Stripe does not have yet; return what was done, a line each.

    For the worker; there is nothing to do, and nothing is asked of Stripe, when all is done.
    """
    done = []
    for version in _unfinished():
        version.refresh_from_db()
        counter = version.counter
        if counter != version and counter.state == PriceState.DRAFT:
            done.append(f"{version}: waits for {counter}")
            continue
        try:
            if not counter.stripe_price:
                _make_objects(stripe, version, now)
                done.append(f"{version}: made in Stripe")
            if version.state == PriceState.DRAFT:
                lacking = subscriptions.add_items(stripe, counter, now)
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
        f"{version}: to be {'activated' if version.counter.stripe_price else 'made in Stripe'}"
        for version in _unfinished([*prices, *_shared()])
    ]


# --- What is to be made -------------------------------------------------------------------------


def _shared() -> list[str]:
    """Return the shared price's sku, once there is one."""
    return list(PriceVersion.objects.filter(sku=SHARED_SKU).values_list("sku", flat=True))


def _unfinished(skus: Collection[str] | None = None) -> list[PriceVersion]:
    """Return what is quoted and not in Stripe, and the newest drafts, each after what it follows.

    Of all skus that `sync` was told of, or of the ones that it would be.
    """
    if skus is None:
        skus = _products()
    versions = PriceVersion.objects.select_related("counted_in")
    known = versions.filter(sku__in=skus).order_by("version")
    quoted = {v.sku: v for v in known.filter(state=PriceState.ACTIVE)}
    newest = {v.sku: v for v in known}
    drafts = [v for v in newest.values() if v.state == PriceState.DRAFT]
    unmade = [v for v in quoted.values() if not v.counter.stripe_price]
    return sorted(unmade + drafts, key=lambda v: v.pk)


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
    events = MeterEvent.objects.filter(price_version=version.counter)
    if version.counted_in_id:
        of_version = Q(entries__ledger_entry__price_version=version)
        events = events.filter(of_version | Q(reissue_of__in=events.filter(of_version)))
    if _is_held(version) or unfrozen.exists() or events.filter(state__in=UNSETTLED).exists():
        return False
    last_event = events.aggregate(last=Max("timestamp"))["last"]
    last = max(follower.effective_from, last_event or follower.effective_from)
    if now < last + QUIET:
        return False
    carriers = Subscription.objects.filter(items__has_key=version.counter.stripe_price)
    return all(_has_billed(subscription, version.counter, last, now) for subscription in carriers)


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
