"""What was asked, what was drawn instead, and that the answer says so."""

import base64
import io
from typing import Any

import pytest
from PIL import Image as Pillow
from pytest_django.fixtures import Settings

from billing.models import Hold
from images.catalog.rows import CATALOG
from images.models import Generation, Image
from tests.api.checks import expect_books_agree, expect_error, expect_nothing_happened, stored_files
from tests.emulators.openai import OpenAIEmulator
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
    drawn,
    expect_charged,
    expect_pictures,
    expect_sound_books,
    stored,
)
from tests.gateway.test_fallback import Begin
from tests.server import Api

# --- adjusted, and strict -------------------------------------------------------------------

ADJUSTED: list[tuple[str, dict[str, Any], str, Any, Any]] = [
    (GPT, {"size": "1792x1024"}, "size", "1792x1024", "1536x1024"),
    (FLUX, {"size": "1536x1024"}, "size", "1536x1024", "1152x768"),
    (ULTRA, {"size": "1024x1024"}, "size", "1024x1024", "2048x2048"),
    (GROK, {"size": "1024x1024"}, "size", "1024x1024", "1024x768"),
    (IMAGEN, {"size": "1024x1024", "quality": "hd"}, "size", "1024x1024", "2048x2048"),
    (IMAGEN, {"size": "1792x1024", "quality": "hd"}, "size", "1792x1024", "2816x1536"),
    (GROK, {"quality": "hd"}, "quality", "hd", None),
    (FLUX, {"quality": "low"}, "quality", "low", None),
    (DALLE, {"quality": "medium"}, "quality", "medium", "standard"),
    (IMAGEN, {"quality": "high"}, "quality", "high", "2K"),
    (STABLE, {"quality": "low"}, "quality", "low", "20"),
    (GPT, {"seed": 7}, "seed", 7, None),
    (RECRAFT, {"seed": 0}, "seed", 0, None),
    (GPT, {"style": "natural"}, "style", "natural", None),
    (STABLE, {"style": "vivid"}, "style", "vivid", None),
    (IMAGEN, {"background": "transparent"}, "background", "transparent", None),
    (DALLE, {"moderation": "low"}, "moderation", "low", None),
    (GPT, {"output_compression": 40}, "output_compression", 40, None),
    (
        IMAGEN,
        {"output_compression": 40, "output_format": "png"},
        "output_compression",
        40,
        None,
    ),
]


def test_what_is_drawn_differently_is_told_and_with_strict_not_drawn(
    api: Api, emulators: Emulators, subtests: pytest.Subtests
) -> None:
    for model, body, param, asked, used in ADJUSTED:
        with subtests.test(f"{model} {body}"):
            before = calls(emulators)
            expect_error(
                api.draw(model=model, strict=True, **body),
                "invalid_request_error",
                param=param,
                says="strict",
            )
            assert calls(emulators) == before
            held = Hold.objects.count()

            answer = api.draw(model=model, **body)

            data = expect_pictures(answer, 1)
            told = answer.json()["adjusted"]
            assert [(one["param"], one["asked"], one["used"]) for one in told] == [
                (param, asked, used)
            ]
            assert model in told[0]["why"]
            if param == "size":
                assert f"{data[0]['width']}x{data[0]['height']}" == used
            expect_charged(answer, model, 1)
            audit = api.get("generation", params={"id": answer.json()["id"]}).json()["data"]
            assert audit["adjusted"] == told
            assert Hold.objects.count() == held + 1
    expect_sound_books()


def test_several_differences_are_all_told(api: Api) -> None:
    answer = api.draw(
        model=GROK,
        size="1792x1024",
        quality="hd",
        seed=1,
        style="vivid",
        background="transparent",
        moderation="low",
        output_compression=10,
    )

    expect_pictures(answer, 1)
    told = {one["param"]: one["used"] for one in answer.json()["adjusted"]}
    assert told == {
        "size": "1024x768",
        "quality": None,
        "seed": None,
        "style": None,
        "background": None,
        "moderation": None,
        "output_compression": None,
    }


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (GPT, {"size": "1536x1024", "quality": "hd", "output_format": "webp"}),
        (GPT, {"background": "transparent", "moderation": "low", "quality": "auto"}),
        (DALLE, {"style": "natural", "quality": "standard", "size": "auto", "background": "auto"}),
        (FLUX, {"seed": 3, "moderation": "low", "output_format": "webp"}),
        (IDEOGRAM, {"seed": 3, "style": "natural", "quality": "standard"}),
        (IMAGEN, {"output_format": "jpeg", "output_compression": 10, "moderation": "auto"}),
    ],
)
def test_strict_draws_what_needs_no_adjusting(api: Api, model: str, body: dict[str, Any]) -> None:
    answer = api.draw(model=model, strict=True, **body)

    expect_pictures(answer, 1)
    assert "adjusted" not in answer.json()
    expect_charged(answer, model, 1)


