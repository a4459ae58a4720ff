"""From a request to the models that may draw it: order, reasons, adjustments."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from images.catalog.model import ImageModel
from images.catalog.rows import CATALOG
from images.drawing import routing
from images.drawing.request import GenerationRequest
from images.drawing.routing import (
    Adjustment,
    Candidate,
    ModelBlocked,
    ModelNotFound,
    ModelOff,
    ModelUnfit,
    NoCandidate,
    Skipped,
)
from images.providers.base import ImageRequest

PRICES = {model.id: model.price_micro for model in CATALOG.values()}
GPT, DALLE, IMAGEN = "openai/gpt-image-1", "openai/dall-e-3", "google/imagen-4"
FLUX, ULTRA, RECRAFT = "fal/flux-1.1-pro", "fal/flux-1.1-pro-ultra", "fal/recraft-v3"


@pytest.fixture(autouse=True)
def _as_delivered(settings: Settings) -> None:
    settings.MODEL_ALIASES = {}
    settings.RETIRE_SWITCHED_OFF = False


def ask(*models: str, **fields: Any) -> GenerationRequest:
    fields = {"prompt": "a red kite", "listed": len(models) > 1 or models == ("auto",), **fields}
    return GenerationRequest(models=models, **fields)


def route(
    request: GenerationRequest,
    *,
    allowed: list[str] | None = None,
    off: Mapping[str, str] | None = None,
    latencies: Mapping[str, float] | None = None,
    prices: Mapping[str, int] | None = None,
) -> tuple[list[Candidate], list[Skipped]]:
    def why_off(model: ImageModel) -> str | None:
        return (off or {}).get(model.id)

    return routing.candidates(
        request, allowed=allowed, off=why_off, prices=prices or PRICES, latencies=latencies or {}
    )


def ids(request: GenerationRequest, **options: Any) -> list[str]:
    return [candidate.model.id for candidate in route(request, **options)[0]]


def sent(model: str, *, sandbox: bool = False, **fields: Any) -> ImageRequest:
    """Return what the provider is asked."""
    (candidate,), _ = route(ask(model, **fields))
    return candidate.for_provider(deadline=99.0, sandbox=sandbox, caller="acme")


def adjusted(model: str, **fields: Any) -> list[tuple[str, Any, Any]]:
    (candidate,), _ = route(ask(model, **fields))
    return [(one.param, one.asked, one.used) for one in candidate.adjusted]


# --- Who draws --------------------------------------------------------------------------------


def test_one_model_is_one_candidate() -> None:
    (candidate,), skipped = route(ask(GPT))
    assert (candidate.model, candidate.adjusted, skipped) == (CATALOG[GPT], (), [])


def test_a_list_keeps_its_order() -> None:
    assert ids(ask(ULTRA, GPT, FLUX)) == [ULTRA, GPT, FLUX]


@pytest.mark.parametrize("models", [("nobody/none",), (GPT, "nobody/none"), ("nobody/none", GPT)])
def test_an_unknown_model_is_refused_in_a_list_too(models: tuple[str, ...]) -> None:
    with pytest.raises(ModelNotFound, match="'nobody/none' does not exist"):
        route(ask(*models))
    with pytest.raises(ModelNotFound):
        route(ask("auto", auto_candidates=models))


@pytest.mark.parametrize("model_id", ["", "auto", "GPT", GPT.upper(), GPT + " ", "gpt-image-1"])
def test_an_id_is_exact(model_id: str) -> None:
    with pytest.raises(ModelNotFound):
        routing.find(model_id)


def test_auto_is_the_cheapest_first() -> None:
    order = ids(ask("auto"))
    assert sorted(order) == sorted(CATALOG)
    prices = [PRICES[model] for model in order]
    assert prices == sorted(prices)


def test_auto_goes_by_the_price_that_is_charged_and_not_the_catalogues() -> None:
    prices = PRICES | {GPT: 1}
    assert ids(ask("auto"), prices=prices)[0] == GPT


def test_auto_keeps_to_its_candidates() -> None:
    among = (GPT, ULTRA, FLUX)
    assert ids(ask("auto", auto_candidates=among)) == [FLUX, ULTRA, GPT]


def test_fastest_goes_by_history_and_puts_who_has_none_last_by_price() -> None:
    among = (GPT, ULTRA, FLUX, IMAGEN)
    request = ask("auto", auto_candidates=among, strategy="fastest")
    assert ids(request, latencies={GPT: 3.0, IMAGEN: 5.0}) == [GPT, IMAGEN, FLUX, ULTRA]
    # Without any history it is the cheapest.
    assert ids(request)[-2:] == [ULTRA, GPT]


def test_balanced_weighs_cost_and_latency_six_to_four() -> None:
    among = (GPT, ULTRA, FLUX)
    request = ask("auto", auto_candidates=among, strategy="balanced")
    prices = {GPT: 100, ULTRA: 50, FLUX: 40}
    # 0.6·1.0 + 0.4·0.1 = 0.64;  0.6·0.5 + 0.4·0.5 = 0.50;  0.6·0.4 + 0.4·1.0 = 0.64
    assert ids(request, prices=prices, latencies={GPT: 1, ULTRA: 5, FLUX: 10})[0] == ULTRA
    # 0.64;  0.30 + 0.36 = 0.66;  0.24 + 0.4 = 0.64, and of equals the cheaper
    assert ids(request, prices=prices, latencies={GPT: 1, ULTRA: 9, FLUX: 10})[2] == ULTRA
    assert ids(request, prices=prices) == [FLUX, ULTRA, GPT]


def test_an_alias_draws_for_another_id_and_says_so(settings: Settings) -> None:
    settings.MODEL_ALIASES = {DALLE: GPT}
    (candidate,), _ = route(ask(DALLE))
    assert candidate.model.id == GPT
    assert [(one.param, one.asked, one.used) for one in candidate.adjusted] == [
        ("model", DALLE, GPT)
    ]
    with pytest.raises(ModelUnfit, match="strict"):
        route(ask(DALLE, strict=True))


def test_a_retired_model_names_its_successor(settings: Settings) -> None:
    assert ids(ask(DALLE)) == [DALLE]
    settings.RETIRE_SWITCHED_OFF = True
    successor = CATALOG[DALLE].successor
    with pytest.raises(ModelNotFound, match=f"retired on 2026-05-12. Use {successor} instead"):
        route(ask(DALLE))
    assert DALLE not in ids(ask("auto"))


# --- Who does not -----------------------------------------------------------------------------


def test_what_a_key_may_not_use_is_refused_alone_and_skipped_in_a_list() -> None:
    with pytest.raises(ModelBlocked, match=f"cannot use {GPT}"):
        route(ask(GPT), allowed=[FLUX])
    candidates, skipped = route(ask(GPT, FLUX), allowed=[FLUX])
    assert [one.model.id for one in candidates] == [FLUX]
    assert skipped == [Skipped(GPT, f"This API key cannot use {GPT}.")]
    with pytest.raises(ModelBlocked):
        route(ask(FLUX), allowed=[])


def test_an_alias_is_no_way_around_a_keys_policy(settings: Settings) -> None:
    settings.MODEL_ALIASES = {FLUX: GPT}
    with pytest.raises(ModelBlocked):
        route(ask(FLUX), allowed=[FLUX])


def test_a_provider_that_is_off_is_an_outage_alone_and_skipped_in_a_list() -> None:
    off = {GPT: "its provider is not configured"}
    with pytest.raises(ModelOff, match=f"{GPT} is unavailable now: {off[GPT]}"):
        route(ask(GPT), off=off)
    candidates, skipped = route(ask(GPT, FLUX), off=off)
    assert [one.model.id for one in candidates] == [FLUX]
    assert skipped == [Skipped(GPT, off[GPT])]


def test_a_list_without_anybody_left_says_why_of_each() -> None:
    with pytest.raises(NoCandidate) as caught:
        route(ask(GPT, FLUX, size="1x1"))
    assert [one.model for one in caught.value.skipped] == [GPT, FLUX]
    assert caught.value.off is False
    with pytest.raises(NoCandidate) as caught:
        route(ask(GPT, FLUX), allowed=[FLUX], off={FLUX: "failing"})
    assert caught.value.off is True
    assert str(caught.value) == f"This API key cannot use {GPT}. {FLUX}: failing."


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "1x1"}, "size"),
        ({"max_cost_micro": 10_000}, "max_cost"),
        ({"prompt": "x" * 1001, "max_cost_micro": 50_000}, "model"),
    ],
)
def test_the_field_at_fault_is_the_one_that_all_share(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(NoCandidate) as caught:
        route(ask(GPT, RECRAFT, **fields))
    assert caught.value.param == param


def test_early_views_of_a_model_without_them_are_adjusted() -> None:
    (candidate,), _ = route(ask(DALLE, stream=True, partial_images=2))
    assert candidate.adjusted == (
        Adjustment("partial_images", 2, None, f"{DALLE} has no partial images."),
    )
    (candidate,), _ = route(ask(GPT, stream=True, partial_images=2, strict=True))
    assert candidate.adjusted == ()
    (candidate,), _ = route(ask(DALLE, stream=True, partial_images=0, strict=True))
    assert candidate.adjusted == ()


UNFIT: list[tuple[str, dict[str, Any], str, str]] = [
    (GPT, {"size": "512x512"}, "size", "Allowed: auto, 1024x1024, 1536x1024, 1024x1536"),
    (RECRAFT, {"prompt": "x" * 1001}, "prompt", "takes at most 1000"),
    (
        GPT,
        {"n": 4, "max_cost_micro": 759_999},
        "max_cost",
        f"4 images of {GPT} cost 0.76 USD, more than max_cost 0.759999.",
    ),
    (
        FLUX,
        {"max_cost_micro": 10_000},
        "max_cost",
        f"1 image of {FLUX} costs 0.04 USD, more than max_cost 0.01.",
    ),
    (
        GPT,
        {"background": "transparent", "output_format": "jpeg"},
        "background",
        "png or webp",
    ),
    (DALLE, {"stream": True, "partial_images": 2, "strict": True}, "partial_images", "no partial"),
    (DALLE, {"seed": 7, "strict": True}, "seed", "strict: openai/dall-e-3 does not support seed"),
    (FLUX, {"quality": "hd", "strict": True}, "quality", "strict: "),
]


@pytest.mark.parametrize(("model", "fields", "param", "why"), UNFIT)
def test_what_a_model_cannot_do_is_refused_alone_and_skipped_in_a_list(
    model: str, fields: dict[str, Any], param: str, why: str
) -> None:
    with pytest.raises(ModelUnfit, match=re.escape(why)) as caught:
        route(ask(model, **fields))
    assert caught.value.param == param
    with pytest.raises(NoCandidate) as none:
        route(ask(model, listed=True, **fields))
    (skipped,) = none.value.skipped
    assert (skipped.model, why in skipped.reason) == (model, True)


def test_max_cost_is_for_the_whole_request_and_included() -> None:
    assert ids(ask(GPT, n=4, max_cost_micro=760_000)) == [GPT]
    order = ids(ask(GPT, FLUX, n=4, max_cost_micro=160_000))
    assert order == [FLUX]


# --- What differs from what was asked ---------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fields", "found"),
    [
        (GPT, {}, []),
        (GPT, {"size": "auto", "quality": "auto"}, []),
        (GPT, {"size": "1024x1536", "quality": "hd", "moderation": "low"}, []),
        (GPT, {"size": "1792x1024"}, [("size", "1792x1024", "1536x1024")]),
        (GPT, {"quality": "high", "background": "transparent"}, []),
        (GPT, {"seed": 7}, [("seed", 7, None)]),
        (GPT, {"seed": 0}, [("seed", 0, None)]),
        (GPT, {"style": "vivid"}, [("style", "vivid", None)]),
        (GPT, {"output_compression": 50}, [("output_compression", 50, None)]),
        (
            GPT,
            {"output_compression": 50, "output_format": "png"},
            [("output_compression", 50, None)],
        ),
        (GPT, {"output_compression": 50, "output_format": "webp"}, []),
        (DALLE, {"quality": "standard"}, []),
        (DALLE, {"quality": "hd", "style": "vivid"}, []),
        (DALLE, {"quality": "low"}, [("quality", "low", "standard")]),
        (DALLE, {"background": "opaque"}, []),
        (DALLE, {"background": "transparent"}, [("background", "transparent", None)]),
        (DALLE, {"moderation": "auto"}, []),
        (DALLE, {"moderation": "low"}, [("moderation", "low", None)]),
        (DALLE, {"output_format": "webp"}, []),
        (IMAGEN, {"quality": "medium"}, [("quality", "medium", "1K")]),
        (FLUX, {"quality": "standard", "seed": 7, "moderation": "low"}, []),
        (FLUX, {"quality": "auto"}, []),
        (FLUX, {"quality": "hd"}, [("quality", "hd", None)]),
        ("xai/grok-imagine-image-2.0", {"quality": "low"}, []),
        ("xai/grok-imagine-image-2.0", {"quality": "high"}, [("quality", "high", "medium")]),
    ],
)
def test_what_is_not_drawn_as_asked_is_told(
    model: str, fields: dict[str, Any], found: list[tuple[str, Any, Any]]
) -> None:
    assert adjusted(model, **fields) == found
    strict = ask(model, strict=True, **fields)
    if found:
        with pytest.raises(ModelUnfit) as caught:
            route(strict)
        assert caught.value.param == found[0][0]
    else:
        assert ids(strict) == [model]


def test_an_adjustment_says_why() -> None:
    (candidate,), _ = route(ask(GPT, seed=7))
    assert candidate.adjusted == (
        Adjustment("seed", 7, None, "openai/gpt-image-1 does not support seed."),
    )


# --- What the provider is asked ---------------------------------------------------------------


def test_a_bare_request_asks_for_the_models_default() -> None:
    assert sent(GPT) == ImageRequest(
        model=GPT,
        upstream_id="gpt-image-1",
        prompt="a red kite",
        deadline=99.0,
        per_call=8,
        size="1024x1024",
        caller="acme",
    )


@pytest.mark.parametrize("model", CATALOG)
def test_leaving_the_quality_out_asks_for_auto_as_the_price_covers_it(model: str) -> None:
    auto, bare = sent(model, quality="auto"), sent(model)
    # What is the provider's own default need not be sent.
    assert replace(bare, quality=bare.quality or auto.quality) == auto
    assert bare.quality == (None if auto.quality == "auto" else auto.quality)


def test_each_provider_is_asked_only_for_what_it_can() -> None:
    everything: dict[str, Any] = {
        "n": 3,
        "quality": "hd",
        "style": "vivid",
        "output_format": "webp",
        "output_compression": 50,
        "background": "transparent",
        "moderation": "low",
        "seed": 7,
        "user": "alice",
        "partial_images": 2,
    }
    gpt, dalle, flux = (sent(model, **everything) for model in (GPT, DALLE, FLUX))
    assert (gpt.quality, dalle.quality, flux.quality) == ("high", "hd", None)
    assert (gpt.style, dalle.style, flux.style) == (None, "vivid", None)
    # What its provider cannot compress is drawn without a loss, and compressed here.
    assert (gpt.output_format, dalle.output_format, flux.output_format) == ("webp", None, "png")
    assert (gpt.background, dalle.background, flux.background) == ("transparent", None, None)
    assert (gpt.moderation, dalle.moderation, flux.moderation) == ("low", None, "low")
    assert (gpt.seed, dalle.seed, flux.seed) == (None, None, 7)
    assert (gpt.partial_images, dalle.partial_images, flux.partial_images) == (2, 0, 0)
    assert {one.output_compression for one in (gpt, dalle, flux)} == {50}
    # Early views come of one picture a call, so only who sends none is asked for several.
    assert [(one.n, one.per_call) for one in (gpt, dalle, flux)] == [(3, 1), (3, 1), (3, 4)]
    assert sent(GPT, n=3).per_call == 8


def test_the_quality_that_auto_means_here_is_sent_when_none_is_asked_for() -> None:
    """The provider's own choice may cost more than the price."""
    assert sent("openai/gpt-image-2.5-sunburst").quality == "medium"
    assert sent("xai/grok-imagine-image-2.0").quality == "medium"
    assert sent("openai/gpt-image-2").quality is None


