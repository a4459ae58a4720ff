"""Our copies of subscriptions, their items, and from when on usage is metered.

A subscription has an item for each sku's price, and one that others share
(`billing.stripe.sharing`). Where one is missing the organization has a
PriceException, made in the transaction that would otherwise have shown it the price; `repair` adds
the item, and the exception goes.

Metering opens when a subscription runs: from a ledger entry on, all consumption is Stripe's to
bill, and the balance as it stands then is told to Stripe as a credit or a debt. It closes when the
subscription has ended: what is consumed afterwards is between the balance and us, until the next
subscription tells Stripe that balance. So nothing is metered twice, and nothing is told twice.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max, Q, QuerySet
from django.utils import timezone

from accounts.models import Organization
from billing.metering import freeze
from billing.metering.freeze import RIPE_AFTER
from billing.models import (
    BillingAccount,
    EntryKind,
    LedgerEntry,
    OperationState,
    PriceException,
    PriceState,
    PriceVersion,
    StripeOperation,
    Subscription,
)
from billing.models.prices import SHARED_SKU
from billing.stripe import cards, credits, operations
from billing.stripe.client import Stripe, StripeFailure, StripeRefused, StripeUnknown, plain
from billing.stripe.writes import ENDED
from geekhub.lib.moments import from_epoch

RUNNING = ("active", "trialing", "past_due")
# What can still change the credit or the debt that Stripe knows of.
MONEY_KINDS = ("credit_grant", "invoice_item", "credit_note")


@dataclass(frozen=True, slots=True)
class Fetched:
    """Our copy of a subscription, and all that Stripe said of it when the copy was made."""

    copy: Subscription
    answer: Mapping[str, Any]


def live(organization: Organization) -> Subscription | None:
    """Return the organization's subscription that has not ended."""
    return Subscription.objects.filter(organization=organization, ended_at=None).first()


def sold() -> list[PriceVersion]:
    """Return what a new subscription has items for: the newest active version of each sku.

    The shared one too, and none that is counted in its units.
    """
    return [version for version in _quoted().values() if version.stripe_price]


def mirror(stripe: Stripe, stripe_id: str, *, now: datetime) -> Subscription | None:
    """Fetch a subscription and keep a copy; open or close metering as it says.

    None when Stripe has no such subscription, or its customer is none of ours. Raises
    StripeFailure.
    """
    seen = fetch(stripe, stripe_id, now=now)
    return None if seen is None else seen.copy


def fetch(stripe: Stripe, stripe_id: str, *, now: datetime) -> Fetched | None:
    """Do what mirror() does, and return Stripe's answer beside the copy of it.

    A second running subscription of an organization would bill the same usage again, and is
    cancelled.
    """
    while True:
        before = Subscription.objects.filter(stripe_id=stripe_id).first()
        fetched = _fetch(stripe, stripe_id)
        accounts = BillingAccount.objects.select_related("organization")
        account = fetched and accounts.filter(stripe_customer=fetched["customer"]).first()
        if not fetched or not account:
            return None
        if _is_second(stripe, fetched, account.organization, now=now):
            _cancel(stripe, stripe_id, account.organization, now=now)
            continue
        copy = _keep(before, fetched, account.organization)
        if copy is not None:
            break  # otherwise somebody else wrote what may be newer: fetch again
    if copy.ended_at is not None:
        _close(copy.organization)
    else:
        _open(stripe, copy, now=now)
        card = fetched["default_payment_method"]
        cards.mirror(stripe, account.stripe_customer, now=now, offered=card)
    return Fetched(copy, fetched)


def add_items(stripe: Stripe, version: PriceVersion, now: datetime) -> int:
    """Add a version's price to every subscription that lacks it; return how many still do.

    Raises StripeUnknown when nobody answers, which is no organization's fault.
    """
    lacking = Subscription.objects.filter(ended_at=None).exclude(
        items__has_key=version.stripe_price
    )
    return sum(not _add(stripe, copy, [version], now=now) for copy in lacking.order_by("pk"))


def activate(version: PriceVersion, *, now: datetime) -> bool:
    """Quote a draft from now on, except to organizations whose subscription has no item of it.

    Returns whether it was a draft until now, and the newest version.
    """
    with transaction.atomic():
        lock_prices()
        newer = PriceVersion.objects.filter(sku=version.sku, version__gt=version.version)
        draft = PriceVersion.objects.filter(pk=version.pk, state=PriceState.DRAFT)
        if newer.exists() or not draft.update(state=PriceState.ACTIVE, effective_from=now):
            return False
        lacking = Subscription.objects.filter(ended_at=None).exclude(
            items__has_key=version.counter.stripe_price
        )
        for copy in lacking.select_related("organization"):
            _settle_exceptions(copy.organization)
    return True


