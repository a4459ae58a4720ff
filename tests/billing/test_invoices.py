"""Copies of invoices, the money their payment brings, and each line back to its images."""

import csv
import tracemalloc
from datetime import UTC, timedelta
from typing import Any

import httpx
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import (
    AccountStatus,
    EntryKind,
    Invoice,
    LedgerEntry,
    MeteredEntry,
    MeterEvent,
    MeterState,
    PriceVersion,
)
from billing.stripe import invoices
from billing.stripe.client import Stripe, StripeRefused, StripeUnknown
from billing.stripe.invoices import Line, LineTotal, UnknownCustomer
from tests.billing import PRICES, authorize, race
from tests.billing.buyer import HOUR, Buyer, drawn
from tests.emulators.stripe import Fault
from tests.factories import KeyFactory


def recharges(buyer: Buyer) -> list[tuple[str, int]]:
    entries = LedgerEntry.objects.filter(
        organization=buyer.organization, kind=EntryKind.RECHARGE
    ).order_by("pk")
    return [(entry.entry_key, entry.amount_micro) for entry in entries]


def copied(stripe: Stripe, buyer: Buyer, name: str | None = None) -> Invoice:
    made = invoices.mirror(stripe, name or buyer.latest()["id"], now=buyer.now)
    assert made is not None
    return made


def line_of(invoice: Invoice, buyer: Buyer, model: str) -> Line:
    price = buyer.sold[model].price
    (found,) = (line for line in invoice.lines if line["price"] == price)
    return found  # type: ignore[no-any-return]


# The copy


def test_a_draft_is_copied_and_moves_nothing(stripe: Stripe, buyer: Buyer) -> None:
    buyer.use("a/cheap", 5)
    buyer.use("b/middle", 3)
    began = buyer.now
    invoice = copied(stripe, buyer, buyer.end_month())

    assert (invoice.status, invoice.number, invoice.finalized_at) == ("draft", "", None)
    assert (invoice.billing_reason, invoice.currency) == ("subscription_cycle", "usd")
    assert (invoice.period_start, invoice.period_end) == (began, buyer.now)
    # 5 × 4 cents and 3 × 6.5 cents, the latter rounded by Stripe.
    assert (invoice.subtotal_cents, invoice.tax_cents, invoice.total_cents) == (40, 0, 40)
    assert (invoice.amount_due_cents, invoice.amount_paid_cents) == (40, 0)
    assert invoice.payment_failed is False
    line = line_of(invoice, buyer, "b/middle")
    assert line == {
        "id": line["id"],
        "price": buyer.sold["b/middle"].price,
        "description": line["description"],
        "quantity": "3",
        "unit_cents": "6.5",
        "amount_cents": 20,
        "start": int(began.timestamp()),
        "end": int(buyer.now.timestamp()),
    }
    assert "3" in line["description"]
    assert line_of(invoice, buyer, "c/dear")["quantity"] == "0"
    assert recharges(buyer) == []
    assert buyer.account.status == AccountStatus.OK


def test_a_payment_is_credited_without_its_tax_and_once(stripe: Stripe, buyer: Buyer) -> None:
    buyer.emulator.configure(tax_percent=19)
    buyer.use("c/dear", 20)
    name = buyer.end_month()
    buyer.collect()

    for _ in range(3):
        invoice = copied(stripe, buyer, name)
    assert (invoice.status, invoice.number) == ("paid", buyer.latest()["number"])
    assert (invoice.subtotal_cents, invoice.tax_cents, invoice.total_cents) == (380, 72, 452)
    assert (invoice.amount_due_cents, invoice.amount_paid_cents) == (452, 452)
    assert invoice.finalized_at == buyer.now
    assert recharges(buyer) == [(f"topup:{name}", 3_800_000)]
    entry = LedgerEntry.objects.get(kind=EntryKind.RECHARGE)
    assert entry.note == f"Payment of invoice {invoice.number}"
    assert (entry.invoice, entry.payment_id) == (invoice, "")
    # 10 USD, less what was used, and paid for it.
    assert buyer.account.balance_micro == 10_000_000
    # And a month in which nothing was used brings nothing.
    buyer.end_month()
    buyer.collect()
    assert copied(stripe, buyer).status == "paid"
    assert len(recharges(buyer)) == 1


