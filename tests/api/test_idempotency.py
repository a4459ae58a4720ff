"""Idempotency-Key: the same request twice is drawn and charged once."""

import base64
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import pytest

from accounts.models import Organization
from billing.models import Hold, HoldState, LedgerEntry
from images.models import Generation, Image
from tests.api.checks import expect_books_agree, expect_error, expect_nothing_charged
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.server import Api

KEY = {"Idempotency-Key": "order-4711"}
PRICE = 190_000


def _expect_replay(answer: httpx.Response, first: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.json() == first.json()
    assert answer.headers["x-request-id"] == first.headers["x-request-id"]
    assert answer.headers["x-geekhub-cost-usd"] == first.headers["x-geekhub-cost-usd"]
    assert answer.headers["idempotent-replayed"] == "true"


def test_the_same_key_twice_gives_the_same_pictures_and_one_charge(
    api: Api, openai: OpenAIEmulator
) -> None:
    first = api.draw(headers=KEY, n=2)
    assert first.status_code == 200, first.text
    assert "idempotent-replayed" not in first.headers

    for _ in range(3):
        _expect_replay(api.draw(headers=KEY, n=2), first)
    assert len(openai.calls) == 1
    assert Generation.objects.get().idempotency_key == "order-4711"
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_without_a_key_every_request_draws(api: Api, openai: OpenAIEmulator) -> None:
    assert api.draw().json()["id"] != api.draw().json()["id"]
    assert len(openai.calls) == 2
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_the_same_request_may_be_written_differently(api: Api, openai: OpenAIEmulator) -> None:
    first = api.draw(headers=KEY, n=1, size=None)
    raw = b'{ "size": null, "prompt": "a red \\u006bite", "model": "openai/gpt-image-1" }'
    second = api.http.post(
        "images/generations", content=raw, headers=KEY | {"Content-Type": "application/json"}
    )

    _expect_replay(second, first)
    assert len(openai.calls) == 1


def test_a_replay_needs_no_money(
    connect: Callable[[str | None], Api], openai: OpenAIEmulator
) -> None:
    client = connect(KeyFactory(organization=OrganizationFactory(bonus="0.19")).secret)
    first = client.draw(headers=KEY)

    _expect_replay(client.draw(headers=KEY), first)
    expect_error(client.draw(headers={"Idempotency-Key": "another"}), "insufficient_balance")
    _expect_replay(client.draw(headers=KEY), first)
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=PRICE)


def test_twenty_together_are_one_call_and_one_charge(api: Api, openai: OpenAIEmulator) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    with ThreadPoolExecutor(20) as pool:
        try:
            futures = [pool.submit(api.draw, headers=KEY, n=2) for _ in range(20)]
            openai.wait_for_calls(1)
            pending = set(futures)
            while len(pending) > 1:
                pending = wait(pending, timeout=30, return_when="FIRST_COMPLETED").not_done
            assert len(openai.calls) == Generation.objects.count() == 1
            assert Hold.objects.get().state == HoldState.HELD
        finally:
            gate.set()
        answers = [future.result(timeout=30) for future in futures]

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    first = next(answer for answer in answers if answer.is_success)
    for answer in answers:
        if answer is not first:
            expect_error(answer, "idempotency_key_in_use", says="still running")
            assert answer.headers["x-should-retry"] == "false"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.headers["x-request-id"] != first.headers["x-request-id"]
    _expect_replay(api.draw(headers=KEY, n=2), first)
    assert len(openai.calls) == 1
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_twenty_together_without_a_pause_are_one_call_and_one_charge(
    api: Api, openai: OpenAIEmulator
) -> None:
    start = threading.Barrier(20)

    def draw() -> httpx.Response:
        start.wait(30)
        return api.draw(headers=KEY)

    with ThreadPoolExecutor(20) as pool:
        answers = [future.result(30) for future in [pool.submit(draw) for _ in range(20)]]

    assert {answer.status_code for answer in answers} <= {200, 409}
    delivered = [answer for answer in answers if answer.is_success]
    assert len({answer.json()["id"] for answer in delivered}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in delivered) == 1
    assert len(openai.calls) == Generation.objects.count() == Hold.objects.count() == 1
    expect_books_agree(images=1, cost_micro=PRICE)


def test_twenty_together_with_money_for_one_never_hear_of_money(
    connect: Callable[[str | None], Api], openai: OpenAIEmulator
) -> None:
    client = connect(KeyFactory(organization=OrganizationFactory(bonus="0.19")).secret)
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(client.draw, headers=KEY) for _ in range(20)]
        statuses = {future.result(30).status_code for future in futures}

    assert statuses <= {200, 409}
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=PRICE)


