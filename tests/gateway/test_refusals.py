"""Every way a provider says no has one name for the customer, and costs the customer nothing."""

import hashlib
import json

import pytest

from images.models import Generation
from tests.api.checks import expect_books_agree, expect_error
from tests.emulators.base import Behaviour
from tests.emulators.fal import FalEmulator
from tests.emulators.google import GoogleEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.xai import XaiEmulator
from tests.gateway import (
    DALLE,
    FLUX,
    GPT,
    GROK,
    IDEOGRAM,
    IMAGEN,
    PRICES,
    RECRAFT,
    STABLE,
    ULTRA,
    Emulators,
    calls,
    circuit_of,
    expect_charged,
    expect_free,
    expect_pictures,
    expect_sound_books,
)
from tests.server import Api, AppServer

GEMINI = "google/gemini-nano-banana-2.1"
IMAGINE = "xai/grok-imagine-image-2.0"
REFUSED = "content_policy_violation"

# Who refuses, how, and which stage the customer sees.
BLOCKED = ["safety", "other", "blocklist", "prohibited_content", "image_safety"]
FINISHED = [
    *("image_safety", "image_prohibited_content", "image_recitation"),
    *("safety", "prohibited_content", "blocklist", "recitation", "spii"),
]
REFUSALS = [
    (GPT, Behaviour(error="moderation_blocked"), "prompt"),
    (GPT, Behaviour(error="moderation_blocked_output"), "output"),
    (GPT, Behaviour(error="moderation_blocked_plain"), "provider"),
    (GPT, Behaviour(error="content_policy_violation"), "provider"),
    (DALLE, Behaviour(error="content_policy_violation_user"), "provider"),
    (IMAGEN, Behaviour(error="refused_prompt"), "prompt"),
    (IMAGEN, Behaviour(error="empty"), "output"),
    (IMAGEN, Behaviour(refuse=2), "output"),
    *((GEMINI, Behaviour(error=f"block_{reason}"), "prompt") for reason in BLOCKED),
    *((GEMINI, Behaviour(error=f"finish_{reason}"), "output") for reason in FINISHED),
    (GEMINI, Behaviour(refuse=1), "output"),
    (GROK, Behaviour(error="moderation_blocked"), "output"),
    (GROK, Behaviour(error="empty"), "output"),
    (GROK, Behaviour(error="block_reason"), "output"),
    (GROK, Behaviour(refuse=2), "output"),
    (IMAGINE, Behaviour(error="moderation_blocked"), "output"),
    (IMAGINE, Behaviour(refuse=2), "output"),
    *(
        (model, Behaviour(error=f"content_policy_violation{billed}"), "provider")
        for model in (FLUX, ULTRA, RECRAFT, IDEOGRAM, STABLE)
        for billed in ("", "_billed")
    ),
    *((model, Behaviour(refuse=2), "output") for model in (FLUX, ULTRA, STABLE)),
    *((model, Behaviour(refuse=2), "provider") for model in (RECRAFT, IDEOGRAM)),
]
# Models with a picture a call are asked twice for two pictures, never again for a refused one.
ONE_A_CALL = {DALLE, GEMINI, RECRAFT, IDEOGRAM}
# Upstream's own words, which are for the operator.
WORDS = ("safety system", "Support code", "sensitive words", "content checker", "fal.ai", "x.ai")


def test_every_shape_of_a_refusal_is_one_400_with_its_stage_and_is_free(
    api: Api, app: AppServer, emulators: Emulators, subtests: pytest.Subtests
) -> None:
    for model, behaviour, stage in REFUSALS:
        with subtests.test(f"{model} {behaviour.error or 'refused pictures'}"):
            provider = model.partition("/")[0]
            for one in emulators.values():
                one.reset()
            emulators[provider].always(behaviour)

            answer = api.draw(model=model, n=2)

            error = expect_error(answer, REFUSED)
            assert error["stage"] == stage
            assert error.keys() == {"message", "type", "code", "param", "request_id", "stage"}
            assert not [words for words in WORDS if words in answer.text]
            # A refusal is final: asked once, nothing fetched, and the provider is not at fault.
            assert calls(emulators) == {provider: 2 if model in ONE_A_CALL else 1}
            assert emulators[provider].downloads == []
            assert (circuit_of(app, provider).state, circuit_of(app, provider).failures) == (
                "closed",
                0,
            )
            row = Generation.objects.get(request_id=error["request_id"])
            assert (row.status, row.error_code, row.delivered) == ("failed", REFUSED, 0)
            assert [one["error"] for one in row.attempts] == [REFUSED]
            expect_free(answer)


