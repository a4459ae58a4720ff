"""What every emulator does: records, behaviours, transport failures and picture hosting."""

import base64
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.emulators.base import INSIDE_URL, Behaviour, make_picture, parse_multipart
from tests.emulators.openai import OpenAIEmulator
from tests.test_emulators.conftest import opened


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture
def openai(server: OpenAIEmulator) -> OpenAIEmulator:
    server.reset()
    return server


def post(http: httpx.Client, openai: OpenAIEmulator, **fields: Any) -> httpx.Response:
    body = {"model": "gpt-image-1", "prompt": "a kite"} | fields
    headers = {"Authorization": f"Bearer {openai.key}"}
    return http.post(f"{openai.url}/images/generations", json=body, headers=headers)


def hosted(http: httpx.Client, openai: OpenAIEmulator) -> str:
    url: str = post(http, openai, model="dall-e-3").json()["data"][0]["url"]
    return url


def test_records(http: httpx.Client, openai: OpenAIEmulator) -> None:
    data = post(http, openai, n=2).json()["data"]
    (call,) = openai.calls
    assert (call.method, call.path) == ("POST", "/v1/images/generations")
    assert call.headers["authorization"] == f"Bearer {openai.key}"
    assert call.body == {"model": "gpt-image-1", "prompt": "a kite", "n": 2}
    assert [base64.b64decode(item["b64_json"]) for item in data] == openai.pictures
    assert len(set(openai.pictures)) == openai.billed == 2
    openai.reset()
    assert (openai.calls, openai.pictures, openai.billed) == ([], [], 0)


def test_order_of_behaviours(http: httpx.Client, openai: OpenAIEmulator) -> None:
    openai.always(Behaviour(error="server_error"))
    openai.queue(Behaviour(), Behaviour(error="slow_down", retry_after=1.5))
    answers = [post(http, openai) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 500]
    assert answers[1].headers["retry-after"] == "1.5"
    assert answers[1].headers["retry-after-ms"] == "1500"
    assert openai.billed == 1


def test_a_bad_request_is_not_hidden_by_a_failure(
    http: httpx.Client, openai: OpenAIEmulator
) -> None:
    openai.always(Behaviour(error="server_error"))
    assert post(http, openai, size="1x1").json()["error"]["code"] == "invalid_value"


def test_random_is_repeatable(http: httpx.Client, openai: OpenAIEmulator) -> None:
    runs = []
    for _ in range(2):
        openai.reset()
        openai.random(7, 0.5, [Behaviour(error="server_error"), Behaviour(error="slow_down")])
        runs.append([post(http, openai).status_code for _ in range(20)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 429, 500}


@pytest.mark.parametrize(
    ("behaviour", "billed", "error"),
    [
        (Behaviour(drop="before"), 0, httpx.RemoteProtocolError),
        (Behaviour(drop="after"), 1, httpx.RemoteProtocolError),
        (Behaviour(cut=True), 1, httpx.RemoteProtocolError),
    ],
)
def test_lost_answers(
    http: httpx.Client,
    openai: OpenAIEmulator,
    behaviour: Behaviour,
    billed: int,
    error: type[Exception],
) -> None:
    openai.queue(behaviour)
    with pytest.raises(error):
        post(http, openai)
    assert openai.billed == billed
    assert post(http, openai).status_code == 200


def test_broken_bodies(http: httpx.Client, openai: OpenAIEmulator) -> None:
    openai.queue(
        Behaviour(bad_json=True),
        Behaviour(bad_base64=True),
        Behaviour(content_type="text/plain"),
        Behaviour(slow_body=0.05),
        Behaviour(fewer=1),
    )
    with pytest.raises(ValueError):
        post(http, openai).json()
    with pytest.raises(ValueError):
        opened(post(http, openai).json()["data"][0]["b64_json"])
    assert post(http, openai).headers["content-type"] == "text/plain"
    slow = post(http, openai)
    assert slow.elapsed.total_seconds() >= 0.05
    assert opened(slow.json()["data"][0]["b64_json"]) == ("PNG", (1024, 1024))
    assert len(post(http, openai, n=3).json()["data"]) == 2


def test_gate_and_peak(http: httpx.Client, openai: OpenAIEmulator) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(post, http, openai) for _ in range(3)]
        openai.wait_for_calls(3)
        assert not any(answer.done() for answer in answers)
        gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3
    assert openai.peak == 3
    with pytest.raises(TimeoutError):
        openai.wait_for_calls(4, timeout=0)


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(error="no such row"),
        Behaviour(refuse=1),
        Behaviour(polls=1),
        Behaviour(retry_after=1),
        Behaviour(drop="after", cut=True),
        Behaviour(error="server_error", fewer=1),
        Behaviour(delay=-1),
    ],
)
def test_meaningless_behaviours(openai: OpenAIEmulator, behaviour: Behaviour) -> None:
    with pytest.raises(ValueError):
        openai.always(behaviour)
    with pytest.raises(ValueError):
        openai.queue(behaviour)


