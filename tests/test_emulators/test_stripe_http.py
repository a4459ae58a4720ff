"""The Stripe emulator's front: keys, versions, forms, idempotency, pages, expansion, faults."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import stripe

from tests.emulators.stripe import Fault, StripeEmulator, contract
from tests.emulators.stripe.core import decode_form
from tests.emulators.stripe.shop import Shop, connect

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
METER_EVENTS = "/v1/billing/meter_events"


@pytest.fixture(scope="module")
def server() -> Iterator[StripeEmulator]:
    with StripeEmulator(now=NOVEMBER, check_contract=True) as running:
        yield running


def test_the_form_syntax() -> None:
    raw = "a=1&b[c]=2&b[d][e]=3&f[0][g]=4&f[1][g]=5&h[]=6&h[]=7&i=&j%5Bk%5D=l+m%26"
    assert decode_form(raw) == {
        "a": "1",
        "b": {"c": "2", "d": {"e": "3"}},
        "f": [{"g": "4"}, {"g": "5"}],
        "h": ["6", "7"],
        "i": "",
        "j": {"k": "l m&"},
    }


def test_keys(emulator: StripeEmulator) -> None:
    for key in ("sk_test_somebody_else_1234", "sk_live_emulated0123456789"):
        with pytest.raises(stripe.AuthenticationError, match=r"Invalid API Key.*\*\*\*"):
            connect(emulator, key).v1.products.list()
    assert [request.status for request in emulator.requests] == [401, 401]
    emulator.reset()
    with StripeEmulator(livemode=True) as live:
        assert live.key.startswith("sk_live_")
        assert connect(live).v1.balance.retrieve().livemode is True
        assert connect(live).v1.products.create({"name": "x"}).livemode is True
    assert connect(emulator).v1.balance.retrieve().livemode is False


def test_the_version_is_pinned(emulator: StripeEmulator) -> None:
    old = connect(emulator, stripe_version="2024-06-20")
    with pytest.raises(stripe.InvalidRequestError, match="Invalid Stripe API version: 2024-06-20"):
        old.v1.products.list()


def test_what_is_not_played_says_so(emulator: StripeEmulator, shop: Shop) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="not played"):
        shop.api.coupons.list()
    nonsense: Any = {"nonsense": 1}
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter: nonsense") as caught:
        shop.api.customers.create(nonsense)
    assert (caught.value.code, caught.value.param) == ("parameter_unknown", "nonsense")
    with pytest.raises(stripe.InvalidRequestError, match="automatic tax"):
        shop.subscribe(shop.customer(), shop.sell("a", "1"), automatic_tax={"enabled": True})


def test_records(emulator: StripeEmulator, shop: Shop) -> None:
    made = shop.api.customers.create({"name": "Ada"}, {"idempotency_key": "one"})
    (request,) = emulator.requests
    assert made.last_response is not None
    assert request.request_id == made.last_response.request_id
    assert (request.method, request.path, request.status) == ("POST", "/v1/customers", 200)
    assert request.params == {"name": "Ada"}
    assert (request.idempotency_key, request.at) == ("one", NOVEMBER.timestamp())
    assert [event["type"] for event in emulator.events] == ["customer.created"]
    assert emulator.events[0]["request"] == {"id": request.request_id, "idempotency_key": "one"}
    emulator.reset()
    assert (emulator.requests, emulator.events, emulator.objects("customer")) == ([], [], [])


def test_idempotency(emulator: StripeEmulator, shop: Shop) -> None:
    options: Any = {"idempotency_key": "k"}
    first = shop.api.customers.create({"name": "Ada"}, options)
    again = shop.api.customers.create({"name": "Ada"}, options)
    assert again.id == first.id
    assert again.last_response is not None
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert len(emulator.objects("customer")) == 1
    assert [request.replayed for request in emulator.requests] == [False, True]
    with pytest.raises(stripe.IdempotencyError, match="same parameters they were first used with"):
        shop.api.customers.create({"name": "Bob"}, options)
    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        shop.api.products.create({"name": "Ada"}, options)
    with pytest.raises(stripe.InvalidRequestError, match="255"):
        shop.api.customers.create({}, {"idempotency_key": "k" * 256})
    emulator.clock.advance(24 * 3600)
    assert shop.api.customers.create({"name": "Bob"}, options).id != first.id


def test_a_refusal_before_the_work_is_not_stored(emulator: StripeEmulator, shop: Shop) -> None:
    options: Any = {"idempotency_key": "k"}
    with pytest.raises(stripe.InvalidRequestError, match="Missing required param: name"):
        shop.api.products.create({}, options)  # type: ignore[typeddict-item]
    assert shop.api.products.create({"name": "x"}, options).name == "x"


def test_a_500_is_stored(emulator: StripeEmulator, shop: Shop) -> None:
    options: Any = {"idempotency_key": "k"}
    for kind, made in (("500_before", 0), ("500_after", 1)):
        emulator.reset()
        emulator.faults.add(Fault(kind, path="/v1/products"))  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(stripe.APIError):
                shop.api.products.create({"name": "x"}, options)
        assert len(emulator.objects("product")) == made
        assert [(r.status, r.fault, r.replayed) for r in emulator.requests] == [
            (500, kind, False),
            (500, None, True),
        ]


def test_a_key_in_use(emulator: StripeEmulator, shop: Shop) -> None:
    gate = threading.Event()
    emulator.faults.add(Fault("slow_before", gate=gate))
    with ThreadPoolExecutor() as pool:
        held = pool.submit(shop.api.products.create, {"name": "x"}, {"idempotency_key": "k"})
        while not (emulator.requests and emulator.requests[0].fault):
            time.sleep(0.005)
        with pytest.raises(stripe.APIError, match="in-progress") as caught:
            shop.api.products.create({"name": "x"}, {"idempotency_key": "k"})
        gate.set()
        assert held.result().name == "x"
    body: Any = caught.value.json_body
    assert (caught.value.http_status, body["error"]["code"]) == (409, "idempotency_key_in_use")


def test_drops(emulator: StripeEmulator, shop: Shop) -> None:
    emulator.faults.add(
        Fault("drop_before", path="/v1/products", nth=1),
        Fault("drop_after", path="/v1/products", nth=2),
    )
    for made in (0, 1):
        with pytest.raises(stripe.APIConnectionError):
            shop.api.products.create({"name": "x"})
        assert len(emulator.objects("product")) == made
    shop.api.products.create({"name": "x"})
    assert [(r.status, r.fault) for r in emulator.requests] == [
        (None, "drop_before"),
        (None, "drop_after"),
        (200, None),
    ]


def test_the_sdk_resends_what_was_dropped_after_the_work(emulator: StripeEmulator) -> None:
    emulator.faults.add(Fault("drop_after"))
    stripe_ = connect(emulator, max_network_retries=2)
    product = stripe_.v1.products.create({"name": "x"})
    assert [row["id"] for row in emulator.objects("product")] == [product.id]
    assert [request.replayed for request in emulator.requests] == [False, True]


def test_limits(emulator: StripeEmulator, shop: Shop) -> None:
    retrying = connect(emulator, max_network_retries=2)
    emulator.faults.add(Fault("429"))
    with pytest.raises(stripe.RateLimitError) as caught:
        retrying.v1.products.create({"name": "x"})
    body: Any = caught.value.json_body
    assert (body["error"]["code"], len(emulator.requests)) == ("rate_limit", 1)
    emulator.faults.add(Fault("lock", should_retry=True))
    assert retrying.v1.products.create({"name": "x"}).name == "x"
    assert [request.status for request in emulator.requests] == [429, 429, 200]
    emulator.configure(rate_limit=2)
    shop.api.products.list()
    shop.api.products.list()
    with pytest.raises(stripe.RateLimitError):
        shop.api.products.list()


def test_random_faults_are_repeatable(emulator: StripeEmulator, shop: Shop) -> None:
    runs = []
    for _ in range(2):
        emulator.reset()
        faults = [Fault("drop_after", path="/v1/prod*"), Fault("429"), Fault("500_before")]
        emulator.faults.random(7, 0.5, faults)
        for _ in range(16):
            try:
                shop.api.products.create({"name": "x"})
            except stripe.StripeError:
                pass
        runs.append([request.fault for request in emulator.requests])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {None, "drop_after", "429", "500_before"}
    emulator.faults.clear()
    shop.api.products.create({"name": "x"})


def test_pages_of_a_list(emulator: StripeEmulator, shop: Shop) -> None:
    names = [shop.api.products.create({"name": f"p{n}"}).id for n in range(5)][::-1]
    page = shop.api.products.list({"limit": 2})
    assert ([row.id for row in page.data], page.has_more) == (names[:2], True)
    page = shop.api.products.list({"limit": 2, "starting_after": names[3]})
    assert ([row.id for row in page.data], page.has_more) == (names[4:], False)
    page = shop.api.products.list({"limit": 2, "ending_before": names[3]})
    assert ([row.id for row in page.data], page.has_more) == (names[1:3], True)
    walked = [row.id for row in shop.api.products.list({"limit": 2}).auto_paging_iter()]
    assert walked == names
    emulator.clock.advance(10)
    late = shop.api.products.create({"name": "late"})
    since = {"created": {"gt": int(NOVEMBER.timestamp())}}
    assert [row.id for row in shop.api.products.list(since).data] == [late.id]  # type: ignore[arg-type]
    with pytest.raises(stripe.InvalidRequestError, match="between 1 and 100"):
        shop.api.products.list({"limit": 101})


def test_expansion(emulator: StripeEmulator, shop: Shop) -> None:
    sold, customer = shop.sell("a", "4"), shop.customer()
    sub = shop.subscribe(customer, sold)
    wide = shop.api.subscriptions.retrieve(
        sub.id,
        {"expand": ["customer", "latest_invoice.payments", "items.data.price.product"]},
    )
    assert wide.customer.email == "ada@example.com"  # type: ignore[union-attr]
    assert wide["latest_invoice"]["payments"]["data"] == []
    assert wide["items"]["data"][0]["price"]["product"]["name"] == "a"
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        shop.api.subscriptions.retrieve(sub.id, {"expand": ["nonsense"]})


def test_the_module_style_of_the_sdk(
    emulator: StripeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe, "api_base", emulator.url)
    monkeypatch.setattr(stripe, "api_key", emulator.key)
    assert stripe.Product.create(name="x").name == "x"


def test_violations_of_the_contract_are_raised(emulator: StripeEmulator, shop: Shop) -> None:
    client = connect(emulator)
    client.raw_request("post", "/v1/products", name="x")
    emulator.raise_violations()
    body = {"id": "cus_1", "object": "customer", "created": 1, "livemode": False, "nonsense": 1}
    assert contract.check_answer("GET", "/v1/products/x", 200, body) != []
    sent = {"event_name": "x", "payload": {"value": "1"}, "timestamp": "noon"}
    (problem,) = contract.check_request("POST", METER_EVENTS, sent)
    assert "'noon' is not of type 'integer'" in problem
    emulator.violations.append("something")
    with pytest.raises(contract.ContractViolation, match="something"):
        emulator.reset()
    emulator.webhooks.emit("customer.sneezed", {"id": "x", "object": "customer"})
    with pytest.raises(contract.ContractViolation, match=r"no event customer\.sneezed"):
        emulator.raise_violations()
    emulator.webhooks.events.clear()


def test_a_ticking_clock() -> None:
    with StripeEmulator(now=NOVEMBER, ticking=True) as emulator:
        start = emulator.clock.time
        time.sleep(0.02)
        assert 0.02 <= emulator.clock.time - start < 2
        emulator.clock.advance(3600)
        assert 3600 <= emulator.clock.time - start < 3602


def test_the_clock_is_orderly() -> None:
    emulator, done = StripeEmulator(now=NOVEMBER), []
    for delay, name in ((20, "c"), (10, "a"), (10, "b"), (31, "d")):
        at = emulator.clock.now + delay
        emulator.clock.at(at, lambda n=name: done.append((n, emulator.clock.now)))  # type: ignore[misc]
    emulator.clock.advance(30)
    start = int(NOVEMBER.timestamp())
    assert done == [("a", start + 10), ("b", start + 10), ("c", start + 20)]
    assert emulator.clock.now == start + 30
    with pytest.raises(ValueError, match="backwards"):
        emulator.clock.advance_to(NOVEMBER)


def test_a_held_call_holds_nobody_else(emulator: StripeEmulator, shop: Shop) -> None:
    gate = threading.Event()
    emulator.faults.add(Fault("slow_after", path="/v1/customers", gate=gate))
    with ThreadPoolExecutor() as pool:
        held = pool.submit(shop.api.customers.create, {"name": "Ada"})
        while not emulator.objects("customer"):
            time.sleep(0.005)
        assert shop.api.customers.list().data[0].name == "Ada"
        assert not held.done()
        gate.set()
        assert held.result().name == "Ada"


def test_pages_nobody_made(emulator: StripeEmulator) -> None:
    for path in ("/", "/c/pay/cs_test_nothing", "/p/session/x", "/i/x", "/i/x/pdf", "/c/pay"):
        assert httpx.get(emulator.url + path, trust_env=False).status_code == 404
