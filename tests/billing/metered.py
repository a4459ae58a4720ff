"""Usage that Stripe bills, for tests: organizations with a subscription, and images they drew."""

import itertools
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.db.models import F, Max, Sum
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import (
    BillingAccount,
    EntryKind,
    Hold,
    HoldState,
    Invoice,
    LedgerEntry,
    MeterEvent,
    MeterState,
    PriceVersion,
    Subscription,
)
from geekhub.lib.ids import new_request_id
from tests.emulators.stripe import Request, StripeEmulator
from tests.emulators.stripe.shop import Shop, Sold
from tests.factories import KeyFactory

_numbers = itertools.count()


def moment(seconds: float) -> datetime:
    """Return Stripe's time as a datetime."""
    return datetime.fromtimestamp(seconds, UTC)


@dataclass(frozen=True, slots=True)
class Metered:
    """What is sold in an emulated account, and to whom."""

    emulator: StripeEmulator
    shop: Shop
    sold: dict[int, Sold]

    @property
    def now(self) -> datetime:
        """The emulator's time."""
        return moment(self.emulator.clock.time)

    def advance(self, **by: float) -> datetime:
        """Let time pass for Stripe, and return the time then."""
        self.emulator.clock.advance(timedelta(**by).total_seconds())
        return self.now

    def customer(self, *, bonus: str = "10", models: Sequence[str] = ()) -> ApiKey:
        """Return a key of a new organization with a subscription to the models, all by default."""
        key = KeyFactory(organization__bonus=bonus).row
        customer = self.shop.customer()
        BillingAccount.objects.filter(organization=key.organization).update(
            stripe_customer=customer,
            metered_from=LedgerEntry.objects.aggregate(last=Max("pk"))["last"] or 0,
        )
        versions = PriceVersion.objects.filter(pk__in=self.sold)
        if models:
            versions = versions.filter(sku__in=models)
        self.shop.subscribe(customer, *(self.sold[version.pk] for version in versions))
        self.mirror(customer)
        return key

    @transaction.atomic
    def mirror(self, *customers: str) -> None:
        """Copy subscriptions and invoices into our rows, of the customers that are named or all."""

        def objects(kind: str) -> list[dict[str, Any]]:
            found = self.emulator.objects(kind)
            return [one for one in found if not customers or one["customer"] in customers]

        for found in objects("subscription"):
            account = BillingAccount.objects.get(stripe_customer=found["customer"])
            items = found["items"]["data"]
            Subscription.objects.update_or_create(
                stripe_id=found["id"],
                defaults={
                    "organization": account.organization,
                    "status": found["status"],
                    "items": {item["price"]["id"]: [item["id"], item["created"]] for item in items},
                    "period_start": moment(min(item["current_period_start"] for item in items)),
                    "period_end": moment(max(item["current_period_end"] for item in items)),
                    "ended_at": moment(found["ended_at"]) if found["ended_at"] else None,
                    "fetched_at": self.now,
                },
            )
        for found in objects("invoice"):
            account = BillingAccount.objects.get(stripe_customer=found["customer"])
            cents = ("subtotal", "total", "amount_due", "amount_paid")
            Invoice.objects.update_or_create(
                stripe_id=found["id"],
                defaults={
                    "organization": account.organization,
                    "status": found["status"],
                    "billing_reason": found["billing_reason"],
                    "currency": found["currency"],
                    "period_start": moment(found["period_start"]),
                    "period_end": moment(found["period_end"]),
                    "tax_cents": 0,
                    **{f"{name}_cents": found[name] for name in cents},
                    "lines": [],
                    "created": moment(found["created"]),
                    "fetched_at": self.now,
                },
            )

    def total(self, key: ApiKey, model: str = "a/cheap") -> int:
        """Return what Stripe counts for the key's organization on a model's meters."""
        account = BillingAccount.objects.get(organization=key.organization)
        names = [
            version.event_name for version in PriceVersion.objects.filter(sku=model).order_by()
        ]
        totals = (self.emulator.meter_total(account.stripe_customer, name) for name in names)
        return int(sum(totals, Decimal(0)))

    def sent(self) -> list[Request]:
        """Return every meter event that reached Stripe, in order."""
        return [one for one in self.emulator.requests if one.path == "/v1/billing/meter_events"]

    def times_sent(self) -> Counter[str]:
        """Return how often each identifier reached Stripe."""
        return Counter(one.params["identifier"] for one in self.sent())


def sell(emulator: StripeEmulator) -> Metered:
    """Return what is sold: every price version, with a product, meter and price of its own."""
    shop = Shop(emulator)
    sold = {}
    for version in PriceVersion.objects.order_by("pk"):
        thing = shop.sell(version.event_name, str(Decimal(version.unit_micro) / 10_000))
        sold[version.pk] = thing
        PriceVersion.objects.filter(pk=version.pk).update(
            stripe_product=thing.product,
            stripe_meter=thing.meter,
            stripe_price=thing.price,
            livemode=emulator.livemode,
        )
    return Metered(emulator, shop, sold)


def use(
    key: ApiKey, quantity: int = 1, *, at: datetime | None = None, model: str = "a/cheap"
) -> LedgerEntry:
    """Spend on images as a capture does, but at any time."""
    version = PriceVersion.objects.filter(sku=model).latest("version")
    micro = quantity * version.unit_micro
    at = at or timezone.now()
    with transaction.atomic():
        BillingAccount.objects.filter(organization=key.organization).update(
            balance_micro=F("balance_micro") - micro, spent_micro=F("spent_micro") + micro
        )
        hold = Hold.objects.create(
            organization=key.organization,
            api_key=key,
            request_id=new_request_id(),
            quantity=quantity,
            amount_micro=micro,
            quotes={model: [version.pk, version.unit_micro]},
            captured=quantity,
            state=HoldState.CAPTURED,
            owner=uuid.uuid4(),
            lease_until=at,
            settled_at=at,
        )
        return LedgerEntry.objects.create(
            organization=key.organization,
            entry_key=f"use:{hold.pk}:{next(_numbers)}",
            kind=EntryKind.CONSUMPTION,
            amount_micro=-micro,
            price_version=version,
            sku=model,
            quantity=quantity,
            hold=hold,
            api_key=key,
            request_id=hold.request_id,
            created_at=at,
        )


def used(key: ApiKey, model: str = "a/cheap") -> int:
    """Return how many images of a model the ledger says the organization has used."""
    entries = LedgerEntry.objects.filter(
        organization=key.organization, kind=EntryKind.CONSUMPTION, sku=model
    )
    return int(entries.aggregate(sum=Sum("quantity", default=0))["sum"])


def states() -> Counter[str]:
    """Return how many meter events are in which state."""
    return Counter(MeterEvent.objects.values_list("state", flat=True))


def at_rest() -> bool:
    """Return whether no meter event is on its way."""
    return not MeterEvent.objects.filter(
        state__in=[MeterState.PENDING, MeterState.SENDING, MeterState.UNCERTAIN]
    ).exists()
