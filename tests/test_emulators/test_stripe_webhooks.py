"""Webhooks: signatures, rotation, and deliveries that are doubled, reordered, delayed or lost."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import stripe

from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
# Long: a test that passes does not wait.
WAIT_SECONDS = 60


class Receiver:
    """An endpoint of ours that keeps what arrives."""

    def __init__(self) -> None:
        self.status = 200
        self.arrived: list[tuple[bytes, str]] = []
        self.came = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.arrived.append((body, self.headers["Stripe-Signature"]))
                self.send_response(receiver.status)
                self.end_headers()
                receiver.came.set()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def types(self, *secrets: str) -> list[str]:
        """The types of the events that arrived, each verified."""
        return [
            stripe.Webhook.construct_event(body, signature, secret).type
            for (body, signature) in self.arrived
            for secret in secrets
        ]


@pytest.fixture(scope="module")
def server() -> Iterator[StripeEmulator]:
    with StripeEmulator(now=NOVEMBER, check_contract=True) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_delivery(emulator: StripeEmulator, shop: Shop, receiver: Receiver) -> None:
    emulator.webhooks.connect(receiver.url, ["customer.created", "customer.updated"])
    customer = shop.customer()
    assert receiver.arrived == []
    done = emulator.webhooks.deliver()
    assert [(d.type, d.status, d.attempt) for d in done] == [
        ("customer.created", 200, 1),
        ("customer.updated", 200, 1),
    ]
    events = [
        stripe.Webhook.construct_event(body, signature, emulator.webhook_secret)
        for body, signature in receiver.arrived
    ]
    assert [event.data.object["id"] for event in events] == [customer, customer]
    before = events[1].data.previous_attributes
    assert before is not None
    assert before["invoice_settings"]["default_payment_method"] is None
    assert events[0].api_version == "2026-10-28.endive"
    assert events[0].livemode is False
    assert shop.api.events.retrieve(events[0].id).type == "customer.created"
    listed = shop.api.events.list({"types": ["customer.created"]}).data
    assert [event.id for event in listed] == [events[0].id]
    assert emulator.webhooks.deliver() == []


def test_order_and_copies(emulator: StripeEmulator, shop: Shop, receiver: Receiver) -> None:
    names = [f"customer.{name}" for name in ("created", "updated", "deleted")]
    secret = emulator.webhook_secret
    orders: list[tuple[Any, str]] = [
        ("sent", "abc"),
        ("reversed", "cba"),
        (["customer.deleted", "customer.created"], "cab"),
        (3, "acb"),
    ]
    for order, expected in orders:
        emulator.reset()
        receiver.arrived.clear()
        emulator.webhooks.connect(receiver.url)
        for name in names:
            emulator.webhooks.emit(name, {"id": "x", "object": "customer"})
        emulator.webhooks.deliver(order=order, copies=2)
        wanted = [names["abc".index(letter)] for letter in expected]
        assert receiver.types(secret) == [name for name in wanted for _ in range(2)]


def test_delayed_and_lost(emulator: StripeEmulator, shop: Shop, receiver: Receiver) -> None:
    emulator.webhooks.connect(receiver.url)
    shop.customer()
    assert emulator.webhooks.drop("payment_method.attached") == 1
    assert emulator.webhooks.delay(60, "customer.created") == 1
    assert [d.type for d in emulator.webhooks.deliver()] == ["customer.updated"]
    assert emulator.webhooks.deliver() == []
    emulator.clock.advance(60)
    assert [d.type for d in emulator.webhooks.deliver()] == ["customer.created"]


def test_tries(emulator: StripeEmulator, shop: Shop, receiver: Receiver) -> None:
    emulator.webhooks.connect(receiver.url, ["customer.created"])
    shop.api.customers.create()
    receiver.status = 500
    statuses = []
    for _ in range(4):
        statuses += [(d.attempt, d.status) for d in emulator.webhooks.deliver()]
        assert emulator.webhooks.deliver() == []
        emulator.clock.advance(3600)
    assert statuses == [(1, 500), (2, 500), (3, 500)]
    emulator.webhooks.connect("http://127.0.0.1:9/nobody", ["customer.created"])
    receiver.status = 200
    shop.api.customers.create()
    assert sorted(str(d.status) for d in emulator.webhooks.deliver()) == ["200", "None"]


def test_rotation_and_forgery(emulator: StripeEmulator, shop: Shop, receiver: Receiver) -> None:
    endpoint = emulator.webhooks.connect(receiver.url)
    emulator.webhooks.rotate(endpoint, "whsec_new")
    shop.api.customers.create()
    emulator.webhooks.deliver()
    assert receiver.types(emulator.webhook_secret, "whsec_new") == ["customer.created"] * 2
    emulator.webhooks.rotate(endpoint, "whsec_newest", keep_old=False)
    emulator.webhooks.emit("customer.created", {"id": "x", "object": "customer"})
    emulator.webhooks.deliver(secret="whsec_forged")
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(*receiver.arrived[-1], "whsec_newest")
    body, headers = emulator.webhooks.signed(emulator.events[0], signed_at=1_000_000)
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        stripe.Webhook.construct_event(body, headers["Stripe-Signature"], emulator.webhook_secret)


def test_endpoints_by_the_api(emulator: StripeEmulator, shop: Shop, receiver: Receiver) -> None:
    endpoints = shop.api.webhook_endpoints
    params: Any = {"url": receiver.url, "enabled_events": ["customer.created"]}
    made = endpoints.create(params | {"api_version": "2026-10-28.endive"})
    shop.customer()
    emulator.webhooks.deliver()
    assert receiver.types(str(made.secret)) == ["customer.created"]
    assert "secret" not in endpoints.retrieve(made.id)
    endpoints.update(made.id, {"disabled": True})
    shop.api.customers.create()
    assert emulator.webhooks.deliver() == []
    assert endpoints.delete(made.id).deleted is True
    assert endpoints.list().data == []


def test_thin_endpoints_get_thin_events(
    emulator: StripeEmulator, shop: Shop, receiver: Receiver
) -> None:
    emulator.webhooks.connect(receiver.url, thin=True)
    shop.sell("img", "1")
    shop.use("cus_nobody", "img", 1)
    emulator.report_meter_errors()
    (delivery,) = emulator.webhooks.deliver()
    assert delivery.type == "v1.billing.meter.error_report_triggered"
    ((body, signature),) = receiver.arrived
    note = shop.client.parse_event_notification(body, signature, emulator.webhook_secret)
    assert type(note).__name__ == "V1BillingMeterErrorReportTriggeredEventNotification"
    with pytest.raises(stripe.InvalidRequestError):
        shop.client.v2.core.events.retrieve("evt_nothing")


def test_automatic_delivery(emulator: StripeEmulator, shop: Shop, receiver: Receiver) -> None:
    emulator.webhooks.connect(receiver.url, ["customer.created"])
    emulator.webhooks.automatic = True
    shop.api.customers.create()
    assert receiver.came.wait(WAIT_SECONDS)
    assert receiver.types(emulator.webhook_secret) == ["customer.created"]


def test_finalisation_may_wait_for_the_webhook(
    emulator: StripeEmulator, shop: Shop, receiver: Receiver
) -> None:
    emulator.configure(wait_for_webhooks=True)
    emulator.webhooks.connect(receiver.url, ["invoice.created"])
    sub = shop.subscribe(shop.customer(), shop.sell("img", "4"))
    emulator.webhooks.deliver()
    emulator.clock.advance_to(datetime(2026, 12, 1, 5, tzinfo=UTC))
    name = str(shop.api.subscriptions.retrieve(sub.id).latest_invoice)
    assert shop.api.invoices.retrieve(name).status == "draft"
    emulator.webhooks.deliver()
    emulator.clock.advance(3600)
    assert shop.api.invoices.retrieve(name).status == "paid"
    emulator.clock.advance_to(datetime(2027, 1, 3, 23, tzinfo=UTC))
    name = str(shop.api.subscriptions.retrieve(sub.id).latest_invoice)
    assert shop.api.invoices.retrieve(name).status == "draft"
    emulator.clock.advance(3600)
    assert shop.api.invoices.retrieve(name).status == "paid"
