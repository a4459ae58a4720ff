"""admit() alone: what every face gets, whichever checks it makes of its own."""

import pytest

from accounts import keys
from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import BillingAccount, Hold
from images.drawing.admit import Priced, admit
from images.drawing.limits import RateLimited
from images.drawing.place import Place
from images.drawing.repeats import IdempotencyKeyInUse, Sent
from images.drawing.request import GenerationRequest
from images.drawing.started import Started
from images.models import Generation
from images.policies.guardrails import Blocked
from tests.gateway import gateway_of
from tests.server import AppServer

MODEL, PRICE = "fal/flux-1.1-pro", 40_000


def ask(**changes: bool) -> GenerationRequest:
    return GenerationRequest(models=(MODEL,), listed=False, prompt="a red kite", **changes)


def expect_nothing_written() -> None:
    assert not Generation.objects.exists()
    assert not Hold.objects.exists()
    assert BillingAccount.objects.get().held_micro == 0


def test_a_paused_key_is_let_in_nowhere_and_takes_no_place(
    app: AppServer, live_key: NewKey
) -> None:
    keys.pause(live_key.row, "It spent too much.")
    live_key.row.refresh_from_db()
    gateway, sent = gateway_of(app), Sent()
    place = Place(gateway, sent.request_id)
    with pytest.raises(Blocked, match=r"is paused\. It spent too much\."):
        admit(gateway, live_key.row, ask(), sent, place)
    with pytest.raises(AssertionError):
        _ = place.admission
    expect_nothing_written()


def test_the_limits_hold_for_whoever_asks(
    app: AppServer, umbrella: Organization, live_key: NewKey
) -> None:
    umbrella.max_in_flight = 1
    umbrella.save()
    live_key.row.refresh_from_db()
    gateway, first, second = gateway_of(app), Sent(), Sent()
    place = Place(gateway, first.request_id)
    begun = admit(gateway, live_key.row, ask(), first, place)
    assert isinstance(begun, Started)
    assert begun.generation.request_id == first.request_id
    with pytest.raises(RateLimited):
        admit(gateway, live_key.row, ask(), second, Place(gateway, second.request_id))
    assert Generation.objects.get() == begun.generation
    assert BillingAccount.objects.get().held_micro == PRICE
    # Who made the place gives it back, and then the next one has it.
    place.leave()
    third = Sent()
    assert isinstance(
        admit(gateway, live_key.row, ask(), third, Place(gateway, third.request_id)), Started
    )


def test_a_place_is_taken_once(app: AppServer, umbrella: Organization, live_key: NewKey) -> None:
    umbrella.max_in_flight = 1
    umbrella.save()
    live_key.row.refresh_from_db()
    gateway = gateway_of(app)
    place = Place(gateway, "req_1")
    for _ in range(2):
        assert isinstance(admit(gateway, live_key.row, ask(dry_run=True), Sent(), place), Priced)
    assert place.admission.remaining == place.admission.caller.rpm - 1
    expect_nothing_written()


def test_a_request_has_its_clock_and_what_was_asked(app: AppServer, live_key: NewKey) -> None:
    gateway, sent = gateway_of(app), Sent(idempotency_key="order")
    begun = admit(gateway, live_key.row, ask(), sent, Place(gateway, sent.request_id))
    assert isinstance(begun, Started)
    assert begun.request == ask()
    row = Generation.objects.get()
    assert row.created_at == begun.clock.started_at
    assert row.deadline_at == begun.clock.deadline_at
    assert 0 < begun.clock.left() < (row.deadline_at - row.created_at).total_seconds()
    again = Sent(idempotency_key="order")
    with pytest.raises(IdempotencyKeyInUse):
        admit(gateway, live_key.row, ask(), again, Place(gateway, again.request_id))
    assert BillingAccount.objects.get().held_micro == PRICE
