"""Vercel's AI SDK on the emulators of OpenAI and fal; xAI's is in test_xai.py."""

import base64
from collections.abc import Iterator

import pytest

from tests.clients import Client, Raised
from tests.emulators.base import Behaviour, make_picture
from tests.emulators.fal import FalEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.test_clients.conftest import Start


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator(tiny=True) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def fal() -> Iterator[FalEmulator]:
    with FalEmulator(tiny=True) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def on_openai(openai: OpenAIEmulator, start: Start) -> Client:
    environment = {"AI_PROVIDER": "openai", "AI_KEY": openai.key, "AI_URL": openai.url}
    return start("node", "ai", environment)


@pytest.fixture(scope="module")
def on_fal(fal: FalEmulator, start: Start) -> Client:
    environment = {"AI_PROVIDER": "fal", "AI_KEY": fal.key, "AI_URL": fal.url}
    return start("node", "ai", environment)


def coded(*pictures: bytes) -> list[str]:
    return [base64.b64encode(picture).decode() for picture in pictures]


def test_openai_draws_and_edits(on_openai: Client, openai: OpenAIEmulator) -> None:
    openai.reset()
    asked = {"model": "gpt-image-2", "providerOptions": {"openai": {"quality": "low"}}}
    drawn = on_openai("draw", **asked, prompt="a kite", n=2, size="1024x1536")
    assert [one["data"] for one in drawn["pictures"]] == coded(*openai.pictures)
    assert openai.calls[0].body["size"] == "1024x1536"
    prompt = {"text": "a kite", "images": [make_picture(64, 64, "png")]}
    edited = on_openai("draw", **asked, prompt=prompt)
    assert [one["data"] for one in edited["pictures"]] == coded(*openai.pictures[2:])
    assert openai.calls[1].path == "/v1/images/edits"


def test_openai_throws(on_openai: Client, openai: OpenAIEmulator) -> None:
    openai.reset()
    openai.queue(Behaviour(error="moderation_blocked"))
    with pytest.raises(Raised) as caught:
        on_openai("draw", model="gpt-image-2", prompt="a kite")
    error = caught.value
    assert (error.name, error.status, error.isRetryable) == ("APICallError", 400, False)
    assert "rejected by the safety system" in error.message


def test_fal_draws(on_fal: Client, fal: FalEmulator) -> None:
    fal.reset()
    answer = on_fal("draw", model="fal-ai/flux-pro/v1.1", prompt="a kite", seed=7, n=2)
    assert [one["data"] for one in answer["pictures"]] == coded(*fal.pictures)
    assert [one["nsfw"] for one in answer["metadata"]["fal"]["images"]] == [False, False]
    assert [(call.body["num_images"], call.body["seed"]) for call in fal.calls] == [(1, 7)] * 2


def test_fal_throws(on_fal: Client, fal: FalEmulator) -> None:
    fal.reset()
    fal.queue(Behaviour(error="content_policy_violation"))
    with pytest.raises(Raised) as caught:
        on_fal("draw", model="fal-ai/flux-pro/v1.1", prompt="a kite")
    assert (caught.value.name, caught.value.status) == ("APICallError", 422)
    assert "flagged by a content checker" in caught.value.message
