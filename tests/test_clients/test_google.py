"""google-genai in three majors, and @google/genai, against the emulator.

Each asks for the version of the API that it has by default: /v1beta, and from 3.0 on /v1.
"""

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import Client, Raised
from tests.emulators.base import Behaviour, make_picture
from tests.emulators.google import (
    BLOCK_REASONS,
    FINISH_REASONS,
    GEMINI_MODELS,
    IMAGEN_MODELS,
    PICTURE_TOKENS,
    GoogleEmulator,
)
from tests.test_clients.conftest import Start

NANO = "gemini-nano-banana-2.1"
IMAGEN = "imagen-4.0-generate-001"


@pytest.fixture(scope="module")
def server() -> Iterator[GoogleEmulator]:
    with GoogleEmulator(tiny=True) as emulator:
        yield emulator


@pytest.fixture
def google(server: GoogleEmulator) -> GoogleEmulator:
    server.reset()
    return server


def starter(server: GoogleEmulator, start: Start, name: str) -> Client:
    return start(name, "google", {"GOOGLE_KEY": server.key, "GOOGLE_ORIGIN": server.origin})


@pytest.fixture(
    scope="module",
    params=[("newest", "v1"), ("second", "v1beta"), ("first", "v1beta"), ("node", "v1beta")],
    ids=lambda one: one[0],
)
def client_and_version(
    request: pytest.FixtureRequest, server: GoogleEmulator, start: Start
) -> tuple[Client, str]:
    name, version = request.param
    return starter(server, start, name), version


@pytest.fixture
def client(client_and_version: tuple[Client, str]) -> Client:
    return client_and_version[0]


def config(client: Client, **fields: Any) -> dict[str, Any]:
    """The configuration in the words of the language: Python's are in snake case."""
    if client.node:
        return fields
    snake = {name: "".join(f"_{c.lower()}" if c.isupper() else c for c in name) for name in fields}
    return {
        snake[name]: config(client, **value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }


def read(client: Client, answer: dict[str, Any], *path: str) -> Any:
    for name in path:
        answer = answer[next(iter(config(client, **{name: None})))]
    return answer


def parts(client: Client, answer: dict[str, Any]) -> list[dict[str, Any]]:
    (candidate,) = answer["candidates"]
    found: list[dict[str, Any]] = candidate["content"]["parts"]
    return found


def test_draws(
    client: Client, client_and_version: tuple[Client, str], google: GoogleEmulator
) -> None:
    asked = config(
        client,
        responseModalities=["IMAGE"],
        imageConfig={"aspectRatio": "16:9", "imageSize": "2K"},
        temperature=0.4,
        topP=0.95,
        maxOutputTokens=8192,
        stopSequences=["END"],
        thinkingConfig={"thinkingLevel": "HIGH"},
        seed=7,
    )
    answer = client("draw", model=NANO, contents="a kite", config=asked)
    (part,) = parts(client, answer)
    (picture,) = google.pictures
    assert read(client, part, "inlineData", "data") == base64.b64encode(picture).decode()
    assert read(client, part, "inlineData", "mimeType") == "image/png"
    assert read(client, answer["candidates"][0], "finishReason") == "STOP"
    assert read(client, answer, "usageMetadata", "candidatesTokenCount") == PICTURE_TOKENS
    assert read(client, answer, "modelVersion") == NANO
    version = client_and_version[1]
    assert google.calls[0].path == f"/{version}/models/{NANO}:generateContent"
    sent = google.calls[0].body["generationConfig"]
    assert (sent["temperature"], sent["stopSequences"]) == (0.4, ["END"])


def test_draws_with_search_and_thoughts(client: Client, google: GoogleEmulator) -> None:
    asked = config(client, thinkingConfig={"includeThoughts": True})
    tool = config(client, googleSearch={})
    answer = client("draw", model=NANO, contents="a kite", config={**asked, "tools": [tool]})
    assert [part.get("thought", False) for part in parts(client, answer)] == [True, False, False]
    assert google.calls[0].body["tools"] == [{"googleSearch": {}}]


def test_edits(client: Client, google: GoogleEmulator) -> None:
    data = make_picture(64, 64, "png")
    if client.node:
        inline = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(data).decode()}}
        client("draw", model=NANO, contents=["a kite", inline])
    else:
        client("draw_from", model=NANO, prompt="a kite", data=data, mime_type="image/png")
    text, picture = google.calls[0].body["contents"][0]["parts"]
    sent = picture["inlineData"]["data"].replace("-", "+").replace("_", "/")
    assert (text, base64.b64decode(sent)) == ({"text": "a kite"}, data)
    assert google.billed == 1


