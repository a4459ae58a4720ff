"""The OpenAI emulator is as strict as the API."""

import base64
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai as sdk
import pytest

from tests.emulators.base import Behaviour, make_picture
from tests.emulators.openai import MODELS, STREAM_FORMS, OpenAIEmulator
from tests.test_emulators.conftest import opened


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture
def openai(server: OpenAIEmulator) -> OpenAIEmulator:
    server.reset()
    return server


@pytest.fixture
def client(openai: OpenAIEmulator) -> Iterator[sdk.OpenAI]:
    with sdk.OpenAI(api_key=openai.key, base_url=openai.url, max_retries=0) as client:
        yield client


def post(http: httpx.Client, openai: OpenAIEmulator, **fields: Any) -> httpx.Response:
    body = {"model": "gpt-image-1", "prompt": "a kite"} | fields
    headers = {"Authorization": f"Bearer {openai.key}"}
    return http.post(f"{openai.url}/images/generations", json=body, headers=headers)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": "b64_json"}, "unknown_parameter", "response_format"),
        ({"style": "vivid"}, "unknown_parameter", "style"),
        ({"seed": 7}, "unknown_parameter", "seed"),
        ({"negative_prompt": "x"}, "unknown_parameter", "negative_prompt"),
        ({"model": "dall-e-3", "output_format": "png"}, "unknown_parameter", "output_format"),
        ({"model": "dall-e-3", "n": 2}, "invalid_value", "n"),
        ({"model": "dall-e-3", "size": "1536x1024"}, "invalid_value", "size"),
        ({"model": "dall-e-3", "quality": "high"}, "invalid_value", "quality"),
        ({"model": "dall-e-3", "style": "loud"}, "invalid_value", "style"),
        ({"model": "dall-e-3", "prompt": "x" * 4001}, "string_above_max_length", "prompt"),
        ({"size": "512x512"}, "invalid_value", "size"),
        ({"quality": "hd"}, "invalid_value", "quality"),
        ({"quality": "max"}, "invalid_value", "quality"),
        ({"background": "transparent", "output_format": "jpeg"}, "invalid_value", "background"),
        ({"output_format": "gif"}, "invalid_value", "output_format"),
        ({"output_compression": 50}, "invalid_value", "output_compression"),
        ({"partial_images": 1}, "invalid_value", "partial_images"),
        ({"partial_images": 4, "stream": True}, "integer_above_max_value", "partial_images"),
        ({"n": 2, "stream": True}, None, None),
        ({"n": 2, "stream": True, "partial_images": 1}, None, None),
        ({"frame_count": 4}, "unknown_parameter", "frame_count"),
        ({"model": "gpt-image-2.6-flare", "frame_count": 4}, "invalid_value", "frame_count"),
        ({"model": "gpt-image-2.6-flare", "complexity": "vast"}, "invalid_value", "complexity"),
        (
            {"model": "gpt-image-2.6-flare", "output_format": "svg", "n": 2},
            "invalid_value",
            "n",
        ),
        (
            {"model": "gpt-image-2.5-flare", "output_format": "gif"},
            "invalid_value",
            "output_format",
        ),
        ({"n": 11}, "integer_above_max_value", "n"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": "2"}, "invalid_type", "n"),
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
        ({"model": "gpt-image-2", "background": "transparent"}, "invalid_value", "background"),
        ({"model": "gpt-image-2", "size": "1000x1000"}, "invalid_value", "size"),
        ({"model": "gpt-image-2", "size": "800x800"}, "invalid_value", "size"),
        ({"model": "gpt-image-2", "size": "3856x1600"}, "invalid_value", "size"),
        ({"model": "gpt-image-2", "size": "3200x1024"}, "invalid_value", "size"),
        ({"model": "gpt-image-2", "size": "3840x2176"}, "invalid_value", "size"),
    ],
)
def test_refused(
    http: httpx.Client,
    openai: OpenAIEmulator,
    fields: dict[str, Any],
    code: str | None,
    param: str | None,
) -> None:
    answer = post(http, openai, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert openai.billed == 0


def test_keys_and_models(http: httpx.Client, openai: OpenAIEmulator) -> None:
    answer = http.post(f"{openai.url}/images/generations", headers={"Authorization": "Bearer no"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    answer = post(http, openai, model="gpt-image-9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    openai.retired = frozenset({"dall-e-3"})
    assert post(http, openai, model="dall-e-3").status_code == 404
    openai.retired = frozenset()
    assert post(http, openai, model="dall-e-3").status_code == 200


@pytest.mark.parametrize("size", ["1024x1024", "1920x1088", "3840x2160", "816x816", "2560x1088"])
def test_free_sizes(http: httpx.Client, openai: OpenAIEmulator, size: str) -> None:
    body = post(http, openai, model="gpt-image-2", size=size, quality="low").json()
    assert body["size"] == size
    wide, high = size.split("x")
    assert opened(body["data"][0]["b64_json"]) == ("PNG", (int(wide), int(high)))


def test_usage_and_headers(http: httpx.Client, openai: OpenAIEmulator) -> None:
    answer = post(http, openai, n=2, size="1536x1024", quality="medium", user=None)
    assert answer.json()["usage"] == {
        "input_tokens": 2,
        "output_tokens": 2 * 1568,
        "total_tokens": 2 + 2 * 1568,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
        "output_tokens_details": {"image_tokens": 2 * 1568, "text_tokens": 0},
    }
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["openai-version"] == "2020-10-01"


def test_dalle(http: httpx.Client, openai: OpenAIEmulator) -> None:
    (item,) = post(http, openai, model="dall-e-3", size="1792x1024").json()["data"]
    assert set(item) == {"url", "revised_prompt"}
    assert opened(http.get(item["url"]).content) == ("PNG", (1792, 1024))
    (item,) = post(http, openai, model="dall-e-3", response_format="b64_json").json()["data"]
    assert set(item) == {"b64_json", "revised_prompt"}


@pytest.mark.parametrize("name", OpenAIEmulator.ERRORS)
def test_error_rows(http: httpx.Client, openai: OpenAIEmulator, name: str) -> None:
    openai.queue(Behaviour(error=name))
    answer = post(http, openai)
    row = OpenAIEmulator.ERRORS[name]
    assert (answer.status_code, answer.json()) == (row.status, row.body)
    assert {"message", "type", "param", "code"} <= answer.json()["error"].keys()
    assert openai.billed == (name in OpenAIEmulator.BILLED_ERRORS)


def test_stream_framing(http: httpx.Client, openai: OpenAIEmulator) -> None:
    answer = post(http, openai, stream=True, partial_images=1, quality="low")
    assert answer.headers["content-type"] == "text/event-stream"
    pattern = (
        r'event: image_generation\.partial_image\ndata: \{"type":"image_generation\.partial_image"'
        r'.*"partial_image_index":0\}\n\n'
        r'event: image_generation\.completed\ndata: \{"type":"image_generation\.completed".*\}\n\n'
    )
    assert re.fullmatch(pattern, answer.text)
    assert openai.billed == 1


def test_official_client(openai: OpenAIEmulator, client: sdk.OpenAI) -> None:
    answer = client.images.generate(
        model="gpt-image-1", prompt="a kite", size="1024x1536", output_format="webp", n=2
    )
    assert answer.data is not None
    pictures = [base64.b64decode(item.b64_json or "") for item in answer.data]
    assert pictures == openai.pictures
    assert opened(pictures[0]) == ("WEBP", (1024, 1536))
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * 6240
    openai.queue(Behaviour(error="moderation_blocked"))
    with pytest.raises(sdk.BadRequestError) as caught:
        client.images.generate(model="gpt-image-1", prompt="a kite")
    assert caught.value.code == "moderation_blocked"


def test_official_client_streams(openai: OpenAIEmulator, client: sdk.OpenAI) -> None:
    events = list(
        client.images.generate(
            model="gpt-image-1", prompt="a kite", stream=True, partial_images=2, quality="low"
        )
    )
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    used = [event.usage for event in events if event.type == "image_generation.completed"]
    assert [(usage.input_tokens, usage.output_tokens) for usage in used] == [(2, 472)]
    assert openai.billed == 1


@pytest.mark.parametrize("form", STREAM_FORMS)
def test_an_error_in_a_stream(openai: OpenAIEmulator, client: sdk.OpenAI, form: str) -> None:
    openai.queue(Behaviour(error=f"stream_server_error{form}"))
    stream = client.images.generate(
        model="gpt-image-1", prompt="a kite", stream=True, partial_images=1
    )
    assert next(stream).type == "image_generation.partial_image"
    if form == "_flat":
        # No `error` in it: the SDK passes it on as an event like any other.
        assert next(stream).type == "error"
        return
    with pytest.raises(sdk.APIError, match="The server had an error"):
        next(stream)


def test_edits(openai: OpenAIEmulator, client: sdk.OpenAI) -> None:
    picture = make_picture(64, 64, "png")
    mask = make_picture(64, 64, "png", alpha=True)
    answer = client.images.edit(
        model="gpt-image-1", prompt="a kite", image=[picture, picture], mask=mask, quality="low"
    )
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens == 2 * 323
    form = openai.calls[-1].form
    assert form is not None
    assert [upload.data for upload in form["image[]"]] == [picture] * 2  # type: ignore[union-attr]
    common: dict[str, Any] = {"model": "gpt-image-1", "prompt": "x", "image": picture}
    for bad in ({"mask": picture}, {"image": b"text"}, {"mask": make_picture(32, 64, "png")}):
        with pytest.raises(sdk.BadRequestError):
            client.images.edit(**common | bad)
    with pytest.raises(sdk.BadRequestError, match="input_fidelity"):
        client.images.edit(model="gpt-image-2", prompt="x", image=picture, input_fidelity="low")
    events = list(client.images.edit(model="gpt-image-1", prompt="x", image=picture, stream=True))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_a_mask_stays_under_4_megabytes(openai: OpenAIEmulator, client: sdk.OpenAI) -> None:
    picture = make_picture(64, 64, "png")
    big = make_picture(64, 64, "png", alpha=True, pad=4 << 20)
    with pytest.raises(sdk.BadRequestError, match="'mask': the file is too large"):
        client.images.edit(model="gpt-image-1", prompt="x", image=picture, mask=big)
    assert openai.billed == 0


def test_edits_in_json(http: httpx.Client, openai: OpenAIEmulator) -> None:
    inline = base64.b64encode(make_picture(2048, 1024, "png")).decode()
    headers = {"Authorization": f"Bearer {openai.key}"}

    def edit(*images: dict[str, str]) -> httpx.Response:
        body = {"model": "gpt-image-2", "prompt": "a kite", "quality": "low", "images": images}
        return http.post(f"{openai.url}/images/edits", json=body, headers=headers)

    drawn = edit({"image_url": f"data:image/png;base64,{inline}"}, {"file_id": "file-1"})
    assert drawn.json()["usage"]["input_tokens_details"]["image_tokens"] == 2 * 3050 + 3050
    for bad in ({}, {"image_url": "ftp://x"}, {"image_url": "https://x", "file_id": "file-1"}):
        assert edit(bad).status_code == 400
    assert edit().status_code == 400
    assert openai.billed == 1


@pytest.mark.parametrize(("fmt", "kind"), [("gif", "GIF"), ("svg", None)])
def test_drawings_of_2_6(
    http: httpx.Client, openai: OpenAIEmulator, fmt: str, kind: str | None
) -> None:
    body = post(http, openai, model="gpt-image-2.6-flare", output_format=fmt, quality="low").json()
    raw = base64.b64decode(body["data"][0]["b64_json"])
    assert raw.startswith(b"<svg ") if kind is None else opened(raw) == (kind, (1024, 1024))
    assert (body["output_format"], [raw]) == (fmt, openai.pictures)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variations(openai: OpenAIEmulator, client: sdk.OpenAI) -> None:
    picture = make_picture(64, 64, "png")
    answer = client.images.create_variation(image=picture, n=2, size="256x256")
    assert [row.revised_prompt for row in answer.data or []] == [None, None]
    assert openai.billed == 2
    with pytest.raises(sdk.BadRequestError, match="only dall-e-2"):
        client.images.create_variation(image=picture, model="gpt-image-2")
    openai.retired = frozenset({"dall-e-2"})
    with pytest.raises(sdk.NotFoundError, match="does not exist"):
        client.images.create_variation(image=picture)
    openai.retired = frozenset()


def test_models(openai: OpenAIEmulator, client: sdk.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert listed.keys() == MODELS.keys()
    for name, model in listed.items():
        assert client.models.retrieve(name) == model
    assert listed["gpt-image-2"].to_dict()["shutdown_date"] is None
    assert listed["gpt-image-1-mini"].to_dict()["shutdown_date"] == "2026-12-01"
    with pytest.raises(sdk.NotFoundError) as caught:
        client.models.retrieve("gpt-image-9")
    assert caught.value.code == "model_not_found"
    with pytest.raises(sdk.AuthenticationError):
        client.with_options(api_key="no").models.retrieve("gpt-image-2")
