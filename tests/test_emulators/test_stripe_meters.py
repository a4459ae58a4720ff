"""Meters: duplicates, bounds, lanes, errors that come later, summaries, corrections."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop, Sold

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
START = int(NOVEMBER.timestamp())
HOUR, DAY = 3600, 86_400


@pytest.fixture(scope="module")
def server() -> Iterator[StripeEmulator]:
    with StripeEmulator(now=NOVEMBER, check_contract=True) as running:
        yield running


@pytest.fixture
def sold(shop: Shop) -> Sold:
    return shop.sell("img", "4")


@pytest.fixture
def customer(shop: Shop) -> str:
    return shop.customer(card=None)


def summaries(shop: Shop, sold: Sold, customer: str, **more: Any) -> list[tuple[int, float]]:
    params: Any = {"customer": customer, "start_time": START, "end_time": START + DAY}
    found = shop.api.billing.meters.event_summaries.list(sold.meter, params | more)
    return [((row.start_time - START) // HOUR, row.aggregated_value) for row in found.data]


def test_meters(emulator: StripeEmulator, shop: Shop, sold: Sold) -> None:
    meters = shop.api.billing.meters
    meter = meters.retrieve(sold.meter)
    assert (meter.status, meter.event_name, meter.event_time_window) == ("active", "img", None)
    assert meter.customer_mapping.event_payload_key == "stripe_customer_id"
    assert meter.value_settings.event_payload_key == "value"
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        shop.sell("img", "4")
    assert meters.update(sold.meter, {"display_name": "New"}).display_name == "New"
    emulator.clock.advance(5)
    gone = meters.deactivate(sold.meter)
    assert (gone.status, gone.status_transitions.deactivated_at) == ("inactive", START + 5)
    assert [row.id for row in meters.list({"status": "inactive"}).data] == [sold.meter]
    assert meters.reactivate(sold.meter).status == "active"


def test_an_identifier_counts_once(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    assert shop.use(customer, "img", 3, identifier="one") == "one"
    emulator.clock.advance(DAY - 1)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        shop.use(customer, "img", 3, identifier="one")
    error: Any = caught.value
    assert error.user_message == "An event already exists with identifier one."
    assert (error.http_status, error.code) == (400, None)
    assert set(error.json_body["error"]) == {"message", "type", "request_log_url"}
    assert error.json_body["error"]["type"] == "invalid_request_error"
    assert error.headers["stripe-should-retry"] == "false"
    assert emulator.meter_total(customer, "img") == 3
    emulator.clock.advance(1)
    shop.use(customer, "img", 3, identifier="one")
    assert emulator.meter_total(customer, "img") == 6


def test_the_window_is_a_setting(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    emulator.configure(identifier_window=10)
    shop.use(customer, "img", 1, identifier="one")
    emulator.clock.advance(10)
    shop.use(customer, "img", 1, identifier="one")
    assert emulator.meter_total(customer, "img") == 2


def test_a_resend_after_a_lost_answer(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    emulator.faults.add(
        Fault("drop_before", path="*/meter_events", nth=1),
        Fault("drop_after", path="*/meter_events", nth=2),
    )
    for total in (0, 5):
        with pytest.raises(stripe.APIConnectionError):
            shop.use(customer, "img", 5, identifier="one")
        assert emulator.meter_total(customer, "img") == total
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier one"):
        shop.use(customer, "img", 5, identifier="one")
    assert emulator.meter_total(customer, "img") == 5


@pytest.mark.parametrize(
    ("params", "message", "param"),
    [
        ({"payload": {"value": "1"}}, "Missing required param: event_name.", "event_name"),
        ({"event_name": "img"}, "Missing required param: payload.", "payload"),
        ({"identifier": "i" * 101}, "at most 100 characters", "identifier"),
        ({"timestamp": START - 35 * DAY - 1}, "35 calendar days", "timestamp"),
        ({"timestamp": START + 301}, "5 minutes in the future", "timestamp"),
        ({"timestamp": "noon"}, "Invalid integer: noon", "timestamp"),
        ({"value": "1234567890123456"}, "15 significant digits", "payload"),
        ({"value": "0.1234567890123456"}, "15 significant digits", "payload"),
    ],
)
def test_what_is_refused_at_once(
    emulator: StripeEmulator,
    shop: Shop,
    sold: Sold,
    customer: str,
    params: dict[str, Any],
    message: str,
    param: str,
) -> None:
    full = {
        "event_name": "img",
        "payload": {"stripe_customer_id": customer, "value": params.pop("value", "1")},
    }
    sent: Any = params if {"event_name", "payload"} & set(params) else full | params
    with pytest.raises(stripe.InvalidRequestError, match=message) as caught:
        shop.api.billing.meter_events.create(sent)
    assert caught.value.param == param
    assert emulator.meter_events == []


def test_the_bounds_are_inside(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    shop.use(customer, "img", 1, at=START - 35 * DAY)
    shop.use(customer, "img", "123456789012345000", at=START + 300)
    shop.use(customer, "img", -2)
    assert emulator.meter_total(customer, "img") == 123456789012344999


def test_one_call_per_customer_and_meter(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    shop.sell("other", "4")
    somebody = shop.customer(card=None)
    gate = threading.Event()
    emulator.faults.add(Fault("slow_after", path="*/meter_events", gate=gate))
    with ThreadPoolExecutor() as pool:
        held = pool.submit(shop.use, customer, "img", 1, None, "one")
        while not emulator.meter_events:
            time.sleep(0.005)
        with pytest.raises(stripe.RateLimitError) as caught:
            shop.use(customer, "img", 1, identifier="two")
        shop.use(somebody, "img", 1)
        shop.use(customer, "other", 1)
        gate.set()
        assert held.result() == "one"
    body: Any = caught.value.json_body
    assert (caught.value.http_status, body["error"]["code"]) == (429, "lock_timeout")
    shop.use(customer, "img", 1, identifier="two")
    assert emulator.meter_total(customer, "img") == 2


def test_errors_that_come_later(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    shop.use("cus_nobody", "img", 1, identifier="a")
    shop.use("cus_nobody", "img", 1, identifier="b")
    shop.use(customer, "img", "many", identifier="c")
    shop.use(customer, "nothing", 1, identifier="d")
    shop.api.billing.meters.deactivate(sold.meter)
    shop.use(customer, "img", 1, identifier="e")
    shop.api.billing.meter_events.create(
        {"event_name": "img", "payload": {"value": "1"}, "identifier": "f"}
    )
    assert [event.error for event in emulator.meter_events] == [
        *("meter_event_customer_not_found",) * 2,
        "meter_event_invalid_value",
        "no_meter",
        *("archived_meter",) * 2,
    ]
    assert emulator.meter_total(customer, "img") == 0
    thin = [event for event in emulator.events if event["object"] == "v2.core.event"]
    assert thin == []
    emulator.clock.advance(60)
    report, unknown = (e for e in emulator.events if e["object"] == "v2.core.event")
    assert report["type"] == "v1.billing.meter.error_report_triggered"
    assert report["related_object"]["id"] == sold.meter
    assert "data" not in report
    assert unknown["type"] == "v1.billing.meter.no_meter_found"
    body, headers = emulator.webhooks.signed(report)
    note: Any = shop.client.parse_event_notification(
        body, headers["Stripe-Signature"], emulator.webhook_secret
    )
    reason = note.fetch_event().data.reason
    assert reason.error_count == 5
    counts = {kind.code: kind.error_count for kind in reason.error_types}
    assert counts == {
        "meter_event_customer_not_found": 2,
        "meter_event_invalid_value": 1,
        "archived_meter": 2,
    }
    samples = reason.error_types[0].sample_errors
    assert [sample.request.identifier for sample in samples] == ["a", "b"]
    assert note.fetch_related_object().id == sold.meter
    with pytest.raises(ValueError, match="thin"):
        stripe.Webhook.construct_event(body, headers["Stripe-Signature"], emulator.webhook_secret)
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        shop.use(customer, "img", 1, identifier="a")


def test_errors_can_be_immediate(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    emulator.configure(immediate=frozenset({"archived_meter"}))
    shop.use(customer, "img", 1, at=START - 40 * DAY)
    assert emulator.meter_events[0].error == "timestamp_too_far_in_past"
    shop.api.billing.meters.deactivate(sold.meter)
    with pytest.raises(stripe.InvalidRequestError, match="inactive") as caught:
        shop.use(customer, "img", 1)
    assert caught.value.code == "archived_meter"


def test_summaries(emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str) -> None:
    emulator.clock.advance(DAY)
    for hour, value in ((0, 1), (0, 2), (5, 3), (23, 4)):
        shop.use(customer, "img", value, at=START + hour * HOUR)
    shop.use(customer, "img", 99, at=START + DAY)
    shop.use(shop.customer(card=None), "img", 99, at=START)
    assert summaries(shop, sold, customer) == [(0, 10)]
    hours = summaries(shop, sold, customer, value_grouping_window="hour")
    assert hours == [(23, 4), (5, 3), (0, 3)]
    wide = {"end_time": START + 2 * DAY, "value_grouping_window": "day"}
    assert summaries(shop, sold, customer, **wide) == [(24, 99), (0, 10)]


def test_summaries_lag(emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str) -> None:
    emulator.configure(summary_lag=600)
    shop.use(customer, "img", 7)
    emulator.clock.advance(599)
    assert summaries(shop, sold, customer) == [(0, 0)]
    assert summaries(shop, sold, customer, value_grouping_window="hour") == []
    emulator.clock.advance(1)
    assert summaries(shop, sold, customer) == [(0, 7)]
    assert emulator.meter_total(customer, "img") == 7


@pytest.mark.parametrize(
    "span",
    [
        {"start_time": START + 1},
        {"end_time": START + DAY + 30},
        {"start_time": START + 60, "value_grouping_window": "hour"},
        {"end_time": START + DAY + HOUR, "value_grouping_window": "day"},
    ],
)
def test_summaries_are_aligned(shop: Shop, sold: Sold, customer: str, span: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="must be aligned"):
        summaries(shop, sold, customer, **span)
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        summaries(shop, sold, "cus_nobody")


def test_cancelling(emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str) -> None:
    for name in ("a", "b"):
        shop.use(customer, "img", 5, identifier=name)
    cancel = shop.api.billing.meter_event_adjustments.create

    def params(name: str) -> Any:
        return {"type": "cancel", "event_name": "img", "cancel": {"identifier": name}}

    emulator.clock.advance(DAY)
    assert cancel(params("a")).status == "pending"
    assert emulator.meter_total(customer, "img") == 5
    with pytest.raises(stripe.InvalidRequestError, match="No such meter event"):
        cancel(params("x"))
    emulator.clock.advance(1)
    with pytest.raises(stripe.InvalidRequestError, match="within 24 hours"):
        cancel(params("b"))
    assert emulator.meter_total(customer, "img") == 5


def test_other_formulas(emulator: StripeEmulator, shop: Shop, customer: str) -> None:
    for formula, window, total in (
        ("count", None, 3),
        ("last", None, 4),
        ("sum", "hour", 6),
        ("sum", "day", 4),
    ):
        name = f"{formula}_{window}"
        made: Any = {"display_name": name, "event_name": name}
        made["default_aggregation"] = {"formula": formula}
        if window is not None:
            made["event_time_window"] = window
        shop.api.billing.meters.create(made)
        for minutes, value in ((0, 1), (30, 2), (90, 4)):
            at = NOVEMBER - timedelta(days=1) + timedelta(minutes=minutes)
            shop.use(customer, name, value, at=at)
        assert emulator.meter_total(customer, name) == total


def test_a_hundred_events_are_quick(emulator: StripeEmulator, shop: Shop) -> None:
    shop.sell("img", "4")
    people = [shop.customer(card=None) for _ in range(2)]
    start = time.perf_counter()
    for number in range(100):
        shop.use(people[number % 2], "img", 1, identifier=f"e{number}")
    assert [emulator.meter_total(person, "img") for person in people] == [50, 50]
    assert time.perf_counter() - start < 10
