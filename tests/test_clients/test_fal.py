"""fal-client and @fal-ai/client against the emulator."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import Client, Raised
from tests.emulators.base import Behaviour
from tests.emulators.fal import SEED, FalEmulator
from tests.test_clients.conftest import Start

FLUX, ULTRA = "fal-ai/flux-pro/v1.1", "fal-ai/flux-pro/v1.1-ultra"
KITE = {"prompt": "a kite"}


@pytest.fixture(scope="module")
def server() -> Iterator[FalEmulator]:
    with FalEmulator(tiny=True) as emulator:
        yield emulator


@pytest.fixture
def fal(server: FalEmulator) -> FalEmulator:
    server.reset()
    return server


@pytest.fixture(scope="module", params=["newest", "node"])
def client(request: pytest.FixtureRequest, server: FalEmulator, start: Start) -> Client:
    environment = {
        "FAL_KEY": server.key,
        "FAL_URL": server.url,
        "FAL_QUEUE_URL": server.queue_url,
    }
    return start(request.param, "fal", environment)


def expect_drawn(output: dict[str, Any], fal: FalEmulator) -> None:
    (image,) = output.pop("images")
    assert image.pop("url").startswith(f"{fal.origin}/files/")
    assert image == {"content_type": "image/jpeg", "width": 1024, "height": 768}
    assert output == {
        "seed": SEED,
        "timings": {},
        "has_nsfw_concepts": [False],
        "prompt": "a kite",
    }
    assert fal.billed == 1


def test_runs(client: Client, fal: FalEmulator) -> None:
    expect_drawn(client("run", endpoint=FLUX, arguments=KITE), fal)


def test_streams_the_output(client: Client, fal: FalEmulator) -> None:
    (output,) = client("stream", endpoint=FLUX, arguments=KITE)
    expect_drawn(output, fal)


def test_submits_and_follows(client: Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(polls=2))
    job = client("submit", endpoint=ULTRA, arguments=KITE)
    names = {name: job[name] for name in ("response_url", "status_url", "cancel_url")}
    base = f"{fal.queue_url}/fal-ai/flux-pro/requests/{job['request_id']}"
    assert list(names.values()) == [base, f"{base}/status", f"{base}/cancel"]
    asked = {"endpoint": ULTRA, "request_id": job["request_id"]}
    statuses = [client("status", **asked, logs=True) for _ in range(3)]
    if client.node:
        assert [one["status"] for one in statuses] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
        assert all(one | names == one for one in statuses)
        assert job["gateway_request_id"] == job["request_id"]
    else:
        assert [one["type"] for one in statuses] == ["Queued", "InProgress", "Completed"]
    assert [len(one.get("logs", [])) for one in statuses] == [0, 1, 1]
    assert statuses[2]["metrics"] == {"inference_time": 0.01}
    output = client("result", **asked)
    assert output["prompt"] == "a kite"
    assert fal.runs == {job["request_id"]: 1}


@pytest.mark.parametrize("call", ["subscribe", "subscribe_streaming"])
def test_subscribes(client: Client, fal: FalEmulator, call: str) -> None:
    if call == "subscribe_streaming" and not client.node:
        pytest.skip("fal-client for Python polls; only the one for Node streams the status")
    fal.queue(Behaviour(polls=2))
    answer = client(call, endpoint=FLUX, arguments=KITE)
    expect_drawn(answer["output"], fal)
    words = ("IN_QUEUE", "IN_PROGRESS drawing", "COMPLETED drawing")
    if not client.node:
        words = ("Queued", "InProgress drawing", "Completed drawing")
    assert [word.partition(" drawing")[0] for word in answer["seen"]] == [
        word.partition(" drawing")[0] for word in words
    ]
    assert any("drawing" in word for word in answer["seen"])


def test_cancels(client: Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(polls=9))
    job = client("submit", endpoint=FLUX, arguments=KITE)
    asked = {"endpoint": FLUX, "request_id": job["request_id"]}
    client("cancel", **asked)
    assert fal.cancelled == 1
    with pytest.raises(Raised) as caught:
        client("cancel", **asked)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("error", "status", "node"),
    [
        ("content_policy_violation", 422, "ValidationError"),
        ("user_locked", 403, "ApiError"),
        ("not_found", 404, "ApiError"),
        ("internal_server_error", 500, "ApiError"),
    ],
)
def test_an_error_has_its_class(
    client: Client, fal: FalEmulator, error: str, status: int, node: str
) -> None:
    fal.always(Behaviour(error=error))
    with pytest.raises(Raised) as caught:
        client("run", endpoint=FLUX, arguments=KITE)
    assert caught.value.name == (node if client.node else "FalClientHTTPError")
    assert caught.value.status == status
    row = FalEmulator.ERRORS[error]
    assert isinstance(row.body, dict)
    said = caught.value.detail if client.node else caught.value.message
    assert [one["type"] for one in said] if status in (422, 500) else said == row.body["detail"]


def test_a_failed_job_throws_at_its_result(client: Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(error="content_policy_violation_second"))
    job = client("submit", endpoint=FLUX, arguments=KITE)
    asked = {"endpoint": FLUX, "request_id": job["request_id"]}
    assert client("status", **asked)["error_type"] == "value_error"
    with pytest.raises(Raised) as caught:
        client("result", **asked)
    assert caught.value.status == 422


def test_a_wrong_key_and_a_bad_input(client: Client, fal: FalEmulator) -> None:
    with pytest.raises(Raised) as caught:
        client("run", endpoint=FLUX, arguments=KITE, key="no")
    assert caught.value.status == 401
    with pytest.raises(Raised) as caught:
        client("run", endpoint=FLUX, arguments={**KITE, "num_images": 9})
    assert caught.value.status == 422
    assert fal.billed == 0
