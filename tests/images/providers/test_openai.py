"""OpenAI's adapter over sockets; the rest of it is tested with the gateway."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from images.pixels.pictures import Upload
from images.providers import openai
from images.providers.base import ImageRequest, Item, PartialImage, ProviderImage, Shortfall
from images.providers.downloads import Downloads
from images.providers.errors import ProviderError
from images.providers.http import Answer
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.images.providers import DOT, draw, exchange, images

GPT = "gpt-image-1"
UNAVAILABLE = "provider_unavailable"
REFUSED = "content_policy_violation"
INVALID = "invalid_request_error"
GONE = "model_not_found"


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator(tiny=True) as emulator:
        yield emulator


@pytest.fixture
def emulator(server: OpenAIEmulator) -> OpenAIEmulator:
    server.reset()
    return server


def make(client: Any, downloads: Downloads) -> openai.OpenAI:
    return openai.OpenAI(http=client, downloads=downloads)


def ask(emulator: OpenAIEmulator, upstream_id: str = GPT, **fields: Any) -> list[Item]:
    headers = openai.headers(emulator.key)
    return draw(make, emulator, headers, upstream_id=upstream_id, **fields)


def meaning(status: int, *, headers: dict[str, str] | None = None, **details: Any) -> ProviderError:
    body = json.dumps({"error": {"message": "Some words.", **details}}).encode()
    return openai.error(Answer(status, headers or {}, body))


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "details", "code", "retryable", "account"),
    [
        (
            429,
            {"code": "billing_not_active", "type": "billing_not_active"},
            UNAVAILABLE,
            False,
            True,
        ),
        (429, {"code": None, "type": "insufficient_quota"}, UNAVAILABLE, False, True),
        (429, {"code": "rate_limit_exceeded"}, UNAVAILABLE, True, False),
        (408, {"code": None}, UNAVAILABLE, True, False),
        (409, {"code": None, "type": "conflict"}, UNAVAILABLE, True, False),
        (402, {"code": None}, UNAVAILABLE, False, False),
        (302, {"code": None}, UNAVAILABLE, False, False),
        (418, {"code": None}, UNAVAILABLE, False, False),
        (400, {"code": "invalid_value", "param": "size"}, INVALID, False, False),
        (413, {"code": None}, INVALID, False, False),
        (415, {"code": None}, INVALID, False, False),
        (422, {"code": None}, INVALID, False, False),
        (401, {"code": "invalid_api_key"}, UNAVAILABLE, False, True),
        (403, {"code": None}, UNAVAILABLE, False, True),
        (404, {"code": None}, GONE, False, False),
        (400, {"code": "model_not_found"}, GONE, False, False),
        (500, {"code": None}, UNAVAILABLE, True, False),
    ],
)
def test_error_answers(
    status: int, details: dict[str, Any], code: str, retryable: bool, account: bool
) -> None:
    error = meaning(status, **details)

    told = (error.code, error.retryable, error.account, error.charged)
    assert told == (code, retryable, account, False)
    assert error.param == details.get("param")
    assert "Some words." not in error.message
    assert "Some words." in error.detail


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_openai_says_should_not_be_repeated_is_not(status: int) -> None:
    assert meaning(status, headers={"x-should-retry": "false"}).retryable is False
    assert meaning(status, headers={"x-should-retry": "true"}).retryable is True


@pytest.mark.parametrize(
    ("details", "stage"),
    [
        ({"moderation_stage": "input"}, "prompt"),
        ({"moderation_stage": "output"}, "output"),
        ({"moderation_stage": "unknown"}, "provider"),
        ({"moderation_stage": ["input"]}, "provider"),
        ("input", "provider"),
        (["input"], "provider"),
        (None, "provider"),
    ],
)
def test_where_a_refusal_was_made(details: Any, stage: str) -> None:
    error = meaning(400, code="moderation_blocked", moderation_details=details)

    assert (error.code, error.stage) == (REFUSED, stage)


# --- Streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OpenAIEmulator.STREAM_ERRORS))
def test_an_error_in_a_stream_means_the_same_in_each_of_its_forms(
    emulator: OpenAIEmulator, name: str
) -> None:
    emulator.queue(Behaviour(error=name))

    with pytest.raises(ProviderError) as caught:
        ask(emulator, partial_images=1)

    code = REFUSED if "moderation" in name else UNAVAILABLE
    error = caught.value
    assert (error.code, error.charged, error.retryable) == (code, True, False)
    assert len(emulator.calls) == 1


SAFETY = {"code": "moderation_blocked", "message": "No.", "type": "image_generation_user_error"}
FAILURES: list[tuple[str, dict[str, Any]]] = [
    ("error", {"type": "error", "error": SAFETY}),
    ("", {"type": "error", "error": SAFETY}),
    ("", {"error": SAFETY}),
    ("image_generation.failed", {"type": "image_generation.failed", "error": SAFETY}),
    ("", {**SAFETY, "type": "image_generation.failed", "error": None}),
    # Flat, as gateways in front of OpenAI send it.
    ("", {**SAFETY, "type": "error"}),
    ("error", {"code": "moderation_blocked", "message": "No."}),
    ("image_generation.completed", {"type": "image_generation.completed", "error": SAFETY}),
]


def streaming(*events: tuple[str, dict[str, Any]]) -> web.Response:
    body = b"".join(
        (f"event: {name}\n" if name else "").encode()
        + b"data: "
        + json.dumps(data).encode()
        + b"\n\n"
        for name, data in events
    )
    return web.Response(body=body, content_type="text/event-stream")


PARTIAL = {"type": "image_generation.partial_image", "b64_json": DOT, "partial_image_index": 0}
COMPLETED = {"type": "image_generation.completed", "b64_json": DOT}


def stream(*events: tuple[str, dict[str, Any]], n: int = 1) -> list[Item]:
    """Return what the adapter makes of a stream of events."""
    return exchange(make, streaming(*events), upstream_id=GPT, n=n, partial_images=1)


@pytest.mark.parametrize(("name", "data"), FAILURES)
def test_a_refusal_in_a_stream_is_one_in_whatever_form_it_comes(
    name: str, data: dict[str, Any]
) -> None:
    with pytest.raises(ProviderError) as caught:
        stream(("", PARTIAL), (name, data))

    error = caught.value
    assert (error.code, error.charged, error.retryable) == (REFUSED, True, False)


@pytest.mark.parametrize(
    ("data", "account"),
    [
        ({"type": "error", "error": "The server had an error."}, False),
        ({"type": "error", "message": "The server had an error."}, False),
        ({"type": "error"}, False),
        (
            {
                "error": {
                    "type": "server_error",
                    "code": None,
                    "message": "The server had an error.",
                }
            },
            False,
        ),
        ({"error": {"code": "billing_not_active", "message": "The server had an error."}}, True),
    ],
)
def test_a_failure_in_a_stream_may_be_charged_and_is_not_repeated(
    data: dict[str, Any], account: bool
) -> None:
    with pytest.raises(ProviderError) as caught:
        stream(("", PARTIAL), ("", data))

    error = caught.value
    assert (error.code, error.charged, error.retryable) == (UNAVAILABLE, True, False)
    assert error.account is account
    if len(data) > 1 or "error" in data:
        assert "The server had an error." in error.detail


def test_what_came_before_a_failure_is_kept() -> None:
    first, short = stream(("", COMPLETED), ("", {"error": SAFETY}), n=2)

    assert isinstance(first, ProviderImage)
    assert isinstance(short, Shortfall)
    assert (short.count, short.error.code) == (1, REFUSED)


@pytest.mark.parametrize(
    ("said", "places"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 0, 1], [2, 0, 1]),
        ([None, None, None], [0, 1, 2]),
        (["abc", [1], {}], [0, 1, 2]),
        ([10**30, -1, True], [0, 1, 2]),
        ([1e308, 1.0, 3], [0, 1, 2]),
    ],
)
def test_early_views_have_a_place_that_an_sdk_can_read(said: list[Any], places: list[int]) -> None:
    views = [("", PARTIAL | {"partial_image_index": place}) for place in said]

    items = stream(*views, ("", COMPLETED))

    assert [item.index for item in items if isinstance(item, PartialImage)] == places
    assert len(images(items)) == 1


def test_a_paid_picture_is_not_lost_with_the_end_of_its_last_line() -> None:
    events = b"data: " + json.dumps(COMPLETED).encode()
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n", b""):
        answer = web.Response(body=events + end, content_type="text/event-stream")
        items = exchange(make, answer, upstream_id=GPT, partial_images=1)
        assert len(images(items)) == 1


# --- Fields -----------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [False, True])
def test_an_end_user_is_named_in_the_old_and_the_new_field(
    emulator: OpenAIEmulator, edit: bool, tmp_path: Any
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(emulator._draw(32, 32, "png"))
    with path.open("rb") as file:
        inputs = (Upload.of(file),) if edit else ()
        ask(emulator, user="hash", images=inputs)

    (call,) = emulator.calls
    sent = call.form if edit else call.body
    assert sent is not None
    assert (sent["user"], sent["safety_identifier"]) == ("hash", "hash")


def test_dalle_knows_the_old_field_only() -> None:
    request = ImageRequest(
        model="m", upstream_id="dall-e-3", prompt="p", deadline=0, user="hash", quality="hd"
    )
    body = openai.body(request)
    assert body["user"] == "hash"
    assert "safety_identifier" not in body
