"""fal.ai's adapter against the emulator's queue, over sockets."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from aiohttp import web

from geekhub.lib import http
from images.providers import fal
from images.providers.base import Item
from images.providers.downloads import Downloads
from images.providers.errors import ProviderError
from images.providers.fal import Model
from images.providers.http import Answer
from tests.emulators.base import Behaviour, make_picture
from tests.emulators.fal import FalEmulator
from tests.images.providers import call, draw, images, shortfalls, sizes
from tests.lib import serving


@pytest.fixture(scope="module")
def server() -> Iterator[FalEmulator]:
    with FalEmulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: FalEmulator) -> FalEmulator:
    server.reset()
    return server


def ask(
    emulator: FalEmulator, model: str = Model.FLUX, *, queue_url: str = "", **fields: Any
) -> list[Item]:
    def make(client: httpx.AsyncClient, downloads: Downloads) -> fal.Fal:
        return fal.Fal(
            http=client,
            downloads=downloads,
            queue_url=queue_url or emulator.queue_url,
            poll_seconds=0.005,
        )

    return draw(make, emulator, fal.headers(emulator.key), upstream_id=str(model), **fields)


def fails(emulator: FalEmulator, model: str = Model.FLUX, **fields: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(emulator, model, **fields)
    return caught.value


UNAVAILABLE = "provider_unavailable"
REFUSED = "content_policy_violation"
INVALID = "invalid_request_error"

WIDE = {"width": 1440, "height": 960}
FLUX = {"image_size": "square_hd", "num_images": 1, "safety_tolerance": "2"}
ULTRA = {"aspect_ratio": "1:1", "num_images": 1, "safety_tolerance": "2"}
RECRAFT = {"image_size": "square_hd", "enable_safety_checker": True}
IDEOGRAM = {"aspect_ratio": "1:1", "style": "auto"}
STABLE = {"image_size": "square_hd", "num_images": 1, "enable_safety_checker": True}
ASKED = {"seed": 7, "output_format": "png", "moderation": "low", "style": "natural"}
# What a model has no word for is left out.
UNKNOWN = {"output_compression": 60, "background": "transparent", "user": "hash"}


@pytest.mark.parametrize(
    ("model", "fields", "sent", "drawn"),
    [
        (Model.FLUX, UNKNOWN, FLUX, "1024x1024"),
        (
            Model.FLUX,
            {"size": "1440x960", "n": 4, **ASKED},
            FLUX
            | {"image_size": WIDE, "num_images": 4, "seed": 7}
            | {"output_format": "png", "safety_tolerance": "5"},
            "1440x960",
        ),
        (Model.FLUX, {"output_format": "webp"}, FLUX | {"output_format": "png"}, "1024x1024"),
        (Model.FLUX, {"output_format": "jpeg"}, FLUX | {"output_format": "jpeg"}, "1024x1024"),
        (Model.ULTRA, UNKNOWN, ULTRA, "2048x2048"),
        (
            Model.ULTRA,
            {"size": "2720x1536", "n": 2, **ASKED},
            ULTRA
            | {"aspect_ratio": "16:9", "num_images": 2, "seed": 7, "raw": True}
            | {"output_format": "png", "safety_tolerance": "5"},
            "2720x1536",
        ),
        (Model.ULTRA, {"style": "vivid"}, ULTRA | {"raw": False}, "2048x2048"),
        (Model.RECRAFT, UNKNOWN, RECRAFT, "1024x1024"),
        (
            Model.RECRAFT,
            {"size": "1440x960", **ASKED},
            RECRAFT | {"image_size": WIDE, "style": "realistic_image"},
            "1440x960",
        ),
        (
            Model.RECRAFT,
            {"style": "vivid"},
            RECRAFT | {"style": "digital_illustration"},
            "1024x1024",
        ),
        (Model.IDEOGRAM, UNKNOWN, IDEOGRAM, "1024x1024"),
        (
            Model.IDEOGRAM,
            {"size": "1248x832", **ASKED},
            {"aspect_ratio": "3:2", "seed": 7, "style": "realistic"},
            "1248x832",
        ),
        (Model.IDEOGRAM, {"style": "vivid"}, IDEOGRAM, "1024x1024"),
        (Model.STABLE, UNKNOWN, STABLE, "1024x1024"),
        (
            Model.STABLE,
            {"size": "1440x960", "n": 4, "quality": "40", **ASKED},
            STABLE
            | {"image_size": WIDE, "num_images": 4, "seed": 7}
            | {"output_format": "png", "num_inference_steps": 40},
            "1440x960",
        ),
    ],
)
def test_each_model_gets_its_own_input(
    emulator: FalEmulator, model: str, fields: dict[str, Any], sent: dict[str, Any], drawn: str
) -> None:
    items = ask(emulator, model, **fields)

    (received,) = emulator.calls
    assert received.path == f"/queue/{model}"
    assert received.body == {"prompt": "a red kite"} | sent
    assert emulator.ignored == []
    count = fields.get("n", 1)
    assert sizes(items) == [drawn] * count
    assert [item.index for item in images(items)] == list(range(count))
    assert [item.picture.data for item in images(items)] == emulator.pictures
    # Some models repeat the prompt, which is not a revision of it.
    assert {item.revised_prompt for item in images(items)} == {None}


def test_an_endpoint_without_a_known_input_is_never_called(emulator: FalEmulator) -> None:
    with pytest.raises(LookupError, match="fal-ai/unknown"):
        ask(emulator, "fal-ai/unknown")

    assert emulator.calls == []


def test_a_job_is_not_begun_late_nor_rerouted_nor_kept(emulator: FalEmulator) -> None:
    ask(emulator, seconds=20)

    (received,) = emulator.calls
    assert 0 < int(received.headers["x-fal-request-timeout"]) < 20
    assert received.headers["x-app-fal-disable-fallback"] == "true"
    assert received.headers["x-fal-store-io"] == "0"
    lifecycle = json.loads(received.headers["x-fal-object-lifecycle-preference"])
    assert lifecycle == {"expiration_duration_seconds": 3600}


def test_the_urls_of_the_queue_are_followed_and_the_key_stays_with_it(
    emulator: FalEmulator,
) -> None:
    emulator.queue(Behaviour(polls=3))

    ask(emulator, Model.ULTRA, n=2)

    (job,) = emulator.runs
    # The sub-path of the endpoint is not in them.
    base = f"/queue/fal-ai/flux-pro/requests/{job}"
    assert emulator.followups == [*[("GET", f"{base}/status")] * 4, ("GET", base)]
    assert len(emulator.downloads) == 2
    assert emulator.leaks == []


# (error, code, retryable, charged, account, stage)
MODEL_ERRORS = [
    ("content_policy_violation", REFUSED, False, True, "provider", None),
    ("content_policy_violation_billed", REFUSED, False, True, "provider", None),
    ("content_policy_violation_second", REFUSED, False, True, "provider", None),
    ("no_media_generated", UNAVAILABLE, True, False, None, None),
    ("missing", INVALID, False, False, None, "prompt"),
    ("literal_error", INVALID, False, False, None, "prompt"),
    ("greater_than_equal", INVALID, False, False, None, "prompt"),
    ("less_than_equal", INVALID, False, False, None, "prompt"),
    ("multiple_of", INVALID, False, False, None, "prompt"),
    ("one_of", INVALID, False, False, None, "prompt"),
    ("sequence_too_long", INVALID, False, False, None, "prompt"),
    ("image_too_large", INVALID, False, False, None, "prompt"),
    ("image_too_small", INVALID, False, False, None, "prompt"),
    ("downstream_service_error", UNAVAILABLE, False, False, None, None),
    ("downstream_service_error_retryable", UNAVAILABLE, True, False, None, None),
    ("internal_server_error", UNAVAILABLE, True, False, None, None),
    ("internal_server_error_final", UNAVAILABLE, False, False, None, None),
    ("downstream_service_unavailable", UNAVAILABLE, True, False, None, None),
    ("generation_timeout", UNAVAILABLE, False, False, None, None),
    ("request_timeout", UNAVAILABLE, True, False, None, None),
    ("request_timeout_user", UNAVAILABLE, False, False, None, None),
    ("startup_timeout", UNAVAILABLE, True, False, None, None),
    ("runner_scheduling_failure", UNAVAILABLE, True, False, None, None),
    ("runner_connection_timeout", UNAVAILABLE, True, False, None, None),
    ("runner_disconnected", UNAVAILABLE, True, False, None, None),
    ("runner_connection_refused", UNAVAILABLE, True, False, None, None),
    ("runner_connection_error", UNAVAILABLE, True, False, None, None),
    ("bad_request", INVALID, False, False, None, None),
    ("client_cancelled", UNAVAILABLE, False, False, None, None),
    ("client_disconnected", UNAVAILABLE, False, False, None, None),
    ("internal_error", UNAVAILABLE, True, False, None, None),
]
# (error, code, retryable, account)
SUBMIT_ERRORS = [
    ("unauthorized", UNAVAILABLE, False, True),
    ("user_locked", UNAVAILABLE, False, True),
    ("user_locked_other", UNAVAILABLE, False, True),
    ("not_found", "model_not_found", False, False),
    ("rate_limited", UNAVAILABLE, True, False),
    ("ingress_502", UNAVAILABLE, True, False),
    ("ingress_503", UNAVAILABLE, True, False),
    ("ingress_504", UNAVAILABLE, True, False),
]


@pytest.mark.parametrize("step", [None, "submit"])
@pytest.mark.parametrize(("name", "code", "retryable", "charged", "stage", "param"), MODEL_ERRORS)
def test_error_answers_of_a_model(
    emulator: FalEmulator,
    step: Any,
    name: str,
    code: str,
    retryable: bool,
    charged: bool,
    stage: str | None,
    param: str | None,
) -> None:
    """Those of a job that is COMPLETED, and the same in answer to the submit."""
    emulator.queue(Behaviour(error=name, step=step))

    error = fails(emulator)

    told = (error.code, error.retryable, error.charged, error.stage, error.param)
    assert told == (code, retryable, charged, stage, param)
    assert error.account is False
    body: Any = emulator.ERRORS[name].body
    said = body["detail"] if isinstance(body["detail"], str) else body["detail"][-1]["msg"]
    assert said in error.detail
    assert said not in error.message
    assert len(emulator.calls) == 1
    assert emulator.cancelled == 0
    assert all(method == "GET" for method, _ in emulator.followups)


@pytest.mark.parametrize(("name", "code", "retryable", "account"), SUBMIT_ERRORS)
def test_error_answers_of_the_platform(
    emulator: FalEmulator, name: str, code: str, retryable: bool, account: bool
) -> None:
    emulator.queue(Behaviour(error=name))

    error = fails(emulator)

    told = (error.code, error.retryable, error.account, error.charged)
    assert told == (code, retryable, account, False)
    assert "balance" not in error.message
    assert emulator.runs == {}


def test_no_error_of_the_emulator_is_left_out() -> None:
    rows = [*MODEL_ERRORS, *SUBMIT_ERRORS]
    # One is the answer to a result asked for too soon, and no end of the job.
    assert {row[0] for row in rows} | {"still_in_progress"} == FalEmulator.ERRORS.keys()


def test_a_result_that_is_not_there_yet_is_asked_for_again(emulator: FalEmulator) -> None:
    emulator.queue(Behaviour(error="still_in_progress", step="result"))

    assert len(images(ask(emulator, Model.ULTRA))) == 1

    assert (emulator.billed, len(emulator.calls)) == (1, 1)


def test_a_job_that_is_followed_on_another_host(emulator: FalEmulator) -> None:
    """fal's backup domain answers with its own name; the job is followed where it was asked for."""
    emulator.queue(Behaviour(urls_on="https://queue.falrun.com"))

    assert len(images(ask(emulator, Model.ULTRA))) == 1

    (job,) = emulator.runs
    base = f"/queue/fal-ai/flux-pro/requests/{job}"
    assert emulator.followups == [("GET", f"{base}/status"), ("GET", base)]


