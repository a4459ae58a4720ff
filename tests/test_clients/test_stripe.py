"""stripe for Node against the emulator; the one for Python is the project's own, so tests/billing
and tests/test_emulators use it throughout."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.clients import Client, Raised
from tests.emulators.stripe import StripeEmulator
from tests.test_clients.conftest import Start

NOVEMBER = datetime(2026, 11, 12, 13, tzinfo=UTC)


@pytest.fixture(scope="module")
def server() -> Iterator[StripeEmulator]:
    with StripeEmulator(now=NOVEMBER, check_contract=True) as emulator:
        yield emulator


@pytest.fixture
def stripe(server: StripeEmulator) -> Iterator[StripeEmulator]:
    server.reset()
    yield server
    server.raise_violations()


@pytest.fixture(scope="module")
def client(server: StripeEmulator, start: Start) -> Client:
    return start("node", "stripe", {"STRIPE_KEY": server.key, "STRIPE_URL": server.url})


def test_metered_billing(client: Client, stripe: StripeEmulator) -> None:
    customer = client("customer", email="a@example.com", metadata={"org": "7"})
    assert client("found", id=customer["id"]) == customer
    assert (customer["object"], customer["metadata"]) == ("customer", {"org": "7"})
    meter = client(
        "meter",
        display_name="Pictures",
        event_name="pictures",
        default_aggregation={"formula": "sum"},
        customer_mapping={"type": "by_id", "event_payload_key": "stripe_customer_id"},
        value_settings={"event_payload_key": "value"},
    )
    product = client("product", name="Pictures")
    price = client(
        "price",
        product=product["id"],
        currency="usd",
        unit_amount_decimal="4",
        recurring={"interval": "month", "usage_type": "metered", "meter": meter["id"]},
    )
    stripe.save_card(customer["id"])
    subscription = client("subscribe", customer=customer["id"], items=[{"price": price["id"]}])
    assert subscription["status"] == "active"
    payload = {"stripe_customer_id": customer["id"], "value": "10"}
    event = client("use", event_name="pictures", payload=payload, identifier="hour-1")
    assert (event["object"], event["identifier"]) == ("billing.meter_event", "hour-1")
    assert stripe.meter_total(customer["id"], "pictures") == 10


def test_pages_through_a_list(client: Client, stripe: StripeEmulator) -> None:
    made = [client("customer", email=f"{n}@example.com")["id"] for n in range(3)]
    assert client("customers") == made[::-1]


def test_an_error_has_its_class(client: Client, stripe: StripeEmulator) -> None:
    with pytest.raises(Raised, match="No such customer") as caught:
        client("found", id="cus_none")
    error = caught.value
    assert (error.name, error.status) == ("StripeInvalidRequestError", 404)
    assert (error.code, error.param) == ("resource_missing", "id")
    with pytest.raises(Raised) as caught:
        client("wrong_key")
    assert (caught.value.name, caught.value.status) == ("StripeAuthenticationError", 401)
