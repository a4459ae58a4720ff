"""The fal emulator is as strict as the sync host and the queue."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.emulators.base import Behaviour
from tests.emulators.fal import FalEmulator
from tests.test_emulators.conftest import opened

FLUX = "fal-ai/flux-pro/v1.1"
ULTRA = "fal-ai/flux-pro/v1.1-ultra"
RECRAFT = "fal-ai/recraft/v3/text-to-image"
IDEOGRAM = "fal-ai/ideogram/v2"
SD = "fal-ai/stable-diffusion-v35-large"


@pytest.fixture(scope="module")
def server() -> Iterator[FalEmulator]:
    with FalEmulator() as emulator:
        yield emulator


@pytest.fixture
def fal(server: FalEmulator) -> FalEmulator:
    server.reset()
    return server


def run(
    http: httpx.Client, fal: FalEmulator, endpoint: str = FLUX, **fields: Any
) -> httpx.Response:
    body = {"prompt": "a kite"} | fields
    headers = {"Authorization": f"Key {fal.key}"}
    return http.post(f"{fal.url}/{endpoint}", json=body, headers=headers)


def submit(
    http: httpx.Client, fal: FalEmulator, endpoint: str = FLUX, **fields: Any
) -> dict[str, Any]:
    body = {"prompt": "a kite"} | fields
    headers = {"Authorization": f"Key {fal.key}"}
    answer = http.post(f"{fal.queue_url}/{endpoint}", json=body, headers=headers)
    assert answer.status_code == 200
    submitted: dict[str, Any] = answer.json()
    return submitted


def follow(
    http: httpx.Client, fal: FalEmulator, url: str, method: str = "GET"
) -> tuple[int, dict[str, Any]]:
    answer = http.request(method, url, headers={"Authorization": f"Key {fal.key}"})
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("endpoint", "fields", "kind", "size", "units"),
    [
        (FLUX, {}, "JPEG", (1024, 768), 1),
        (FLUX, {"image_size": "square_hd", "output_format": "png"}, "PNG", (1024, 1024), 1),
        (FLUX, {"image_size": {"width": 1440, "height": 960}}, "JPEG", (1440, 960), 2),
        (ULTRA, {}, "JPEG", (2720, 1536), 1),
        (ULTRA, {"aspect_ratio": "1:1"}, "JPEG", (2048, 2048), 1),
        (RECRAFT, {}, "WEBP", (1024, 1024), 1),
        (IDEOGRAM, {}, "PNG", (1024, 1024), 1),
        (IDEOGRAM, {"aspect_ratio": "16:9"}, "PNG", (1376, 768), 1),
        (SD, {}, "JPEG", (1024, 768), 1),
    ],
)
def test_pictures(
    http: httpx.Client,
    fal: FalEmulator,
    endpoint: str,
    fields: dict[str, Any],
    kind: str,
    size: tuple[int, int],
    units: int,
) -> None:
    answer = run(http, fal, endpoint, **fields)
    (image,) = answer.json()["images"]
    picture = http.get(image["url"])
    assert opened(picture.content) == (kind, size)
    assert picture.headers["content-type"] == image["content_type"] == f"image/{kind.lower()}"
    assert answer.headers["x-fal-billable-units"] == str(units)
    assert (fal.units, fal.billed) == (units, 1)
    assert fal.runs == {answer.headers["x-fal-request-id"]: 1}


@pytest.mark.parametrize(
    ("endpoint", "fields", "loc", "kind"),
    [
        (FLUX, {"num_images": 5}, ["num_images"], "less_than_equal"),
        (FLUX, {"num_images": 0}, ["num_images"], "greater_than_equal"),
        (FLUX, {"num_images": "2"}, ["num_images"], "int_type"),
        (FLUX, {"image_size": "big"}, ["image_size"], "literal_error"),
        (FLUX, {"image_size": {"width": 1024}}, ["image_size", "height"], "missing"),
        (
            FLUX,
            {"image_size": {"width": 1000, "height": 1024}},
            ["image_size", "width"],
            "multiple_of",
        ),
        (
            FLUX,
            {"image_size": {"width": 1024, "height": 1472}},
            ["image_size", "height"],
            "less_than_equal",
        ),
        (FLUX, {"safety_tolerance": 2}, ["safety_tolerance"], "literal_error"),
        (FLUX, {"output_format": "webp"}, ["output_format"], "literal_error"),
        (ULTRA, {"aspect_ratio": "wide"}, ["aspect_ratio"], "value_error"),
        (ULTRA, {"raw": "yes"}, ["raw"], "bool_type"),
        (ULTRA, {"image_prompt_strength": 2}, ["image_prompt_strength"], "less_than_equal"),
        (RECRAFT, {"style": "vivid"}, ["style"], "literal_error"),
        (RECRAFT, {"prompt": "x" * 1001}, ["prompt"], "sequence_too_long"),
        (IDEOGRAM, {"aspect_ratio": "21:9"}, ["aspect_ratio"], "literal_error"),
        (SD, {"num_inference_steps": 0}, ["num_inference_steps"], "greater_than_equal"),
        (SD, {"seed": "7"}, ["seed"], "int_type"),
    ],
)
def test_refused(
    http: httpx.Client,
    fal: FalEmulator,
    endpoint: str,
    fields: dict[str, Any],
    loc: list[str],
    kind: str,
) -> None:
    answer = run(http, fal, endpoint, **fields)
    assert answer.status_code == 422
    (entry,) = answer.json()["detail"]
    assert (entry["loc"], entry["type"]) == (["body", *loc], kind)
    assert fal.billed == 0


def test_keys_and_endpoints(http: httpx.Client, fal: FalEmulator) -> None:
    for base in (fal.url, fal.queue_url):
        bearer = {"Authorization": f"Bearer {fal.key}"}
        assert http.post(f"{base}/{FLUX}", json={}, headers=bearer).status_code == 401
        key = {"Authorization": f"Key {fal.key}"}
        unknown = http.post(f"{base}/fal-ai/recraft-v3", json={}, headers=key)
        assert (unknown.status_code, "x-fal-request-id" in unknown.headers) == (404, True)
    missing = http.post(f"{fal.url}/{FLUX}", json={}, headers=key).json()["detail"][0]
    assert (missing["loc"], missing["type"]) == (["body", "prompt"], "missing")


def test_unknown_fields_are_ignored(http: httpx.Client, fal: FalEmulator) -> None:
    body = run(http, fal, RECRAFT, seed=7, num_images=4).json()
    assert len(body["images"]) == 1
    assert set(body["images"][0]) == {"url", "content_type", "file_name", "file_size"}
    assert fal.ignored == [(RECRAFT, "seed"), (RECRAFT, "num_images")]


def test_vector_and_inline(http: httpx.Client, fal: FalEmulator) -> None:
    vector = run(http, fal, RECRAFT, style="vector_illustration").json()["images"][0]
    assert vector["content_type"] == "image/svg+xml"
    assert http.get(vector["url"]).text.startswith("<svg ")
    inline = run(http, fal, sync_mode=True).json()["images"][0]["url"]
    assert inline.startswith("data:image/jpeg;base64,")
    assert opened(inline.partition(",")[2]) == ("JPEG", (1024, 768))


def test_refused_pictures(http: httpx.Client, fal: FalEmulator) -> None:
    fal.always(Behaviour(refuse=1))
    body = run(http, fal, num_images=2, seed=9).json()
    assert (body["has_nsfw_concepts"], body["seed"]) == ([False, True], 9)
    assert fal.billed == 2
    refused = run(http, fal, IDEOGRAM)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["type"] == "content_policy_violation"
    assert fal.billed == 2


@pytest.mark.parametrize("name", FalEmulator.ERRORS)
def test_error_rows(http: httpx.Client, fal: FalEmulator, name: str) -> None:
    fal.queue(Behaviour(error=name, retry_after=3))
    answer = run(http, fal)
    row = FalEmulator.ERRORS[name]
    assert answer.status_code == row.status
    assert (answer.text if isinstance(row.body, str) else answer.json()) == row.body
    headers = {key.lower(): value for key, value in row.headers.items()}
    assert headers.items() <= dict(answer.headers).items()
    assert ("x-fal-request-id" in answer.headers) == (not name.startswith("ingress"))
    assert answer.headers["retry-after"] == "3"
    assert fal.billed == (name == "content_policy_violation_billed")


def test_queue(http: httpx.Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(polls=2))
    job = submit(http, fal, ULTRA)
    base = f"{fal.queue_url}/fal-ai/flux-pro/requests/{job['request_id']}"
    assert job["response_url"] == base
    assert (job["status_url"], job["cancel_url"]) == (f"{base}/status", f"{base}/cancel")
    assert follow(http, fal, base)[0] == 400
    statuses = [follow(http, fal, f"{base}/status?logs=1") for _ in range(3)]
    assert [(code, body["status"]) for code, body in statuses] == [
        (202, "IN_QUEUE"),
        (202, "IN_PROGRESS"),
        (200, "COMPLETED"),
    ]
    code, body = follow(http, fal, base)
    assert (code, len(body["images"])) == (200, 1)
    assert follow(http, fal, base) == (code, body)
    assert follow(http, fal, job["cancel_url"], "PUT") == (400, {"status": "ALREADY_COMPLETED"})
    assert fal.runs == {job["request_id"]: 1}
    assert (fal.billed, fal.cancelled, len(fal.calls), len(fal.followups)) == (1, 0, 1, 7)
    built = f"{fal.queue_url}/{ULTRA}/requests/{job['request_id']}/status"
    assert http.get(built, headers={"Authorization": f"Key {fal.key}"}).status_code == 405
    assert http.get(base).status_code == 401
    assert follow(http, fal, base.replace("flux-pro", "flux"))[0] == 404


def test_every_status_names_the_request(http: httpx.Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(polls=2))
    job = submit(http, fal)
    assert job.pop("gateway_request_id") == job["request_id"]
    names = {name: job[name] for name in job.keys() - {"status", "queue_position"}}
    bodies = [follow(http, fal, f"{job['status_url']}?logs=1")[1] for _ in range(3)]
    assert [body | names for body in bodies] == bodies
    assert [len(body.get("logs", ())) for body in bodies] == [0, 1, 1]
    assert bodies[2]["logs"][0].keys() == {"message", "level", "source", "timestamp"}
    assert follow(http, fal, job["status_url"])[1]["logs"] == []


def test_a_stream_of_statuses(http: httpx.Client, fal: FalEmulator) -> None:
    gate = threading.Event()
    fal.queue(Behaviour(gate=gate), Behaviour(polls=2))
    headers = {"Authorization": f"Key {fal.key}"}
    seen = []
    url = submit(http, fal)["status_url"] + "/stream"
    with http.stream("GET", url, headers=headers) as answer:
        for line in answer.iter_lines():
            if line:
                seen.append(json.loads(line.removeprefix("data: "))["status"])
                gate.set()
    assert seen == ["IN_QUEUE", "COMPLETED"]
    text = http.get(submit(http, fal)["status_url"] + "/stream", headers=headers).text
    assert re.findall(r'"status": "(\w+)"', text) == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert http.get(url).status_code == 401


def test_a_stream_ends_with_the_output(http: httpx.Client, fal: FalEmulator) -> None:
    headers = {"Authorization": f"Key {fal.key}"}
    answer = http.post(f"{fal.url}/{FLUX}/stream", json={"prompt": "a kite"}, headers=headers)
    assert answer.headers["content-type"] == "text/event-stream"
    output = json.loads(answer.text.removeprefix("data: "))
    assert [http.get(image["url"]).content for image in output["images"]] == fal.pictures
    refused = http.post(f"{fal.url}/{FLUX}/stream", json={}, headers=headers)
    assert refused.status_code == 422


def test_urls_on_another_host(http: httpx.Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(urls_on="https://queue.falrun.com"))
    job = submit(http, fal, ULTRA)
    there = f"https://queue.falrun.com/fal-ai/flux-pro/requests/{job['request_id']}"
    assert (job["response_url"], job["cancel_url"]) == (there, f"{there}/cancel")
    here = f"{fal.queue_url}/fal-ai/flux-pro/requests/{job['request_id']}"
    assert follow(http, fal, f"{here}/status")[1]["status_url"] == f"{there}/status"
    assert follow(http, fal, here)[0] == 200


def test_completed_is_not_success(http: httpx.Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(error="runner_disconnected"))
    for job, code, kind in (
        (submit(http, fal), 503, "runner_disconnected"),
        (submit(http, fal, num_images=9), 422, "less_than_equal"),
    ):
        status, body = follow(http, fal, job["status_url"])
        assert (status, body["status"], body["error_type"]) == (200, "COMPLETED", kind)
        assert [follow(http, fal, job["response_url"])[0] for _ in range(2)] == [code, code]
    assert fal.billed == 0


def test_lost_submit_answer(http: httpx.Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(drop="after"), Behaviour(drop="before"))
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            submit(http, fal)
    assert (len(fal.calls), len(fal.runs), fal.billed) == (2, 1, 1)


def test_a_disturbed_step_recovers(http: httpx.Client, fal: FalEmulator) -> None:
    fal.queue(
        Behaviour(error="ingress_502", step="status"),
        Behaviour(cut=True, step="result"),
        Behaviour(error="internal_server_error", step="result"),
    )
    job = submit(http, fal)
    headers = {"Authorization": f"Key {fal.key}"}
    ingress = http.get(job["status_url"], headers=headers)
    assert (ingress.status_code, "x-fal-request-id" in ingress.headers) == (502, False)
    assert follow(http, fal, job["status_url"])[1]["status"] == "COMPLETED"
    job = submit(http, fal)
    with pytest.raises(httpx.RemoteProtocolError):
        http.get(job["response_url"], headers=headers)
    assert follow(http, fal, job["response_url"])[0] == 200
    job = submit(http, fal)
    assert [follow(http, fal, job["response_url"])[0] for _ in range(2)] == [500, 200]
    assert fal.billed == 3


def test_cancel_before_the_run(http: httpx.Client, fal: FalEmulator) -> None:
    gate = threading.Event()
    fal.queue(Behaviour(gate=gate))
    job = submit(http, fal)
    assert follow(http, fal, job["status_url"])[0] == 202
    requested = follow(http, fal, job["cancel_url"], "PUT")
    assert requested == (202, {"status": "CANCELLATION_REQUESTED"})
    gate.set()
    assert follow(http, fal, job["response_url"])[0] == 499
    assert (fal.cancelled, fal.billed, fal.runs) == (1, 0, {})


def test_cancel_after_the_run(http: httpx.Client, fal: FalEmulator) -> None:
    fal.queue(Behaviour(polls=9))
    job = submit(http, fal)
    assert follow(http, fal, job["cancel_url"], "PUT")[0] == 202
    assert follow(http, fal, job["response_url"])[0] == 200
    assert (fal.cancelled, fal.billed) == (1, 1)


def test_locked_account(http: httpx.Client, fal: FalEmulator) -> None:
    fal.always(Behaviour(error="user_locked"))
    headers = {"Authorization": f"Key {fal.key}"}
    for base in (fal.url, fal.queue_url):
        answer = http.post(f"{base}/{FLUX}", json={"prompt": "x"}, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["detail"].startswith("User is locked. Reason: Exhausted balance.")
    assert fal.runs == {}
