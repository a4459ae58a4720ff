"""The official OpenAI clients, three majors for Python and two for Node, against the emulator."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import Client, Raised
from tests.emulators.base import Behaviour, make_picture
from tests.emulators.openai import CREATED, MODELS, STREAM_FORMS, OpenAIEmulator
from tests.test_clients.conftest import Start

GPT = "gpt-image-2.5-flare"
SHAPE = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator(tiny=True) as emulator:
        yield emulator


@pytest.fixture
def openai(server: OpenAIEmulator) -> OpenAIEmulator:
    server.reset()
    return server


@pytest.fixture(
    scope="module",
    params=[
        ("newest", "3.57.0"),
        ("second", "2.54.0"),
        ("first", "1.109.1"),
        ("node openai", "7.57.0"),
        ("node openai-6", "6.49.0"),
    ],
    ids=lambda one: f"{one[0]} {one[1]}",
)
def client(request: pytest.FixtureRequest, server: OpenAIEmulator, start: Start) -> Client:
    which, version = request.param
    name, _, package = which.partition(" ")
    environment = {
        "OPENAI_API_KEY": server.key,
        "OPENAI_BASE_URL": server.url,
        "OPENAI_PACKAGE": package,
    }
    client = start(name, "openai", environment)
    assert client("version") == version
    return client


def usage(text: int, image: int, output: int) -> dict[str, Any]:
    return {
        "input_tokens": text + image,
        "output_tokens": output,
        "total_tokens": text + image + output,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
    }


def inline(*pictures: bytes) -> list[dict[str, str]]:
    return [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]


def test_draws(client: Client, openai: OpenAIEmulator) -> None:
    answer = client("draw", model=GPT, prompt="a kite", n=2, quality="low", user="u1")
    assert answer == {
        "created": CREATED,
        "data": inline(*openai.pictures),
        "usage": usage(2, 0, 400),
        **SHAPE,
    }
    assert (openai.billed, openai.calls[0].body["user"]) == (2, "u1")


def test_draws_urls(client: Client, openai: OpenAIEmulator) -> None:
    (row,) = client("draw", model="dall-e-3", prompt="a kite", style="natural")["data"]
    assert row["revised_prompt"] == "a kite, in detail"
    assert row["url"].startswith(openai.origin)


@pytest.mark.parametrize("masked", [False, True])
def test_edits(client: Client, openai: OpenAIEmulator, masked: bool) -> None:
    picture, more = make_picture(512, 512, "png"), make_picture(1024, 1024, "png")
    mask = {"mask": make_picture(512, 512, "png", alpha=True)} if masked else {}
    answer = client(
        "edit", model="gpt-image-2", prompt="a kite", image=[picture, more], quality="low", **mask
    )
    assert answer["data"] == inline(*openai.pictures)
    assert answer["usage"] == usage(2, 763 + 3050, 200)
    form = openai.calls[0].form or {}
    assert [one.data for one in form["image[]"] if not isinstance(one, str)] == [picture, more]
    assert ("mask" in form) is masked


def test_streams(client: Client, openai: OpenAIEmulator) -> None:
    events = client("stream", model=GPT, prompt="a kite", quality="low", partial_images=2)
    views, done = events[:-1], events[-1]
    common = {"created_at": CREATED, **SHAPE}
    assert [view.pop("b64_json") != done["b64_json"] for view in views] == [True, True]
    kind = "image_generation.partial_image"
    assert views == [{"type": kind, "partial_image_index": n, **common} for n in range(2)]
    assert done == {
        "type": "image_generation.completed",
        "usage": usage(2, 0, 400),
        **inline(*openai.pictures)[0],
        **common,
    }
    picture = make_picture(64, 64, "png")
    events = client(
        "edit_stream", model=GPT, prompt="a kite", image=picture, quality="low", partial_images=1
    )
    kinds = [event["type"] for event in events]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]
    assert openai.billed == 2


@pytest.mark.parametrize("form", STREAM_FORMS)
def test_an_error_in_a_stream_is_thrown(client: Client, openai: OpenAIEmulator, form: str) -> None:
    """The flat one only by the newest for Node, which looks at the event's name."""
    openai.queue(Behaviour(error=f"stream_server_error{form}"))
    asked: dict[str, Any] = {"model": GPT, "prompt": "a kite", "partial_images": 1}
    if form == "_flat" and client("version") != "7.57.0":
        events = client("stream", **asked)
        assert [event["type"] for event in events] == ["image_generation.partial_image", "error"]
        return
    with pytest.raises(Raised) as caught:
        client("stream", **asked)
    assert (caught.value.name, caught.value.message) == ("APIError", "The server had an error.")