def test_streams_and_counts(client: Client, google: GoogleEmulator) -> None:
    chunks = client("stream", model=NANO, contents="a kite")
    assert [set(parts(client, chunk)[0]) & {"text"} for chunk in chunks] == [{"text"}, set()]
    assert google.calls[0].query == {"alt": "sse"}
    counted = client("count", model=NANO, contents="a kite")
    assert read(client, counted, "totalTokens") == 2
    assert google.billed == 1


def test_refusals_are_answers(client: Client, google: GoogleEmulator) -> None:
    google.queue(
        Behaviour(error="block_prohibited_content"),
        Behaviour(error="finish_image_safety"),
        Behaviour(error="finish_escalation"),
    )
    blocked = client("draw", model=NANO, contents="a kite")
    assert read(client, blocked, "promptFeedback", "blockReason") == "PROHIBITED_CONTENT"
    for reason in ("IMAGE_SAFETY", "ESCALATION"):
        answer = client("draw", model=NANO, contents="a kite")
        assert read(client, answer["candidates"][0], "finishReason") == reason
    assert google.billed == 0


@pytest.mark.parametrize(
    ("error", "name", "status", "code"),
    [
        ("api_key_invalid", "ClientError", 400, "INVALID_ARGUMENT"),
        ("permission_denied", "ClientError", 403, "PERMISSION_DENIED"),
        ("not_found", "ClientError", 404, "NOT_FOUND"),
        ("resource_exhausted", "ClientError", 429, "RESOURCE_EXHAUSTED"),
        ("prepayment_depleted", "ClientError", 429, "RESOURCE_EXHAUSTED"),
        ("spending_cap", "ClientError", 429, "RESOURCE_EXHAUSTED"),
        ("unavailable", "ServerError", 503, "UNAVAILABLE"),
    ],
)
def test_an_error_has_its_class(
    client: Client, google: GoogleEmulator, error: str, name: str, status: int, code: str
) -> None:
    google.queue(Behaviour(error=error))
    with pytest.raises(Raised) as caught:
        client("draw", model=NANO, contents="a kite")
    said = GoogleEmulator.ERRORS[error].body
    assert isinstance(said, dict)
    assert caught.value.name == ("ApiError" if client.node else name)
    assert caught.value.status == status
    assert said["error"]["message"] in caught.value.message
    assert client.node or caught.value.code == code


def test_a_wrong_key(client: Client, google: GoogleEmulator) -> None:
    with pytest.raises(Raised, match="API key not valid") as caught:
        client("draw", model=NANO, contents="a kite", key="no")
    assert (caught.value.status, google.billed) == (400, 0)


def test_models(client: Client, google: GoogleEmulator) -> None:
    names = {f"models/{name}" for name in GEMINI_MODELS.keys() | IMAGEN_MODELS}
    assert set(client("models")) == names
    assert client("model", name=NANO)["name"] == f"models/{NANO}"
    with pytest.raises(Raised) as caught:
        client("model", name="gemini-3.1-flash-image")
    assert caught.value.status == 404


@pytest.fixture(scope="module")
def newest(server: GoogleEmulator, start: Start) -> Client:
    return starter(server, start, "newest")


def test_every_reason_of_the_newest_client_can_be_played(newest: Client) -> None:
    finish, block = newest("reasons")
    # Of MODEL_ARMOR and JAILBREAK the client says that the Gemini API does not have them.
    vertex = {"MODEL_ARMOR", "JAILBREAK"}
    assert set(finish) - vertex - {"FINISH_REASON_UNSPECIFIED", "STOP"} == set(FINISH_REASONS)
    assert set(block) - vertex - {"BLOCKED_REASON_UNSPECIFIED"} == set(BLOCK_REASONS)


@pytest.fixture(scope="module")
def first(server: GoogleEmulator, start: Start) -> Client:
    return starter(server, start, "first")


def test_imagen_of_the_last_client_that_had_it(first: Client, google: GoogleEmulator) -> None:
    asked = {
        "number_of_images": 2,
        "aspect_ratio": "16:9",
        "person_generation": "ALLOW_ADULT",
        "include_rai_reason": True,
        "output_mime_type": "image/jpeg",
    }
    answer = first("imagine", model=IMAGEN, prompt="a kite", config=asked)
    drawn = [row["image"] for row in answer["generated_images"]]
    assert [row["image_bytes"] for row in drawn] == [
        base64.b64encode(picture).decode() for picture in google.pictures
    ]
    assert {row["mime_type"] for row in drawn} == {"image/jpeg"}
    google.queue(Behaviour(refuse=1))
    answer = first("imagine", model=IMAGEN, prompt="a kite", config=asked)
    assert [row.get("rai_filtered_reason") is None for row in answer["generated_images"]] == [
        True,
        False,
    ]
    assert google.billed == 3
