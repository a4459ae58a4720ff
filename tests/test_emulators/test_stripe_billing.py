"""Prices, subscriptions and invoices through virtual months, to the cent."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import ROUND_DOWN
from typing import Any

import pytest
import stripe

from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop, Sold

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
HOUR, DAY = 3600, 86_400


@pytest.fixture(scope="module")
def server() -> Iterator[StripeEmulator]:
    with StripeEmulator(now=NOVEMBER, check_contract=True) as running:
        yield running


@pytest.fixture
def sold(shop: Shop) -> Sold:
    return shop.sell("img_a_v1", "4")


@pytest.fixture
def customer(shop: Shop) -> str:
    return shop.customer()


def latest(shop: Shop, customer: str) -> stripe.Invoice:
    return shop.api.invoices.list({"customer": customer, "limit": 1}).data[0]


def lines(invoice: stripe.Invoice) -> list[tuple[int | None, int]]:
    return [(line.quantity, line.amount) for line in invoice.lines.data]


def types(emulator: StripeEmulator, since: int = 0) -> list[str]:
    return [event["type"] for event in emulator.events[since:]]


# The catalogue


def test_prices(emulator: StripeEmulator, shop: Shop) -> None:
    meter = shop.sell("a", "0.000000000001").meter
    prices = shop.api.prices
    assert str(prices.list({"lookup_keys": ["a"]}).data[0].unit_amount_decimal) == "1E-12"
    assert emulator.objects("price")[0]["unit_amount_decimal"] == "0.000000000001"
    product = shop.api.products.create({"name": "p", "metadata": {"k": "v"}}).id
    good: Any = {
        "currency": "usd",
        "product": product,
        "unit_amount_decimal": "6.5",
        "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
    }
    price = prices.create(good | {"lookup_key": "p"})
    assert (price.unit_amount, str(price.unit_amount_decimal)) == (None, "6.5")
    assert prices.create(good | {"unit_amount_decimal": "4.00"}).unit_amount == 4
    unmetered = {"recurring": {"interval": "month", "usage_type": "metered"}}
    for change, message in (
        ({"unit_amount": 4}, "exactly one of"),
        ({"unit_amount_decimal": "1.0000000000001"}, "12 decimal places"),
        (unmetered, "must be backed by a meter"),
        ({"product": "prod_x"}, "No such product"),
        ({"lookup_key": "p"}, "already uses that lookup key"),
    ):
        with pytest.raises(stripe.InvalidRequestError, match=message):
            prices.create(good | change)
    frozen: Any = {"unit_amount": 5}
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter: unit_amount"):
        prices.update(price.id, frozen)
    moved = prices.create(good | {"lookup_key": "p", "transfer_lookup_key": True})
    assert [row.id for row in prices.list({"lookup_keys": ["p"]}).data] == [moved.id]
    assert prices.retrieve(price.id).lookup_key is None
    assert prices.update(price.id, {"active": False}).active is False
    assert [row.id for row in prices.list({"active": False}).data] == [price.id]
    assert len(prices.list({"product": product}).data) == 3
    assert shop.api.products.update(product, {"active": False}).active is False
    with pytest.raises(stripe.InvalidRequestError, match="user-created prices"):
        shop.api.products.delete(product)
    with pytest.raises(stripe.InvalidRequestError, match="inactive"):
        shop.api.subscriptions.create({"customer": shop.customer(), "items": [{"price": price.id}]})


def test_customers(emulator: StripeEmulator, shop: Shop) -> None:
    customers = shop.api.customers
    name = shop.customer(metadata={"org": "7"})
    (card,) = shop.api.payment_methods.list({"customer": name}).data
    assert card.card is not None
    assert card.card.last4 == "4242"
    changed = customers.update(name, {"metadata": {"org": "", "x": "1"}, "name": "Ada"})
    assert (changed.metadata.to_dict() if changed.metadata else None) == {"x": "1"}
    assert [row.id for row in customers.list({"email": "ada@example.com"}).data] == [name]
    other = shop.customer(card=None)
    with pytest.raises(stripe.InvalidRequestError, match="must be attached to the customer"):
        customers.update(other, {"invoice_settings": {"default_payment_method": card.id}})
    with pytest.raises(stripe.CardError) as caught:
        shop.api.payment_methods.attach("pm_card_chargeDeclined", {"customer": other})
    assert (caught.value.code, caught.value.http_status) == ("card_declined", 402)
    shop.api.payment_methods.detach(card.id)
    settings = customers.retrieve(name).invoice_settings
    assert settings is not None
    assert settings.default_payment_method is None
    assert customers.delete(name).deleted is True
    assert customers.retrieve(name)["deleted"] is True
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        shop.subscribe(name, shop.sell("a", "1"))


# Subscriptions


def test_a_subscription_is_anchored(emulator: StripeEmulator, shop: Shop, sold: Sold) -> None:
    emulator.clock.advance_to(datetime(2026, 11, 12, 13, 14, tzinfo=UTC))
    customer = shop.customer()
    sub = shop.subscribe(customer, sold, billing_cycle_anchor=int(DECEMBER.timestamp()))
    (item,) = sub["items"]["data"]
    assert (sub.status, item.current_period_start) == ("active", emulator.clock.now)
    assert item.current_period_end == sub.billing_cycle_anchor == int(DECEMBER.timestamp())
    assert "quantity" not in item
    first = shop.api.invoices.retrieve(str(sub.latest_invoice))
    assert (first.status, first.billing_reason, first.total) == ("paid", "subscription_create", 0)
    config: Any = {"day_of_month": 1, "hour": 0, "minute": 0, "second": 0}
    again = shop.subscribe(customer, sold, billing_cycle_anchor_config=config)
    assert again.billing_cycle_anchor == int(DECEMBER.timestamp())
    for anchor in (emulator.clock.now, int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            shop.subscribe(customer, sold, billing_cycle_anchor=anchor)
        assert caught.value.param == "billing_cycle_anchor"
    emulator.clock.advance_to(datetime(2027, 2, 2, tzinfo=UTC))
    sub = shop.api.subscriptions.retrieve(sub.id)
    ends = datetime.fromtimestamp(sub["items"]["data"][0].current_period_end, UTC)
    assert ends == datetime(2027, 3, 1, tzinfo=UTC)


def test_the_last_day_of_a_month(emulator: StripeEmulator, shop: Shop, sold: Sold) -> None:
    emulator.clock.advance_to(datetime(2027, 1, 31, 10, tzinfo=UTC))
    sub = shop.subscribe(shop.customer(), sold)
    ends = []
    for _ in range(3):
        end = shop.api.subscriptions.retrieve(sub.id)["items"]["data"][0].current_period_end
        ends.append(datetime.fromtimestamp(end, UTC).strftime("%m-%d %H"))
        emulator.clock.advance_to(end)
    assert ends == ["02-28 10", "03-31 10", "04-30 10"]


def test_items(emulator: StripeEmulator, shop: Shop, customer: str) -> None:
    things = [shop.sell(f"m{n}", "1") for n in range(21)]
    sub = shop.subscribe(customer, *things[:19])
    items = shop.api.subscription_items
    added = items.create({"subscription": sub.id, "price": things[19].price})
    with pytest.raises(stripe.InvalidRequestError, match="up to 20 subscription items"):
        items.create({"subscription": sub.id, "price": things[20].price})
    assert items.delete(added.id).deleted is True
    with pytest.raises(stripe.InvalidRequestError, match="same plan"):
        items.create({"subscription": sub.id, "price": things[0].price})
    with pytest.raises(stripe.InvalidRequestError, match="quantity for metered"):
        items.create({"subscription": sub.id, "price": things[20].price, "quantity": 1})
    with pytest.raises(stripe.InvalidRequestError, match="up to 20"):
        shop.subscribe(customer, *things)
    walked = items.list({"subscription": sub.id, "limit": 7}).auto_paging_iter()
    assert len([*walked]) == 19
    changed = shop.api.subscriptions.update(
        sub.id, {"items": [{"price": things[20].price}], "metadata": {"a": "b"}}
    )
    assert len(changed["items"]["data"]) == 20


def test_a_month_with_two_items(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    other = shop.sell("img_b_v1", "6.5")
    sub = shop.subscribe(customer, sold, other)
    shop.use(customer, "img_a_v1", 1234)
    shop.use(customer, "img_b_v1", 2)
    emulator.clock.advance(10 * DAY)
    shop.use(customer, "img_b_v1", 1)
    preview = shop.api.invoices.create_preview({"customer": customer, "subscription": sub.id})
    assert (preview.status, lines(preview)) == ("draft", [(1234, 4936), (3, 20)])
    assert latest(shop, customer).billing_reason == "subscription_create"

    emulator.clock.advance_to(DECEMBER)
    seen = len(emulator.events)
    invoice = latest(shop, customer)
    assert (invoice.status, invoice.billing_reason) == ("draft", "subscription_cycle")
    assert (invoice.number, invoice.hosted_invoice_url, invoice.invoice_pdf) == (None,) * 3
    assert invoice.automatically_finalizes_at == emulator.clock.now + HOUR
    assert lines(invoice) == [(1234, 4936), (3, 20)]

    emulator.clock.advance(HOUR - 1)
    shop.use(customer, "img_a_v1", 1, at=DECEMBER.replace(month=11, day=30))
    shop.use(customer, "img_a_v1", 50)
    assert lines(shop.api.invoices.retrieve(invoice.id)) == [(1235, 4940), (3, 20)]
    emulator.clock.advance(1)
    invoice = shop.api.invoices.retrieve(invoice.id, {"expand": ["payments"]})
    assert (invoice.status, invoice.total, invoice.amount_paid) == ("paid", 4960, 4960)
    assert invoice.number is not None
    assert str(invoice.hosted_invoice_url).startswith(emulator.url)
    assert invoice["payments"]["data"][0]["status"] == "paid"
    line = invoice.lines.data[0]
    assert line.pricing is not None
    assert line.pricing.price_details is not None
    assert line.pricing.price_details.price == sold.price
    assert str(line.pricing.unit_amount_decimal) == "4"
    assert line.description == "1235 × img_a_v1 (at $0.04 / month)"
    assert line.period.end == invoice.period_end == int(DECEMBER.timestamp())
    assert types(emulator, seen) == [
        "invoice.finalized",
        "payment_intent.created",
        "payment_intent.succeeded",
        "invoice.payment_succeeded",
        "invoice.paid",
    ]

    # Too late: it is on no invoice, ever.
    shop.use(customer, "img_a_v1", 1000, at=DECEMBER.replace(month=11, day=30))
    emulator.clock.advance_to(datetime(2027, 1, 1, 1, tzinfo=UTC))
    assert lines(latest(shop, customer)) == [(50, 200), (0, 0)]
    assert emulator.meter_total(customer, "img_a_v1") == 2285
    billed = [line for line in emulator.usage(customer, "img_a_v1") if line.final]
    assert [(int(line.quantity), line.amount) for line in billed] == [
        (0, 0),
        (1235, 4940),
        (50, 200),
    ]


def test_rounding_is_a_setting(emulator: StripeEmulator, shop: Shop, customer: str) -> None:
    shop.subscribe(customer, shop.sell("a", "6.5"))
    shop.use(customer, "a", 3)
    assert emulator.usage(customer)[-1].amount == 20
    emulator.configure(rounding=ROUND_DOWN)
    assert emulator.usage(customer)[-1].amount == 19


def test_a_longer_grace(emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str) -> None:
    emulator.configure(grace=72 * HOUR)
    shop.subscribe(customer, sold)
    emulator.clock.advance_to(datetime(2026, 12, 3, 23, tzinfo=UTC))
    shop.use(customer, "img_a_v1", 7, at=DECEMBER.replace(month=11, day=30))
    assert (latest(shop, customer).status, latest(shop, customer).total) == ("draft", 28)
    emulator.clock.advance(HOUR)
    assert (latest(shop, customer).status, latest(shop, customer).total) == ("paid", 28)


def test_usage_before_the_item_does_not_count(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    other = shop.sell("img_b_v1", "10")
    shop.use(customer, "img_a_v1", 5)
    emulator.clock.advance(DAY)
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_b_v1", 5)
    emulator.clock.advance(DAY)
    shop.api.subscription_items.create({"subscription": sub.id, "price": other.price})
    shop.use(customer, "img_b_v1", 6, at=emulator.clock.now - 1)
    shop.use(customer, "img_b_v1", 7)
    quantities = {u.event_name: u.quantity for u in emulator.usage(customer) if not u.invoice}
    assert quantities == {"img_a_v1": 0, "img_b_v1": 7}


def test_a_new_price_version_is_a_new_item(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 100)
    emulator.clock.advance(10 * DAY)
    dearer = shop.sell("img_a_v2", "5")
    shop.api.subscription_items.create({"subscription": sub.id, "price": dearer.price})
    shop.use(customer, "img_a_v2", 10)
    emulator.clock.advance_to(DECEMBER)
    shop.use(customer, "img_a_v1", 1, at=DECEMBER.replace(month=11, day=30))
    emulator.clock.advance(HOUR)
    assert lines(latest(shop, customer)) == [(101, 404), (10, 50)]
    assert latest(shop, customer).total == 454
    # The old item goes when its last invoice is final, and takes nothing with it.
    old = shop.api.subscription_items.list({"subscription": sub.id}).data[0]
    shop.api.subscription_items.delete(old.id)
    shop.use(customer, "img_a_v2", 2)
    emulator.clock.advance_to(datetime(2027, 1, 1, 2, tzinfo=UTC))
    assert lines(latest(shop, customer)) == [(2, 10)]


@pytest.mark.parametrize(("behaviour", "extra"), [("create_prorations", [(20, 80)]), ("none", [])])
def test_swapping_a_price_in_place(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str, behaviour: Any, extra: Any
) -> None:
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 20)
    emulator.clock.advance(DAY)
    new = shop.sell("img_a_v2", "5")
    item = sub["items"]["data"][0].id
    shop.api.subscription_items.update(item, {"price": new.price, "proration_behavior": behaviour})
    shop.use(customer, "img_a_v2", 3)
    emulator.clock.advance_to(DECEMBER)
    assert lines(latest(shop, customer)) == [(3, 15), *extra]


def test_removing_an_item_in_the_grace_loses_what_comes_after(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    sub = shop.subscribe(customer, sold, shop.sell("b", "1"))
    emulator.clock.advance_to(DECEMBER)
    yesterday = DECEMBER.replace(month=11, day=30)
    shop.use(customer, "img_a_v1", 2, at=yesterday)
    emulator.clock.advance(60)
    shop.api.subscription_items.delete(sub["items"]["data"][0].id)
    emulator.clock.advance(60)
    shop.use(customer, "img_a_v1", 3, at=yesterday)
    emulator.clock.advance(HOUR)
    assert lines(latest(shop, customer)) == [(2, 8), (0, 0)]


def test_cancel_now(emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str) -> None:
    for invoice_now, total in ((True, 40), (False, 0)):
        sub = shop.subscribe(customer, sold)
        emulator.clock.advance(DAY)
        shop.use(customer, "img_a_v1", 10)
        gone = shop.api.subscriptions.cancel(sub.id, {"invoice_now": invoice_now})
        assert (gone.status, gone.ended_at) == ("canceled", emulator.clock.now)
        emulator.clock.advance(60)
        shop.use(customer, "img_a_v1", 99, at=emulator.clock.now - 120)
        emulator.clock.advance(2 * HOUR)
        assert latest(shop, customer).total == total
        with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
            shop.api.subscription_items.create({"subscription": sub.id, "price": sold.price})
    assert types(emulator)[-1] == "customer.subscription.deleted"
    assert shop.api.subscriptions.list({"customer": customer}).data == []
    assert len(shop.api.subscriptions.list({"customer": customer, "status": "all"}).data) == 2


def test_cancel_at_the_end_of_the_period(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 10)
    ending = shop.api.subscriptions.update(sub.id, {"cancel_at_period_end": True})
    assert (ending.status, ending.cancel_at) == ("active", int(DECEMBER.timestamp()))
    kept = shop.api.subscriptions.update(sub.id, {"cancel_at_period_end": False})
    assert kept.cancel_at is None
    shop.api.subscriptions.update(sub.id, {"cancel_at_period_end": True})
    emulator.clock.advance_to(DECEMBER)
    assert shop.api.subscriptions.retrieve(sub.id).status == "canceled"
    shop.use(customer, "img_a_v1", 1, at=DECEMBER.replace(month=11, day=30))
    emulator.clock.advance(HOUR)
    assert (latest(shop, customer).status, latest(shop, customer).total) == ("paid", 44)
    emulator.clock.advance(60 * DAY)
    assert len(shop.api.invoices.list({"customer": customer}).data) == 2


# Payment


def test_failure_retries_unpaid_paid(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    emulator.configure(retry_gaps=(DAY, 3 * DAY))
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 100)
    emulator.set_cards(customer, "insufficient_funds")
    emulator.clock.advance_to(DECEMBER)
    emulator.clock.advance(HOUR)
    first = emulator.clock.now
    seen = []
    for _ in range(4):
        invoice, status = latest(shop, customer), shop.api.subscriptions.retrieve(sub.id).status
        seen.append((invoice.status, invoice.attempt_count, invoice.next_payment_attempt, status))
        emulator.clock.advance(2 * DAY)
    assert seen == [
        ("open", 1, first + DAY, "past_due"),
        ("open", 2, first + 4 * DAY, "past_due"),
        ("open", 3, None, "unpaid"),
        ("open", 3, None, "unpaid"),
    ]
    failed = [event for event in emulator.events if event["type"] == "invoice.payment_failed"]
    assert [event["created"] - first for event in failed] == [0, DAY, 4 * DAY]
    invoice = latest(shop, customer)
    with pytest.raises(stripe.CardError) as caught:
        shop.api.invoices.pay(invoice.id)
    assert caught.value.code == "card_declined"
    emulator.save_card(customer)
    assert shop.api.invoices.pay(invoice.id).status == "paid"
    assert shop.api.subscriptions.retrieve(sub.id).status == "active"
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        shop.api.invoices.pay(invoice.id)


def test_a_retry_uses_the_new_card(emulator: StripeEmulator, shop: Shop, sold: Sold) -> None:
    customer = shop.customer("pm_card_chargeCustomerFail")
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 100)
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    assert shop.api.subscriptions.retrieve(sub.id).status == "past_due"
    emulator.save_card(customer)
    emulator.clock.advance(2 * DAY)
    assert latest(shop, customer).status == "paid"
    assert shop.api.subscriptions.retrieve(sub.id).status == "active"


def test_a_hard_decline_is_not_tried_again(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    emulator.configure(retry_gaps=(DAY, DAY), final_action="cancel")
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 100)
    emulator.set_cards(customer, "stolen_card")
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    emulator.clock.advance(DAY)
    invoice = latest(shop, customer)
    assert (invoice.attempt_count, invoice.next_payment_attempt) == (1, None)
    emulator.clock.advance(DAY)
    assert shop.api.subscriptions.retrieve(sub.id).status == "canceled"
    assert latest(shop, customer).status == "open"


def test_an_unpaid_subscription_makes_drafts(
    emulator: StripeEmulator, shop: Shop, sold: Sold
) -> None:
    emulator.configure(retry_gaps=())
    customer = shop.customer(card=None)
    sub = shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 100)
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    assert shop.api.subscriptions.retrieve(sub.id).status == "unpaid"
    shop.use(customer, "img_a_v1", 10)
    emulator.clock.advance_to(datetime(2027, 1, 5, tzinfo=UTC))
    draft = latest(shop, customer)
    assert (draft.status, draft.auto_advance, draft.total) == ("draft", False, 40)
    emulator.save_card(customer)
    assert shop.api.invoices.pay(draft.id).status == "paid"
    assert shop.api.subscriptions.retrieve(sub.id).status == "active"


def test_void_and_uncollectible(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 100)
    emulator.set_cards(customer, "generic_decline")
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    name = latest(shop, customer).id
    assert shop.api.invoices.mark_uncollectible(name).status == "uncollectible"
    assert shop.api.invoices.void_invoice(name).status == "void"
    with pytest.raises(stripe.InvalidRequestError, match="open invoices"):
        shop.api.invoices.void_invoice(name)
    assert types(emulator)[-2:] == ["invoice.marked_uncollectible", "invoice.voided"]


# Items, notes and credit


def test_invoices_by_hand(emulator: StripeEmulator, shop: Shop, customer: str) -> None:
    draft = shop.api.invoices.create({"customer": customer, "description": "Extra"})
    items = shop.api.invoice_items
    items.create({"customer": customer, "invoice": draft.id, "amount": 250, "currency": "usd"})
    pending = items.create({"customer": customer, "amount": 99, "currency": "usd"})
    assert shop.api.invoices.retrieve(draft.id).total == 250
    final = shop.api.invoices.finalize_invoice(draft.id)
    assert (final.status, final.amount_due) == ("open", 250)
    with pytest.raises(stripe.InvalidRequestError, match="already finalized"):
        shop.api.invoices.finalize_invoice(draft.id)
    assert shop.api.invoices.pay(draft.id).amount_paid == 250
    assert items.delete(pending.id).deleted is True
    with_pending = shop.api.invoices.create({"customer": customer})
    assert shop.api.invoices.delete(with_pending.id).deleted is True


def test_pending_items_go_on_the_next_invoice(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    sub = shop.subscribe(customer, sold)
    shop.api.invoice_items.create(
        {"customer": customer, "amount": -100, "currency": "usd", "description": "Sorry"}
    )
    shop.use(customer, "img_a_v1", 100)
    preview = shop.api.invoices.create_preview({"subscription": sub.id})
    assert preview.total == 300
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    assert lines(latest(shop, customer)) == [(100, 400), (1, -100)]
    assert latest(shop, customer).amount_paid == 300


def test_credit_notes(emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str) -> None:
    shop.subscribe(customer, sold)
    shop.use(customer, "img_a_v1", 100)
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    paid = latest(shop, customer)
    notes = shop.api.credit_notes
    with pytest.raises(stripe.InvalidRequestError, match="paid back"):
        notes.create({"invoice": paid.id, "amount": 100})
    note = notes.create({"invoice": paid.id, "amount": 100, "credit_amount": 100, "memo": "Sorry"})
    assert (note.type, note.total, note.number) == ("post_payment", 100, f"{paid.number}-CN-01")
    assert shop.api.customers.retrieve(customer).balance == -100
    with pytest.raises(stripe.InvalidRequestError, match="cannot exceed"):
        notes.create({"invoice": paid.id, "amount": 301, "out_of_band_amount": 301})
    # The balance pays part of the next invoice, and a note on an open one the rest.
    shop.use(customer, "img_a_v1", 50)
    emulator.set_cards(customer, "generic_decline")
    emulator.clock.advance_to(datetime(2027, 1, 1, 1, tzinfo=UTC))
    invoice = latest(shop, customer)
    assert (invoice.total, invoice.amount_due, invoice.starting_balance) == (200, 100, -100)
    line = invoice.lines.data[0].id
    entry: Any = {"type": "invoice_line_item", "invoice_line_item": line, "amount": 100}
    assert notes.create({"invoice": invoice.id, "lines": [entry]}).type == "pre_payment"
    assert shop.api.invoices.retrieve(invoice.id).status == "paid"
    assert len(notes.list({"customer": customer}).data) == 2


def test_credit_grants(emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str) -> None:
    other = shop.sell("img_b_v1", "10")
    shop.subscribe(customer, sold, other)
    grants = shop.api.billing.credit_grants

    def grant(cents: int, **more: Any) -> stripe.billing.CreditGrant:
        scope: Any = more.pop("scope", {"price_type": "metered"})
        params: Any = {
            "customer": customer,
            "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": cents}},
            "applicability_config": {"scope": scope},
            "category": "paid",
        }
        return grants.create(params | more)

    def balance() -> int:
        scope: Any = {"type": "applicability_scope"}
        scope["applicability_scope"] = {"price_type": "metered"}
        found = shop.api.billing.credit_balance_summary.retrieve(
            {"customer": customer, "filter": scope}
        )
        amount = found.balances[0].available_balance.monetary
        assert amount is not None
        return amount.value

    grant(300)
    first = grant(50, scope={"prices": [{"id": other.price}]}, priority=10)
    lapsing = grant(1000, expires_at=emulator.clock.now + DAY)
    assert balance() == 1350
    emulator.clock.advance(DAY)
    assert balance() == 350
    with pytest.raises(stripe.InvalidRequestError, match="was used"):
        grants.void_grant(lapsing.id)
    shop.use(customer, "img_a_v1", 100)
    shop.use(customer, "img_b_v1", 10)
    emulator.clock.advance_to(DECEMBER)
    assert (latest(shop, customer).total, balance()) == (500, 350)
    emulator.clock.advance(HOUR)
    invoice = latest(shop, customer)
    assert (invoice.subtotal, invoice.total, invoice.amount_paid, balance()) == (500, 150, 150, 0)
    used = [
        [entry.amount for entry in line.pretax_credit_amounts or []] for line in invoice.lines.data
    ]
    assert used == [[300], [50]]
    kinds = shop.api.billing.credit_balance_transactions.list(
        {"customer": customer, "credit_grant": first.id}
    ).data
    assert [row.type for row in kinds] == ["debit", "credit"]
    # An invoice that grants pay in full needs no card.
    emulator.set_cards(customer, "generic_decline")
    grant(1000)
    shop.use(customer, "img_a_v1", 100)
    emulator.clock.advance_to(datetime(2027, 1, 1, 1, tzinfo=UTC))
    invoice = latest(shop, customer)
    assert (invoice.status, invoice.total, balance()) == ("paid", 0, 600)


def test_voiding_gives_credit_back(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    shop.subscribe(customer, sold)
    params: Any = {
        "customer": customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 100}},
        "applicability_config": {"scope": {"price_type": "metered"}},
    }
    grant = shop.api.billing.credit_grants.create(params)
    shop.use(customer, "img_a_v1", 100)
    emulator.set_cards(customer, "generic_decline")
    emulator.clock.advance_to(datetime(2026, 12, 1, 1, tzinfo=UTC))
    assert latest(shop, customer).amount_due == 300
    shop.api.invoices.void_invoice(latest(shop, customer).id)
    assert shop.api.billing.credit_grants.void_grant(grant.id).voided_at == emulator.clock.now


def test_payment_intents(emulator: StripeEmulator, shop: Shop, customer: str) -> None:
    (card,) = shop.api.payment_methods.list({"customer": customer}).data
    params: Any = {
        "amount": 2000,
        "currency": "usd",
        "customer": customer,
        "payment_method": card.id,
        "confirm": True,
        "off_session": True,
    }
    intent = shop.api.payment_intents.create(params)
    assert (intent.status, intent.amount_received) == ("succeeded", 2000)
    emulator.set_cards(customer, "insufficient_funds")
    with pytest.raises(stripe.CardError) as caught:
        shop.api.payment_intents.create(params)
    error: Any = caught.value.json_body
    assert error["error"]["decline_code"] == "insufficient_funds"
    failed = shop.api.payment_intents.retrieve(error["error"]["payment_intent"]["id"])
    assert failed.status == "requires_payment_method"
    with pytest.raises(stripe.InvalidRequestError, match=r"at least \$0.50"):
        shop.api.payment_intents.create(params | {"amount": 49})
    assert types(emulator)[-2:] == ["payment_intent.created", "payment_intent.payment_failed"]


def test_the_rest_of_the_catalogue(emulator: StripeEmulator, shop: Shop, sold: Sold) -> None:
    products = shop.api.products
    lone = products.create({"name": "x", "active": False})
    assert [row.id for row in products.list({"active": False}).data] == [lone.id]
    assert products.list({"ids": [sold.product]}).data[0].name == "img_a_v1"
    assert products.update(lone.id, {"name": "y", "description": "z"}).description == "z"
    assert products.delete(lone.id).deleted is True
    metered: Any = {
        "recurring": {"meter": sold.meter, "usage_type": "metered"},
        "type": "recurring",
    }
    assert [row.id for row in shop.api.prices.list(metered).data] == [sold.price]
    changed = shop.api.prices.update(
        sold.price, {"nickname": "n", "lookup_key": "other", "tax_behavior": "exclusive"}
    )
    assert (changed.nickname, changed.lookup_key) == ("n", "other")
    with pytest.raises(stripe.InvalidRequestError, match="can be set once"):
        shop.api.prices.update(sold.price, {"tax_behavior": "inclusive"})
    once = shop.api.prices.create(
        {"currency": "usd", "unit_amount": 500, "product_data": {"name": "Once"}}
    )
    assert once.type == "one_time"


def test_the_rest_of_billing(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    api = shop.api
    sub = shop.subscribe(customer, sold, shop.sell("b", "1"))
    first, second = sub["items"]["data"]
    assert api.subscription_items.retrieve(first.id).price.id == sold.price
    assert api.subscription_items.update(first.id, {"metadata": {"a": "b"}}).metadata["a"] == "b"
    entries: Any = [{"id": second.id, "deleted": True}, {"price": shop.sell("c", "1").price}]
    changed = api.subscriptions.update(sub.id, {"items": entries, "description": "d"})
    names = [item.price.lookup_key for item in changed["items"]["data"]]
    assert (names, changed.description) == (["img_a_v1", "c"], "d")
    gone: Any = [{"id": item.id, "deleted": True} for item in changed["items"]["data"]]
    with pytest.raises(stripe.InvalidRequestError, match="at least one active plan"):
        api.subscriptions.update(sub.id, {"items": gone})
    assert [s.id for s in api.subscriptions.list({"price": sold.price}).data] == [sub.id]
    for status, count in (("active", 1), ("ended", 0), ("past_due", 0)):
        assert len(api.subscriptions.list({"status": status}).data) == count
    draft = api.invoices.create({"customer": customer, "auto_advance": True})
    item = api.invoice_items.create(
        {"customer": customer, "invoice": draft.id, "amount": 100, "currency": "usd"}
    )
    assert api.invoice_items.retrieve(item.id).amount == 100
    assert len(api.invoice_items.list({"customer": customer, "invoice": draft.id}).data) == 1
    assert api.invoices.update(draft.id, {"description": "e", "metadata": {"k": "v"}}).total == 100
    emulator.clock.advance(HOUR)
    assert api.invoices.retrieve(draft.id).status == "paid"
    assert api.invoice_payments.list({"invoice": draft.id}).data[0].amount_paid == 100
    assert [line.amount for line in api.invoices.line_items.list(draft.id).data] == [100]
    other = api.invoices.create({"customer": customer})
    api.invoice_items.create(
        {"customer": customer, "invoice": other.id, "amount": 100, "currency": "usd"}
    )
    api.invoices.finalize_invoice(other.id)
    note = api.credit_notes.create({"invoice": other.id, "amount": 40})
    assert api.invoices.retrieve(other.id).amount_due == 60
    assert api.credit_notes.void_credit_note(note.id).status == "void"
    assert api.credit_notes.retrieve(note.id).voided_at == emulator.clock.now
    assert api.invoices.pay(other.id, {"paid_out_of_band": True}).amount_paid == 100
    params: Any = {
        "customer": customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 100}},
        "applicability_config": {"scope": {"price_type": "metered"}},
    }
    grant = api.billing.credit_grants.create(params)
    expires = emulator.clock.now + DAY
    assert api.billing.credit_grants.update(grant.id, {"expires_at": expires}).expires_at == expires
    assert api.billing.credit_grants.expire(grant.id).expires_at == emulator.clock.now
    assert len(api.billing.credit_grants.list({"customer": customer}).data) == 1
    assert api.billing.credit_grants.retrieve(grant.id).voided_at is None
    chosen: Any = {"type": "credit_grant", "credit_grant": grant.id}
    balance = api.billing.credit_balance_summary.retrieve({"customer": customer, "filter": chosen})
    amount = balance.balances[0].available_balance.monetary
    assert amount is not None
    assert amount.value == 0


def test_the_rest_of_payments(emulator: StripeEmulator, shop: Shop, customer: str) -> None:
    api = shop.api
    card = api.payment_methods.create({"type": "card", "card": {"token": "tok_visa"}})
    api.payment_methods.attach(card.id, {"customer": customer})
    assert api.payment_methods.retrieve(card.id).customer == customer
    assert len(api.customers.payment_methods.list(customer).data) == 2
    assert api.customers.payment_methods.retrieve(customer, card.id).id == card.id
    params: Any = {"amount": 100, "currency": "usd", "customer": customer}
    intent = api.payment_intents.create(params)
    assert intent.status == "requires_payment_method"
    assert api.payment_intents.confirm(intent.id, {"payment_method": card.id}).status == "succeeded"
    intent = api.payment_intents.create(params | {"payment_method": card.id})
    assert intent.status == "requires_confirmation"
    assert api.payment_intents.cancel(intent.id).status == "canceled"
    assert len(api.payment_intents.list({"customer": customer}).data) == 2
    with pytest.raises(stripe.InvalidRequestError, match="cannot be confirmed"):
        api.payment_intents.confirm(intent.id)


def test_tax_comes_on_top_of_what_credit_leaves(
    emulator: StripeEmulator, shop: Shop, sold: Sold, customer: str
) -> None:
    emulator.configure(tax_percent=20)
    shop.subscribe(customer, sold)
    shop.use(customer, sold.event_name, 100)
    credit: Any = {
        "customer": customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 150}},
        "applicability_config": {"scope": {"price_type": "metered"}},
    }
    shop.api.billing.credit_grants.create(credit)
    emulator.clock.advance_to(DECEMBER)
    assert latest(shop, customer).total == 480
    emulator.clock.advance(HOUR)
    invoice = latest(shop, customer)
    assert [tax.amount for tax in invoice.total_taxes or []] == [50]
    assert (invoice.subtotal, invoice.total_excluding_tax) == (400, 250)
    assert (invoice.total, invoice.amount_paid, invoice.status) == (300, 300, "paid")


def test_an_invoice_comes_with_its_first_ten_lines(
    emulator: StripeEmulator, shop: Shop, customer: str
) -> None:
    shop.subscribe(customer, *(shop.sell(f"img_{number}", "4") for number in range(12)))
    invoice = shop.api.invoices.retrieve(latest(shop, customer).id)
    assert (len(invoice.lines.data), invoice.lines.has_more) == (10, True)
    every = shop.api.invoices.line_items.list(invoice.id, {"limit": 100})
    assert (len(every.data), every.has_more) == (12, False)
    assert {line.id for line in invoice.lines.data} < {line.id for line in every.data}
