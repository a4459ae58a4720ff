"""What Stripe tells: who is let in, and that it ends well in whatever order it comes."""

import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from billing.models import (
    AccountStatus,
    Difference,
    EntryKind,
    Invoice,
    LedgerEntry,
    Notification,
    StripeEvent,
    Subscription,
)
from billing.stripe import inbox, invoices, recharges, sweep
from billing.stripe.client import Stripe, StripeUnknown
from billing.stripe.handlers import HANDLERS
from billing.stripe.inbox import INBOX, MOST_LOST
from billing.stripe.webhook import DELIVERIES
from tests.billing import race
from tests.billing.buyer import DAY, WEBHOOK, Buyer, deliver, event
from tests.emulators.stripe import Fault, StripeEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.server import AppServer

type Json = dict[str, Any]


@pytest.fixture(autouse=True)
def _static(settings: Settings, tmp_path: Path) -> None:
    settings.STATIC_ROOT = tmp_path  # it must be there for the pages' middleware


def post(body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    answer = Client().post(WEBHOOK, body, content_type="application/json", headers=headers)
    assert answer["content-type"] == "text/plain"
    text = answer.content.decode()
    assert "<" not in text
    assert len(text) < 300
    return answer.status_code, text


def counted(status: int) -> float:
    return DELIVERIES.labels(status)._value.get()  # type: ignore[no-any-return]


def process(stripe: Stripe, buyer: Buyer) -> int:
    return inbox.process_due(stripe, now=buyer.now)


def events_of(emulator: StripeEmulator, begin: str = "") -> list[Json]:
    return [one for one in emulator.events if one["type"].startswith(begin)]


def topups(buyer: Buyer) -> list[tuple[str, int]]:
    found = LedgerEntry.objects.filter(
        organization=buyer.organization, kind=EntryKind.RECHARGE
    ).order_by("pk")
    return [(entry.entry_key, entry.amount_micro) for entry in found]


# Who is let in


def test_a_delivery_is_in_the_inbox_once_and_nothing_else_happened(
    stripe_account: StripeEmulator, db: None
) -> None:
    sent = event("invoice.created", {"id": "in_1", "object": "invoice"})
    calls, taken = len(stripe_account.requests), counted(200)
    assert deliver(stripe_account, sent, sent, sent) == [200] * 3
    row = StripeEvent.objects.get()
    assert (row.id, row.type, row.object_id) == ("evt_made", "invoice.created", "in_1")
    assert (row.thin, row.livemode, row.payload) == (False, False, sent)
    assert (row.created, row.next_at) == (row.created, row.created)
    assert row.created == datetime.fromtimestamp(1_795_000_000, UTC)
    assert (row.processed_at, row.attempts, row.error) == (None, 0, "")
    # No work in the request, above all no call to Stripe.
    assert len(stripe_account.requests) == calls
    assert counted(200) == taken + 3


def test_a_second_delivery_does_not_undo_the_work_on_the_first(
    stripe_account: StripeEmulator, db: None
) -> None:
    sent = event("some.thing", {"id": "x"})
    deliver(stripe_account, sent)
    StripeEvent.objects.update(processed_at=datetime.now(UTC), attempts=3)
    deliver(stripe_account, sent | {"type": "another.thing"})
    row = StripeEvent.objects.get()
    assert (row.type, row.attempts, row.processed_at is None) == ("some.thing", 3, False)


@pytest.mark.parametrize("method", ["get", "head", "put", "patch", "delete", "options"])
def test_only_post(stripe_account: StripeEmulator, db: None, method: str) -> None:
    answer = getattr(Client(), method)(WEBHOOK)
    assert (answer.status_code, answer["Allow"]) == (405, "POST")
    assert answer["content-type"] == "text/plain"


def test_it_needs_no_csrf_token(stripe_account: StripeEmulator, db: None) -> None:
    body, headers = stripe_account.webhooks.signed(event("some.thing", {"id": "x"}))
    client = Client(enforce_csrf_checks=True)
    answer = client.post(WEBHOOK, body, content_type="application/json", headers=headers)
    assert answer.status_code == 200


def test_the_docs_list_the_events_that_are_worked_on() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    steps = page.partition("**Two event destinations**")[2].partition("**A restricted key**")[0]
    listed = re.findall(r"`((?:v1\.)?[a-z_]+\.[a-z_.*]+)`", steps)
    assert sorted(listed) == sorted(f"{one}*" if one[-1] == "." else one for one in HANDLERS)
    # Once: a second list would fall behind.
    assert [name for name in listed if page.count(f"`{name}`") > 1] == []


def test_without_stripe_there_is_no_webhook(
    stripe_account: StripeEmulator, db: None, settings: Settings
) -> None:
    settings.STRIPE_SECRET_KEY = ""
    body, headers = stripe_account.webhooks.signed(event("some.thing", {"id": "x"}))
    status, text = post(body, headers)
    assert status == 404
    assert "STRIPE_SECRET_KEY" in text
    assert StripeEvent.objects.count() == 0


def signed_wrongly(emulator: StripeEmulator) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    body, good = emulator.webhooks.signed(event("some.thing", {"id": "x"}))
    signature = good["Stripe-Signature"]
    stamp = signature.partition(",")[0]
    yield "forged", body, {"Stripe-Signature": f"{stamp},v1={'0' * 64}"}
    yield "changed", body.replace(b"some.thing", b"invoice.pa"), good
    yield "changed by a space", body + b" ", good
    yield "another secret", *emulator.webhooks.signed(body, "whsec_another")
    old = int(time.time()) - 301
    yield "old", *emulator.webhooks.signed(body, signed_at=old)
    yield (
        "a new time on an old signature",
        body,
        {"Stripe-Signature": signature.replace(stamp, f"t={int(time.time()) + 5}")},
    )
    yield "absent", body, {}
    for text in ("", "t=", "v1=", "t=1", f"{stamp}", f"{stamp},v0={'0' * 64}", "é", "t=é,v1=é"):
        yield f"senseless {text!r}", body, {"Stripe-Signature": text}
    yield "a signature that is no ASCII", body, {"Stripe-Signature": f"{stamp},v1=é{'0' * 63}"}
    yield "no text", b"\xff\xfe", good


def test_what_is_not_signed_is_refused(
    stripe_account: StripeEmulator, db: None, caplog: pytest.LogCaptureFixture
) -> None:
    before, cases = counted(400), list(signed_wrongly(stripe_account))
    for name, body, headers in cases:
        status, text = post(body, headers)
        assert status == 400, name
        assert "STRIPE_WEBHOOK_SECRET" in text, name
    assert StripeEvent.objects.count() == 0
    assert counted(400) == before + len(cases)
    lines = [r for r in caplog.records if r.name == "geekhub.billing"]
    assert [line.levelname for line in lines] == ["WARNING"] * len(cases)


def test_while_a_secret_is_rotated_both_are_good(
    stripe_account: StripeEmulator, db: None, settings: Settings
) -> None:
    old, new = stripe_account.webhook_secret, "whsec_new"
    one, two, three = (event("some.thing", {"id": "x"}, id=f"evt_{n}") for n in range(3))
    sign = stripe_account.webhooks.signed
    assert post(*sign(one, new))[0] == 400
    settings.STRIPE_WEBHOOK_SECRETS = [old, new]
    assert post(*sign(one, old))[0] == 200
    assert post(*sign(two, new))[0] == 200
    assert post(*sign(three, new, old))[0] == 200
    settings.STRIPE_WEBHOOK_SECRETS = [new]
    assert post(*sign(one, old))[0] == 400
    assert StripeEvent.objects.count() == 3


def test_the_other_mode_is_refused(
    stripe_account: StripeEmulator, db: None, settings: Settings
) -> None:
    sign = stripe_account.webhooks.signed
    status, text = post(*sign(event("some.thing", {"id": "x"}, livemode=True)))
    assert (status, "of live mode, STRIPE_SECRET_KEY of test mode" in text) == (400, True)
    settings.STRIPE_LIVEMODE = True
    status, text = post(*sign(event("some.thing", {"id": "x"})))
    assert (status, "of test mode, STRIPE_SECRET_KEY of live mode" in text) == (400, True)
    assert StripeEvent.objects.count() == 0
    assert post(*sign(event("some.thing", {"id": "x"}, livemode=True)))[0] == 200


GOOD = event("some.thing", {"id": "x"})
THIN = {
    "id": "evt_thin",
    "object": "v2.core.event",
    "type": "v1.billing.meter.no_meter_found",
    "created": "2026-11-22T12:00:00.000Z",
    "livemode": False,
}
NO_EVENTS = [
    b"",
    b"{",
    b"[]",
    b"7",
    b'"evt_1"',
    b"null",
    *(
        json.dumps(sent).encode()
        for sent in (
            {},
            *({name: value for name, value in GOOD.items() if name != left} for left in GOOD),
            *({name: value for name, value in THIN.items() if name != left} for left in THIN),
            GOOD | {"id": 7},
            GOOD | {"id": ""},
            GOOD | {"id": "e" * 101},
            GOOD | {"type": None},
            GOOD | {"type": "t" * 101},
            GOOD | {"created": "yesterday"},
            GOOD | {"created": None},
            GOOD | {"created": 10**30},
            GOOD | {"data": None},
            GOOD | {"data": {"object": "in_1"}},
            GOOD | {"data": {"object": {"id": 7}}},
            THIN | {"created": "2026-11-22T12:00:00"},
            THIN | {"created": "yesterday"},
            THIN | {"related_object": "mtr_1"},
        )
    ),
]


def test_what_is_signed_but_no_event_is_kept_for_staff_and_not_sent_again(
    stripe_account: StripeEmulator, db: None, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = list(dict.fromkeys(NO_EVENTS))
    for body in bodies * 2:
        assert post(*stripe_account.webhooks.signed(body))[0] == 200, body
    assert StripeEvent.objects.count() == 0
    kept = Difference.objects.all()
    assert [(one.kind, one.subject, one.seen) for one in kept] == [
        ("stripe_event", "no event", 2)
    ] * len(bodies)
    assert kept.get(note__contains="e" * 101).note.startswith("ValueError: not a name; ")
    lines = [r.levelname for r in caplog.records if r.name == "geekhub.billing"]
    assert lines == ["ERROR"] * 2 * len(bodies)


NUMBER, DEEP = "a number that is too large", "nesting that is too deep"
OTHERS: list[Any] = [
    None, True, 0, -1, 10**30, -(10**18), 1e308, float("nan"), float("inf"), NUMBER,
    "", "x", "a\0b", "half \ud800", "x" * 9_000, [], ["a\0b"], {}, {"a\0b": "\udfff"}, DEEP,
]  # fmt: skip


def written(sent: Any) -> bytes:
    """Return the JSON, also with what Python would not write."""
    text = json.dumps(sent).replace(json.dumps(NUMBER), "1e400")
    return text.replace(json.dumps(DEEP), "[" * 2000 + "]" * 2000).encode()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (object or list, name or index) in a JSON value."""
    if isinstance(value, (dict, list)):
        for at, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, at
            yield from places(inner)


def changed(sent: Json, *, below: int) -> Iterator[Any]:
    """Yield the event with one value after another replaced by everything else, and left out.

    Those of the payload's own object take turns: every `below`th of them.
    """
    told = sent.get("data", {}).get("object", {})
    inside = {(id(value), at) for value, at in places(told)}
    for number, (owner, at) in enumerate(list(places(sent))):
        named = owner is told and at == "id"
        if (id(owner), at) in inside and not named and number % below:
            continue
        kept = owner[at]
        for other in OTHERS:
            owner[at] = other
            yield sent
        owner[at] = kept
        if isinstance(owner, dict):
            shape = dict(owner)
            del owner[at]
            yield sent
            owner.clear()
            owner.update(shape)


@pytest.mark.timeout(900)
def test_every_value_may_be_anything_else(stripe: Stripe, buyer: Buyer) -> None:
    """Whatever a signed body holds is an event or is kept for staff, as a whole; never a 500."""
    _, paid = a_paid_month(buyer)
    buyer.emulator.webhooks.emit_thin("v1.billing.meter.no_meter_found", None, {})
    kinds = {one["type"]: one for one in buyer.emulator.events}
    about = {"related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/x"}}
    prove = bool(os.environ.get("PROVE"))
    chosen = [*kinds.values()] if prove else [paid[0]]
    client, sent = Client(), 0
    for number, one in enumerate([*chosen, THIN | about]):
        for body in changed(json.loads(json.dumps(one)), below=5 if prove else 59):
            if body.get("id") == one["id"]:
                body["id"] = f"evt_{number}_{sent}"
            signed, headers = buyer.emulator.webhooks.signed(written(body))
            answer = client.post(WEBHOOK, signed, content_type="application/json", headers=headers)
            assert answer.status_code in (200, 400)
            sent += 1
            if body.get("id") == f"evt_{number}_{sent - 1}":
                body["id"] = one["id"]
    rows = StripeEvent.objects.count()
    unreadable = sum(Difference.objects.values_list("seen", flat=True))
    refused = sent - rows - unreadable
    # Of the other mode, or with an id that was there.
    assert 0 < refused < 3 * len(OTHERS) * (number + 1)
    assert rows > sent / 2 > unreadable > 0
    assert not StripeEvent.objects.filter(next_at__gt=timezone.now()).exists()
    # Of those that are about the same, one is enough.
    each = {(row.type, row.object_id): row.pk for row in StripeEvent.objects.all()}
    StripeEvent.objects.exclude(pk__in=each.values()).delete()
    inbox.process_due(stripe, now=buyer.now, limit=10_000)
    assert topups(buyer) == [(f"topup:{paid[0]['data']['object']['id']}", 3_800_000)]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*GOOD, "related_object"]), inner)
        ),
        max_leaves=8,
    )
)
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_signed_json_breaks_it(stripe_account: StripeEmulator, db: None, sent: Any) -> None:
    body = json.dumps(sent).encode("utf-8", "surrogatepass")
    with transaction.atomic():
        assert post(*stripe_account.webhooks.signed(body))[0] in (200, 400)
        transaction.set_rollback(True)


def test_a_thin_event_comes_to_the_same_address(stripe_account: StripeEmulator, db: None) -> None:
    about = {"related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/x"}}
    sent = [THIN | {"id": "evt_a"}, THIN | about | {"id": "evt_b"}]
    assert deliver(stripe_account, *sent) == [200, 200]
    rows = list(StripeEvent.objects.order_by("pk"))
    assert [(row.thin, row.object_id) for row in rows] == [(True, ""), (True, "mtr_1")]
    assert rows[0].created == datetime(2026, 11, 22, 12, tzinfo=UTC)


def big(size: int) -> bytes:
    body = json.dumps(event("some.thing", {"id": "x"})).encode()
    return body + b" " * (size - len(body))


def test_a_body_of_a_mebibyte_and_no_more(stripe_account: StripeEmulator, db: None) -> None:
    sign = stripe_account.webhooks.signed
    assert post(*sign(big(1_048_576)))[0] == 200
    assert StripeEvent.objects.count() == 1
    for size in (1_048_577, 2_097_152, 5_000_000):
        assert post(*sign(big(size)))[0] == 413
    assert StripeEvent.objects.count() == 1


def raw(origin: str, head: str, *chunks: bytes) -> bytes:
    """Send these bytes over a socket, and return the status of the answer."""
    place = urlsplit(origin)
    with socket.create_connection((place.hostname, place.port or 80), timeout=20) as wire:
        try:
            wire.sendall(head.encode())
            for chunk in chunks:
                wire.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered already
        return wire.recv(4096).split(b"\r\n")[0]


def test_over_a_socket_whatever_the_length_says(
    app: AppServer, stripe_account: StripeEmulator
) -> None:
    """Through the real server: without a length, with one that lies, and Stripe's own delivery."""
    host = urlsplit(app.origin).netloc

    def head(signed: dict[str, str], *more: str) -> str:
        fields = [f"{name}: {value}" for name, value in signed.items()] + list(more)
        lines = [f"POST {WEBHOOK} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
        return "\r\n".join(lines) + "\r\n\r\n"

    chunked = "Transfer-Encoding: chunked"
    body, signed = stripe_account.webhooks.signed(big(3_000_000))
    parts = [body[at : at + 60_000] for at in range(0, len(body), 60_000)]
    framed = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    assert b" 413 " in raw(app.origin, head(signed, chunked), *framed, b"0\r\n\r\n")
    assert StripeEvent.objects.count() == 0

    body, signed = stripe_account.webhooks.signed(event("some.thing", {"id": "x"}))
    small = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert b" 200 " in raw(app.origin, head(signed, chunked), small)
    # What is announced as shorter than it is, was not signed so.
    short = f"Content-Length: {len(body) - 2}"
    assert b" 400 " in raw(app.origin, head(signed, short), body)
    assert StripeEvent.objects.count() == 1

    stripe_account.webhooks.connect(f"{app.origin}{WEBHOOK}")
    stripe_account.webhooks.connect(f"{app.origin}{WEBHOOK}", thin=True)
    stripe_account.webhooks.emit("customer.created", {"id": "cus_1", "object": "customer"})
    stripe_account.webhooks.emit_thin("v1.billing.meter.no_meter_found", None, {})
    done = stripe_account.webhooks.deliver(copies=2)
    assert [delivery.status for delivery in done] == [200] * 4
    assert sorted(StripeEvent.objects.values_list("type", "thin")) == [
        ("customer.created", False),
        ("some.thing", False),
        ("v1.billing.meter.no_meter_found", True),
    ]


def test_many_copies_at_once(stripe_account: StripeEmulator, transactional_db: None) -> None:
    sent = event("some.thing", {"id": "x"})
    assert race(8, lambda _: deliver(stripe_account, sent)) == [[200]] * 8
    assert StripeEvent.objects.count() == 1


# What is done with it


@contextmanager
def undone() -> Iterator[None]:
    """Try something on this state of the database."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def a_paid_month(buyer: Buyer) -> tuple[str, list[Json]]:
    """A month whose payment fails once and then succeeds: the invoice, and what Stripe tells."""
    buyer.use("c/dear", 20)
    since = len(buyer.emulator.events)
    name = buyer.end_month()
    buyer.emulator.set_cards(buyer.customer, "insufficient_funds")
    buyer.collect()
    buyer.emulator.set_cards(buyer.customer, None)
    buyer.emulator.clock.advance(2 * DAY)
    told = {one["type"]: one for one in buyer.emulator.events[since:]}
    assert buyer.latest()["status"] == "paid"
    return name, [
        told[f"invoice.{kind}"] for kind in ("created", "finalized", "payment_failed", "paid")
    ]


def the_end(buyer: Buyer) -> tuple[Any, ...]:
    """What must come out of a paid month, however it was told."""
    fields = [
        field.name
        for field in Invoice._meta.concrete_fields
        if field.name not in ("id", "fetched_at")
    ]
    return (
        list(Invoice.objects.values(*fields)),
        topups(buyer),
        buyer.account.status,
        buyer.account.balance_micro,
        StripeEvent.objects.filter(processed_at=None).count(),
    )


def test_every_order_with_doubles_ends_in_the_same(stripe: Stripe, buyer: Buyer) -> None:
    name, told = a_paid_month(buyer)
    ends = []
    for number, order in enumerate(itertools.permutations(told)):
        twice = number % len(order)
        with undone():
            for place, one in enumerate((*order, order[twice])):
                assert deliver(buyer.emulator, one) == [200]
                if place != twice:  # two of them are worked on together
                    process(stripe, buyer)
            process(stripe, buyer)
            ends.append(the_end(buyer))
    assert len(ends) == 24
    copies, credited, status, balance, waiting = ends[0]
    assert [row["stripe_id"] for row in copies] == [name]
    assert (copies[0]["status"], copies[0]["payment_failed"]) == ("paid", False)
    assert credited == [(f"topup:{name}", 3_800_000)]
    assert (status, balance, waiting) == (AccountStatus.OK, 10_000_000, 0)
    assert all(end == ends[0] for end in ends)


# Between two steps: which of the news so far comes, by number, and whether it is worked on.
BETWEEN = st.tuples(st.lists(st.integers(0, 30), max_size=4), st.booleans())


@given(st.tuples(BETWEEN, BETWEEN, BETWEEN))
@hypothesis_settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_told_late_twice_or_never_while_time_goes_on(
    stripe: Stripe, buyer: Buyer, plan: tuple[tuple[list[int], bool], ...]
) -> None:
    """Between the steps some of the news comes, some of it again; the sweep does the rest."""
    with undone():
        one = Buyer(buyer.emulator, buyer.sold)
        began = one.now
        one.use("c/dear", 20)

        def news(step: int) -> None:
            numbers, work = plan[step]
            told = [
                each
                for each in events_of(buyer.emulator)
                if each["type"].startswith(("invoice.", "customer.subscription."))
                and each["data"]["object"]["customer"] == one.customer
            ]
            deliver(buyer.emulator, *(told[number % len(told)] for number in numbers))
            if work:
                process(stripe, one)

        name = one.end_month()
        news(0)
        buyer.emulator.set_cards(one.customer, "insufficient_funds")
        one.collect()
        news(1)
        buyer.emulator.set_cards(one.customer, None)
        buyer.emulator.clock.advance(2 * DAY)
        news(2)
        later = one.now + timedelta(hours=1)
        inbox.process_due(stripe, now=later)
        sweep.sweep(stripe, since=began, now=later)
        copy_of = Invoice.objects.get(stripe_id=name)
        assert (copy_of.status, copy_of.amount_paid_cents) == ("paid", 380)
        assert topups(one) == [(f"topup:{name}", 3_800_000)]
        assert one.account.status == AccountStatus.OK
        assert not StripeEvent.objects.filter(processed_at=None).exists()


def test_many_workers_at_once_credit_once(stripe: Stripe, committed_buyer: Buyer) -> None:
    name, told = a_paid_month(committed_buyer)
    deliver(committed_buyer.emulator, *told)
    now = committed_buyer.now
    done = race(6, lambda _: inbox.process_due(stripe, now=now))
    assert sum(count for count in done if isinstance(count, int)) == 4
    assert list(StripeEvent.objects.values_list("attempts", flat=True)) == [1] * 4
    assert topups(committed_buyer) == [(f"topup:{name}", 3_800_000)]


def test_a_worker_that_died_is_followed_by_another(stripe: Stripe, buyer: Buyer) -> None:
    _, told = a_paid_month(buyer)
    deliver(buyer.emulator, told[0])
    # Claimed, and then the process was gone.
    StripeEvent.objects.update(attempts=1, next_at=buyer.now + INBOX.lease)
    assert process(stripe, buyer) == 0
    assert inbox.process_due(stripe, now=buyer.now + INBOX.lease) == 1
    assert len(topups(buyer)) == 1


def test_a_failed_payment_suspends_in_the_end(stripe: Stripe, buyer: Buyer) -> None:
    """Told by events alone: grace, then unpaid; and back when it is paid on Stripe's page."""
    buyer.use("c/dear", 20)
    since = len(buyer.emulator.events)

    def told() -> None:
        nonlocal since
        fresh, since = buyer.emulator.events[since:], len(buyer.emulator.events)
        kinds = ("invoice.", "customer.subscription.")
        deliver(buyer.emulator, *(one for one in fresh if one["type"].startswith(kinds)))
        process(stripe, buyer)

    name = buyer.end_month()
    buyer.emulator.set_cards(buyer.customer, "insufficient_funds")
    told()
    assert buyer.account.status == AccountStatus.OK
    buyer.collect()
    told()
    assert buyer.account.status == AccountStatus.GRACE
    buyer.emulator.clock.advance(13 * DAY)
    told()
    assert buyer.account.status == AccountStatus.GRACE
    buyer.emulator.clock.advance(2 * DAY)
    told()
    assert buyer.account.status == AccountStatus.SUSPENDED
    assert topups(buyer) == []
    assert Subscription.objects.get().status == "unpaid"
    buyer.emulator.set_cards(buyer.customer, None)
    buyer.shop.api.invoices.pay(name)
    told()
    assert buyer.account.status == AccountStatus.OK
    assert topups(buyer) == [(f"topup:{name}", 3_800_000)]
    kinds = sorted(Notification.objects.values_list("kind", flat=True))
    assert kinds == ["payment_failed", "resumed", "suspended"]


@pytest.mark.parametrize("action", ["unpaid", "cancel"])
def test_that_stripe_gave_up_is_told_by_the_subscription_alone(
    stripe: Stripe, buyer: Buyer, action: Any
) -> None:
    buyer.emulator.configure(final_action=action)
    buyer.use("c/dear", 20)
    buyer.end_month()
    buyer.emulator.set_cards(buyer.customer, "insufficient_funds")
    buyer.collect()
    buyer.emulator.clock.advance(14 * DAY)
    last = events_of(buyer.emulator, "customer.subscription.")[-1]
    assert last["data"]["object"]["status"] in ("unpaid", "canceled")
    deliver(buyer.emulator, last)
    process(stripe, buyer)
    assert buyer.account.status == AccountStatus.SUSPENDED


class Meanwhile(threading.Event):
    """Does something at the moment when a call is held back."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.work = work

    def wait(self, timeout: float | None = None) -> bool:
        self.work()
        return True


def test_one_answer_decides_though_another_would_say_otherwise(
    stripe: Stripe, buyer: Buyer
) -> None:
    """It is paid in the moment after Stripe answered: the next event tells, and not half of it."""
    buyer.use("c/dear", 20)
    name = buyer.end_month()
    buyer.emulator.set_cards(buyer.customer, "insufficient_funds")
    buyer.collect()
    buyer.emulator.clock.advance(14 * DAY)
    before = events_of(buyer.emulator, "customer.subscription.")
    buyer.emulator.set_cards(buyer.customer, None)
    path = f"/v1/subscriptions/{buyer.subscription}"
    pay = Meanwhile(lambda: buyer.shop.api.invoices.pay(name))
    buyer.emulator.faults.add(Fault("slow_after", path, nth=1, gate=pay))
    calls = len(buyer.emulator.requests)
    deliver(buyer.emulator, before[-1])
    assert process(stripe, buyer) == 1
    asked = [one.path for one in buyer.emulator.requests[calls:] if one.method == "GET"]
    assert asked.count(path) == 1
    assert Subscription.objects.get().status == "unpaid"
    assert Invoice.objects.get(stripe_id=name).status == "paid"
    deliver(buyer.emulator, *events_of(buyer.emulator, "customer.subscription.")[len(before) :])
    process(stripe, buyer)
    assert Subscription.objects.get().status == "active"
    assert buyer.account.status == AccountStatus.OK
    assert topups(buyer) == [(f"topup:{name}", 3_800_000)]


def test_who_cancels_and_owes_nothing_is_not_suspended(stripe: Stripe, buyer: Buyer) -> None:
    buyer.shop.api.subscriptions.cancel(buyer.subscription)
    deliver(buyer.emulator, events_of(buyer.emulator, "customer.subscription.deleted")[0])
    process(stripe, buyer)
    assert Subscription.objects.get().status == "canceled"
    assert buyer.account.status == AccountStatus.OK


def test_who_cancelled_and_cannot_pay_the_rest_has_its_grace(stripe: Stripe, buyer: Buyer) -> None:
    buyer.use("c/dear", 20)
    buyer.shop.api.subscriptions.update(buyer.subscription, {"cancel_at_period_end": True})
    buyer.end_month()
    buyer.emulator.set_cards(buyer.customer, "insufficient_funds")
    buyer.collect()
    told = events_of(buyer.emulator, "invoice.") + events_of(
        buyer.emulator, "customer.subscription."
    )
    for order in (told, told[::-1]):
        with undone():
            deliver(buyer.emulator, *order)
            process(stripe, buyer)
            assert buyer.account.status == AccountStatus.GRACE


def test_a_deleted_draft_leaves_nothing(stripe: Stripe, buyer: Buyer) -> None:
    made = buyer.shop.api.invoices.create({"customer": buyer.customer})
    created, *_ = events_of(buyer.emulator, "invoice.created")[-1:]
    copy_it = invoices.mirror(stripe, made.id, now=buyer.now)
    assert copy_it is not None
    buyer.shop.api.invoices.delete(made.id)
    deleted = events_of(buyer.emulator, "invoice.deleted")[0]
    for order in ([created, deleted], [deleted, created]):
        with undone():
            deliver(buyer.emulator, *order)
            process(stripe, buyer)
            assert not Invoice.objects.filter(stripe_id=made.id).exists()
            assert not StripeEvent.objects.filter(processed_at=None).exists()
            assert not StripeEvent.objects.exclude(error="").exists()


def test_a_recharge_by_checkout_and_by_intent(stripe: Stripe, buyer: Buyer) -> None:
    recharges.checkout(
        stripe, buyer.organization, 25_000_000, "https://x.test/", "https://x.test/", None,
        now=buyer.now,
    )  # fmt: skip
    (session,) = buyer.emulator.objects("checkout.session")
    buyer.emulator.complete_checkout(session["id"])
    (intent,) = (
        one
        for one in events_of(buyer.emulator, "payment_intent.succeeded")
        if one["data"]["object"]["metadata"]
    )
    (page,) = events_of(buyer.emulator, "checkout.session.completed")
    for order in itertools.permutations((intent, page, page)):
        with undone():
            deliver(buyer.emulator, *order)
            process(stripe, buyer)
            assert [amount for _, amount in topups(buyer)] == [25_000_000]
            assert not StripeEvent.objects.filter(processed_at=None).exists()


def test_a_checkout_brings_the_subscription(stripe: Stripe, buyer: Buyer) -> None:
    buyer.shop.api.subscriptions.cancel(buyer.subscription)
    session = buyer.shop.api.checkout.sessions.create(
        {
            "mode": "subscription",
            "customer": buyer.customer,
            "line_items": [{"price": one.price} for one in buyer.sold.values()],
            "success_url": "https://x.test/",
        }
    )
    buyer.emulator.complete_checkout(session.id)
    deliver(buyer.emulator, *events_of(buyer.emulator, "checkout.session.completed"))
    assert process(stripe, buyer) == 1
    copy_of = Subscription.objects.get()
    assert (copy_of.organization, copy_of.status) == (buyer.organization, "active")
    assert buyer.account.metered_from is not None


def test_a_setup_checkout_and_an_upcoming_invoice_mean_nothing(
    stripe: Stripe, buyer: Buyer
) -> None:
    session = buyer.shop.api.checkout.sessions.create(
        {
            "mode": "setup",
            "currency": "usd",
            "customer": buyer.customer,
            "success_url": "https://x.test/",
        }
    )
    made = event("checkout.session.completed", {"id": session.id, "object": "checkout.session"})
    upcoming = event("invoice.upcoming", {"object": "invoice"}, id="evt_upcoming")
    deliver(buyer.emulator, made, upcoming)
    assert process(stripe, buyer) == 2
    assert not StripeEvent.objects.exclude(error="").exists()
    assert (Invoice.objects.count(), topups(buyer)) == (0, [])


def test_a_customers_new_card_is_known(stripe: Stripe, buyer: Buyer) -> None:
    buyer.emulator.save_card(buyer.customer, "5555555555554444")
    buyer.emulator.save_card(buyer.shop.customer(), "5555555555554444")  # nobody of ours
    told = events_of(buyer.emulator, "customer.updated")
    deliver(buyer.emulator, *told)
    assert process(stripe, buyer) == len(told)
    assert (buyer.account.card_brand, buyer.account.card_last4) == ("mastercard", "4444")
    assert not StripeEvent.objects.exclude(error="").exists()


def test_a_credit_note_brings_its_invoice(stripe: Stripe, buyer: Buyer) -> None:
    buyer.use("c/dear", 20)
    name = buyer.end_month()
    buyer.emulator.set_cards(buyer.customer, "insufficient_funds")
    buyer.collect()
    invoices.mirror(stripe, name, now=buyer.now)
    buyer.shop.api.credit_notes.create({"invoice": name, "amount": 380})
    assert Invoice.objects.get().status == "open"
    deliver(buyer.emulator, *events_of(buyer.emulator, "credit_note.created"))
    process(stripe, buyer)
    copy_of = Invoice.objects.get()
    assert (copy_of.status, copy_of.amount_paid_cents) == ("paid", 0)
    assert topups(buyer) == []
    assert buyer.account.status == AccountStatus.OK


def test_a_deleted_customer_is_told_to_staff(
    stripe: Stripe, buyer: Buyer, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = buyer.shop.customer()
    for customer in (buyer.customer, stranger):
        buyer.shop.api.customers.delete(customer)
    deliver(buyer.emulator, *events_of(buyer.emulator, "customer.deleted"))
    assert process(stripe, buyer) == 2
    difference = Difference.objects.get()
    assert (difference.kind, difference.subject) == ("customer_deleted", buyer.customer)
    assert difference.organization == buyer.organization
    assert [r.levelname for r in caplog.records if r.name == "geekhub.billing"] == ["ERROR"]


def test_what_is_of_no_interest_is_done_at_once(stripe: Stripe, buyer: Buyer) -> None:
    kinds = ["some.thing", "invoiceitem.created", "invoice_payment.paid", "customer.created", "x"]
    made = [event(kind, {"id": "x"}, id=f"evt_{n}") for n, kind in enumerate(kinds)]
    deliver(buyer.emulator, *made)
    calls = len(buyer.emulator.requests)
    assert process(stripe, buyer) == len(kinds)
    assert len(buyer.emulator.requests) == calls
    assert process(stripe, buyer) == 0


def test_dropped_usage_is_told_to_staff_and_suspends_nobody(
    stripe: Stripe, buyer: Buyer, caplog: pytest.LogCaptureFixture
) -> None:
    use, meter = buyer.shop.use, buyer.sold["a/cheap"]
    use("cus_nobody", meter.event_name, 4)
    use("cus_nobody", meter.event_name, 5)
    use(buyer.customer, "img_unknown", 1)
    buyer.emulator.report_meter_errors()
    reports = events_of(buyer.emulator, "v1.billing.meter.")
    assert len(reports) == 2
    deliver(buyer.emulator, *reports, *reports)
    assert process(stripe, buyer) == 2

    rows = {row.subject: row for row in Difference.objects.all()}
    assert set(rows) == {"meter_event_customer_not_found", "no_meter"}
    dropped = rows["meter_event_customer_not_found"]
    assert (dropped.kind, dropped.expected, dropped.found, dropped.seen) == ("meter_error", 0, 2, 1)
    assert (dropped.state, meter.meter in dropped.key) == ("open", True)
    kept = StripeEvent.objects.get(object_id=meter.meter)
    assert kept.payload["data"]["reason"]["error_types"][0]["error_count"] == 2
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 2
    assert buyer.account.status == AccountStatus.OK
    # The next report of the same is the same row, seen again.
    use("cus_nobody", meter.event_name, 6)
    buyer.emulator.report_meter_errors()
    deliver(buyer.emulator, events_of(buyer.emulator, "v1.billing.meter.")[-1])
    assert process(stripe, buyer) == 1
    dropped.refresh_from_db()
    assert (dropped.seen, dropped.found, Difference.objects.count()) == (2, 1, 2)


# What cannot be done


@pytest.mark.parametrize("missing", ["object", "organization"])
def test_what_is_unknown_is_tried_for_three_days_and_kept(
    stripe: Stripe, buyer: Buyer, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = "in_nothing"
    if missing == "organization":
        name = buyer.shop.api.invoices.create({"customer": buyer.shop.customer()}).id
    created = int(buyer.now.timestamp())
    deliver(buyer.emulator, event("invoice.created", {"id": name}, created=created))
    deliver(buyer.emulator, event("some.thing", {"id": "x"}, id="evt_2", created=created + 1))

    assert inbox.process_due(stripe, now=buyer.now + timedelta(seconds=1)) == 1
    row = StripeEvent.objects.get(pk="evt_made")
    assert (row.attempts, row.processed_at) == (1, None)
    assert name in row.error or "customer" in row.error
    begin = moment = buyer.now
    pauses = []
    while row.processed_at is None:
        assert inbox.process_due(stripe, now=row.next_at - timedelta(seconds=1)) == 0
        moment = row.next_at
        inbox.process_due(stripe, now=moment)
        row.refresh_from_db()
        pauses.append(row.next_at - moment)
    assert row.attempts == INBOX.tries == 20
    assert timedelta(days=2.7) < moment - begin < timedelta(days=3)
    assert round(pauses[0].total_seconds()) == 120
    assert max(pauses[:-1]) < INBOX.longest_pause + timedelta(seconds=10)
    assert row.error
    assert inbox.process_due(stripe, now=moment + timedelta(days=99)) == 0
    difference = Difference.objects.get()
    assert (difference.kind, difference.subject) == ("stripe_event", "invoice.created")
    assert [r.levelname for r in caplog.records if r.name == "geekhub.billing"] == ["ERROR"]


def test_it_is_done_when_the_organization_is_known_at_last(stripe: Stripe, buyer: Buyer) -> None:
    customer = buyer.shop.customer()
    buyer.shop.api.invoices.create({"customer": customer})
    deliver(buyer.emulator, events_of(buyer.emulator, "invoice.created")[-1])
    assert process(stripe, buyer) == 0
    later = OrganizationFactory()
    later.billing_account.stripe_customer = customer
    later.billing_account.save()
    assert inbox.process_due(stripe, now=buyer.now + timedelta(minutes=2)) == 1
    row = StripeEvent.objects.get()
    assert (row.attempts, row.error) == (2, "")
    assert Invoice.objects.get().organization == later


@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "500_before", "429"])
def test_stripe_away_is_never_given_up_and_others_go_on(
    stripe: Stripe, buyer: Buyer, fault: Any
) -> None:
    name, told = a_paid_month(buyer)
    deliver(buyer.emulator, told[3], event("some.thing", {"id": "x"}, created=1_700_000_000))
    StripeEvent.objects.update(attempts=25)
    buyer.emulator.faults.add(Fault(fault, f"/v1/invoices/{name}"))
    assert process(stripe, buyer) == 1
    row = StripeEvent.objects.get(processed_at=None)
    assert row.error.startswith("Stripe")
    assert topups(buyer) == []
    assert inbox.process_due(stripe, now=row.next_at) == 1
    assert len(topups(buyer)) == 1


def test_while_stripe_is_away_the_worker_does_not_wait_for_each(
    stripe: Stripe, buyer: Buyer
) -> None:
    names = [f"in_{number}" for number in range(9)]
    made = [event("invoice.created", {"id": name}, id=f"evt_{name}") for name in names]
    deliver(buyer.emulator, *made)
    StripeEvent.objects.update(next_at=buyer.now)
    buyer.emulator.faults.add(Fault("drop_before", "/v1/invoices/*", times=100))
    assert process(stripe, buyer) == 0
    assert sorted(StripeEvent.objects.values_list("attempts", flat=True)) == [0] * 6 + [1] * 3
    # The next round goes on with those that had no turn.
    assert process(stripe, buyer) == 0
    assert sorted(StripeEvent.objects.values_list("attempts", flat=True)) == [0] * 3 + [1] * 6


def test_a_fault_of_ours_stops_nobody_else(stripe: Stripe, buyer: Buyer) -> None:
    """An account that is missing cannot be locked; that is no reason to leave the others."""
    made = buyer.shop.api.invoices.create({"customer": buyer.customer})
    created = int(buyer.now.timestamp())
    broken = event("credit_note.created", {"object": "credit_note"}, id="evt_0", created=created)
    good = event("invoice.created", {"id": made.id}, id="evt_1", created=created)
    deliver(buyer.emulator, broken, good)
    assert process(stripe, buyer) == 1
    row = StripeEvent.objects.get(pk="evt_0")
    assert (row.processed_at, bool(row.error), row.attempts) == (None, True, 1)
    assert Invoice.objects.get().stripe_id == made.id


# What is lost


def test_the_sweep_repairs_what_was_lost(stripe: Stripe, buyer: Buyer) -> None:
    buyer.emulator.webhooks.connect("http://127.0.0.1:9/")
    buyer.use("c/dear", 20)
    began = buyer.now
    name = buyer.end_month()
    assert sweep.sweep(stripe, since=began, now=buyer.now) >= 2
    assert Invoice.objects.get(stripe_id=name).status == "draft"
    assert Subscription.objects.get().status == "active"
    buyer.collect()
    assert buyer.emulator.webhooks.drop() > 0
    # A night much later: the invoice was made long before the last sweep, but is not final here.
    night = buyer.now + timedelta(days=20)
    assert sweep.sweep(stripe, since=night - timedelta(days=1), now=night) >= 2
    assert Invoice.objects.get(stripe_id=name).status == "paid"
    assert topups(buyer) == [(f"topup:{name}", 3_800_000)]
    assert StripeEvent.objects.count() == 0
    # What is final is not fetched again.
    calls = len(buyer.emulator.requests)
    sweep.sweep(stripe, since=night, now=night)
    again = [one.path for one in buyer.emulator.requests[calls:]]
    assert f"/v1/invoices/{name}" not in again


def test_the_sweep_finds_the_end_of_a_subscription(stripe: Stripe, buyer: Buyer) -> None:
    began = buyer.now
    sweep.sweep(stripe, since=began, now=began)
    buyer.emulator.clock.advance(20 * DAY)
    buyer.shop.api.subscriptions.cancel(buyer.subscription)
    sweep.sweep(stripe, since=buyer.now, now=buyer.now)
    assert Subscription.objects.get().ended_at == buyer.now


def test_the_sweep_finds_a_lost_recharge(stripe: Stripe, buyer: Buyer) -> None:
    recharges.checkout(
        stripe, buyer.organization, 25_000_000, "https://x.test/", "https://x.test/", None,
        now=buyer.now,
    )  # fmt: skip
    (session,) = buyer.emulator.objects("checkout.session")
    sweep.sweep(stripe, since=buyer.now, now=buyer.now)
    assert topups(buyer) == []
    buyer.emulator.complete_checkout(session["id"])
    for _ in range(2):
        sweep.sweep(stripe, since=buyer.now, now=buyer.now)
    assert [amount for _, amount in topups(buyer)] == [25_000_000]


def test_the_sweep_leaves_strangers_and_goes_on_after_failures(
    stripe: Stripe, buyer: Buyer
) -> None:
    buyer.shop.subscribe(buyer.shop.customer(), *buyer.sold.values())
    buyer.use("c/dear", 20)
    began, name = buyer.now, buyer.end_month()
    buyer.collect()
    buyer.emulator.faults.add(Fault("500_before", "/v1/subscriptions/*"))
    sweep.sweep(stripe, since=began, now=buyer.now)
    assert set(Invoice.objects.values_list("organization", flat=True)) == {buyer.organization.pk}
    assert topups(buyer) == [(f"topup:{name}", 3_800_000)]
    assert not KeyFactory().row.organization.invoices.exists()


def test_the_sweep_ends_when_stripe_is_away(stripe: Stripe, buyer: Buyer) -> None:
    for _ in range(5):
        buyer.shop.api.invoices.create({"customer": buyer.customer})
    buyer.emulator.faults.add(Fault("drop_before", "/v1/invoices/in_*", times=100))
    calls = len(buyer.emulator.requests)
    with pytest.raises(StripeUnknown):
        sweep.sweep(stripe, since=buyer.now, now=buyer.now)
    tried = [one for one in buyer.emulator.requests[calls:] if one.path.startswith("/v1/invoices/")]
    assert len(tried) <= MOST_LOST
    assert Invoice.objects.count() == 0


def test_a_list_is_read_over_all_its_pages(stripe: Stripe, buyer: Buyer) -> None:
    made = [buyer.shop.api.invoices.create({"customer": buyer.customer}).id for _ in range(7)]
    for limit in (1, 3, 7, 100):
        calls = len(buyer.emulator.requests)
        found = [
            one.id
            for one in stripe.each(
                stripe.v1.invoices.list, limit=limit, customer=buyer.customer, status="draft"
            )
        ]
        assert found == made[::-1]
        assert len(buyer.emulator.requests) - calls == -(-7 // limit)