def lock_prices() -> None:
    """Let no price become active between looking at the prices and writing down who lacks which.

    For the rest of the transaction. Without it, a subscription that begins while a price is
    activated could miss both the item and the exception. Captures, which only refer to prices, do
    not wait.
    """
    locked = PriceVersion.objects.select_for_update(no_key=True)
    list(locked.exclude(state=PriceState.RETIRED).order_by("pk").values_list("pk"))


def repair(stripe: Stripe, now: datetime) -> int:
    """Add missing items, open and close what could not be so far; return how much was put right.

    For the worker. What fails is left to the next round.
    """
    repaired = 0
    for copy in Subscription.objects.filter(ended_at=None).select_related("organization"):
        missing = [version for version in sold() if version.stripe_price not in copy.items]
        waiting = BillingAccount.objects.filter(pk=copy.organization_id, metered_from=None)
        try:
            if missing:
                repaired += _add(stripe, copy, missing, now=now)
            elif waiting.exists():
                repaired += _open(stripe, copy, now=now)
        except StripeFailure:
            continue
    ended = BillingAccount.objects.filter(metered_from__isnull=False).exclude(
        organization__subscriptions__ended_at=None
    )
    for account in ended.select_related("organization"):
        repaired += _close(account.organization)
    return repaired


# --- The copy ---------------------------------------------------------------------------------


def _fetch(stripe: Stripe, stripe_id: str) -> dict[str, Any] | None:
    try:
        fetched: dict[str, Any] = plain(stripe.call(stripe.v1.subscriptions.retrieve, stripe_id))
        if fetched["items"]["has_more"]:
            items = stripe.each(stripe.v1.subscription_items.list, subscription=stripe_id)
            fetched["items"]["data"] = [plain(item) for item in items]
    except StripeRefused as error:
        if error.missing:
            return None
        raise
    return fetched


def _ended_at(fetched: Mapping[str, Any]) -> datetime | None:
    if fetched["status"] not in ENDED:
        return None
    return from_epoch(fetched["ended_at"] or fetched["canceled_at"] or fetched["created"])


def _keep(
    before: Subscription | None, fetched: Mapping[str, Any], organization: Organization
) -> Subscription | None:
    """Write the copy unless somebody wrote it since `before` was read, before the fetch.

    So what is kept is always from a fetch that began after the one it replaces.
    """
    items = fetched["items"]["data"]
    values = {
        "status": fetched["status"],
        "items": {item["price"]["id"]: [item["id"], item["created"]] for item in items},
        "period_start": from_epoch(min(item["current_period_start"] for item in items)),
        "period_end": from_epoch(max(item["current_period_end"] for item in items)),
        "cancels_at": from_epoch(fetched["cancel_at"]) if fetched["cancel_at"] else None,
        "ended_at": _ended_at(fetched),
        "fetched_at": timezone.now(),
    }
    try:
        with transaction.atomic():
            lock_prices()
            if before is None:
                copy = Subscription.objects.create(
                    stripe_id=fetched["id"], organization=organization, **values
                )
            else:
                unchanged = Subscription.objects.filter(pk=before.pk, fetched_at=before.fetched_at)
                if not unchanged.update(**values):
                    return None
                copy = Subscription.objects.get(pk=before.pk)
            _settle_exceptions(organization)
    except IntegrityError:
        written = Q(stripe_id=fetched["id"]) | Q(organization=organization, ended_at=None)
        if not Subscription.objects.filter(written).exists():
            raise  # no race: the row itself is refused
        return None
    return copy


def _is_second(
    stripe: Stripe, fetched: Mapping[str, Any], organization: Organization, *, now: datetime
) -> bool:
    if _ended_at(fetched) is not None:
        return False
    other = live(organization)
    if other is None or other.stripe_id == fetched["id"]:
        return False
    # It may have ended without our hearing of it.
    first = mirror(stripe, other.stripe_id, now=now)
    return first is not None and first.ended_at is None


def _cancel(stripe: Stripe, stripe_id: str, organization: Organization, *, now: datetime) -> None:
    operation = operations.plan(
        "cancel", f"cancel:{stripe_id}", organization=organization, subscription=stripe_id
    )
    operations.run(stripe, operation, now=now)


# --- Items ------------------------------------------------------------------------------------


def _quoted() -> dict[str, PriceVersion]:
    return {version.sku: version for version in _active()}


def _active() -> QuerySet[PriceVersion]:
    active = PriceVersion.objects.filter(state=PriceState.ACTIVE).select_related("counted_in")
    return active.order_by("version", "pk")


def _settle_exceptions(organization: Organization) -> None:
    """Write down which prices the organization's running subscription cannot bill."""
    copy = live(organization)
    kept: dict[str, PriceVersion | None] = {}
    if copy is not None:
        billable = {v.sku: v for v in _active() if v.counter.stripe_price in copy.items}
        for sku, version in _quoted().items():
            if sku != SHARED_SKU and billable.get(sku) != version:
                kept[sku] = billable.get(sku)
    exceptions = PriceException.objects.filter(organization=organization)
    exceptions.exclude(sku__in=kept).delete()
    for sku, older in kept.items():
        PriceException.objects.update_or_create(
            organization=organization,
            sku=sku,
            defaults={"price_version": older, "reason": "The subscription has no item for it yet"},
        )


