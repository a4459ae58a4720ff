"""Clients that leave, and servers that are asked to stop: what was begun is finished and kept."""

import json
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import Hold, HoldState, LedgerEntry
from images.models import Generation, GenerationStatus, Image
from tests.api.checks import connect_raw, expect_books_agree
from tests.api.service import Service
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.server import Api, AppServer

BODY = {"model": "openai/gpt-image-1", "prompt": "a red kite"}


def _request(secret: str, body: dict[str, object], *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        "POST /v1/images/generations HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {secret}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + content


@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
def test_what_a_client_began_is_finished_charged_once_and_can_be_fetched(
    serve: Callable[[], AppServer],
    acme: Organization,
    live_key: NewKey,
    openai: OpenAIEmulator,
    rudely: bool,
) -> None:
    server, gate = serve(), threading.Event()
    openai.always(Behaviour(gate=gate))
    try:
        client = connect_raw(server.origin)
        if rudely:
            # Closing sends a reset instead of a farewell.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(_request(live_key.secret, {**BODY, "n": 2}))
        openai.wait_for_calls(1)
        client.close()
        row = Generation.objects.get()
        assert (row.status, Hold.objects.get().state) == ("running", HoldState.HELD)
    finally:
        gate.set()
    # Stopping waits for requests whose clients have disconnected.
    server.__exit__(None, None, None)

    row.refresh_from_db()
    assert (row.status, row.delivered) == (GenerationStatus.SUCCEEDED, 2)
    assert len(openai.calls) == 1
    expect_books_agree(images=2, cost_micro=380_000)
    api = Api(serve().origin, live_key.secret)
    try:
        found = api.get(f"generation?id={row.request_id}").json()["data"]
        assert (found["status"], found["cost_usd"]) == ("succeeded", "0.38")
        paths = [image["url"].removeprefix("http://pictures.test") for image in found["images"]]
        pictures = [httpx.get(api.origin + path).content for path in paths]
        assert pictures == openai.pictures
    finally:
        api.http.close()


def test_a_client_that_leaves_and_comes_back_with_its_key_finds_its_pictures(
    api: Api, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    key = {"Idempotency-Key": "order-4711"}
    try:
        with connect_raw(api.origin) as client:
            client.sendall(_request(live_key.secret, BODY, "Idempotency-Key: order-4711"))
            openai.wait_for_calls(1)
        assert api.draw(headers=key).status_code == 409
    finally:
        gate.set()
    answer = api.draw(headers=key)
    while answer.status_code == 409:  # it is being stored and charged
        answer = api.draw(headers=key)

    assert answer.status_code == 200, answer.text
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.json()["id"] == Generation.objects.get().request_id
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=190_000)


def test_a_client_that_leaves_before_its_body_is_there_begins_nothing(
    serve: Callable[[], AppServer], live_key: NewKey, openai: OpenAIEmulator
) -> None:
    server = serve()
    request = _request(live_key.secret, BODY)
    for part in (20, len(request) - 30, len(request) - 1):
        with connect_raw(server.origin) as client:
            client.sendall(request[:part])
    server.__exit__(None, None, None)

    assert openai.calls == []
    assert Generation.objects.count() == Hold.objects.count() == 0


def test_a_client_that_leaves_gives_its_place_in_flight_back(
    serve: Callable[[], AppServer], acme: Organization, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    acme.max_in_flight = 1
    acme.save()
    api, gate = Api(serve().origin, live_key.secret), threading.Event()
    openai.always(Behaviour(gate=gate))
    try:
        with connect_raw(api.origin) as client:
            client.sendall(_request(live_key.secret, BODY))
            openai.wait_for_calls(1)
        # The work continues and keeps its place.
        assert api.draw().status_code == 429
    finally:
        gate.set()
    answer = api.draw()
    while answer.status_code == 429:  # it is being stored and charged
        answer = api.draw()
    api.http.close()

    assert answer.status_code == 200
    assert len(openai.calls) == 2
    expect_books_agree(images=2, cost_micro=380_000)


def test_sigterm_lets_requests_in_flight_finish(
    published: None, live_key: NewKey, openai: OpenAIEmulator, tmp_path: Path
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    with Service(tmp_path, openai) as service, ThreadPoolExecutor(2) as pool:
        try:
            api = Api(service.origin, live_key.secret)
            waiting = [pool.submit(api.draw) for _ in range(2)]
            with connect_raw(service.origin) as client:
                client.sendall(_request(live_key.secret, BODY))
                openai.wait_for_calls(3)
            service.terminate()
            assert Generation.objects.filter(status="running").count() == 3
        finally:
            gate.set()
        answers = [future.result(30) for future in waiting]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert service.wait() == 0
        api.http.close()

    # The third client had left before; its picture was drawn, kept and charged all the same.
    assert Generation.objects.filter(status="succeeded").count() == 3
    assert Hold.objects.filter(state=HoldState.CAPTURED).count() == 3
    assert LedgerEntry.objects.filter(kind="consumption").count() == Image.objects.count() == 3
    names = Image.objects.values_list("name", flat=True)
    assert all((tmp_path / "images" / name).is_file() for name in names)
    assert list((tmp_path / "run").glob("*.alive")) == []
