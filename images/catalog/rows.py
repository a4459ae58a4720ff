"""The models on sale, as rows of data.

Prices are what a customer pays per delivered image. Sizes, qualities and limits are the
providers' own, from their documentation.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date

from django.utils.translation import gettext_noop

from geekhub.lib import money
from images.catalog.model import MAX_INPUTS, ImageModel, Status
from images.catalog.sizes import (
    DALLE_SIZES,
    FLUX_SIZES,
    GEMINI_SIZES,
    GPT_SIZES,
    GROK_2_SIZES,
    GROK_SIZES,
    IDEOGRAM_SIZES,
    IMAGEN_SIZES,
    RECRAFT_SIZES,
    ULTRA_SIZES,
    as_they_are,
)


def _usd(price: str) -> int:
    return money.from_usd(price)


GPT_QUALITIES = {
    "standard": "medium",
    "hd": "high",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "auto": "auto",
}
# `auto` may choose the dearest quality; the price of these rows does not cover it.
PINNED_QUALITIES = GPT_QUALITIES | {"auto": "medium"}
DALLE_QUALITIES = {
    "standard": "standard",
    "hd": "hd",
    "low": "standard",
    "medium": "standard",
    "auto": "standard",
    "high": "hd",
}
TIERS = {"standard": "1K", "hd": "2K", "low": "1K", "medium": "1K", "auto": "1K", "high": "2K"}
STEPS = {"standard": "28", "hd": "40", "low": "20", "medium": "28", "high": "40", "auto": "28"}
GROK_QUALITIES = {
    "standard": "medium",
    "hd": "medium",
    "low": "low",
    "medium": "medium",
    "high": "medium",
    "auto": "medium",
}
# 3,050 tokens, fal's figure for a picture of 1024x1024, at 8 USD a million; an estimate. OpenAI
# always reads the pictures of gpt-image-2 and its successors at high fidelity.
GPT_INPUT = _usd("0.0244")
# The longest prompt (1,000 tokens at 5 USD a million) and three early views (100 each at 30).
GPT_EXTRA = _usd("0.014")


def _gpt_costs(low: str, medium: str, high: str) -> dict[str, int]:
    """Return the most a picture costs us by quality; `auto` may be the dearest."""
    costs = {"low": low, "medium": medium, "high": high, "auto": high}
    return {quality: _usd(cost) + GPT_EXTRA for quality, cost in costs.items()}


_ROWS = [
    ImageModel(
        id="openai/gpt-image-1",
        provider="openai",
        upstream_id="gpt-image-1",
        name="GPT Image 1",
        good_for=gettext_noop("newest, high quality"),
        # OpenAI's guide, 1024x1024 high: `auto` may be that; medium is 0.042.
        cost_micro=_usd("0.167"),
        price_micro=_usd("0.19"),
        p50_seconds=15,
        p95_seconds=45,
        created=date(2025, 4, 23),
        sizes=GPT_SIZES,
        per_call=8,
        qualities=GPT_QUALITIES,
        formats=("png", "jpeg", "webp"),
        compresses=("jpeg", "webp"),
        transparent=True,
        moderation=True,
        partial_images=True,
        edits=MAX_INPUTS,
        masks=True,
        fidelity=True,
        upstream_off=date(2026, 10, 23),
        successor="openai/gpt-image-2.5-sunburst",
    ),
    ImageModel(
        id="openai/dall-e-3",
        provider="openai",
        upstream_id="dall-e-3",
        name="DALL·E 3",
        good_for=gettext_noop("classic"),
        # OpenAI's page of the model, 1024x1024 standard; hd is 0.08.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"),
        p50_seconds=8,
        p95_seconds=20,
        created=date(2023, 11, 6),
        sizes=DALLE_SIZES,
        qualities=DALLE_QUALITIES,
        style=True,
        upstream_off=date(2026, 5, 12),
        successor="openai/gpt-image-2.5-sunburst",
    ),
    ImageModel(
        id="google/imagen-4",
        provider="google",
        upstream_id="imagen-4.0-generate-001",
        name="Imagen 4",
        good_for=gettext_noop("text in the image"),
        # Google's price list.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"),
        p50_seconds=6,
        p95_seconds=18,
        created=date(2025, 5, 20),
        sizes=IMAGEN_SIZES,
        per_call=4,
        qualities=TIERS,
        formats=("png", "jpeg"),
        compresses=("jpeg",),
        upstream_off=date(2026, 8, 17),
        successor="google/gemini-nano-banana-2.1",
    ),
    ImageModel(
        id="xai/grok-2-image",
        provider="xai",
        upstream_id="grok-2-image",
        name="Grok 2 Image",
        good_for=gettext_noop("photorealism"),
        # xAI's price list while it was served.
        cost_micro=_usd("0.07"),
        price_micro=_usd("0.07"),
        p50_seconds=10,
        p95_seconds=30,
        created=date(2025, 3, 19),
        sizes=GROK_2_SIZES,
        per_call=8,
        upstream_off=date(2026, 2, 24),
        successor="xai/grok-imagine-image",
    ),
    ImageModel(
        id="fal/flux-1.1-pro",
        provider="fal",
        upstream_id="fal-ai/flux-pro/v1.1",
        name="FLUX 1.1 [pro]",
        good_for=gettext_noop("best open-weight"),
        # Quoted from fal.ai: by the megapixel. Whether a square counts as two is not known.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"),
        p50_seconds=7,
        p95_seconds=25,
        created=date(2024, 10, 2),
        sizes=FLUX_SIZES,
        per_call=4,
        formats=("png", "jpeg"),
        seed=True,
        moderation=True,
    ),
    ImageModel(
        id="fal/flux-1.1-pro-ultra",
        provider="fal",
        upstream_id="fal-ai/flux-pro/v1.1-ultra",
        name="FLUX 1.1 [pro] ultra",
        good_for=gettext_noop("Flux 4K"),
        # Quoted from fal.ai: by the picture.
        cost_micro=_usd("0.06"),
        price_micro=_usd("0.06"),
        p50_seconds=12,
        p95_seconds=40,
        created=date(2024, 11, 6),
        sizes=ULTRA_SIZES,
        per_call=4,
        formats=("png", "jpeg"),
        seed=True,
        style=True,
        moderation=True,
    ),
    ImageModel(
        id="fal/recraft-v3",
        provider="fal",
        upstream_id="fal-ai/recraft/v3/text-to-image",
        name="Recraft V3",
        good_for=gettext_noop("typography, brand style"),
        # Quoted from fal.ai: by the picture; vector styles are 0.08.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"),
        p50_seconds=8,
        p95_seconds=28,
        created=date(2024, 10, 30),
        # The length is not settled by the documentation; this is the cautious reading.
        sizes=RECRAFT_SIZES,
        max_prompt=1000,
        style=True,
    ),
    ImageModel(
        id="fal/ideogram-v2",
        provider="fal",
        upstream_id="fal-ai/ideogram/v2",
        name="Ideogram V2",
        good_for=gettext_noop("professional typography"),
        # Quoted from fal.ai: by the picture.
        cost_micro=_usd("0.08"),
        price_micro=_usd("0.08"),
        p50_seconds=12,
        p95_seconds=35,
        created=date(2024, 8, 21),
        sizes=IDEOGRAM_SIZES,
        seed=True,
        style=True,
    ),
    ImageModel(
        id="fal/sd-3.5-large",
        provider="fal",
        upstream_id="fal-ai/stable-diffusion-v35-large",
        name="Stable Diffusion 3.5 Large",
        good_for=gettext_noop("Stable Diffusion 3.5"),
        # Quoted from fal.ai: by the megapixel, as above.
        cost_micro=_usd("0.065"),
        price_micro=_usd("0.065"),
        p50_seconds=10,
        p95_seconds=30,
        created=date(2024, 10, 22),
        sizes=FLUX_SIZES,
        per_call=4,
        qualities=STEPS,
        formats=("png", "jpeg"),
        seed=True,
    ),
    # Prices of the following cover the dearest quality and size that the row allows.
    ImageModel(
        id="openai/gpt-image-2",
        provider="openai",
        upstream_id="gpt-image-2",
        name="GPT Image 2",
        good_for=gettext_noop("highest quality"),
        # OpenAI's guide, 1024x1024 high: `auto` may be that; medium is 0.053.
        cost_micro=_usd("0.211"),
        costs_micro=_gpt_costs("0.006", "0.053", "0.211"),
        input_micro=GPT_INPUT,
        price_micro=_usd("0.25"),
        p50_seconds=20,
        p95_seconds=60,
        created=date(2026, 4, 21),
        sizes=GPT_SIZES,
        per_call=8,
        qualities=GPT_QUALITIES,
        formats=("png", "jpeg", "webp"),
        compresses=("jpeg", "webp"),
        moderation=True,
        partial_images=True,
        edits=MAX_INPUTS,
        masks=True,
    ),
    ImageModel(
        id="openai/gpt-image-2.5-sunburst",
        provider="openai",
        upstream_id="gpt-image-2.5-sunburst",
        name="GPT Image 2.5 Sunburst",
        good_for=gettext_noop("quality at a low price"),
        # litellm's price table, 1024x1024 medium, to which `auto` is pinned; high is 0.053.
        cost_micro=_usd("0.013"),
        costs_micro=_gpt_costs("0.006", "0.013", "0.053"),
        input_micro=GPT_INPUT,
        price_micro=_usd("0.10"),
        p50_seconds=12,
        p95_seconds=40,
        created=date(2026, 9, 8),
        sizes=GPT_SIZES,
        per_call=8,
        qualities=PINNED_QUALITIES,
        formats=("png", "jpeg", "webp"),
        compresses=("jpeg", "webp"),
        # Of gpt-image-2 it is a preview still (OpenAI's reference, 2026-11-28).
        transparent=True,
        moderation=True,
        partial_images=True,
        edits=MAX_INPUTS,
        masks=True,
    ),
    ImageModel(
        id="google/gemini-nano-banana-2.1",
        provider="google",
        upstream_id="gemini-nano-banana-2.1",
        name="Nano Banana 2.1",
        good_for=gettext_noop("text in the image"),
        # litellm's price table, at 1K.
        cost_micro=_usd("0.0336"),
        price_micro=_usd("0.05"),
        p50_seconds=15,
        p95_seconds=40,
        created=date(2026, 10, 7),
        sizes=GEMINI_SIZES,
        seed=True,
    ),
    ImageModel(
        id="google/gemini-3-pro-image",
        provider="google",
        upstream_id="gemini-3-pro-image",
        name="Gemini 3 Pro Image",
        good_for=gettext_noop("complex scenes, 2K"),
        # litellm's price table, the same at 1K and 2K.
        cost_micro=_usd("0.134"),
        price_micro=_usd("0.16"),
        p50_seconds=20,
        p95_seconds=50,
        created=date(2025, 11, 20),
        sizes=GEMINI_SIZES | as_they_are("2048x2048", "2752x1536", "1536x2752"),
        qualities=TIERS,
        seed=True,
    ),
    ImageModel(
        id="xai/grok-imagine-image",
        provider="xai",
        upstream_id="grok-imagine-image",
        name="Grok Imagine",
        good_for=gettext_noop("photorealism"),
        # xAI's price list; the input from Runware's schema, read 2026-11-28.
        cost_micro=_usd("0.02"),
        input_micro=_usd("0.002"),
        price_micro=_usd("0.025"),
        p50_seconds=9,
        p95_seconds=25,
        created=date(2026, 1, 28),
        sizes=GROK_SIZES,
        per_call=8,
        edits=1,
        keeps_shape=True,
    ),
    ImageModel(
        id="xai/grok-imagine-image-2.0",
        provider="xai",
        upstream_id="grok-imagine-image-2.0",
        name="Grok Imagine 2.0",
        good_for=gettext_noop("photorealism, fine detail"),
        # litellm's price table, medium at 1K, to which `auto` is pinned; low is 0.04. The input
        # from pages that cite docs.x.ai of 2026-10-13.
        cost_micro=_usd("0.06"),
        costs_micro={"low": _usd("0.04")},
        input_micro=_usd("0.01"),
        price_micro=_usd("0.08"),
        p50_seconds=9,
        p95_seconds=25,
        created=date(2026, 8, 13),
        sizes=GROK_SIZES,
        per_call=8,
        qualities=GROK_QUALITIES,
        edits=1,
        keeps_shape=True,
    ),
]
# fmt: on
CATALOG: Mapping[str, ImageModel] = {row.id: row for row in _ROWS}


def as_of(row: ImageModel, day: date, *, retire_switched_off: bool) -> ImageModel:
    """Return the row with the status it has on that day.

    With `retire_switched_off`, a model whose provider switched it off is retired from that day on;
    without, it is served, for an operator whose account or proxy still has it.
    """
    ends = row.shutdown_date or (row.upstream_off if retire_switched_off else None)
    if ends is None:
        return row
    status = Status.RETIRED if day >= ends else Status.RETIRING
    return replace(row, shutdown_date=ends, status=status)
