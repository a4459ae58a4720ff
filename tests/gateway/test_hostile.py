"""A provider that answers nonsense, seen from outside: never a 500, never a lost hold."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from images.models import Image
from tests.api.checks import expect_error
from tests.api.test_streaming import events
from tests.emulators.base import Behaviour, Call
from tests.emulators.openai import OpenAIEmulator
from tests.gateway import FLUX, GPT, Emulators, expect_pictures, expect_sound_books, mend
from tests.images.providers import DOT
from tests.images.providers.hostile import VALUES, replaced
from tests.server import Api, AppServer

DOWN, REFUSED = "provider_unavailable", "content_policy_violation"


class Parrot(OpenAIEmulator):
    """Gives the configured answer to every request."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"

    async def _serve(
        self, request: web.Request, call: Call, behaviour: Behaviour
    ) -> web.StreamResponse:
        return web.Response(status=self.status, body=self.body, content_type=self.kind)

    def say(self, status: int, document: Any) -> None:
        """Answer with JSON from now on."""
        self.status, self.body = status, json.dumps(document).encode()
        self.kind = "application/json"

    def stream(self, *documents: Any) -> None:
        """Answer with events from now on."""
        self.status, self.kind = 200, "text/event-stream"
        self.body = b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in documents)


@pytest.fixture
def parrot() -> Iterator[Parrot]:
    with Parrot() as emulator:
        yield emulator


@pytest.fixture
def hostile(
    parrot: Parrot,
    settings: Settings,
    begin: Callable[..., tuple[AppServer, Api]],
    live_key: NewKey,
) -> tuple[AppServer, Api]:
    """The application with a parrot in the place of OpenAI."""
    own = settings.PROVIDERS["openai"] | {"key": parrot.key, "base_url": parrot.url}
    settings.PROVIDERS = {**settings.PROVIDERS, "openai": own}
    return begin(live_key)


def drawn(words: Any) -> dict[str, Any]:
    return {"data": [{"b64_json": DOT, "revised_prompt": words}]}


def refusal(**fields: Any) -> dict[str, Any]:
    return {"error": {"code": "moderation_blocked", "message": "No.", "type": "x", **fields}}


# What nine bodies did once: a fault of ours, no fallback, a picture that nobody owns.
NONSENSE: list[tuple[str, int, Any]] = [
    (REFUSED, 400, refusal(moderation_details=["input"])),
    (REFUSED, 400, refusal(moderation_details={"moderation_stage": ["input"]})),
    (REFUSED, 400, refusal(moderation_details={"moderation_stage": {"a": 1}})),
    (REFUSED, 400, refusal(message="a\0b\ud800", param=["a\0b"])),
    ("invalid_request_error", 400, {"error": {"code": [], "param": "a\0b"}}),
    ("invalid_request_error", 400, {"error": {"code": {"a": 1}, "message": [1]}}),
    ("invalid_request_error", 422, {"error": "\ud800"}),
    (DOWN, 500, {"error": {"code": 10**30, "type": None, "message": "\0"}}),
    (DOWN, 200, {"data": {"b64_json": DOT}}),
    (DOWN, 200, {"data": [[DOT]]}),
    (DOWN, 200, {"data": [{"b64_json": 10**30}]}),
    (DOWN, 200, {"data": [{"url": "\ud800"}]}),
    (DOWN, 200, [1]),
]


def test_nonsense_is_an_error_of_the_provider_and_the_next_model_is_asked(
    hostile: tuple[AppServer, Api],
    parrot: Parrot,
    emulators: Emulators,
    caplog: pytest.LogCaptureFixture,
    subtests: pytest.Subtests,
) -> None:
    app, api = hostile
    for number, (code, status, body) in enumerate(NONSENSE):
        with subtests.test(f"{number} {body}"[:100]):
            mend(app, "openai")
            parrot.say(status, body)

            answer = api.draw(model=GPT)
            error = expect_error(answer, code)
            assert "\0" not in answer.text
            assert error["param"] is None
            expect_sound_books()

            mend(app, "openai")
            expect_pictures(api.draw(model=[GPT, FLUX]), 1)
            expect_sound_books()
    assert len(emulators["fal"].calls) == len(NONSENSE)
    assert not [one for one in caplog.records if "unhandled" in one.getMessage()]


def test_words_of_every_kind_are_kept_as_text_or_not_at_all(
    hostile: tuple[AppServer, Api], parrot: Parrot, subtests: pytest.Subtests
) -> None:
    _, api = hostile
    kept = {"a\0b": "ab", "x" * 40_000: "x" * 32_000}
    for value in VALUES:
        with subtests.test(str(value)[:20]):
            parrot.say(200, replaced(drawn("a kite"), ("data", 0, "revised_prompt"), value))

            (row,) = expect_pictures(api.draw(model=GPT), 1)

            words = kept.get(value, "") if isinstance(value, str) else ""
            assert row.get("revised_prompt") in ((words,) if words else (None, ""))
            picture = Image.objects.latest("generation__created_at")
            assert picture.revised_prompt == words
            expect_sound_books()


@pytest.mark.parametrize("key", ["type", "b64_json", "partial_image_index", "error"])
def test_events_of_ours_stay_events_whatever_a_providers_say(
    hostile: tuple[AppServer, Api], parrot: Parrot, key: str, subtests: pytest.Subtests
) -> None:
    app, api = hostile
    view = {
        "type": "image_generation.partial_image",
        "b64_json": DOT,
        "partial_image_index": 0,
        "error": None,
    }
    done = {"type": "image_generation.completed", "b64_json": DOT}
    for value in VALUES:
        with subtests.test(str(value)[:20]):
            mend(app, "openai")
            parrot.stream(replaced(view, (key,), value), done)

            answer = api.draw(model=GPT, stream=True, partial_images=1)

            if answer.status_code == 200:
                # Every frame is read; a place that is none is the next one.
                told = events(answer.text)
                views = [data for kind, data in told if kind.endswith("partial_image")]
                assert {data["partial_image_index"] for data in views} <= {0}
                assert told[-1][0] in ("image_generation.completed", "error")
            else:
                expect_error(answer, DOWN)
            expect_sound_books()