def test_hosted_pictures(http: httpx.Client, openai: OpenAIEmulator) -> None:
    good = http.get(hosted(http, openai))
    assert (good.headers["content-type"], good.content) == ("image/png", openai.pictures[0])
    openai.queue(
        Behaviour(picture="404"),
        Behaviour(picture="html"),
        Behaviour(picture="redirect_inside"),
        Behaviour(picture="inside"),
        Behaviour(picture="bomb"),
    )
    assert http.get(hosted(http, openai)).status_code == 404
    assert http.get(hosted(http, openai)).headers["content-type"].startswith("text/html")
    redirect = http.get(hosted(http, openai))
    assert (redirect.status_code, redirect.headers["location"]) == (302, INSIDE_URL)
    assert hosted(http, openai).startswith("http://169.254.169.254/")
    bomb = http.get(hosted(http, openai)).content
    assert len(bomb) < 100
    assert Image.open(io.BytesIO(bomb)).size == (60_000, 60_000)
    assert len(openai.downloads) == 5
    assert openai.leaks == []
    http.get(f"{openai.origin}/files/none.png", headers={"Authorization": "Bearer x"})
    assert openai.leaks == ["/files/none.png"]


def test_endless_and_hanging_pictures(http: httpx.Client, openai: OpenAIEmulator) -> None:
    openai.queue(Behaviour(picture="huge"), Behaviour(picture="hang"))
    with http.stream("GET", hosted(http, openai)) as answer:
        received = 0
        for chunk in answer.iter_raw():
            received += len(chunk)
            if received > 4 << 20:
                break
    assert received > 4 << 20
    with pytest.raises(httpx.ReadTimeout):
        http.get(hosted(http, openai), timeout=0.1)


def test_reset_forgets_calls_still_open(http: httpx.Client, openai: OpenAIEmulator) -> None:
    gate = threading.Event()
    openai.queue(Behaviour(gate=gate))
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(post, http, openai)
        openai.wait_for_calls(1)
        openai.reset()
        gate.set()
        assert late.result().status_code == 200
    assert (openai.calls, openai.peak) == ([], 0)
    post(http, openai)
    assert openai.peak == 1


def test_stop_does_not_wait_for_held_calls(http: httpx.Client) -> None:
    openai = OpenAIEmulator().start()
    openai.always(Behaviour(gate=threading.Event()))
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, http, openai)
        openai.wait_for_calls(1)
        openai.stop()
        assert isinstance(held.exception(), httpx.TransportError)
    with pytest.raises(httpx.ConnectError):
        post(http, openai)


def test_tiny_pictures(http: httpx.Client) -> None:
    with OpenAIEmulator(tiny=True) as openai:
        for fmt in ("png", "jpeg", "webp"):
            post(http, openai, size="1536x1024", output_format=fmt)
        assert [opened(data)[1] for data in openai.pictures] == [(32, 32)] * 3
        assert all(1000 <= len(data) <= 1100 for data in openai.pictures)


@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp"])
def test_every_picture_is_another(fmt: str) -> None:
    pictures = [make_picture(64, 48, fmt) for _ in range(3)]
    assert len(set(pictures)) == 3
    assert {opened(data) for data in pictures} == {(fmt.upper(), (64, 48))}


def test_multipart_keeps_bytes() -> None:
    data = b"\r\n--not the boundary\r\n\x00\xff\r\n"
    request = httpx.Request(
        "POST", "http://x", data={"n": "2"}, files=[("image[]", ("a.png", data, "image/png"))] * 2
    )
    form = parse_multipart(request.read(), request.headers["content-type"])
    assert form is not None
    assert form["n"] == "2"
    files = form["image[]"]
    assert [(f.filename, f.data) for f in files if not isinstance(f, str)] == [("a.png", data)] * 2
