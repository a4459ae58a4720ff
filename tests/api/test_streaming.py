"""`stream: true`, read by raw sockets and by the official SDK."""

import threading
from concurrent.futures import ThreadPoolExecutor

import openai as sdk
import orjson
import pybase64
import pytest
from django.db import connection, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import BillingAccount, Hold, HoldState, LedgerEntry
from images.models import Generation, Image
from tests.api.checks import connect_raw
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.gateway import in_flight
from tests.server import Api, AppServer


def events(text: str) -> list[tuple[str, dict[str, object]]]:
    """Return the (event, data) pairs of a stream, and fail on anything SDKs do not read."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        first, second = block.split("\n")
        assert first.startswith("event: ")
        assert second.startswith("data: ")
        found.append((first[7:], orjson.loads(second[6:])))
    return found


def test_pictures_come_one_by_one_each_charged_before_it_is_sent(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    answer = api.draw(stream=True, partial_images=2, n=2)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    told = events(answer.text)
    kinds = [kind.removeprefix("image_generation.") for kind, _ in told]
    views = [data["partial_image_index"] for kind, data in told if kind.endswith("partial_image")]
    assert sorted(views) == [0, 0, 1, 1]
    assert kinds.count("completed") == 2
    assert kinds[-1] == "completed"
    for kind, data in told:
        assert data["type"] == kind
    last = told[-1][1]
    assert set(last) >= {"b64_json", "created_at", "size", "quality", "background", "usage"}
    stored = Image.objects.order_by("index")
    sent = [data for kind, data in told if kind.endswith("completed")]
    assert [row.sha256 for row in stored] == [data["sha256"] for data in sent]
    assert LedgerEntry.objects.filter(kind="consumption").count() == 2
    generation = Generation.objects.get()
    assert (generation.status, generation.delivered, generation.cost_micro) == (
        "succeeded",
        2,
        380_000,
    )
    hold = Hold.objects.get()
    assert (hold.state, hold.captured) == (HoldState.CAPTURED, 2)
    account = BillingAccount.objects.get(organization=acme)
    assert (account.balance_micro, account.held_micro) == (9_620_000, 0)
    # OpenAI streams one picture a call.
    asked = [(call.body["stream"], call.body["partial_images"]) for call in openai.calls]
    assert asked == [(True, 2), (True, 2)]
    assert [call.body.get("n", 1) for call in openai.calls] == [1, 1]
    # The places of the views are of each picture's own.
    views = [data["partial_image_index"] for kind, data in told if kind.endswith("partial_image")]
    assert sorted(views) == [0, 0, 1, 1]


def test_a_model_without_early_views_streams_finished_pictures_only(
    api: Api, openai: OpenAIEmulator
) -> None:
    answer = api.draw(model="openai/dall-e-3", stream=True, partial_images=3, n=3)

    assert [kind for kind, _ in events(answer.text)] == ["image_generation.completed"] * 3
    assert len(openai.calls) == 3


def test_what_fails_before_the_first_byte_is_a_plain_error(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="moderation_blocked"))

    answer = api.draw(stream=True, partial_images=1)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_policy_violation"
    assert Hold.objects.get().state == HoldState.RELEASED
    assert BillingAccount.objects.get(organization=acme).balance_micro == 10_000_000


def test_what_fails_after_the_first_view_is_an_error_event_and_charges_nothing(
    api: Api, acme: Organization, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="stream_server_error"))

    answer = api.draw(stream=True, partial_images=1)

    assert answer.status_code == 200
    kind, data = events(answer.text)[-1]
    assert kind == "error"
    assert data["type"] == "error"
    assert data["error"]["code"] == "provider_unavailable"  # type: ignore[index]
    assert data["error"]["request_id"] == answer.headers["x-request-id"]  # type: ignore[index]
    assert Hold.objects.get().state == HoldState.RELEASED
    assert not LedgerEntry.objects.filter(kind="consumption").exists()
    assert not Image.objects.exists()


def test_a_client_that_leaves_gets_its_pictures_kept_and_charged_once(
    api: Api, app: AppServer, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    body = orjson.dumps(
        {"model": "openai/gpt-image-1", "prompt": "a red kite", "stream": True, "n": 2}
    )
    head = (
        "POST /v1/images/generations HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        f"Authorization: Bearer {live_key.secret}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    try:
        with connect_raw(app.origin) as client:
            client.sendall(head.encode() + body)
            openai.wait_for_calls(1)
    finally:
        gate.set()

    request_id = Generation.objects.get().request_id
    app.drain()

    found = api.get("generation", params={"id": request_id}).json()["data"]
    assert (found["status"], found["num_media_completion"]) == ("succeeded", 2)
    assert found["cost_usd"] == "0.38"
    assert LedgerEntry.objects.filter(kind="consumption").count() == 2


def test_a_stream_has_its_place_until_its_work_is_over(
    api: Api, app: AppServer, acme: Organization, openai: OpenAIEmulator
) -> None:
    gate = threading.Event()
    openai.queue(Behaviour(), Behaviour(gate=gate))
    body = {"model": "openai/gpt-image-1", "prompt": "a red kite", "stream": True, "n": 2}
    try:
        with api.http.stream("POST", "images/generations", json=body) as answer:
            # The view has returned, and the other picture is still being drawn.
            assert next(answer.iter_text()).startswith("event: image_generation.completed")
            assert in_flight(app, acme) == 1
    finally:
        gate.set()
    app.drain()
    assert in_flight(app, acme) == 0
    assert Generation.objects.get().delivered == 2


@pytest.mark.slow
def test_a_picture_whose_charge_outlasts_the_deadline_is_told_and_charged_once(
    api: Api, acme: Organization, openai: OpenAIEmulator, settings: Settings
) -> None:
    settings.REQUEST_DEADLINE_SECONDS = 5
    gate, locked, over = threading.Event(), threading.Event(), threading.Event()
    openai.always(Behaviour(gate=gate))

    def lock_the_account() -> None:
        try:
            with transaction.atomic():
                BillingAccount.objects.select_for_update().get(organization=acme)
                locked.set()
                over.wait(30)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(api.draw, stream=True)
        openai.wait_for_calls(1)
        locker = threads.submit(lock_the_account)
        assert locked.wait(30)
        gate.set()
        # The drawing is given up shortly before the deadline, while the charge waits.
        over.wait((Generation.objects.get().deadline_at - timezone.now()).total_seconds())
        over.set()
        locker.result()
        told = [kind for kind, _ in events(answer.result().text)]

    assert told == ["image_generation.completed"]
    row = Generation.objects.get()
    assert (row.status, row.delivered, row.cost_micro) == ("succeeded", 1, 190_000)
    assert (Hold.objects.get().state, Image.objects.count()) == (HoldState.CAPTURED, 1)
    account = BillingAccount.objects.get(organization=acme)
    assert (account.balance_micro, account.held_micro) == (9_810_000, 0)


def test_the_official_sdk_reads_the_stream(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    with (
        sdk.OpenAI(base_url=f"{app.origin}/v1", api_key=live_key.secret) as client,
        client.images.generate(
            model="openai/gpt-image-1", prompt="a red kite", stream=True, partial_images=2
        ) as stream,
    ):
        told = list(stream)

    assert [event.type for event in told] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    data = pybase64.b64decode(told[-1].b64_json, validate=True)
    assert len(data) == Image.objects.get().bytes


def test_an_error_event_raises_in_the_official_sdk(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="stream_server_error"))
    with (
        sdk.OpenAI(base_url=f"{app.origin}/v1", api_key=live_key.secret) as client,
        client.images.generate(
            model="openai/gpt-image-1", prompt="a red kite", stream=True, partial_images=1
        ) as stream,
        pytest.raises(sdk.APIError) as raised,
    ):
        list(stream)

    assert raised.value.body["code"] == "provider_unavailable"  # type: ignore[index]


def test_a_streamed_request_is_replayed_as_a_stream(api: Api, openai: OpenAIEmulator) -> None:
    key = {"Idempotency-Key": "once"}
    first = events(api.draw(headers=key, stream=True, n=2).text)

    again = api.draw(headers=key, stream=True, n=2)

    assert [data["sha256"] for _, data in events(again.text)] == [
        data["sha256"] for _, data in first
    ]
    assert len(openai.calls) == 1
    assert LedgerEntry.objects.filter(kind="consumption").count() == 2