@pytest.mark.parametrize(
    ("status", "body", "account", "retryable"),
    [
        (403, {"detail": "You have no access to this application."}, False, False),
        (302, {}, False, False),
        (500, {"detail": 5}, False, True),
        (503, [], False, True),
    ],
)
def test_error_answers_that_are_not_described(
    status: int, body: Any, account: bool, retryable: bool
) -> None:
    error = fal.error(Answer(status, {"x-fal-request-id": "1"}, json.dumps(body).encode()))

    assert (error.code, error.account, error.retryable) == (UNAVAILABLE, account, retryable)


@pytest.mark.parametrize(
    ("loc", "param"),
    [
        (["body", "image_size", "width"], "size"),
        (["body", "aspect_ratio"], "size"),
        (["body", "num_images"], "n"),
        (["body", "safety_tolerance"], "moderation"),
        (["body", "enhance_prompt"], None),
        (["body", 0], None),
        ("body", None),
    ],
)
def test_the_wrong_field_is_named_in_our_words(loc: Any, param: str | None) -> None:
    detail = [{"loc": loc, "msg": "wrong", "type": "one_of"}]
    body = json.dumps({"detail": detail}).encode()

    assert fal.error(Answer(422, {}, body)).param == param


def test_a_policy_is_the_reason_wherever_it_is_named() -> None:
    detail = [
        {"loc": ["body", "seed"], "msg": "bad seed", "type": "int_type"},
        {"loc": ["body", "prompt"], "msg": "flagged", "type": "content_policy_violation"},
    ]

    error = fal.error(Answer(422, {}, json.dumps({"detail": detail}).encode()))

    assert (error.code, error.stage, error.charged) == (REFUSED, "provider", True)
    assert "flagged" in error.detail