def test_what_credit_covered_is_not_credited_again(stripe: Stripe, buyer: Buyer) -> None:
    grant: Any = {
        "customer": buyer.customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 100}},
        "applicability_config": {"scope": {"price_type": "metered"}},
    }
    buyer.shop.api.billing.credit_grants.create(grant)
    buyer.use("c/dear", 20)
    name = buyer.end_month()
    buyer.collect()
    invoice = copied(stripe, buyer, name)
    assert (invoice.subtotal_cents, invoice.total_cents, invoice.amount_paid_cents) == (
        380,
        280,
        280,
    )
    assert recharges(buyer) == [(f"topup:{name}", 2_800_000)]


def test_of_a_part_that_was_paid_the_tax_is_a_part(stripe: Stripe, buyer: Buyer) -> None:
    """A credit note before the payment takes tax and amount down alike."""
    buyer.emulator.configure(tax_percent=25)
    buyer.emulator.set_cards(buyer.customer, "insufficient_funds")
    buyer.use("c/dear", 20)
    name = buyer.end_month()
    buyer.collect()
    buyer.shop.api.credit_notes.create({"invoice": name, "amount": 95})
    buyer.emulator.set_cards(buyer.customer, None)
    buyer.shop.api.invoices.pay(name)
    invoice = copied(stripe, buyer, name)
    assert (invoice.total_cents, invoice.tax_cents, invoice.amount_paid_cents) == (475, 95, 380)
    assert recharges(buyer) == [(f"topup:{name}", 3_040_000)]


def test_an_invoice_of_items_alone_is_credited_too(stripe: Stripe, buyer: Buyer) -> None:
    item: Any = {"customer": buyer.customer, "amount": 700, "currency": "usd"}
    buyer.shop.api.invoice_items.create(item)
    made = buyer.shop.api.invoices.create(
        {"customer": buyer.customer, "pending_invoice_items_behavior": "include"}
    )
    buyer.shop.api.invoices.pay(made.id)
    invoice = copied(stripe, buyer, made.id)
    assert [(line["price"], line["unit_cents"]) for line in invoice.lines] == [("", "")]
    assert recharges(buyer) == [(f"topup:{made.id}", 7_000_000)]
    assert not invoices.entries_of_line(invoice, invoice.lines[0]).exists()


def test_an_invoice_of_many_lines_is_copied_whole(stripe: Stripe, buyer: Buyer) -> None:
    for number in range(130):
        item: Any = {"customer": buyer.customer, "amount": number + 1, "currency": "usd"}
        buyer.shop.api.invoice_items.create(item)
    made = buyer.shop.api.invoices.create(
        {"customer": buyer.customer, "pending_invoice_items_behavior": "include"}
    )
    assert len(buyer.shop.api.invoices.retrieve(made.id).lines.data) == 10
    invoice = copied(stripe, buyer, made.id)
    assert sorted(line["amount_cents"] for line in invoice.lines) == list(range(1, 131))
    assert invoice.subtotal_cents == sum(range(1, 131))


def test_a_strangers_invoice_and_one_that_is_not_there(stripe: Stripe, buyer: Buyer) -> None:
    stranger = buyer.shop.customer()
    made = buyer.shop.api.invoices.create({"customer": stranger})
    with pytest.raises(UnknownCustomer, match=stranger):
        invoices.mirror(stripe, made.id, now=buyer.now)
    with pytest.raises(StripeRefused) as refused:
        invoices.mirror(stripe, "in_nothing", now=buyer.now)
    assert refused.value.missing
    assert Invoice.objects.count() == 0


def test_no_customer_is_nobodys(buyer: Buyer) -> None:
    """Organizations without a customer have an empty one: it must find none of them."""
    KeyFactory()
    with pytest.raises(UnknownCustomer):
        invoices.owner("")


