"""The Google emulator is as strict as the Gemini API."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.emulators.base import Behaviour
from tests.emulators.google import (
    GEMINI_MODELS,
    GEMINI_SIZES_21,
    IMAGEN_SIZES,
    GoogleEmulator,
)
from tests.test_emulators.conftest import opened

IMAGEN = "imagen-4.0-generate-001:predict"
NANO = "gemini-nano-banana-2.1:generateContent"


@pytest.fixture(scope="module")
def server() -> Iterator[GoogleEmulator]:
    with GoogleEmulator() as emulator:
        yield emulator


@pytest.fixture
def google(server: GoogleEmulator) -> GoogleEmulator:
    server.reset()
    return server


def post(
    http: httpx.Client, google: GoogleEmulator, action: str, body: dict[str, Any]
) -> httpx.Response:
    headers = {"x-goog-api-key": google.key}
    return http.post(f"{google.url}/models/{action}", json=body, headers=headers)


def predict(
    http: httpx.Client, google: GoogleEmulator, action: str = IMAGEN, **parameters: Any
) -> httpx.Response:
    body = {"instances": [{"prompt": "a kite"}], "parameters": parameters}
    return post(http, google, action, body)


def generate(http: httpx.Client, google: GoogleEmulator, **config: Any) -> httpx.Response:
    contents = [{"role": "user", "parts": [{"text": "a kite"}]}]
    return post(http, google, NANO, {"contents": contents, "generationConfig": config})


def test_keys(http: httpx.Client, google: GoogleEmulator) -> None:
    url = f"{google.url}/models/{NANO}"
    missing = http.post(url, params={"key": google.key}, json={})
    assert (missing.status_code, missing.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    wrong = http.post(url, headers={"x-goog-api-key": "no"}, json={})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_models(http: httpx.Client, google: GoogleEmulator) -> None:
    for action in ("imagen-9:predict", "imagen-4.0-generate-001:generateContent", "x"):
        assert predict(http, google, action).json()["error"]["status"] == "NOT_FOUND"
    google.retired = frozenset({"imagen-4.0-generate-001"})
    assert predict(http, google).status_code == 404
    google.retired = frozenset()
    gone = predict(http, google, "gemini-3.1-flash-image:generateContent")
    assert gone.json()["error"]["status"] == "NOT_FOUND"


def test_both_versions(http: httpx.Client, google: GoogleEmulator) -> None:
    body = {"contents": [{"parts": [{"text": "a kite"}]}]}
    headers = {"x-goog-api-key": google.key}
    for version in ("v1", "v1beta"):
        url = f"{google.origin}/{version}/models"
        assert http.post(f"{url}/{NANO}", json=body, headers=headers).status_code == 200
        listed = http.get(url, headers=headers).json()["models"]
        assert {f"models/{name}" for name in GEMINI_MODELS} < {card["name"] for card in listed}
        found = http.get(f"{url}/gemini-3-pro-image", headers=headers).json()
        assert found in listed
        assert http.get(f"{url}/gemini-0", headers=headers).status_code == 404
        assert http.get(url).status_code == 403


def test_counting_is_free(http: httpx.Client, google: GoogleEmulator) -> None:
    counted = post(
        http,
        google,
        "gemini-3-pro-image:countTokens",
        {"contents": [{"parts": [{"text": "a kite"}]}]},
    )
    assert counted.json()["totalTokens"] == 2
    assert google.billed == 0


def test_a_stream_has_a_chunk_for_each_part(http: httpx.Client, google: GoogleEmulator) -> None:
    action = "gemini-3-pro-image:streamGenerateContent"
    body = {
        "contents": [{"parts": [{"text": "a kite"}]}],
        "generationConfig": {"thinkingConfig": {"includeThoughts": True}},
    }
    chunks = post(http, google, action, body).json()
    parts = [chunk["candidates"][0]["content"]["parts"][0] for chunk in chunks]
    assert [set(part) for part in parts] == [{"text", "thought"}, {"text"}, {"inlineData"}]
    assert [one["candidates"][0].get("finishReason") for one in chunks] == [None, None, "STOP"]
    events = post(http, google, f"{action}?alt=sse", body)
    assert events.headers["content-type"] == "text/event-stream"
    assert events.text.count("data: {") == 3
    assert "event:" not in events.text
    google.queue(Behaviour(error="finish_image_safety"), Behaviour(error="unavailable"))
    assert "IMAGE_SAFETY" in post(http, google, f"{action}?alt=sse", body).text
    assert post(http, google, action, body).json()[0]["error"]["status"] == "UNAVAILABLE"
    assert google.billed == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"sampleCount": 5},
        {"sampleCount": 0},
        {"aspectRatio": "3:2"},
        {"sampleImageSize": "4K"},
        {"seed": 7},
        {"negativePrompt": "x"},
        {"addWatermark": False},
        {"personGeneration": "anyone"},
        {"safetySetting": "block_only_high"},
        {"unheard": 1},
        {"outputOptions": {"mimeType": "image/webp"}},
        {"outputOptions": {"mimeType": "image/png", "compressionQuality": 80}},
    ],
)
def test_imagen_refuses(
    http: httpx.Client, google: GoogleEmulator, parameters: dict[str, Any]
) -> None:
    answer = predict(http, google, **parameters)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_people_in_any_case(http: httpx.Client, google: GoogleEmulator) -> None:
    for people in ("ALLOW_ADULT", "allow_all", "DONT_ALLOW"):
        assert predict(http, google, personGeneration=people, sampleCount=1).status_code == 200


def test_what_the_sdk_may_configure(http: httpx.Client, google: GoogleEmulator) -> None:
    answer = post(
        http,
        google,
        NANO,
        {
            "contents": [{"parts": [{"text": "a kite"}, {"fileData": {"fileUri": "https://x"}}]}],
            "generationConfig": {
                "temperature": 0.4,
                "topP": 0.95,
                "topK": 40,
                "maxOutputTokens": 8192,
                "stopSequences": ["END"],
                "thinkingConfig": {"thinkingLevel": "HIGH"},
                "responseModalities": ["IMAGE"],
            },
            "tools": [{"googleSearch": {}}],
            "toolConfig": {},
        },
    )
    assert answer.status_code == 200


def test_imagen_refuses_more(http: httpx.Client, google: GoogleEmulator) -> None:
    fast = "imagen-4.0-fast-generate-001:predict"
    assert predict(http, google, fast, sampleImageSize="2K").status_code == 400
    long = {"instances": [{"prompt": "x" * 1921}]}
    assert post(http, google, IMAGEN, long).status_code == 400
    assert post(http, google, IMAGEN, {"instances": []}).status_code == 400


def test_imagen_defaults(http: httpx.Client, google: GoogleEmulator) -> None:
    predictions = predict(http, google).json()["predictions"]
    assert len(predictions) == google.billed == 4
    assert predictions[0]["mimeType"] == "image/png"
    assert opened(predictions[0]["bytesBase64Encoded"]) == ("PNG", (1024, 1024))


@pytest.mark.parametrize("ratio", IMAGEN_SIZES)
def test_imagen_sizes(http: httpx.Client, google: GoogleEmulator, ratio: str) -> None:
    options = {"mimeType": "image/jpeg", "compressionQuality": 85}
    answer = predict(
        http, google, aspectRatio=ratio, sampleCount=1, sampleImageSize="2K", outputOptions=options
    )
    (prediction,) = answer.json()["predictions"]
    wide, high = IMAGEN_SIZES[ratio]
    assert opened(prediction["bytesBase64Encoded"]) == ("JPEG", (2 * wide, 2 * high))


def test_imagen_refusals(http: httpx.Client, google: GoogleEmulator) -> None:
    google.always(Behaviour(refuse=2))
    assert len(predict(http, google, sampleCount=3).json()["predictions"]) == 1
    with_reasons = predict(http, google, sampleCount=3, includeRaiReason=True).json()
    assert [set(item) for item in with_reasons["predictions"]] == [
        {"mimeType", "bytesBase64Encoded"},
        {"raiFilteredReason"},
        {"raiFilteredReason"},
    ]
    assert predict(http, google, sampleCount=2).json() == {}
    assert google.billed == 2
    attributes = predict(http, google, includeSafetyAttributes=True).json()["predictions"]
    assert attributes[-1]["contentType"] == "Positive Prompt"


@pytest.mark.parametrize("ratio", GEMINI_SIZES_21)
def test_gemini_sizes(http: httpx.Client, google: GoogleEmulator, ratio: str) -> None:
    image = {"aspectRatio": ratio, "imageSize": "1K"}
    body = generate(http, google, responseModalities=["IMAGE"], imageConfig=image, seed=7).json()
    (part,) = body["candidates"][0]["content"]["parts"]
    assert opened(part["inlineData"]["data"]) == ("PNG", GEMINI_SIZES_21[ratio])
    assert body["candidates"][0]["finishReason"] == "STOP"
    assert body["modelVersion"] == "gemini-nano-banana-2.1"


def test_gemini_mixes_text(http: httpx.Client, google: GoogleEmulator) -> None:
    parts = generate(http, google).json()["candidates"][0]["content"]["parts"]
    assert [set(part) for part in parts] == [{"text"}, {"inlineData"}]


@pytest.mark.parametrize(
    "config",
    [
        {"candidateCount": 2},
        {"imageConfig": {"aspectRatio": "7:5"}},
        {"imageConfig": {"imageSize": "512"}},
        {"imageConfig": {"size": "1K"}},
        {"responseModalities": ["PICTURE"]},
        {"seed": "7"},
        {"sampleCount": 2},
        {"temperature": 3},
        {"topP": "high"},
        {"maxOutputTokens": 0},
        {"stopSequences": ["a"] * 6},
        {"thinkingConfig": {"thinkingLevel": "DEEP"}},
        {"thinkingConfig": {"thinkingLevel": "LOW", "thinkingBudget": 5}},
    ],
)
def test_gemini_refuses(http: httpx.Client, google: GoogleEmulator, config: dict[str, Any]) -> None:
    answer = generate(http, google, **config)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_gemini_refusals(http: httpx.Client, google: GoogleEmulator) -> None:
    google.queue(Behaviour(refuse=1), Behaviour(error="block_safety"), Behaviour(fewer=1))
    refused = generate(http, google)
    assert refused.status_code == 200
    assert refused.json()["candidates"][0]["finishReason"] == "IMAGE_SAFETY"
    assert generate(http, google).json()["promptFeedback"] == {"blockReason": "SAFETY"}
    parts = generate(http, google).json()["candidates"][0]["content"]["parts"]
    assert [set(part) for part in parts] == [{"text"}]
    assert google.billed == 0


@pytest.mark.parametrize("name", GoogleEmulator.ERRORS)
def test_error_rows(http: httpx.Client, google: GoogleEmulator, name: str) -> None:
    google.queue(Behaviour(error=name))
    answer = generate(http, google)
    row = GoogleEmulator.ERRORS[name]
    assert (answer.status_code, answer.json()) == (row.status, row.body)
    assert google.billed == 0


def test_retry_delay_is_in_the_body(http: httpx.Client, google: GoogleEmulator) -> None:
    google.queue(Behaviour(error="resource_exhausted", retry_after=2))
    answer = generate(http, google)
    assert answer.json()["error"]["details"][-1]["retryDelay"] == "2s"
    assert "retry-after" not in answer.headers
    with pytest.raises(ValueError):
        google.queue(Behaviour(picture="hang"))