@pytest.mark.parametrize(
    ("status", "detail", "is_early"),
    [
        (400, "Request is still in progress", True),
        (400, "Bad request", False),
        (400, [{"msg": "still in progress"}], False),
        (422, "Request is still in progress", False),
    ],
)
def test_a_result_asked_for_too_soon_is_asked_for_again(
    status: int, detail: Any, is_early: bool
) -> None:
    answer = Answer(status, {}, json.dumps({"detail": detail}).encode())
    assert fal.early(answer) is is_early


def test_a_job_that_is_complete_before_its_result_is_there_is_not_lost() -> None:
    asked: list[str] = []

    async def queue(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(f"{request.method} {request.path}")
        if request.path == "/a.png":
            return web.Response(body=make_picture(8, 8, "png"))
        if request.method == "POST":
            return web.json_response({"request_id": "764c"})
        if request.path.endswith("/status"):
            return web.json_response({"status": "COMPLETED"})
        if len(asked) < 5:
            return web.json_response({"detail": "Request is still in progress"}, status=400)
        return web.json_response({"images": [{"url": f"http://{request.host}/a.png"}]})

    async def main() -> list[Item]:
        async with serving(queue) as origin:
            downloads = Downloads([origin])
            client = http.client(connect=2, read=10)
            provider = fal.Fal(
                http=client, downloads=downloads, queue_url=origin, poll_seconds=0.001
            )
            try:
                return await call(provider, upstream_id=str(Model.FLUX))
            finally:
                await provider.aclose()
                await downloads.aclose()

    assert len(images(asyncio.run(main()))) == 1
    job = "/fal-ai/flux-pro/requests/764c"
    twice = [f"GET {job}/status", f"GET {job}"] * 2
    assert asked == [f"POST /{Model.FLUX}", *twice, "GET /a.png"]


def test_the_wait_that_a_rate_limit_names(emulator: FalEmulator) -> None:
    emulator.queue(Behaviour(error="rate_limited", retry_after=3))

    assert fails(emulator).retry_after == 3


def test_a_wrong_key_is_the_accounts(emulator: FalEmulator) -> None:
    def make(client: httpx.AsyncClient, downloads: Downloads) -> fal.Fal:
        return fal.Fal(http=client, downloads=downloads, queue_url=emulator.queue_url)

    with pytest.raises(ProviderError) as caught:
        draw(make, emulator, fal.headers("wrong"), upstream_id=str(Model.FLUX))

    assert caught.value.account is True


def test_a_flagged_picture_is_neither_fetched_nor_delivered(emulator: FalEmulator) -> None:
    emulator.queue(Behaviour(refuse=1))

    items = ask(emulator, n=3)

    assert [item.index for item in images(items)] == [0, 1]
    (short,) = shortfalls(items)
    assert (short.count, short.error.code, short.error.stage) == (1, REFUSED, "output")
    assert short.error.charged is True
    assert len(emulator.downloads) == 2


def test_only_flagged_pictures_are_a_refusal(emulator: FalEmulator) -> None:
    emulator.queue(Behaviour(refuse=2))

    error = fails(emulator, n=2)

    assert (error.code, error.stage, error.charged) == (REFUSED, "output", True)
    assert emulator.downloads == []


@pytest.mark.parametrize("model", [Model.RECRAFT, Model.IDEOGRAM])
def test_models_without_flags_refuse_the_whole_call(emulator: FalEmulator, model: str) -> None:
    emulator.queue(Behaviour(refuse=1))

    assert fails(emulator, model).code == REFUSED


def test_fewer_pictures_than_asked_say_so(emulator: FalEmulator) -> None:
    emulator.queue(Behaviour(fewer=1))

    items = ask(emulator, n=3)

    assert [item.index for item in images(items)] == [0, 1]
    (short,) = shortfalls(items)
    assert (short.count, short.error.code, short.error.charged) == (1, UNAVAILABLE, True)


def test_no_picture_at_all_is_an_error(emulator: FalEmulator) -> None:
    emulator.queue(Behaviour(fewer=1))

    error = fails(emulator)

    assert (error.code, error.charged) == (UNAVAILABLE, True)


@pytest.mark.parametrize("mode", ["404", "html", "bomb", "huge", "inside", "redirect_inside"])
def test_a_picture_that_cannot_be_fetched_may_be_charged(emulator: FalEmulator, mode: Any) -> None:
    emulator.queue(Behaviour(picture=mode))

    error = fails(emulator)

    assert (error.code, error.charged, error.retryable) == (UNAVAILABLE, True, False)
    assert len(emulator.calls) == 1
    assert "169.254" not in error.message


LOST = [
    Behaviour(drop="before"),
    Behaviour(cut=True),
    Behaviour(bad_json=True),
    Behaviour(error="ingress_502"),
    Behaviour(error="ingress_504"),
    Behaviour(error="rate_limited"),
]


@pytest.mark.parametrize("step", ["status", "result"])
@pytest.mark.parametrize("behaviour", LOST, ids=lambda one: ",".join(sorted(one.changed())))
def test_a_lost_answer_about_a_job_is_asked_for_again(
    emulator: FalEmulator, step: Any, behaviour: Behaviour
) -> None:
    knobs = {name: getattr(behaviour, name) for name in behaviour.changed()}
    emulator.queue(Behaviour(**knobs, step=step, polls=2))

    items = ask(emulator)

    assert len(images(items)) == 1
    # It is the job that was paid for, not a second one.
    assert list(emulator.runs.values()) == [1]
    assert len(emulator.calls) == 1
    assert emulator.cancelled == 0


@pytest.mark.parametrize("name", ["internal_error", "runner_disconnected"])
def test_a_failing_status_is_not_the_failure_of_the_job(emulator: FalEmulator, name: str) -> None:
    emulator.queue(Behaviour(error=name, step="status"))

    assert len(images(ask(emulator))) == 1
    assert len(emulator.calls) == 1


@pytest.mark.parametrize("step", ["status", "result"])
@pytest.mark.parametrize(("name", "account"), [("user_locked", True), ("not_found", False)])
def test_a_job_that_cannot_be_asked_after_may_be_charged(
    emulator: FalEmulator, step: Any, name: str, account: bool
) -> None:
    emulator.queue(Behaviour(error=name, step=step))

    error = fails(emulator)

    assert (error.code, error.charged) == (UNAVAILABLE, True)
    assert error.retryable is False
    assert error.account is account


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_lost_submit_may_be_charged_and_is_not_repeated(emulator: FalEmulator, drop: Any) -> None:
    emulator.queue(Behaviour(drop=drop, step="submit"))

    error = fails(emulator)

    assert (error.code, error.charged, error.retryable) == (UNAVAILABLE, True, False)
    assert len(emulator.calls) == 1
    assert len(emulator.runs) == (drop == "after")
    assert emulator.followups == []


def test_a_queue_that_is_not_there_was_never_asked() -> None:
    with FalEmulator() as gone:
        pass

    error = fails(gone)

    assert (error.code, error.retryable, error.charged) == (UNAVAILABLE, True, False)


def test_the_key_goes_to_no_other_origin_and_the_job_is_followed_all_the_same(
    emulator: FalEmulator,
) -> None:
    """The emulator names itself by its address; here the queue is configured by its name."""
    by_name = emulator.queue_url.replace("127.0.0.1", "localhost")

    items = ask(emulator, Model.ULTRA, queue_url=by_name)

    assert len(images(items)) == 1
    (job,) = emulator.runs
    base = f"/queue/fal-ai/flux-pro/requests/{job}"
    assert emulator.followups == [("GET", f"{base}/status"), ("GET", base)]
    assert len(emulator.calls) == 1


QUEUE = "https://queue.fal.run"


@pytest.mark.parametrize(
    "origin", ["https://queue.falrun.com", "http://queue.fal.run", "https://a@queue.fal.run", ""]
)
@pytest.mark.parametrize("queue", [QUEUE, "https://proxy.test/fal"])
def test_urls_that_are_not_the_queues_own_are_made_of_the_jobs_id(origin: str, queue: str) -> None:
    said = {
        "request_id": "764c-ab_1",
        "status_url": f"{origin}/elsewhere",
        "response_url": f"{origin}/elsewhere",
        "cancel_url": f"{queue}/own",
    }

    job = fal.submitted(Answer(200, {}, json.dumps(said).encode()), queue, Model.STABLE)

    base = f"{queue}/fal-ai/stable-diffusion-v35-large/requests/764c-ab_1"
    assert job == fal.Job("764c-ab_1", f"{base}/status", base, f"{base}/cancel")


def test_the_queues_own_urls_are_taken_as_they_are() -> None:
    said = {"request_id": "764c"} | {
        f"{step}_url": f"{QUEUE}/x/{step}" for step in ("status", "response", "cancel")
    }

    job = fal.submitted(Answer(200, {}, json.dumps(said).encode()), QUEUE, Model.STABLE)

    assert job == fal.Job("764c", f"{QUEUE}/x/status", f"{QUEUE}/x/response", f"{QUEUE}/x/cancel")


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://queue.fal.run/fal-ai/x/requests/1", True),
        ("https://QUEUE.fal.run:443/x", True),
        ("http://queue.fal.run/x", False),
        ("https://queue.fal.run:8443/x", False),
        ("https://queue.fal.run.example/x", False),
        ("https://queue.fal.run@example.com/x", False),
        ("https://key@queue.fal.run/x", False),
        ("/fal-ai/x/requests/1", False),
        ("https://[/x", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, same: bool) -> None:
    assert fal.same_origin(url, "https://queue.fal.run") is same


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"{}",
        b'{"status_url": 5}',
        b"<html>",
        b'{"request_id": "../../admin"}',
        b'{"request_id": "a/b"}',
        b'{"request_id": "a?b"}',
        b'{"request_id": ""}',
        b'{"request_id": 7}',
        b'{"request_id": "%s"}' % (b"a" * 65),
    ],
)
def test_a_submit_that_is_not_understood_may_be_charged(
    answer: bytes,
) -> None:
    with pytest.raises(ProviderError) as caught:
        fal.submitted(Answer(200, {}, answer), QUEUE, Model.FLUX)

    assert (caught.value.code, caught.value.charged) == (UNAVAILABLE, True)


