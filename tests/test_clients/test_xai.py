"""OpenAI's client, which xAI recommends, and the AI SDK against the emulator of xAI."""

import base64
from collections.abc import Iterator

import pytest

from tests.clients import Client, Raised
from tests.emulators.base import Behaviour
from tests.emulators.xai import GROK_2, IMAGINE, IMAGINE_2, MODELS, XaiEmulator
from tests.test_clients.conftest import Start


@pytest.fixture(scope="module")
def server() -> Iterator[XaiEmulator]:
    with XaiEmulator(tiny=True) as emulator:
        yield emulator


@pytest.fixture
def xai(server: XaiEmulator) -> XaiEmulator:
    server.reset()
    return server


@pytest.fixture(scope="module")
def client(server: XaiEmulator, start: Start) -> Client:
    return start("newest", "openai", {"OPENAI_API_KEY": server.key, "OPENAI_BASE_URL": server.url})


def coded(*pictures: bytes) -> list[str]:
    return [base64.b64encode(picture).decode() for picture in pictures]


def test_openai_s_client_draws(client: Client, xai: XaiEmulator) -> None:
    answer = client(
        "draw",
        model=IMAGINE_2,
        prompt="a kite",
        n=2,
        response_format="b64_json",
        extra_body={"aspect_ratio": "21:9", "resolution": "1.5k", "quality": "low", "user": None},
    )
    rows = answer["data"]
    assert [row.pop("b64_json") for row in rows] == coded(*xai.pictures)
    assert rows == [{"mime_type": "image/jpeg"}] * 2
    assert answer["usage"] == {"cost_in_usd_ticks": 2 * 500_000_000}
    assert "model" not in answer


def test_openai_s_client_gets_urls_and_models(client: Client, xai: XaiEmulator) -> None:
    (row,) = client("draw", model=IMAGINE, prompt="a kite")["data"]
    assert row["url"].startswith(f"{xai.origin}/files/")
    assert client("models") == list(MODELS)
    assert client("model", name=IMAGINE)["owned_by"] == "xai"


@pytest.mark.parametrize(
    ("error", "name", "status"),
    [
        ("moderation_blocked", "BadRequestError", 400),
        ("incorrect_api_key", "BadRequestError", 400),
        ("model_not_found", "BadRequestError", 400),
        ("unauthenticated", "AuthenticationError", 401),
        ("no_credits", "PermissionDeniedError", 403),
        ("not_found", "NotFoundError", 404),
        ("unprocessable", "UnprocessableEntityError", 422),
        ("rate_limited", "RateLimitError", 429),
        ("internal", "InternalServerError", 500),
    ],
)
def test_openai_s_client_throws(
    client: Client, xai: XaiEmulator, error: str, name: str, status: int
) -> None:
    xai.queue(Behaviour(error=error))
    with pytest.raises(Raised) as caught:
        client("draw", model=IMAGINE, prompt="a kite")
    row = XaiEmulator.ERRORS[error]
    assert isinstance(row.body, dict)
    assert (caught.value.name, caught.value.status) == (name, status)
    assert caught.value.body == row.body["error"]


@pytest.fixture(scope="module")
def sdk(server: XaiEmulator, start: Start) -> Client:
    environment = {"AI_PROVIDER": "xai", "AI_KEY": server.key, "AI_URL": server.url}
    return start("node", "ai", environment)


def test_the_ai_sdk_draws(sdk: Client, xai: XaiEmulator) -> None:
    options = {"xai": {"resolution": "2k", "quality": "low"}}
    answer = sdk(
        "draw",
        model=IMAGINE_2,
        prompt="a kite",
        n=2,
        aspectRatio="5:2",
        providerOptions=options,
    )
    assert answer["pictures"] == [
        {"mediaType": "image/jpeg", "data": one} for one in coded(*xai.pictures)
    ]
    assert answer["warnings"] == []
    sent = xai.calls[0].body
    assert (sent["aspect_ratio"], sent["resolution"], sent["n"]) == ("5:2", "2k", 2)


@pytest.mark.parametrize("count", [1, 2])
def test_the_ai_sdk_edits(sdk: Client, xai: XaiEmulator, count: int) -> None:
    prompt = {"text": "a kite", "images": [b"\xff\xd8\xff picture"] * count}
    answer = sdk("draw", model=IMAGINE, prompt=prompt)
    assert len(answer["pictures"]) == 1
    assert ("image" in xai.calls[0].body, "images" in xai.calls[0].body) == (count == 1, count > 1)


def test_the_ai_sdk_throws(sdk: Client, xai: XaiEmulator) -> None:
    xai.queue(Behaviour(refuse=1), Behaviour(error="rate_limited"))
    with pytest.raises(Raised, match="blocked due to a content policy violation"):
        sdk("draw", model=IMAGINE, prompt="a kite")
    with pytest.raises(Raised) as caught:
        sdk("draw", model=IMAGINE, prompt="a kite")
    error = caught.value
    assert (error.name, error.status, error.isRetryable) == ("APICallError", 429, True)
    with pytest.raises(Raised) as caught:
        sdk("draw", model=GROK_2, prompt="a kite", aspectRatio="1:1")
    assert "Argument not supported: aspect_ratio" in caught.value.message