@pytest.mark.parametrize(
    ("model", "n", "behaviours", "delivered", "asked"),
    [
        # One call for all of them: the provider leaves some out.
        (IMAGEN, 4, [Behaviour(refuse=1)], 3, 1),
        (GROK, 3, [Behaviour(refuse=2)], 1, 1),
        (IMAGINE, 8, [Behaviour(refuse=1)], 7, 1),
        (FLUX, 4, [Behaviour(refuse=2)], 2, 1),
        # Several calls: one of them is refused altogether, or in part.
        (IMAGEN, 8, [Behaviour(refuse=4)], 4, 2),
        (FLUX, 8, [Behaviour(refuse=4)], 4, 2),
        (FLUX, 8, [Behaviour(refuse=1), Behaviour(refuse=3)], 4, 2),
        (STABLE, 6, [Behaviour(refuse=1)], 5, 2),
        (FLUX, 5, [Behaviour(error="content_policy_violation")], None, 2),
        # A picture a call: one call refuses.
        (DALLE, 3, [Behaviour(error="content_policy_violation")], 2, 3),
        (GEMINI, 3, [Behaviour(error="finish_image_safety")], 2, 3),
        (RECRAFT, 3, [Behaviour(refuse=1), Behaviour(refuse=1)], 1, 3),
        (IDEOGRAM, 2, [Behaviour(error="content_policy_violation_billed")], 1, 2),
    ],
)
def test_a_partial_refusal_delivers_and_bills_what_came(
    api: Api,
    emulators: Emulators,
    model: str,
    n: int,
    behaviours: list[Behaviour],
    delivered: int | None,
    asked: int,
) -> None:
    provider = model.partition("/")[0]
    emulators[provider].queue(*behaviours)

    answer = api.draw(model=model, n=n)

    if delivered is None:  # whichever of the calls for 4 and 1 came first was refused
        delivered = len(answer.json()["data"])
        assert delivered in (1, 4)
    expect_pictures(answer, delivered)
    assert answer.json()["filtered_count"] == n - delivered
    assert calls(emulators) == {provider: asked}
    row = Generation.objects.get()
    assert (row.n, row.delivered, row.filtered) == (n, delivered, n - delivered)
    if model in PRICES:
        expect_charged(answer, model, delivered)
        expect_books_agree(delivered, delivered * PRICES[model])
    expect_sound_books()


def test_pictures_that_are_simply_missing_are_not_called_filtered(
    api: Api, xai: XaiEmulator
) -> None:
    xai.always(Behaviour(fewer=2))

    answer = api.draw(model=GROK, n=5)

    expect_pictures(answer, 3)
    assert "filtered_count" not in answer.json()
    expect_charged(answer, GROK, 3)


def test_refusals_that_xai_bills_are_ours_to_pay(api: Api, xai: XaiEmulator) -> None:
    xai.queue(Behaviour(refuse=2), Behaviour(error="moderation_blocked"))

    partly = api.draw(model=GROK, n=3)
    wholly = api.draw(model=GROK, n=3)

    assert xai.billed == 6  # three pictures each, two and then all three of them refused
    expect_charged(partly, GROK, 1)
    expect_error(wholly, REFUSED)
    expect_books_agree(1, PRICES[GROK])


def test_black_pictures_are_neither_fetched_nor_delivered_nor_charged(
    api: Api, fal: FalEmulator
) -> None:
    fal.always(Behaviour(refuse=2))

    answer = api.draw(model=FLUX, n=4)

    made = [hashlib.sha256(picture).hexdigest() for picture in fal.pictures]
    assert [row["sha256"] for row in expect_pictures(answer, 2)] == made[:2]
    assert len(made) == 4
    assert len(fal.downloads) == 2
    expect_charged(answer, FLUX, 2)


def test_a_refused_stream_keeps_what_came_before_the_refusal(api: Api, fal: FalEmulator) -> None:
    fal.always(Behaviour(refuse=1))

    answer = api.draw(model=FLUX, n=3, stream=True)

    frames = [
        json.loads(line.removeprefix("data: "))
        for line in answer.text.splitlines()
        if line.startswith("data: ")
    ]
    assert [frame["type"] for frame in frames] == ["image_generation.completed"] * 2
    row = Generation.objects.get()
    assert (row.status, row.delivered, row.filtered) == ("succeeded", 2, 1)
    expect_books_agree(2, 2 * PRICES[FLUX])


def test_a_stream_refused_after_its_early_views_is_free(api: Api, openai: OpenAIEmulator) -> None:
    openai.always(Behaviour(error="stream_moderation_blocked"))

    answer = api.draw(model=GPT, stream=True, partial_images=2)

    assert answer.status_code == 200
    last = json.loads(answer.text.rstrip("\n").rpartition("data: ")[2])
    assert (last["type"], last["error"]["code"]) == ("error", REFUSED)
    assert last["error"]["stage"] == "output"
    assert len(openai.calls) == 1
    expect_books_agree(0, 0)


@pytest.mark.parametrize("reason", ["no_image", "image_other"])
def test_an_answer_without_a_picture_is_no_refusal(
    api: Api, google: GoogleEmulator, reason: str
) -> None:
    google.queue(Behaviour(error=f"finish_{reason}"))

    answer = api.draw(model=GEMINI)

    expect_pictures(answer, 1)
    assert len(google.calls) == 2
    assert "filtered_count" not in answer.json()