def test_a_deleted_draft_is_deleted_here_and_nothing_else_is(stripe: Stripe, buyer: Buyer) -> None:
    made = buyer.shop.api.invoices.create({"customer": buyer.customer})
    copied(stripe, buyer, made.id)
    buyer.shop.api.invoices.delete(made.id)
    assert invoices.mirror(stripe, made.id, now=buyer.now) is None
    assert Invoice.objects.count() == 0
    # What is final cannot have been deleted: its copy stays, whatever Stripe answers.
    kept = copied(stripe, buyer)
    Invoice.objects.filter(pk=kept.pk).update(stripe_id="in_gone")
    with pytest.raises(StripeRefused):
        invoices.mirror(stripe, "in_gone", now=buyer.now)
    assert Invoice.objects.get().stripe_id == "in_gone"


def test_a_copy_never_goes_backwards(stripe: Stripe, buyer: Buyer) -> None:
    buyer.use("c/dear", 2)
    name = buyer.end_month()
    early = buyer.now
    # A newer fetch is there already, when an older one comes to be written.
    invoices.mirror(stripe, name, now=early + timedelta(minutes=1))
    Invoice.objects.update(total_cents=-1)
    invoices.mirror(stripe, name, now=early)
    kept = Invoice.objects.get()
    assert (kept.total_cents, kept.fetched_at) == (-1, early + timedelta(minutes=1))
    # As old or newer, and it is written.
    invoices.mirror(stripe, name, now=early + timedelta(minutes=1))
    assert Invoice.objects.get().total_cents == 38
    # That it was paid is newer than anything, though this host's clock be late.
    buyer.collect()
    invoices.mirror(stripe, name, now=early)
    assert Invoice.objects.get().status == "paid"
    # And what is paid stays so, though a clock be early.
    row = Invoice.objects.get()
    row.status, row.payment_failed, row.fetched_at = "open", True, early + timedelta(days=9)
    invoices._keep(row)
    assert (Invoice.objects.get().status, Invoice.objects.get().payment_failed) == ("paid", False)
    assert recharges(buyer) == [(f"topup:{name}", 380_000)]


@pytest.mark.parametrize("fault", ["drop_before", "500_before", "429"])
@pytest.mark.parametrize("path", ["/v1/invoices/*", "/v1/invoices/*/lines"])
def test_a_fetch_that_fails_changes_nothing(
    stripe: Stripe, buyer: Buyer, fault: Any, path: str
) -> None:
    for _ in range(11):
        item: Any = {"customer": buyer.customer, "amount": 100, "currency": "usd"}
        buyer.shop.api.invoice_items.create(item)
    buyer.end_month()
    buyer.collect()
    buyer.emulator.faults.add(Fault(fault, path, "GET"))
    with pytest.raises(Exception, match=r".") as failure:
        copied(stripe, buyer)
    assert type(failure.value).__name__ in ("StripeUnknown", "StripeBusy")
    assert (Invoice.objects.count(), recharges(buyer)) == (0, [])
    assert copied(stripe, buyer).status == "paid"
    assert len(recharges(buyer)) == 1


def test_many_hosts_copy_one_payment_at_once(stripe: Stripe, committed_buyer: Buyer) -> None:
    buyer = committed_buyer
    buyer.use("c/dear", 2)
    name = buyer.end_month()
    buyer.collect()
    now = buyer.now
    done = race(8, lambda n: invoices.mirror(stripe, name, now=now + timedelta(seconds=n)))
    assert [invoice.status for invoice in done if isinstance(invoice, Invoice)] == ["paid"] * 8
    assert Invoice.objects.count() == 1
    assert recharges(buyer) == [(f"topup:{name}", 380_000)]
    assert buyer.account.balance_micro == 10_000_000