def test_a_transparent_jpeg_is_refused_before_any_call(api: Api, openai: OpenAIEmulator) -> None:
    answer = api.draw(model=GPT, background="transparent", output_format="jpeg")

    expect_error(answer, "invalid_request_error", param="background")
    expect_nothing_happened(openai)


# --- Formats --------------------------------------------------------------------------------

# What the provider is asked for, and whether what it draws is what is delivered, byte by byte.
FORMATS: list[tuple[str, str, dict[str, Any] | None, bool]] = [
    (GPT, "png", {"output_format": "png"}, True),
    (GPT, "jpeg", {"output_format": "jpeg"}, True),
    (GPT, "webp", {"output_format": "webp"}, True),
    (DALLE, "png", None, True),
    (DALLE, "jpeg", None, False),
    (DALLE, "webp", None, False),
    (IMAGEN, "png", {"outputOptions": {"mimeType": "image/png"}}, True),
    (IMAGEN, "jpeg", {"outputOptions": {"mimeType": "image/jpeg"}}, True),
    (IMAGEN, "webp", None, False),
    (GROK, "png", None, False),
    (GROK, "jpeg", None, True),
    (GROK, "webp", None, False),
    (FLUX, "png", {"output_format": "png"}, True),
    (FLUX, "jpeg", {"output_format": "jpeg"}, True),
    (RECRAFT, "png", None, False),
    (RECRAFT, "jpeg", None, False),
    (RECRAFT, "webp", None, True),
    (IDEOGRAM, "png", None, True),
    (IDEOGRAM, "webp", None, False),
    (STABLE, "jpeg", {"output_format": "jpeg"}, True),
]


def fields_sent(emulators: Emulators, model: str) -> dict[str, Any]:
    """Return the fields of the last call, Google's out of their envelope."""
    body = emulators[model.partition("/")[0]].calls[-1].body
    fields: dict[str, Any] = body.get("parameters", body)
    return fields


def test_a_format_is_made_here_only_where_the_provider_cannot(
    api: Api, emulators: Emulators, subtests: pytest.Subtests
) -> None:
    for model, wanted, sent, native in FORMATS:
        with subtests.test(f"{model} {wanted}"):
            answer = api.draw(model=model, output_format=wanted)

            data = expect_pictures(answer, 1)[0]
            assert data["mime_type"] == f"image/{wanted}"
            assert data["url"].endswith({"jpeg": ".jpg"}.get(wanted, f".{wanted}"))
            drawn_bytes = emulators[model.partition("/")[0]].pictures[-1]
            assert (stored(data["url"]) == drawn_bytes) is native
            fields = fields_sent(emulators, model)
            if sent is None:
                assert {"output_format", "outputOptions"}.isdisjoint(fields)
            else:
                assert fields.items() >= sent.items()
            assert "adjusted" not in answer.json()


def test_webp_of_fal_is_made_of_a_png_or_what_it_draws_by_itself(
    api: Api, emulators: Emulators
) -> None:
    answer = api.draw(model=FLUX, output_format="webp", n=2)

    assert {row["mime_type"] for row in expect_pictures(answer, 2)} == {"image/webp"}
    assert fields_sent(emulators, FLUX).get("output_format") != "webp"
    assert calls(emulators) == {"fal": 1}


@pytest.mark.parametrize("wanted", ["jpeg", "webp"])
@pytest.mark.parametrize("model", [GPT, DALLE, IMAGEN, GROK, FLUX, RECRAFT])
def test_compression_is_the_provider_s_or_ours(
    api: Api, emulators: Emulators, model: str, wanted: str
) -> None:
    small = api.draw(model=model, output_format=wanted, output_compression=5)
    sent = fields_sent(emulators, model)
    large = api.draw(model=model, output_format=wanted, output_compression=95)

    for answer in (small, large):
        assert expect_pictures(answer, 1)[0]["mime_type"] == f"image/{wanted}"
        assert "adjusted" not in answer.json()
    if model == GPT:
        assert (sent["output_format"], sent["output_compression"]) == (wanted, 5)
    elif (model, wanted) == (IMAGEN, "jpeg"):
        assert sent["outputOptions"] == {"mimeType": "image/jpeg", "compressionQuality": 5}
    else:
        # No provider was told, so it is done here, from what it draws without a loss if it can.
        assert "output_compression" not in sent
        assert sent.get("output_format") in (None, "png")
        sizes = [answer.json()["data"][0]["bytes"] for answer in (small, large)]
        if wanted == "jpeg":
            assert sizes[0] < sizes[1]
        # Flat colours are as small in WebP at any quality, but the bytes are not the same.
        contents = [stored(answer.json()["data"][0]["url"]) for answer in (small, large)]
        assert abs(sizes[0] - sizes[1]) > 20
        assert not set(contents) & set(emulators[model.partition("/")[0]].pictures)
    assert len(emulators[model.partition("/")[0]].calls) == 2


