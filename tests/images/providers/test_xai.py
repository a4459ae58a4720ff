"""xAI's adapter against the emulator, over sockets."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from aiohttp import web

from images.pixels.pictures import Upload
from images.providers import xai
from images.providers.base import ImageRequest, Item, ProviderImage
from images.providers.downloads import Downloads
from images.providers.errors import ProviderError
from images.providers.http import Answer
from tests.emulators.base import Behaviour
from tests.emulators.xai import XaiEmulator
from tests.images.providers import DOT, draw, exchange, images, shortfalls, sizes

GROK_2, IMAGINE, IMAGINE_2 = "grok-2-image", "grok-imagine-image", "grok-imagine-image-2.0"


@pytest.fixture(scope="module")
def server() -> Iterator[XaiEmulator]:
    with XaiEmulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: XaiEmulator) -> XaiEmulator:
    server.reset()
    return server


def make(client: Any, downloads: Downloads) -> xai.XAI:
    return xai.XAI(http=client, downloads=downloads)


def ask(emulator: XaiEmulator, upstream_id: str = IMAGINE, **fields: Any) -> list[Item]:
    headers = xai.headers(emulator.key)
    return draw(make, emulator, headers, upstream_id=upstream_id, **fields)


def fails(emulator: XaiEmulator, upstream_id: str = IMAGINE, **fields: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(emulator, upstream_id, **fields)
    return caught.value


SQUARE = {"aspect_ratio": "1:1", "resolution": "1k"}
# What no Grok model has a word for is left out; `size` and `style` would be a 400.
UNKNOWN = {
    "output_format": "png",
    "output_compression": 60,
    "background": "transparent",
    "moderation": "low",
    "style": "vivid",
    "seed": 7,
}


@pytest.mark.parametrize(
    ("model", "fields", "sent", "drawn"),
    [
        (GROK_2, {}, {}, "1024x768"),
        (
            GROK_2,
            {"size": "1024x768", "n": 8, "user": "hash"},
            {"n": 8, "user": "hash"},
            "1024x768",
        ),
        (GROK_2, UNKNOWN, {}, "1024x768"),
        (IMAGINE, {}, SQUARE, "1024x1024"),
        (IMAGINE, UNKNOWN, SQUARE, "1024x1024"),
        (IMAGINE, {"size": "1360x768"}, SQUARE | {"aspect_ratio": "16:9"}, "1360x768"),
        (IMAGINE, {"size": "768x1360"}, SQUARE | {"aspect_ratio": "9:16"}, "768x1360"),
        (IMAGINE, {"size": "1248x832"}, SQUARE | {"aspect_ratio": "3:2"}, "1248x832"),
        (IMAGINE, {"size": "1024x1024", "n": 3}, SQUARE | {"n": 3}, "1024x1024"),
        (IMAGINE, {"size": "2048x2048"}, SQUARE | {"resolution": "2k"}, "2048x2048"),
        (IMAGINE_2, {"quality": "low"}, SQUARE | {"quality": "low"}, "1024x1024"),
        (
            IMAGINE_2,
            {"quality": "medium", "size": "2048x2048"},
            {"aspect_ratio": "1:1", "resolution": "2k", "quality": "medium"},
            "2048x2048",
        ),
    ],
)
def test_each_model_is_asked_in_its_own_words(
    emulator: XaiEmulator, model: str, fields: dict[str, Any], sent: dict[str, Any], drawn: str
) -> None:
    items = ask(emulator, model, **fields)

    (received,) = emulator.calls
    assert received.path == "/v1/images/generations"
    usual = {"model": model, "prompt": "a red kite", "n": 1, "response_format": "b64_json"}
    assert received.body == usual | sent
    count = fields.get("n", 1)
    assert sizes(items) == [drawn] * count
    assert [item.index for item in images(items)] == list(range(count))
    assert [item.picture.data for item in images(items)] == emulator.pictures
    # An empty revised prompt says nothing.
    assert {item.revised_prompt for item in images(items)} == {None}


def test_a_data_uri_is_understood() -> None:
    with XaiEmulator(data_uri=True) as emulator:
        assert sizes(ask(emulator)) == ["1024x1024"]


UNAVAILABLE = "provider_unavailable"
REFUSED = "content_policy_violation"
INVALID = "invalid_request_error"
GONE = "model_not_found"

# (error, code, retryable, charged, account, stage)
ERRORS = [
    ("invalid_argument", INVALID, False, False, False, None),
    ("nested", INVALID, False, False, False, None),
    ("unprocessable", INVALID, False, False, False, None),
    ("incorrect_api_key", UNAVAILABLE, False, False, True, None),
    ("unauthenticated", UNAVAILABLE, False, False, True, None),
    ("no_credits_402", UNAVAILABLE, False, False, True, None),
    ("no_credits", UNAVAILABLE, False, False, True, None),
    ("permission_denied", UNAVAILABLE, False, False, True, None),
    ("moderation_blocked", REFUSED, False, True, False, "output"),
    ("empty", REFUSED, False, True, False, "output"),
    ("block_reason", REFUSED, False, True, False, "output"),
    ("block_reason_above", REFUSED, False, True, False, "output"),
    ("block_reason_null", REFUSED, False, True, False, "output"),
    ("model_not_found", GONE, False, False, False, None),
    ("not_found", GONE, False, False, False, None),
    ("deprecated_model", GONE, False, False, False, None),
    ("rate_limited", UNAVAILABLE, True, False, False, None),
    ("internal", UNAVAILABLE, True, False, False, None),
    ("bad_gateway", UNAVAILABLE, True, False, False, None),
    ("unavailable", UNAVAILABLE, True, False, False, None),
    ("gateway_timeout", UNAVAILABLE, True, False, False, None),
    ("without_code", UNAVAILABLE, True, False, False, None),
]


@pytest.mark.parametrize(("name", "code", "retryable", "charged", "account", "stage"), ERRORS)
def test_error_answers(
    emulator: XaiEmulator,
    name: str,
    code: str,
    retryable: bool,
    charged: bool,
    account: bool,
    stage: str | None,
) -> None:
    emulator.queue(Behaviour(error=name))

    error = fails(emulator)

    told = (error.code, error.retryable, error.charged, error.account, error.stage)
    assert told == (code, retryable, charged, account, stage)
    body = emulator.ERRORS[name].body
    said = body.get("error") if isinstance(body, dict) else body
    assert str(said) not in error.message
    if isinstance(said, str) and not said.startswith("<"):
        assert said in error.detail


def test_no_error_of_the_emulator_is_left_out() -> None:
    assert {row[0] for row in ERRORS} == XaiEmulator.ERRORS.keys()


@pytest.mark.parametrize(
    ("status", "text", "code", "account"),
    [
        # A refused prompt must not cut the provider off for everybody.
        (403, "Content violates usage guidelines.", REFUSED, False),
        (400, "Prompt rejected by content moderation.", REFUSED, False),
        (429, "Your team has used all available credits.", UNAVAILABLE, True),
        # Seen in August 2026 where a 404 is documented.
        (400, "Model not found: grok-imagine-image-9", GONE, False),
        (400, "The prompt says: model not found.", INVALID, False),
        (302, "", UNAVAILABLE, False),
    ],
)
def test_error_answers_told_apart_by_their_words(
    status: int, text: str, code: str, account: bool
) -> None:
    error = xai.error(Answer(status, {}, b'{"error": "%s"}' % text.encode()))

    assert (error.code, error.account, error.retryable) == (code, account, False)
    assert error.charged is False
    if code == REFUSED:
        assert error.stage == "provider"


@pytest.mark.parametrize("data", [{}, {"data": None}, {"data": []}])
def test_a_refusal_of_all_may_be_said_of_the_whole_answer(data: dict[str, Any]) -> None:
    answer = web.json_response({"block_reason": "CONTENT_MODERATION", **data})

    with pytest.raises(ProviderError) as caught:
        exchange(make, answer, upstream_id=IMAGINE)

    error = caught.value
    assert (error.code, error.stage, error.charged) == (REFUSED, "output", True)
    assert error.detail == "CONTENT_MODERATION"


def test_an_edit_is_not_told_a_ratio() -> None:
    fields: dict[str, Any] = {"model": "m", "prompt": "p", "deadline": 0, "size": "1360x768"}
    drawn, edited = (
        xai.body(ImageRequest(upstream_id=IMAGINE, images=images, **fields))
        for images in ((), (cast(Upload, None),))
    )
    assert (drawn["aspect_ratio"], drawn["resolution"]) == ("16:9", "1k")
    assert "aspect_ratio" not in edited
    assert edited["resolution"] == "1k"


def test_the_wait_that_a_rate_limit_names(emulator: XaiEmulator) -> None:
    emulator.queue(Behaviour(error="rate_limited", retry_after=3))

    assert fails(emulator).retry_after == 3


def test_a_retired_model_is_gone() -> None:
    with XaiEmulator(retired=frozenset({GROK_2})) as emulator:
        error = fails(emulator, GROK_2)

    assert (error.code, error.retryable) == (GONE, False)


def test_a_wrong_key_is_the_accounts(emulator: XaiEmulator) -> None:
    with pytest.raises(ProviderError) as caught:
        draw(make, emulator, xai.headers("wrong"), upstream_id=IMAGINE)

    assert caught.value.account is True
    assert caught.value.retryable is False


def test_a_partial_refusal_is_billed_and_keeps_the_pictures(emulator: XaiEmulator) -> None:
    emulator.queue(Behaviour(refuse=2))

    items = ask(emulator, n=3)

    assert [item.index for item in images(items)] == [0]
    reasons = shortfalls(items)
    assert sum(reason.count for reason in reasons) == 2
    facts = {(one.error.code, one.error.stage, one.error.charged) for one in reasons}
    assert facts == {(REFUSED, "output", True)}
    assert emulator.billed == 3


def test_a_refusal_of_all_is_an_error(emulator: XaiEmulator) -> None:
    emulator.queue(Behaviour(refuse=2))

    error = fails(emulator, n=2)

    assert (error.code, error.stage, error.charged) == (REFUSED, "output", True)


def test_a_flagged_picture_is_not_delivered_though_it_came() -> None:
    row = {"b64_json": "aGVsbG8=", "respect_moderation": False}

    (outcome,) = xai.outcomes([row], 1)

    assert isinstance(outcome, ProviderError)
    assert outcome.code == REFUSED


def test_fewer_pictures_than_asked_say_so(emulator: XaiEmulator) -> None:
    emulator.queue(Behaviour(fewer=1))

    items = ask(emulator, n=3)

    assert [item.index for item in images(items)] == [0, 1]
    (short,) = shortfalls(items)
    assert (short.count, short.error.code, short.error.charged) == (1, UNAVAILABLE, True)


def test_more_pictures_than_asked_are_left() -> None:
    assert len(list(xai.outcomes([{"b64_json": ""}] * 5, 2))) == 2


def test_one_broken_picture_does_not_lose_the_others() -> None:
    first, nonsense, whole = xai.outcomes([{"b64_json": "%%%"}, "?", {"b64_json": DOT}], 3)

    assert isinstance(first, ProviderError)
    assert isinstance(nonsense, ProviderError)
    assert isinstance(whole, ProviderImage)


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
    emulator: XaiEmulator, behaviour: Behaviour
) -> None:
    emulator.queue(behaviour)

    error = fails(emulator)

    assert (error.code, error.charged, error.account) == (UNAVAILABLE, True, False)
    assert len(emulator.calls) == 1


def test_the_content_type_is_not_believed(emulator: XaiEmulator) -> None:
    emulator.queue(Behaviour(content_type="text/html"))

    assert len(images(ask(emulator))) == 1


def test_a_server_that_is_not_there_was_never_asked() -> None:
    with XaiEmulator() as gone:
        pass

    error = fails(gone)

    assert (error.code, error.retryable, error.charged) == (UNAVAILABLE, True, False)