def test_links_are_fetched_and_kept_nowhere(
    stripe: Stripe, buyer: Buyer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    buyer.end_month()
    draft = copied(stripe, buyer)
    assert invoices.links(stripe, draft) == invoices.Links("", "")
    buyer.collect()
    invoice = copied(stripe, buyer)
    found = invoices.links(stripe, invoice)
    assert found.page == buyer.latest()["hosted_invoice_url"]
    assert httpx.get(found.pdf, trust_env=False).content.startswith(b"%PDF")
    stored = [str(value) for row in Invoice.objects.values() for value in row.values()]
    assert not any("http" in value for value in stored)
    assert found.page not in caplog.text
    buyer.emulator.faults.add(Fault("drop_before", "/v1/invoices/*", "GET"))
    with pytest.raises(StripeUnknown):
        invoices.links(stripe, invoice)


# Lines and their images


def test_each_line_leads_to_its_images_and_adds_up(stripe: Stripe, buyer: Buyer) -> None:
    mine = {
        "a/cheap": [buyer.use("a/cheap", count) for count in (1, 4, 2)],
        "b/middle": [buyer.use("b/middle", 3)],
    }
    other = Buyer(buyer.emulator, buyer.sold)
    other.use("a/cheap", 9)
    first = copied(stripe, buyer, buyer.end_month())
    # Used in the second after the period: on the next invoice.
    later = buyer.use("a/cheap", 5)
    invoice = copied(stripe, buyer, first.stripe_id)

    for model, entries in mine.items():
        line = line_of(invoice, buyer, model)
        assert list(invoices.entries_of_line(invoice, line)) == entries
        total = invoices.line_total(invoice, line)
        images = sum(entry.quantity for entry in entries)
        assert total == LineTotal(images, images * PRICES[model])
        assert total.agrees(line)
    empty = line_of(invoice, buyer, "c/dear")
    assert invoices.line_total(invoice, empty) == LineTotal(0, 0)
    assert LineTotal(0, 0).agrees(empty)
    buyer.collect()
    buyer.end_month()
    second = copied(stripe, buyer)
    assert list(invoices.entries_of_line(second, line_of(second, buyer, "a/cheap"))) == [later]
    # The other's line has what is the other's alone, though the price is the same.
    theirs = copied(stripe, other)
    assert theirs.organization == other.organization
    assert not invoices.entries_of_line(theirs, line_of(theirs, buyer, "a/cheap")).exists()


def test_only_what_stripe_counted_is_in_a_line(stripe: Stripe, buyer: Buyer) -> None:
    good = buyer.use("a/cheap", 2)
    confirmed = buyer.use("a/cheap", 3)
    MeterEvent.objects.filter(entries__ledger_entry=confirmed).update(state=MeterState.CONFIRMED)
    refused = drawn(buyer.key, images=4)
    rejected = MeterEvent.objects.create(
        identifier="gh1:refused",
        organization=buyer.organization,
        price_version=PriceVersion.objects.get(sku="a/cheap"),
        hour=buyer.now,
        quantity=4,
        timestamp=buyer.now,
        state=MeterState.REJECTED,
        next_at=buyer.now,
    )
    MeteredEntry.objects.create(ledger_entry=refused, meter_event=rejected)
    drawn(buyer.key, images=7)  # in no event
    invoice = copied(stripe, buyer, buyer.end_month())
    line = line_of(invoice, buyer, "a/cheap")
    assert list(invoices.entries_of_line(invoice, line)) == [good, confirmed]
    assert invoices.line_total(invoice, line).agrees(line)
    # Sent again within the period: then Stripe bills it there, and there it is found, once.
    for number in range(2):
        MeterEvent.objects.create(
            identifier=f"gh1:refused:r{number}",
            organization=buyer.organization,
            price_version=rejected.price_version,
            hour=rejected.hour,
            quantity=2,
            timestamp=rejected.timestamp,
            reissue_of=rejected,
            state=MeterState.ACCEPTED,
            next_at=buyer.now,
        )
    assert list(invoices.entries_of_line(invoice, line)) == [good, confirmed, refused]


def test_the_first_and_the_last_second_of_a_period(stripe: Stripe, buyer: Buyer) -> None:
    line: Line = {
        "id": "il",
        "price": buyer.sold["a/cheap"].price,
        "description": "",
        "quantity": "0",
        "unit_cents": "4",
        "amount_cents": 0,
        "start": int(buyer.now.timestamp()),
        "end": int(buyer.now.timestamp()) + 100,
    }
    invoice = copied(stripe, buyer)
    begin = buyer.now
    found = []
    for offset in (-0.1, 0, 99.9, 100):
        entry = drawn(buyer.key)
        buyer.meter(entry, timestamp=begin + timedelta(seconds=offset))
        found.append(entry)
    assert list(invoices.entries_of_line(invoice, line)) == found[1:3]


@pytest.mark.parametrize(
    ("quantity", "cents", "agrees"),
    [("3", 20, True), ("3", 19, True), ("3", 21, False), ("3", 18, False), ("4", 20, False)],
)
def test_a_line_may_be_a_cent_off_and_no_more(quantity: str, cents: int, agrees: bool) -> None:
    line: Any = {"quantity": quantity, "unit_cents": "6.5", "amount_cents": cents}
    assert LineTotal(3, 195_000).agrees(line) is agrees


def test_what_was_used_at_a_price_that_left_within_the_month(stripe: Stripe, buyer: Buyer) -> None:
    """Stripe bills it as an invoice item; it opens to its images all the same."""
    entry = buyer.use("b/middle", 4)
    items = buyer.shop.api.subscriptions.retrieve(buyer.subscription)["items"].data
    (item,) = (i for i in items if i.price.id == buyer.sold["b/middle"].price)
    buyer.emulator.clock.advance(HOUR)
    buyer.shop.api.subscription_items.delete(item.id)
    invoice = copied(stripe, buyer, buyer.end_month())
    line = line_of(invoice, buyer, "b/middle")
    assert (line["quantity"], line["amount_cents"]) == ("4", 26)
    assert list(invoices.entries_of_line(invoice, line)) == [entry]
    assert invoices.line_total(invoice, line).agrees(line)


def test_month_to_date(key: ApiKey) -> None:
    drawn(key, images=2)
    drawn(key, "b/middle")
    organization = key.organization
    spent = invoices.month_to_date(organization, now=timezone.now())
    assert [(row.sku, row.units, row.cost_micro) for row in spent] == [
        ("a/cheap", 2, 80_000),
        ("b/middle", 1, 65_000),
    ]
    following = (timezone.now().replace(day=1) + timedelta(days=32)).replace(day=1)
    assert invoices.month_to_date(organization, now=following) == []
    assert invoices.month_to_date(KeyFactory().row.organization, now=timezone.now()) == []


# CSV


def test_csv(key: ApiKey) -> None:
    entry = drawn(key, "b/middle", 3)
    text = "".join(invoices.all_csv(LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION)))
    assert list(csv.reader(text.splitlines())) == [
        list(invoices.CSV_COLUMNS),
        [
            entry.created_at.astimezone(UTC).isoformat(timespec="seconds"),
            entry.request_id,
            "b/middle",
            "3",
            "0.065",
            "0.195",
            key.prefix,
            str(entry.pk),
        ],
    ]
    assert "".join(invoices.all_csv(LedgerEntry.objects.none())).strip() == ",".join(
        invoices.CSV_COLUMNS
    )


def test_csv_of_many_rows_needs_little_memory_and_one_query(key: ApiKey) -> None:
    hold = authorize(key)
    price = PriceVersion.objects.get(sku="a/cheap")
    count = 12_345
    LedgerEntry.objects.bulk_create(
        (
            LedgerEntry(
                organization=key.organization,
                entry_key=f"many:{number}",
                kind=EntryKind.CONSUMPTION,
                amount_micro=-40_000,
                price_version=price,
                sku="a/cheap",
                quantity=1,
                hold=hold,
                api_key=key,
                request_id=hold.request_id,
            )
            for number in range(count)
        ),
        batch_size=500,
    )
    entries = LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION).order_by("pk")
    chunks = rows = longest = 0
    tracemalloc.start()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        for chunk in invoices.all_csv(entries):
            chunks, rows = chunks + 1, rows + chunk.count("\r\n")
            longest = max(longest, len(chunk))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (rows, chunks) == (count + 1, 7)
    assert len(queries) <= 1  # a server-side cursor is not counted as one
    assert longest < 500_000
    assert peak < 40_000_000
