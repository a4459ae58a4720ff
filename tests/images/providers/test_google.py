"""Google's adapter against the emulator, over sockets."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from geekhub.lib import http
from images.providers import google
from images.providers.base import ImageRequest, Item, ProviderImage
from images.providers.downloads import Downloads
from images.providers.errors import ProviderError
from images.providers.http import Answer
from tests.emulators.base import Behaviour
from tests.emulators.google import GoogleEmulator
from tests.images.providers import DOT, draw, images, shortfalls, sizes

IMAGEN = "imagen-4.0-generate-001"
GEMINI = "gemini-3-pro-image"


@pytest.fixture(scope="module")
def server() -> Iterator[GoogleEmulator]:
    with GoogleEmulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: GoogleEmulator) -> GoogleEmulator:
    server.reset()
    return server


def ask(emulator: GoogleEmulator, upstream_id: str = IMAGEN, **fields: Any) -> list[Item]:
    def make(client: Any, downloads: Downloads) -> google.Google:
        return google.Google(http=client, downloads=downloads)

    headers = google.headers(emulator.key)
    return draw(make, emulator, headers, upstream_id=upstream_id, **fields)


def fails(emulator: GoogleEmulator, upstream_id: str = IMAGEN, **fields: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(emulator, upstream_id, **fields)
    return caught.value


IMAGEN_DEFAULTS = {
    "sampleCount": 1,
    "aspectRatio": "1:1",
    "sampleImageSize": "1K",
    "includeRaiReason": True,
}


@pytest.mark.parametrize(
    ("fields", "parameters", "drawn"),
    [
        ({}, {}, "1024x1024"),
        ({"n": 4}, {"sampleCount": 4}, "1024x1024"),
        ({"size": "896x1280"}, {"aspectRatio": "3:4"}, "896x1280"),
        ({"size": "1280x896"}, {"aspectRatio": "4:3"}, "1280x896"),
        ({"size": "768x1408"}, {"aspectRatio": "9:16"}, "768x1408"),
        ({"size": "1408x768"}, {"aspectRatio": "16:9"}, "1408x768"),
        ({"size": "2048x2048"}, {"sampleImageSize": "2K"}, "2048x2048"),
        ({"quality": "1K"}, {}, "1024x1024"),
        ({"quality": "2K"}, {"sampleImageSize": "2K"}, "2048x2048"),
        (
            {"quality": "1K", "size": "2560x1792"},
            {"aspectRatio": "4:3", "sampleImageSize": "2K"},
            "2560x1792",
        ),
        ({"output_format": "png"}, {"outputOptions": {"mimeType": "image/png"}}, "1024x1024"),
        (
            {"output_format": "jpeg", "output_compression": 60},
            {"outputOptions": {"mimeType": "image/jpeg", "compressionQuality": 60}},
            "1024x1024",
        ),
        # What Imagen has no word for is left out: it would be a 400.
        (
            {
                "output_format": "webp",
                "output_compression": 60,
                "background": "transparent",
                "moderation": "low",
                "style": "vivid",
                "seed": 7,
                "user": "hash",
            },
            {},
            "1024x1024",
        ),
    ],
)
def test_imagen_is_asked_in_its_own_words(
    emulator: GoogleEmulator, fields: dict[str, Any], parameters: dict[str, Any], drawn: str
) -> None:
    items = ask(emulator, **fields)

    (sent,) = emulator.calls
    assert sent.path == f"/v1beta/models/{IMAGEN}:predict"
    assert sent.query == {}
    assert sent.body == {
        "instances": [{"prompt": "a red kite"}],
        "parameters": IMAGEN_DEFAULTS | parameters,
    }
    count = fields.get("n", 1)
    assert sizes(items) == [drawn] * count
    assert [item.index for item in images(items)] == list(range(count))
    assert [item.picture.data for item in images(items)] == emulator.pictures


@pytest.mark.parametrize(
    ("fields", "config", "drawn"),
    [
        ({}, {}, "1024x1024"),
        ({"size": "1264x848"}, {"aspectRatio": "3:2"}, "1264x848"),
        ({"size": "848x1264"}, {"aspectRatio": "2:3"}, "848x1264"),
        ({"size": "1152x928"}, {"aspectRatio": "5:4"}, "1152x928"),
        ({"size": "768x1376"}, {"aspectRatio": "9:16"}, "768x1376"),
        ({"size": "1584x672"}, {"aspectRatio": "21:9"}, "1584x672"),
        ({"size": "2048x2048"}, {"imageSize": "2K"}, "2048x2048"),
        ({"size": "3168x1344"}, {"aspectRatio": "21:9", "imageSize": "2K"}, "3168x1344"),
        ({"size": "4096x4096"}, {"imageSize": "4K"}, "4096x4096"),
        ({"quality": "2K"}, {"imageSize": "2K"}, "2048x2048"),
        ({"output_format": "jpeg", "user": "hash", "style": "vivid"}, {}, "1024x1024"),
    ],
)
def test_gemini_is_asked_in_its_own_words(
    emulator: GoogleEmulator, fields: dict[str, Any], config: dict[str, Any], drawn: str
) -> None:
    items = ask(emulator, GEMINI, **fields)

    (sent,) = emulator.calls
    assert sent.path == f"/v1beta/models/{GEMINI}:generateContent"
    assert sent.body == {
        "contents": [{"role": "user", "parts": [{"text": "a red kite"}]}],
        "generationConfig": {
            "responseModalities": ["IMAGE"],
            "imageConfig": {"aspectRatio": "1:1", "imageSize": "1K"} | config,
        },
    }
    assert sizes(items) == [drawn]


def test_gemini_pictures_of_one_request_have_seeds_of_their_own(emulator: GoogleEmulator) -> None:
    async def run() -> list[Item]:
        downloads = Downloads([])
        client = http.client(
            base_url=emulator.url, headers=google.headers(emulator.key), connect=2, read=10
        )
        provider = google.Google(http=client, downloads=downloads)
        request = ImageRequest(
            model="google/gemini-3-pro-image",
            upstream_id=GEMINI,
            prompt="a red kite",
            n=3,
            seed=2**31 - 1,
            deadline=asyncio.get_running_loop().time() + 20,
        )
        try:
            return [item async for item in provider.generate(request)]
        finally:
            await provider.aclose()
            await downloads.aclose()

    items = asyncio.run(run())

    assert sorted(item.index for item in images(items)) == [0, 1, 2]
    # The field is a signed 32-bit number, so the count wraps around.
    seeds = {sent.body["generationConfig"]["seed"] for sent in emulator.calls}
    assert seeds == {2**31 - 1, 0, 1}


def test_texts_and_thoughts_around_the_picture_are_skipped() -> None:
    parts: list[Any] = [
        {"text": "Here it is."},
        {"thought": True, "inlineData": {"mimeType": "image/png", "data": "c2tldGNo"}},
        "nonsense",
        {"inlineData": {"mimeType": "image/png", "data": DOT}},
    ]
    answer = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}

    assert google.generated(answer).picture.width == 1


def test_safety_scores_of_the_prompt_are_no_picture() -> None:
    answer = {
        "predictions": [
            {"contentType": "Positive Prompt", "safetyAttributes": {}},
            {"raiFilteredReason": "filtered"},
        ]
    }

    (outcome,) = google.predicted(answer, 1)

    assert isinstance(outcome, ProviderError)
    assert outcome.code == "content_policy_violation"


UNAVAILABLE = "provider_unavailable"
REFUSED = "content_policy_violation"
INVALID = "invalid_request_error"

# (error, code, retryable, account, stage, param, retry_after)
ERRORS = [
    ("api_key_invalid", UNAVAILABLE, False, True, None, None, None),
    ("permission_denied", UNAVAILABLE, False, True, None, None, None),
    ("failed_precondition", UNAVAILABLE, False, True, None, None, None),
    ("invalid_argument", INVALID, False, False, None, None, None),
    ("refused_prompt", REFUSED, False, False, "prompt", None, None),
    ("not_found", "model_not_found", False, False, None, None, None),
    ("resource_exhausted", UNAVAILABLE, True, False, None, None, 41),
    ("resource_exhausted_per_day", UNAVAILABLE, False, False, None, None, 41),
    ("prepayment_depleted", UNAVAILABLE, False, True, None, None, None),
    ("spending_cap", UNAVAILABLE, False, True, None, None, None),
    ("billed_users_only", UNAVAILABLE, False, True, None, None, None),
    ("internal", UNAVAILABLE, True, False, None, None, None),
    ("unavailable", UNAVAILABLE, True, False, None, None, None),
    ("deadline_exceeded", UNAVAILABLE, True, False, None, None, None),
]


@pytest.mark.parametrize("model", [IMAGEN, GEMINI])
@pytest.mark.parametrize(
    ("name", "code", "retryable", "account", "stage", "param", "retry_after"), ERRORS
)
def test_error_answers(
    emulator: GoogleEmulator,
    model: str,
    name: str,
    code: str,
    retryable: bool,
    account: bool,
    stage: str | None,
    param: str | None,
    retry_after: float | None,
) -> None:
    emulator.queue(Behaviour(error=name))

    error = fails(emulator, model)

    told = (error.code, error.retryable, error.account, error.stage, error.param, error.retry_after)
    assert told == (code, retryable, account, stage, param, retry_after)
    assert error.charged is False
    said = json.loads(json.dumps(emulator.ERRORS[name].body))["error"]["message"]
    assert said in error.detail
    assert said not in error.message


FINISHED = {
    "finish_image_safety": (REFUSED, False, "output"),
    "finish_image_prohibited_content": (REFUSED, False, "output"),
    "finish_image_recitation": (REFUSED, False, "output"),
    "finish_safety": (REFUSED, False, "output"),
    "finish_prohibited_content": (REFUSED, False, "output"),
    "finish_blocklist": (REFUSED, False, "output"),
    "finish_recitation": (REFUSED, False, "output"),
    "finish_spii": (REFUSED, False, "output"),
    "finish_escalation": (REFUSED, False, "output"),
    "finish_pup_limited_disabled": (UNAVAILABLE, False, None),
    "finish_max_tokens": (UNAVAILABLE, True, None),
    "finish_language": (UNAVAILABLE, True, None),
    "finish_other": (UNAVAILABLE, True, None),
    "finish_malformed_function_call": (UNAVAILABLE, True, None),
    "finish_unexpected_tool_call": (UNAVAILABLE, True, None),
    "finish_too_many_tool_calls": (UNAVAILABLE, True, None),
    "finish_missing_thought_signature": (UNAVAILABLE, True, None),
    "finish_malformed_response": (UNAVAILABLE, True, None),
    "finish_continuation": (UNAVAILABLE, True, None),
    "finish_image_other": (UNAVAILABLE, True, None),
    "finish_no_image": (UNAVAILABLE, True, None),
    "block_safety": (REFUSED, False, "prompt"),
    "block_other": (REFUSED, False, "prompt"),
    "block_blocklist": (REFUSED, False, "prompt"),
    "block_prohibited_content": (REFUSED, False, "prompt"),
    "block_image_safety": (REFUSED, False, "prompt"),
    "empty": (UNAVAILABLE, True, None),
}


@pytest.mark.parametrize("name", FINISHED)
def test_gemini_answers_without_a_picture(emulator: GoogleEmulator, name: str) -> None:
    emulator.queue(Behaviour(error=name))

    error = fails(emulator, GEMINI)

    assert (error.code, error.retryable, error.stage) == FINISHED[name]
    assert error.charged is False


@pytest.mark.parametrize(
    ("reason", "code", "account"),
    [
        ("ESCALATION", REFUSED, False),
        ("PUP_LIMITED_DISABLED", UNAVAILABLE, True),
        ("CONTINUATION", UNAVAILABLE, False),
        (["SAFETY"], UNAVAILABLE, False),
        (None, UNAVAILABLE, False),
    ],
)
def test_why_gemini_drew_nothing(reason: Any, code: str, account: bool) -> None:
    with pytest.raises(ProviderError) as caught:
        google.generated({"candidates": [{"finishReason": reason}]})

    error = caught.value
    assert (error.code, error.account, error.charged) == (code, account, False)
    # What another try may change is tried again.
    assert error.retryable is (code == UNAVAILABLE and not account)


@pytest.mark.parametrize(
    ("status", "said", "account"),
    [
        (429, "Your prepayment credits are depleted. Please go to AI Studio.", True),
        (429, "Your project has exceeded its monthly spending cap.", True),
        (429, "You exceeded your current quota, please check your plan.", False),
        (400, "Imagen API is only accessible to billed users at this time.", True),
    ],
)
def test_money_in_the_words_of_something_else(status: int, said: str, account: bool) -> None:
    body = json.dumps({"error": {"status": "RESOURCE_EXHAUSTED", "message": said}}).encode()

    error = google.error(Answer(status, {}, body))

    assert (error.code, error.account, error.retryable) == (UNAVAILABLE, account, not account)


def test_no_error_of_the_emulator_is_left_out() -> None:
    assert {row[0] for row in ERRORS} | FINISHED.keys() == GoogleEmulator.ERRORS.keys()


def test_gemini_words_without_a_picture_may_be_asked_again(emulator: GoogleEmulator) -> None:
    emulator.queue(Behaviour(fewer=1))

    error = fails(emulator, GEMINI)

    assert (error.code, error.retryable, error.charged) == (UNAVAILABLE, True, False)


@pytest.mark.parametrize(("prompt", "param"), [("word " * 600, "prompt"), ("a kite", None)])
def test_a_prompt_that_is_too_long_is_the_callers(
    emulator: GoogleEmulator, prompt: str, param: str | None
) -> None:
    if param is None:
        emulator.queue(Behaviour(error="invalid_argument"))

    error = fails(emulator, prompt=prompt)

    assert (error.code, error.param) == (INVALID, param)


def test_a_retired_model_is_gone() -> None:
    with GoogleEmulator(retired=frozenset({IMAGEN})) as emulator:
        assert fails(emulator).code == "model_not_found"


def test_a_wrong_key_is_the_accounts(emulator: GoogleEmulator) -> None:
    def make(client: Any, downloads: Downloads) -> google.Google:
        return google.Google(http=client, downloads=downloads)

    with pytest.raises(ProviderError) as caught:
        draw(make, emulator, google.headers("wrong"), upstream_id=IMAGEN)

    assert caught.value.account is True
    assert caught.value.retryable is False


@pytest.mark.parametrize("behaviour", [Behaviour(refuse=3), Behaviour(fewer=3)])
def test_a_partial_refusal_keeps_the_pictures(
    emulator: GoogleEmulator, behaviour: Behaviour
) -> None:
    emulator.queue(behaviour)

    items = ask(emulator, n=4)

    assert [item.index for item in images(items)] == [0]
    reasons = shortfalls(items)
    assert sum(reason.count for reason in reasons) == 3
    assert {(one.error.code, one.error.stage) for one in reasons} == {(REFUSED, "output")}
    assert emulator.billed == 1


@pytest.mark.parametrize("behaviour", [Behaviour(refuse=4), Behaviour(fewer=4)])
def test_a_refusal_of_all_is_an_error(emulator: GoogleEmulator, behaviour: Behaviour) -> None:
    emulator.queue(behaviour)

    error = fails(emulator, n=4)

    assert (error.code, error.stage, error.charged) == (REFUSED, "output", False)
    assert "filtered" in error.detail or "Unable" in error.detail


def test_imagen_without_predictions_refused_them_all(emulator: GoogleEmulator) -> None:
    emulator.queue(Behaviour(error="empty"))

    assert fails(emulator, n=2).code == REFUSED


@pytest.mark.parametrize("model", [IMAGEN, GEMINI])
@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(bad_base64=True),
        Behaviour(bad_json=True),
        Behaviour(picture="html"),
        Behaviour(picture="bomb"),
        Behaviour(cut=True),
        Behaviour(drop="before"),
        Behaviour(drop="after"),
    ],
    ids=["base64", "json", "html", "bomb", "cut", "drop before", "drop after"],
)
def test_a_broken_answer_may_be_charged_and_is_not_repeated(
    emulator: GoogleEmulator, model: str, behaviour: Behaviour
) -> None:
    emulator.queue(behaviour)

    error = fails(emulator, model)

    assert (error.code, error.charged, error.account) == (UNAVAILABLE, True, False)
    assert len(emulator.calls) == 1


def test_the_content_type_is_not_believed(emulator: GoogleEmulator) -> None:
    emulator.queue(Behaviour(content_type="text/html"))

    assert len(images(ask(emulator))) == 1


def test_one_broken_picture_does_not_lose_the_others() -> None:
    rows = [{"bytesBase64Encoded": text} for text in ("%%%", DOT)]

    broken, whole = google.predicted({"predictions": rows}, 2)

    assert isinstance(broken, ProviderError)
    assert broken.code == UNAVAILABLE
    assert isinstance(whole, ProviderImage)


def test_a_server_that_is_not_there_was_never_asked(emulator: GoogleEmulator) -> None:
    with GoogleEmulator() as gone:
        pass

    error = fails(gone)

    assert (error.code, error.retryable, error.charged) == (UNAVAILABLE, True, False)