def test_another_body_under_the_same_key_is_422(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    first = api.draw(headers=KEY)
    for change in (
        {"prompt": "a blue kite"},
        {"n": 2},
        {"model": "openai/dall-e-3"},
        {"model": ["openai/gpt-image-1"]},
        {"size": "1536x1024"},
        {"response_format": "b64_json"},
        {"user": "u1"},
        {"tags": ["a"]},
        {"max_cost": 1},
    ):
        with subtests.test(str(change)):
            answer = api.draw(headers=KEY, **change)
            expect_error(answer, "idempotency_key_reused", says="another request body")
    assert len(openai.calls) == 1
    _expect_replay(api.draw(headers=KEY), first)
    expect_books_agree(images=1, cost_micro=PRICE)


def test_another_body_is_422_also_while_the_first_is_running(
    api: Api, openai: OpenAIEmulator
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    with ThreadPoolExecutor(1) as pool:
        try:
            running = pool.submit(api.draw, headers=KEY)
            openai.wait_for_calls(1)
            expect_error(api.draw(headers=KEY, n=2), "idempotency_key_reused")
            expect_error(api.draw(headers=KEY), "idempotency_key_in_use")
        finally:
            gate.set()
        assert running.result(30).status_code == 200
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=PRICE)


def test_after_a_failure_the_key_draws_again(api: Api, openai: OpenAIEmulator) -> None:
    openai.queue(Behaviour(error="moderation_blocked"), Behaviour(drop="after"))
    expect_error(api.draw(headers=KEY), "content_policy_violation")
    expect_error(api.draw(headers=KEY), "provider_unavailable")
    expect_nothing_charged()

    # A failed request keeps no key: even another body may have it now.
    first = api.draw(headers=KEY, n=2)
    assert first.status_code == 200, first.text
    _expect_replay(api.draw(headers=KEY, n=2), first)
    assert len(openai.calls) == 3
    assert Generation.objects.filter(idempotency_key="order-4711").count() == 3
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_a_request_that_was_never_let_in_keeps_no_key(api: Api, openai: OpenAIEmulator) -> None:
    expect_error(api.draw(headers=KEY, n=0), "invalid_request_error", param="n")
    expect_error(api.draw(headers=KEY, model="no/such"), "model_not_found", param="model")
    assert api.draw(headers=KEY).status_code == 200
    assert len(openai.calls) == 1


def test_organizations_do_not_see_each_others_keys(
    api: Api,
    connect: Callable[[str | None], Api],
    acme: Organization,
    globex: Organization,
    openai: OpenAIEmulator,
) -> None:
    first = api.draw(headers=KEY)
    stranger = connect(KeyFactory(organization=globex).secret).draw(headers=KEY, prompt="an owl")

    assert stranger.status_code == 200, stranger.text
    assert stranger.json()["id"] != first.json()["id"]
    assert "idempotent-replayed" not in stranger.headers
    assert len(openai.calls) == 2
    # Within one organization the key is one, whichever API key sends it.
    _expect_replay(connect(KeyFactory(organization=acme).secret).draw(headers=KEY), first)
    assert len(openai.calls) == 2
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_live_and_sandbox_are_apart(api: Api, sandbox: Api, openai: OpenAIEmulator) -> None:
    played = sandbox.draw(headers=KEY, prompt="a kite in the sand")
    paid = api.draw(headers=KEY)

    assert played.status_code == paid.status_code == 200
    assert played.json()["id"] != paid.json()["id"]
    _expect_replay(sandbox.draw(headers=KEY, prompt="a kite in the sand"), played)
    _expect_replay(api.draw(headers=KEY), paid)
    assert len(openai.calls) == 1
    assert LedgerEntry.objects.filter(kind="consumption").count() == 1
    assert Image.objects.count() == 2


def test_a_replay_in_base64_reads_the_stored_bytes(api: Api, openai: OpenAIEmulator) -> None:
    first = api.draw(headers=KEY, n=3, response_format="b64_json")
    second = api.draw(headers=KEY, n=3, response_format="b64_json")

    _expect_replay(second, first)
    rows = second.json()["data"]
    assert [base64.b64decode(row["b64_json"]) for row in rows] == openai.pictures
    digests = [hashlib.sha256(picture).hexdigest() for picture in openai.pictures]
    assert [row["sha256"] for row in rows] == digests
    assert len(openai.calls) == 1
    expect_books_agree(images=3, cost_micro=3 * PRICE)
