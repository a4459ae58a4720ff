"""An organization that Stripe bills: our rows and Stripe's objects, in step, and its usage."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.test import Client

from accounts import keys
from accounts.models import ApiKey, Organization
from billing.models import (
    BillingAccount,
    LedgerEntry,
    MeteredEntry,
    MeterEvent,
    MeterState,
    PriceVersion,
    Subscription,
)
from tests.billing import PRICES, authorize, capture
from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop, Sold
from tests.factories import OrganizationFactory

HOUR, DAY = 3600, 86_400
WEBHOOK = "/billing/webhooks/stripe"


def sell(shop: Shop, models: Iterable[str] = tuple(PRICES)) -> dict[str, Sold]:
    """Give each of our prices, or those of the models, its meter and price in Stripe."""
    made = {}
    for model in models:
        version = PriceVersion.objects.filter(sku=model).latest("version")
        thing = shop.sell(version.event_name, str(Decimal(version.unit_micro) / 10_000))
        PriceVersion.objects.filter(pk=version.pk).update(
            stripe_product=thing.product,
            stripe_meter=thing.meter,
            stripe_price=thing.price,
            livemode=False,
        )
        made[model] = thing
    return made


def drawn(key: ApiKey, model: str = "a/cheap", images: int = 1) -> LedgerEntry:
    """Have images drawn; return what the ledger has of it."""
    entry = capture(authorize(key, model, quantity=images), model=model, delivered=images)
    return LedgerEntry.objects.get(entry_key=entry.entry_key)


class Buyer:
    """An organization with a customer, a card and a subscription to everything that is sold."""

    def __init__(
        self, emulator: StripeEmulator, sold: dict[str, Sold], key: ApiKey | None = None
    ) -> None:
        self.emulator, self.shop, self.sold = emulator, Shop(emulator), sold
        self.key = key or keys.create(OrganizationFactory(), "prod-web").row
        self.organization: Organization = self.key.organization
        self.customer = self.shop.customer()
        BillingAccount.objects.filter(pk=self.organization.pk).update(stripe_customer=self.customer)
        self.subscription = self.shop.subscribe(self.customer, *sold.values()).id

    @property
    def now(self) -> datetime:
        """Stripe's time, which is the time of the test."""
        return datetime.fromtimestamp(self.emulator.clock.now, UTC)

    @property
    def account(self) -> BillingAccount:
        """The account as it is now."""
        return BillingAccount.objects.get(pk=self.organization.pk)

    def use(self, model: str, images: int) -> LedgerEntry:
        """Have images drawn, and Stripe told of them."""
        entry = drawn(self.key, model, images)
        self.meter(entry)
        return entry

    def meter(self, *entries: LedgerEntry, **fields: Any) -> MeterEvent:
        """One accepted event for these entries, sent."""
        first = entries[0]
        version = PriceVersion.objects.get(pk=first.price_version_id).counter
        values: dict[str, Any] = {
            "identifier": f"gh1:{first.pk}",
            "organization": self.organization,
            "price_version": version,
            "hour": self.now.replace(minute=0, second=0),
            "quantity": -sum(entry.amount_micro for entry in entries) // version.unit_micro,
            "timestamp": self.now,
            "state": MeterState.ACCEPTED,
            "next_at": self.now,
        }
        event = MeterEvent.objects.create(**(values | fields))
        MeteredEntry.objects.bulk_create(
            MeteredEntry(ledger_entry=entry, meter_event=event) for entry in entries
        )
        self.shop.use(
            self.customer, version.event_name, event.quantity, event.timestamp, event.identifier
        )
        return event

    def subscribed(self, status: str = "active", **fields: Any) -> Subscription:
        """Our copy of the subscription, for tests that do not make it by its events."""
        values = {
            "organization": self.organization,
            "status": status,
            "items": {},
            "period_start": self.now,
            "period_end": self.now,
            "fetched_at": self.now,
        }
        return Subscription.objects.create(stripe_id=self.subscription, **(values | fields))

    def end_month(self) -> str:
        """Let the period end; return the id of the draft that bills it."""
        found = self.shop.api.subscriptions.retrieve(self.subscription)
        self.emulator.clock.advance_to(found["items"].data[0].current_period_end)
        return self.latest()["id"]

    def collect(self) -> None:
        """Let the grace of the draft end: it is finalised, and the card is charged."""
        self.emulator.clock.advance(HOUR)

    def latest(self) -> dict[str, Any]:
        """The newest invoice, as Stripe has it."""
        mine = (i for i in self.emulator.objects("invoice") if i["customer"] == self.customer)
        return list(mine)[-1]


def deliver(emulator: StripeEmulator, *events: dict[str, Any], **headers: str) -> list[int]:
    """Post events to our webhook as Stripe signs them; return what we answer."""
    client = Client()
    statuses = []
    for event in events:
        body, signed = emulator.webhooks.signed(event)
        answer = client.post(
            WEBHOOK, body, content_type="application/json", headers={**signed, **headers}
        )
        statuses.append(answer.status_code)
    return statuses


def event(kind: str, about: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A snapshot event that no emulator made."""
    made = {
        "id": "evt_made",
        "object": "event",
        "created": 1_795_000_000,
        "data": {"object": about},
        "livemode": False,
        "type": kind,
    }
    return json.loads(json.dumps(made | fields))  # type: ignore[no-any-return]