def test_a_transparent_background_is_in_the_picture(api: Api) -> None:
    answer = api.draw(model=GPT, background="transparent", output_format="webp")

    row = expect_pictures(answer, 1)[0]
    with Pillow.open(io.BytesIO(stored(row["url"]))) as picture:
        assert picture.mode == "RGBA"
        assert picture.getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_base64_is_the_stored_bytes_and_the_revised_prompt_comes_along(api: Api) -> None:
    answer = api.draw(model=DALLE, response_format="b64_json", output_format="jpeg", n=2)

    for row in expect_pictures(answer, 2):
        assert base64.b64decode(row["b64_json"], validate=True) == stored(row["url"])
        assert row["revised_prompt"] == "a red kite, in detail"
    assert set(Image.objects.values_list("revised_prompt", flat=True)) == {"a red kite, in detail"}


# --- max_cost, dry_run, tags ----------------------------------------------------------------


def test_max_cost_is_a_limit_for_the_whole_request(
    api: Api, openai: OpenAIEmulator, emulators: Emulators
) -> None:
    expect_error(
        api.draw(model=GPT, n=2, max_cost=0.379999), "invalid_request_error", param="max_cost"
    )
    expect_nothing_happened(openai)

    answer = api.draw(model=GPT, n=2, max_cost=0.38)

    expect_pictures(answer, 2)
    expect_charged(answer, GPT, 2)
    assert calls(emulators) == {"openai": 1}


@pytest.mark.parametrize(
    ("body", "model", "unit", "total"),
    [
        ({"model": GPT, "n": 3, "seed": 1}, GPT, "0.19", "0.57"),
        ({"model": [FLUX, GPT, GROK], "n": 2, "stream": True}, FLUX, "0.04", "0.38"),
        ({"model": "auto", "routing": {"candidates": [GROK, FLUX]}}, FLUX, "0.04", "0.07"),
    ],
)
def test_a_dry_run_tells_who_is_first_and_the_most_it_may_cost_and_does_nothing(
    api: Api,
    openai: OpenAIEmulator,
    emulators: Emulators,
    body: dict[str, Any],
    model: str,
    unit: str,
    total: str,
) -> None:
    answer = api.draw(dry_run=True, **body)

    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["dry_run"], told["data"], told["model"]) == (True, [], model)
    assert told["geekhub"]["unit_price_usd"] == unit
    assert told["geekhub"]["max_cost_usd"] == total
    assert [one["param"] for one in told["adjusted"]] == (["seed"] if "seed" in body else [])
    assert "x-geekhub-cost-usd" not in answer.headers
    assert calls(emulators) == {}
    expect_nothing_happened(openai)


def test_a_dry_run_refuses_what_a_real_one_would(api: Api, openai: OpenAIEmulator) -> None:
    expect_error(
        api.draw(model=GPT, size="3x3", dry_run=True), "invalid_request_error", param="size"
    )
    expect_error(api.draw(model="no/model", dry_run=True), "model_not_found", param="model")
    expect_error(
        api.draw(model=GPT, seed=1, strict=True, dry_run=True),
        "invalid_request_error",
        param="seed",
    )
    expect_nothing_happened(openai)


def test_tags_are_kept_with_the_request_and_go_to_no_provider(
    api: Api, emulators: Emulators
) -> None:
    tags = ["campaign-7", "Ünïcode"]

    answer = api.draw(model=FLUX, tags=tags)

    assert Generation.objects.get().tags == tags
    told = api.get("generation", params={"id": answer.json()["id"]}).json()["data"]
    assert told["tags"] == tags
    sent = b"".join(call.raw for call in emulators["fal"].calls).decode()
    assert "campaign-7" not in sent


def test_the_end_user_s_name_leaves_only_as_a_digest(api: Api, emulators: Emulators) -> None:
    for model in (GPT, GROK, IMAGEN, FLUX):
        expect_pictures(api.draw(model=model, user="alice@example.com"), 1)

    bodies = [call.raw for one in emulators.values() for call in one.calls]
    assert len(bodies) == 4
    assert not [raw for raw in bodies if b"alice" in raw]
    assert len(fields_sent(emulators, GPT)["user"]) == 32
    assert fields_sent(emulators, GPT)["user"] == fields_sent(emulators, GROK)["user"]
    assert "user" not in fields_sent(emulators, FLUX)


# --- Models that come and go ----------------------------------------------------------------

SWITCHED_OFF = {
    GPT: ("2026-10-23", "openai/gpt-image-2.5-sunburst"),
    DALLE: ("2026-05-12", "openai/gpt-image-2.5-sunburst"),
    IMAGEN: ("2026-08-17", "google/gemini-nano-banana-2.1"),
    GROK: ("2026-02-24", "xai/grok-imagine-image"),
}