ERRORS = [
    ("invalid_value", "BadRequestError", 400, "invalid_value"),
    ("moderation_blocked", "BadRequestError", 400, "moderation_blocked"),
    ("invalid_api_key", "AuthenticationError", 401, "invalid_api_key"),
    ("unsupported_country", "PermissionDeniedError", 403, None),
    ("model_not_found", "NotFoundError", 404, "model_not_found"),
    ("rate_limit_exceeded", "RateLimitError", 429, "rate_limit_exceeded"),
    ("billing_not_active", "RateLimitError", 429, "billing_not_active"),
    ("server_error", "InternalServerError", 500, None),
    ("server_is_overloaded", "InternalServerError", 503, "server_is_overloaded"),
]


@pytest.mark.parametrize(("error", "name", "status", "code"), ERRORS)
def test_an_error_has_its_class(
    client: Client, openai: OpenAIEmulator, error: str, name: str, status: int, code: str | None
) -> None:
    openai.queue(Behaviour(error=error))
    with pytest.raises(Raised) as caught:
        client("draw", model=GPT, prompt="a kite")
    fields = caught.value.fields
    assert (caught.value.name, fields["status"], fields.get("code")) == (name, status, code)
    assert openai.billed == 0


def test_refused_for_what_was_asked(client: Client, openai: OpenAIEmulator) -> None:
    for asked, param in (
        ({"n": 11}, "n"),
        ({"size": "1000x1000"}, "size"),
        ({"response_format": "b64_json"}, "response_format"),
    ):
        with pytest.raises(Raised) as caught:
            client("draw", **{"model": GPT, "prompt": "a kite", **asked})
        assert (caught.value.name, caught.value.param) == ("BadRequestError", param)
    with pytest.raises(Raised, match="Streaming is only supported with n=1"):
        client("stream", model=GPT, prompt="a kite", n=2)
    with pytest.raises(Raised) as caught:
        client("draw", model=GPT, prompt="a kite", key="no")
    assert (caught.value.name, caught.value.code) == ("AuthenticationError", "invalid_api_key")
    assert openai.billed == 0


def test_retries_as_it_is_told(client: Client, openai: OpenAIEmulator) -> None:
    openai.queue(*[Behaviour(error="rate_limit_exceeded", retry_after=0.01)] * 2)
    client("draw", model=GPT, prompt="a kite", max_retries=2)
    counts = [call.headers["x-stainless-retry-count"] for call in openai.calls]
    assert (counts, openai.billed) == (["0", "1", "2"], 1)


def test_models(client: Client, openai: OpenAIEmulator) -> None:
    assert client("models") == list(MODELS)
    card = {"created": CREATED, "object": "model", "owned_by": "openai"}
    assert client("model", name="gpt-image-2") == {"id": "gpt-image-2", **card}
    assert client("model", name="gpt-image-1.5")["shutdown_date"] == "2026-12-01"
    with pytest.raises(Raised) as caught:
        client("model", name="gpt-image-0")
    assert (caught.value.name, caught.value.code) == ("NotFoundError", "model_not_found")


def test_variations(client: Client, openai: OpenAIEmulator) -> None:
    answer = client("vary", image=make_picture(64, 64, "png"), n=2, size="256x256")
    assert [set(row) for row in answer["data"]] == [{"url"}, {"url"}]
    assert openai.billed == 2