def test_a_job_is_cancelled_at_the_deadline(emulator: FalEmulator) -> None:
    gate = threading.Event()
    emulator.queue(Behaviour(gate=gate))

    error = fails(emulator, seconds=2)
    gate.set()

    assert (error.code, error.charged, error.retryable) == (UNAVAILABLE, True, False)
    assert emulator.cancelled == 1
    assert emulator.runs == {}
    assert emulator.followups[-1][0] == "PUT"


@pytest.mark.parametrize("twice", [False, True])
def test_a_job_nobody_waits_for_is_cancelled(emulator: FalEmulator, twice: bool) -> None:
    """Also when the caller is cancelled again, and leaves, before the cancel is sent."""
    gate = threading.Event()
    emulator.queue(Behaviour(gate=gate))

    async def run() -> None:
        downloads = Downloads([emulator.origin])
        client = http.client(headers=fal.headers(emulator.key), connect=2, read=10)
        provider = fal.Fal(
            http=client, downloads=downloads, queue_url=emulator.queue_url, poll_seconds=0.005
        )
        polled, left = asyncio.Event(), asyncio.Event()

        async def on_request(request: httpx.Request) -> None:
            if request.method == "PUT" and twice:
                caller.cancel()
                await left.wait()

        async def on_response(response: httpx.Response) -> None:
            if response.request.method == "GET":
                polled.set()

        client.event_hooks = {"request": [on_request], "response": [on_response]}
        caller = asyncio.create_task(call(provider, upstream_id=str(Model.FLUX)))
        await polled.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        left.set()
        await provider.aclose()
        await downloads.aclose()

    asyncio.run(run())
    gate.set()

    assert emulator.cancelled == 1
    assert emulator.runs == {}


def test_a_cancel_that_fails_does_not_hide_the_deadline(emulator: FalEmulator) -> None:
    gate = threading.Event()
    emulator.queue(Behaviour(gate=gate))

    async def run() -> None:
        downloads = Downloads([emulator.origin])
        client = http.client(headers=fal.headers(emulator.key), connect=2, read=10)
        provider = fal.Fal(
            http=client, downloads=downloads, queue_url=emulator.queue_url, poll_seconds=0.005
        )

        async def on_request(request: httpx.Request) -> None:
            if request.method == "PUT":
                raise httpx.ConnectError("unplugged", request=request)

        client.event_hooks = {"request": [on_request]}
        try:
            await call(provider, upstream_id=str(Model.FLUX), seconds=2)
        finally:
            await provider.aclose()
            await downloads.aclose()

    with pytest.raises(ProviderError) as caught:
        asyncio.run(run())
    gate.set()

    assert (caught.value.code, caught.value.charged) == (UNAVAILABLE, True)
    assert emulator.cancelled == 0
