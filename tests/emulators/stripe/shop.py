"""A catalogue, customers and usage, made through the real SDK: what most tests start from."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import stripe

from tests.emulators.stripe import StripeEmulator

HTTP = stripe.RequestsClient(timeout=(3, 30))


@dataclass(frozen=True, slots=True)
class Sold:
    """One thing that is sold by the piece."""

    event_name: str
    meter: str
    product: str
    price: str


def connect(
    emulator: StripeEmulator, key: str | None = None, **options: Any
) -> stripe.StripeClient:
    """The unmodified SDK, pointed at the emulator. It does not retry unless configured to."""
    addresses: Any = {"api": emulator.url, "meter_events": emulator.url}
    options.setdefault("http_client", HTTP)
    return stripe.StripeClient(key or emulator.key, base_addresses=addresses, **options)


class Shop:
    """Makes things in an emulated account."""

    def __init__(self, emulator: StripeEmulator) -> None:
        self.emulator = emulator
        self.client = connect(emulator)
        self.api = self.client.v1

    def sell(self, event_name: str, cents: str, **more: Any) -> Sold:
        """A product with a meter and a monthly price of so many cents a piece."""
        meter = self.api.billing.meters.create(
            {
                "display_name": event_name,
                "event_name": event_name,
                "default_aggregation": {"formula": "sum"},
            }
        )
        product = self.api.products.create({"name": event_name})
        params: Any = {
            "currency": "usd",
            "product": product.id,
            "unit_amount_decimal": cents,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
            "lookup_key": event_name,
        }
        price = self.api.prices.create(params | more)
        return Sold(event_name, meter.id, product.id, price.id)

    def customer(self, card: str | None = "pm_card_visa", **fields: Any) -> str:
        """A customer, with a default card unless `card` is None."""
        params: Any = {"email": "ada@example.com"} | fields
        customer = self.api.customers.create(params)
        if card is not None:
            saved = self.api.payment_methods.attach(card, {"customer": customer.id})
            self.api.customers.update(
                customer.id, {"invoice_settings": {"default_payment_method": saved.id}}
            )
        return customer.id

    def subscribe(self, customer: str, *sold: Sold, **more: Any) -> stripe.Subscription:
        """A subscription to these things."""
        items = [{"price": thing.price} for thing in sold]
        params: Any = {"customer": customer, "items": items} | more
        return self.api.subscriptions.create(params)

    def use(
        self,
        customer: str,
        event_name: str,
        value: int | str,
        at: datetime | int | None = None,
        identifier: str | None = None,
    ) -> str:
        """One meter event; returns its identifier."""
        params: Any = {
            "event_name": event_name,
            "payload": {"stripe_customer_id": customer, "value": str(value)},
        }
        if at is not None:
            params["timestamp"] = int(at.timestamp()) if isinstance(at, datetime) else at
        if identifier is not None:
            params["identifier"] = identifier
        return self.api.billing.meter_events.create(params).identifier