def test_an_alias_is_drawn_told_and_billed_as_the_other_model(
    begin: Begin, settings: Settings, emulators: Emulators, openai: OpenAIEmulator
) -> None:
    settings.MODEL_ALIASES = {DALLE: "fal/recraft-v3", GROK: GPT}
    _, api = begin()

    answer = api.draw(model=DALLE, n=2)
    listed = api.draw(model=[GROK, IMAGEN])

    expect_pictures(answer, 2)
    assert answer.json()["model"] == RECRAFT
    assert [(one["param"], one["asked"], one["used"]) for one in answer.json()["adjusted"]] == [
        ("model", DALLE, RECRAFT)
    ]
    expect_charged(answer, RECRAFT, 2)
    assert listed.json()["geekhub"]["final_model"] == GPT
    assert listed.json()["geekhub"]["requested"] == [GROK, IMAGEN]
    expect_charged(listed, GPT, 1)
    assert calls(emulators) == {"fal": 2, "openai": 1}
    assert openai.calls[0].body["model"] == "gpt-image-1"
    told = api.draw(model=DALLE, strict=True)
    expect_error(told, "invalid_request_error", param="model")
    expect_books_agree(3, 2 * PRICES[RECRAFT] + PRICES[GPT])


def test_an_alias_may_lead_from_a_retired_model_to_its_successor(
    begin: Begin, settings: Settings, emulators: Emulators, openai: OpenAIEmulator
) -> None:
    settings.RETIRE_SWITCHED_OFF = True
    settings.MODEL_ALIASES = {DALLE: "openai/gpt-image-2.5-sunburst"}
    _, api = begin()

    answer = api.draw(model=DALLE, quality="hd")

    expect_pictures(answer, 1)
    assert answer.json()["model"] == "openai/gpt-image-2.5-sunburst"
    assert openai.calls[0].body["model"] == "gpt-image-2.5-sunburst"
    assert answer.headers["x-geekhub-cost-usd"] == "0.10"
    assert calls(emulators) == {"openai": 1}
    expect_books_agree(1, 100_000)


def test_a_retired_model_is_a_404_that_names_its_successor(
    begin: Begin, settings: Settings, openai: OpenAIEmulator, emulators: Emulators
) -> None:
    settings.RETIRE_SWITCHED_OFF = True
    _, api = begin()

    for model, (day, successor) in SWITCHED_OFF.items():
        for body in ({"model": model}, {"model": [FLUX, model]}):
            expect_error(
                api.draw(**body), "model_not_found", param="model", says=(model, day, successor)
            )
        expect_error(api.get(f"models/{model}"), "model_not_found", param="model", says=successor)
    expect_nothing_happened(openai)
    assert calls(emulators) == {}

    answer = api.draw(model="auto", max_cost=0.04, routing={"strategy": "cheapest"})

    expect_pictures(answer, 1)
    assert answer.json()["model"] not in SWITCHED_OFF
    assert not skipped_models(answer.json()) & SWITCHED_OFF.keys()


def skipped_models(body: dict[str, Any]) -> set[str]:
    return {one["model"] for one in body["geekhub"]["skipped"]}


@pytest.mark.parametrize("retire", [False, True])
def test_the_list_of_models_tells_what_was_switched_off(
    begin: Begin, settings: Settings, retire: bool
) -> None:
    settings.RETIRE_SWITCHED_OFF = retire
    _, api = begin()

    told = {one["id"]: one for one in api.get("models").json()["data"]}

    assert told.keys() == CATALOG.keys() >= PRICES.keys()
    assert {
        name: (one["status"], one["shutdown_date"])
        for name, one in told.items()
        if one["status"] != "live" or one["shutdown_date"]
    } == ({name: ("retired", day) for name, (day, _) in SWITCHED_OFF.items()} if retire else {})
    for name, one in told.items():
        assert one["successor"] == SWITCHED_OFF.get(name, (None, None))[1]
        assert one["available"] is True
        if one["successor"]:
            assert told[one["successor"]]["status"] == "live"


def test_nothing_is_stored_of_what_was_only_asked_about(api: Api) -> None:
    expect_error(api.draw(model=GPT, n=2, max_cost=0.01), "invalid_request_error", param="max_cost")

    assert (Generation.objects.count(), stored_files()) == (0, [])


def test_pictures_drawn_are_pictures_delivered(api: Api, emulators: Emulators) -> None:
    for model in PRICES:
        expect_pictures(api.draw(model=model, n=3), 3)

    assert drawn(emulators) == 3 * len(PRICES)
    expect_books_agree(3 * len(PRICES), 3 * sum(PRICES.values()))