def test_a_transparent_background_is_asked_of_those_that_have_it() -> None:
    for model, background in [
        (GPT, "transparent"),
        ("openai/gpt-image-2.5-sunburst", "transparent"),
        ("openai/gpt-image-2", None),
    ]:
        assert sent(model, background="transparent").background == background


def test_the_size_and_quality_sent_are_those_drawn() -> None:
    assert sent(GPT, size="1792x1024").size == "1536x1024"
    assert sent(ULTRA, size="auto").size == "2048x2048"
    assert sent(IMAGEN, quality="hd").quality == "2K"


def test_an_end_users_name_means_nothing_outside() -> None:
    name = sent(GPT, user="alice@acme.test").user
    assert name is not None
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert name == sent(FLUX, user="alice@acme.test").user
    assert name != sent(GPT, user="bob@acme.test").user
    assert sent(GPT).user is None


def test_an_ignored_compression_is_not_sent() -> None:
    assert sent(GPT, output_compression=50, output_format="png").output_compression is None


def test_the_sandbox_draws_all_in_one_call_in_any_format_from_any_seed() -> None:
    request = sent(DALLE, sandbox=True, n=8, seed=7, output_format="webp")
    assert (request.per_call, request.seed, request.output_format) == (8, 7, "webp")
    assert sent(DALLE, sandbox=False, n=8, seed=7, output_format="webp").seed is None