def _add(
    stripe: Stripe, copy: Subscription, versions: Iterable[PriceVersion], *, now: datetime
) -> bool:
    """Add items and copy the subscription again; return whether it has all of them then."""
    wanted, tried = list(versions), False
    for version in wanted[: max(settings.STRIPE_SUBSCRIPTION_ITEMS - len(copy.items), 0)]:
        operation = operations.plan(
            "item",
            f"item:{copy.stripe_id}:{version.pk}",
            organization=copy.organization,
            subscription=copy.stripe_id,
            price=version.stripe_price,
        )
        if (
            operation.state != OperationState.DONE
            and operation.attempts
            and operation.next_at > now
        ):
            continue  # it has failed lately, or somebody is at it
        _reopen(operation)
        tried = True
        try:
            operations.run(stripe, operation, now=now)
        except StripeUnknown as error:
            if not error.answered:
                raise
        except StripeFailure:
            continue  # written down in the operation's row
    if not tried:
        return False
    again = mirror(stripe, copy.stripe_id, now=now)
    return again is None or all(version.stripe_price in again.items for version in wanted)


def _reopen(operation: StripeOperation) -> None:
    """Let what was refused be tried again: it may fit now that an old item has gone."""
    refused = StripeOperation.objects.filter(pk=operation.pk, state=OperationState.FAILED)
    if refused.update(state=OperationState.PENDING, idempotency_key=uuid.uuid4()):
        operation.refresh_from_db()


# --- From when on usage is metered ------------------------------------------------------------


def _open(stripe: Stripe, copy: Subscription, *, now: datetime) -> bool:
    """Begin to meter, and tell Stripe the balance as it stands; return whether that was done now.

    It waits while an invoice of an earlier subscription is a draft or unpaid: that part of the
    balance is being collected, and would be told a second time. Usage in between is not metered;
    the balance has it.
    """
    account = BillingAccount.objects.get(pk=copy.organization_id)
    if account.metered_from is not None or copy.status not in RUNNING:
        return False
    earlier = Subscription.objects.filter(organization=copy.organization).exclude(pk=copy.pk)
    if earlier.exists() and _still_collected(stripe, copy, account.stripe_customer):
        return False
    return _tell_balance(copy)


def _still_collected(stripe: Stripe, copy: Subscription, customer: str) -> bool:
    for status in ("draft", "open"):
        for row in stripe.each(stripe.v1.invoices.list, customer=customer, status=status):
            details = (plain(row.parent) or {}).get("subscription_details") or {}
            if details.get("subscription") != copy.stripe_id:
                return True
    return False


def _tell_balance(copy: Subscription) -> bool:
    with transaction.atomic():
        # Captures lock this row too: all consumption is before the mark, or after it.
        account = BillingAccount.objects.select_for_update().get(pk=copy.organization_id)
        running = Subscription.objects.filter(pk=copy.pk, status__in=RUNNING, ended_at=None)
        money = StripeOperation.objects.filter(
            organization=copy.organization, kind__in=MONEY_KINDS, state=OperationState.PENDING
        )
        if account.metered_from is not None or not running.exists() or money.exists():
            return False
        entries = LedgerEntry.objects.filter(organization=copy.organization)
        last = entries.aggregate(last=Max("pk"))["last"] or 0
        BillingAccount.objects.filter(pk=account.pk).update(metered_from=last, frozen_through=last)
        credits.withdraw(copy.organization)
        key = f"opening:{copy.stripe_id}"
        if account.balance_micro > 0:
            credits.grant(
                copy.organization, account.balance_micro, key=key, name="Balance brought forward"
            )
        else:
            credits.charge(
                copy.organization,
                -account.balance_micro,
                key=key,
                description="Balance brought forward",
                subscription=copy.stripe_id,
            )
    return True


def _close(organization: Organization) -> bool:
    """End metering once all hours up to the end are frozen; return whether that was done now.

    A part of an hour before the end is left out: only who is cancelled in the middle of an hour has
    one, and no invoice would carry it. The balance has it, and is told when metering opens again.
    """
    last = Subscription.objects.filter(organization=organization).order_by("-ended_at").first()
    if last is None or last.ended_at is None or live(organization):
        return False
    over = last.ended_at.replace(minute=0, second=0, microsecond=0)
    freeze.freeze(now=over + RIPE_AFTER, organization=organization)
    with transaction.atomic():
        account = BillingAccount.objects.select_for_update().get(pk=organization.pk)
        waiting = LedgerEntry.objects.filter(
            organization=organization,
            kind=EntryKind.CONSUMPTION,
            pk__gt=account.frozen_through,
            created_at__lt=over,
        )
        if account.metered_from is None or waiting.exists() or live(organization):
            return False
        BillingAccount.objects.filter(pk=account.pk).update(metered_from=None)
    return True
