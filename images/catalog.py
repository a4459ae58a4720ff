"""Which models there are, what they can do, where they go and what they cost: rows of data.

Prices are what a customer pays per delivered image. Sizes, qualities and limits are the
providers' own, from their documentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from enum import StrEnum

from django.utils.translation import gettext_noop

from geekhub.lib import money

OWNERS = {"openai": "OpenAI", "google": "Google", "xai": "xAI", "fal": "fal.ai"}
MAX_N = 8
MAX_PROMPT = 4000
# The most pictures an edit may start from.
MAX_INPUTS = 16


class Status(StrEnum):
    """Where a model is in its life."""

    LIVE = "live"
    RETIRING = "retiring"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModel:
    """One row of the catalogue.

    `sizes` maps each size a request may name to the size drawn for it, both `WIDTHxHEIGHT` in
    pixels; the first is the default. `qualities` maps what a request may say to the provider's
    word for it; empty means the model has none. `formats` are those the provider can be asked
    for; empty means it decides. `compresses` are those whose `output_compression` it can be told;
    in the others it is done here. `per_call` is the most pictures one upstream call returns,
    `edits` the most an edit may start from: none means that the model cannot edit. `masks` and
    `fidelity` tell whether an edit may have a mask and an `input_fidelity`; with `keeps_shape` it
    has the shape of the picture it starts from, whatever size is asked for.
    With `pinned`, the quality that `auto` means here is sent when none was asked for, since the
    provider's own may cost more than the price.
    `good_for` is English, as the API says it; a page translates it.
    `cost_micro` is what the provider is known to charge us for a picture at the default size and at
    the quality that `auto` means here, the dearest where the provider itself decides; None: it is
    not known. Customers are not told. `costs_micro` is the most one may cost by the
    provider's word for a quality, where that differs; `input_micro` is what each picture that an
    edit starts from adds.
    `shutdown_date` is when we stop serving the model, `upstream_off` when its provider is known to
    have switched it off, `successor` the id to use instead.
    """

    id: str
    provider: str
    upstream_id: str
    name: str
    good_for: str
    price_micro: int
    p50_seconds: int
    p95_seconds: int
    created: date
    sizes: Mapping[str, str]
    per_call: int = 1
    max_prompt: int = MAX_PROMPT
    qualities: Mapping[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    compresses: tuple[str, ...] = ()
    seed: bool = False
    style: bool = False
    transparent: bool = False
    moderation: bool = False
    partial_images: bool = False
    edits: int = 0
    masks: bool = False
    fidelity: bool = False
    keeps_shape: bool = False
    pinned: bool = False
    cost_micro: int | None = None
    costs_micro: Mapping[str, int] = field(default_factory=dict)
    input_micro: int = 0
    status: Status = Status.LIVE
    shutdown_date: date | None = None
    upstream_off: date | None = None
    successor: str | None = None

    @property
    def default_size(self) -> str:
        """Return the size drawn when a request names none."""
        return next(iter(self.sizes.values()))

    def most_inputs(self, quality: str | None, price_micro: int) -> int:
        """Return from how many pictures an edit may start without costing us more than its price.

        `quality` is what was asked for, `price_micro` what the delivered picture is sold at.
        """
        word = self.qualities.get(quality or "auto", "")
        cost = self.costs_micro.get(word, self.cost_micro or 0)
        if not self.input_micro:
            return self.edits
        return max(0, min(self.edits, (price_micro - cost) // self.input_micro))

    @property
    def created_timestamp(self) -> int:
        """Return when the model appeared, in Unix seconds."""
        return int(datetime.combine(self.created, time(), UTC).timestamp())


def _as_they_are(*sizes: str) -> dict[str, str]:
    return {size: size for size in sizes}


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


GPT_SIZES = _as_they_are("1024x1024", "1536x1024", "1024x1536") | {
    "1792x1024": "1536x1024",
    "1024x1792": "1024x1536",
}
DALLE_SIZES = _as_they_are("1024x1024", "1792x1024", "1024x1792") | {
    "1536x1024": "1792x1024",
    "1024x1536": "1024x1792",
}
# fmt: off
# Imagen's five shapes at 1K, and at 2K, which costs the same.
IMAGEN_SIZES = _as_they_are(
    "1024x1024", "896x1280", "1280x896", "768x1408", "1408x768",
    "2048x2048", "1792x2560", "2560x1792", "1536x2816", "2816x1536",
) | {
    "1536x1024": "1280x896", "1024x1536": "896x1280",
    "1792x1024": "1408x768", "1024x1792": "768x1408",
}
GEMINI_SIZES = _as_they_are(
    "1024x1024", "848x1264", "1264x848", "896x1200", "1200x896", "928x1152", "1152x928",
    "768x1376", "1376x768", "1584x672",
) | {
    "1536x1024": "1264x848", "1024x1536": "848x1264",
    "1792x1024": "1376x768", "1024x1792": "768x1376",
}
GROK_2_SIZES = {
    "1024x768": "1024x768", "1024x1024": "1024x768", "1536x1024": "1024x768",
    "1792x1024": "1024x768", "1024x1536": "1024x768", "1024x1792": "1024x768",
}
# The pixels of a ratio are not published; what is delivered is read from the picture.
GROK_SIZES = _as_they_are(
    "1024x1024", "1360x768", "768x1360", "1248x832", "832x1248", "1184x880", "880x1184",
) | {
    "1536x1024": "1248x832", "1024x1536": "832x1248",
    "1792x1024": "1360x768", "1024x1792": "768x1360",
}
# Billed by the megapixel, rounded up: none but the square is above one.
FLUX_SIZES = _as_they_are(
    "1024x1024", "768x1024", "1024x768", "576x1024", "1024x576", "1152x768", "768x1152",
    "1280x736", "736x1280",
) | {
    "1536x1024": "1152x768", "1024x1536": "768x1152",
    "1792x1024": "1280x736", "1024x1792": "736x1280",
}
# The pixels of a ratio are not published; what is delivered is read from the picture.
ULTRA_SIZES = _as_they_are(
    "2048x2048", "2720x1536", "1536x2720", "2496x1664", "1664x2496", "2368x1760", "1760x2368",
    "3136x1344", "1344x3136",
) | {
    "1024x1024": "2048x2048",
    "1536x1024": "2496x1664", "1024x1536": "1664x2496",
    "1792x1024": "2720x1536", "1024x1792": "1536x2720",
}
RECRAFT_SIZES = _as_they_are(
    "1024x1024", "1365x1024", "1024x1365", "1536x1024", "1024x1536", "1792x1024", "1024x1792",
)
IDEOGRAM_SIZES = _as_they_are(
    "1024x1024", "1376x768", "768x1376", "1248x832", "832x1248", "1184x896", "896x1184",
) | {
    "1536x1024": "1248x832", "1024x1536": "832x1248",
    "1792x1024": "1376x768", "1024x1792": "768x1376",
}

_ROWS = [
    ImageModel(
        id="openai/gpt-image-1", provider="openai", upstream_id="gpt-image-1",
        name="GPT Image 1", good_for=gettext_noop("newest, high quality"),
        # OpenAI's guide, 1024x1024 high: `auto` may be that; medium is 0.042.
        cost_micro=_usd("0.167"),
        price_micro=_usd("0.19"), p50_seconds=15, p95_seconds=45, created=date(2025, 4, 23),
        sizes=GPT_SIZES, per_call=8, qualities=GPT_QUALITIES, formats=("png", "jpeg", "webp"),
        compresses=("jpeg", "webp"),
        transparent=True, moderation=True, partial_images=True,
        edits=MAX_INPUTS, masks=True, fidelity=True,
        upstream_off=date(2026, 10, 23), successor="openai/gpt-image-2.5-sunburst",
    ),
    ImageModel(
        id="openai/dall-e-3", provider="openai", upstream_id="dall-e-3",
        name="DALL·E 3", good_for=gettext_noop("classic"),
        # OpenAI's page of the model, 1024x1024 standard; hd is 0.08.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"), p50_seconds=8, p95_seconds=20, created=date(2023, 11, 6),
        sizes=DALLE_SIZES, qualities=DALLE_QUALITIES, style=True,
        upstream_off=date(2026, 5, 12), successor="openai/gpt-image-2.5-sunburst",
    ),
    ImageModel(
        id="google/imagen-4", provider="google", upstream_id="imagen-4.0-generate-001",
        name="Imagen 4", good_for=gettext_noop("text in the image"),
        # Google's price list.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"), p50_seconds=6, p95_seconds=18, created=date(2025, 5, 20),
        sizes=IMAGEN_SIZES, per_call=4, qualities=TIERS, formats=("png", "jpeg"),
        compresses=("jpeg",),
        upstream_off=date(2026, 8, 17), successor="google/gemini-nano-banana-2.1",
    ),
    ImageModel(
        id="xai/grok-2-image", provider="xai", upstream_id="grok-2-image",
        name="Grok 2 Image", good_for=gettext_noop("photorealism"),
        # xAI's price list while it was served.
        cost_micro=_usd("0.07"),
        price_micro=_usd("0.07"), p50_seconds=10, p95_seconds=30, created=date(2025, 3, 19),
        sizes=GROK_2_SIZES, per_call=8,
        upstream_off=date(2026, 2, 24), successor="xai/grok-imagine-image",
    ),
    ImageModel(
        id="fal/flux-1.1-pro", provider="fal", upstream_id="fal-ai/flux-pro/v1.1",
        name="FLUX 1.1 [pro]", good_for=gettext_noop("best open-weight"),
        # Quoted from fal.ai: by the megapixel. Whether a square counts as two is not known.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"), p50_seconds=7, p95_seconds=25, created=date(2024, 10, 2),
        sizes=FLUX_SIZES, per_call=4, formats=("png", "jpeg"), seed=True, moderation=True,
    ),
    ImageModel(
        id="fal/flux-1.1-pro-ultra", provider="fal", upstream_id="fal-ai/flux-pro/v1.1-ultra",
        name="FLUX 1.1 [pro] ultra", good_for=gettext_noop("Flux 4K"),
        # Quoted from fal.ai: by the picture.
        cost_micro=_usd("0.06"),
        price_micro=_usd("0.06"), p50_seconds=12, p95_seconds=40, created=date(2024, 11, 6),
        sizes=ULTRA_SIZES, per_call=4, formats=("png", "jpeg"), seed=True, style=True,
        moderation=True,
    ),
    ImageModel(
        id="fal/recraft-v3", provider="fal", upstream_id="fal-ai/recraft/v3/text-to-image",
        name="Recraft V3", good_for=gettext_noop("typography, brand style"),
        # Quoted from fal.ai: by the picture; vector styles are 0.08.
        cost_micro=_usd("0.04"),
        price_micro=_usd("0.04"), p50_seconds=8, p95_seconds=28, created=date(2024, 10, 30),
        # The length is not settled by the documentation; this is the cautious reading.
        sizes=RECRAFT_SIZES, max_prompt=1000, style=True,
    ),
    ImageModel(
        id="fal/ideogram-v2", provider="fal", upstream_id="fal-ai/ideogram/v2",
        name="Ideogram V2", good_for=gettext_noop("professional typography"),
        # Quoted from fal.ai: by the picture.
        cost_micro=_usd("0.08"),
        price_micro=_usd("0.08"), p50_seconds=12, p95_seconds=35, created=date(2024, 8, 21),
        sizes=IDEOGRAM_SIZES, seed=True, style=True,
    ),
    ImageModel(
        id="fal/sd-3.5-large", provider="fal", upstream_id="fal-ai/stable-diffusion-v35-large",
        name="Stable Diffusion 3.5 Large", good_for=gettext_noop("Stable Diffusion 3.5"),
        # Quoted from fal.ai: by the megapixel, as above.
        cost_micro=_usd("0.065"),
        price_micro=_usd("0.065"), p50_seconds=10, p95_seconds=30, created=date(2024, 10, 22),
        sizes=FLUX_SIZES, per_call=4, qualities=STEPS, formats=("png", "jpeg"), seed=True,
    ),
    # Prices of the following cover the dearest quality and size that the row allows.
    ImageModel(
        id="openai/gpt-image-2", provider="openai", upstream_id="gpt-image-2",
        name="GPT Image 2", good_for=gettext_noop("highest quality"),
        # OpenAI's guide, 1024x1024 high: `auto` may be that; medium is 0.053.
        cost_micro=_usd("0.211"),
        costs_micro=_gpt_costs("0.006", "0.053", "0.211"), input_micro=GPT_INPUT,
        price_micro=_usd("0.25"), p50_seconds=20, p95_seconds=60, created=date(2026, 4, 21),
        sizes=GPT_SIZES, per_call=8, qualities=GPT_QUALITIES, formats=("png", "jpeg", "webp"),
        compresses=("jpeg", "webp"),
        moderation=True, partial_images=True, edits=MAX_INPUTS, masks=True,
    ),
    ImageModel(
        id="openai/gpt-image-2.5-sunburst", provider="openai",
        upstream_id="gpt-image-2.5-sunburst",
        name="GPT Image 2.5 Sunburst", good_for=gettext_noop("quality at a low price"),
        # litellm's price table, 1024x1024 medium, to which `auto` is pinned; high is 0.053.
        cost_micro=_usd("0.013"),
        costs_micro=_gpt_costs("0.006", "0.013", "0.053"), input_micro=GPT_INPUT,
        price_micro=_usd("0.10"), p50_seconds=12, p95_seconds=40, created=date(2026, 9, 8),
        sizes=GPT_SIZES, per_call=8, qualities=PINNED_QUALITIES, formats=("png", "jpeg", "webp"),
        compresses=("jpeg", "webp"), pinned=True,
        # Of gpt-image-2 it is a preview still (OpenAI's reference, 2026-11-28).
        transparent=True, moderation=True, partial_images=True, edits=MAX_INPUTS, masks=True,
    ),
    ImageModel(
        id="google/gemini-nano-banana-2.1", provider="google",
        upstream_id="gemini-nano-banana-2.1",
        name="Nano Banana 2.1", good_for=gettext_noop("text in the image"),
        # litellm's price table, at 1K.
        cost_micro=_usd("0.0336"),
        price_micro=_usd("0.05"), p50_seconds=15, p95_seconds=40, created=date(2026, 10, 7),
        sizes=GEMINI_SIZES, seed=True,
    ),
    ImageModel(
        id="google/gemini-3-pro-image", provider="google", upstream_id="gemini-3-pro-image",
        name="Gemini 3 Pro Image", good_for=gettext_noop("complex scenes, 2K"),
        # litellm's price table, the same at 1K and 2K.
        cost_micro=_usd("0.134"),
        price_micro=_usd("0.16"), p50_seconds=20, p95_seconds=50, created=date(2025, 11, 20),
        sizes=GEMINI_SIZES | _as_they_are("2048x2048", "2752x1536", "1536x2752"),
        qualities=TIERS, seed=True,
    ),
    ImageModel(
        id="xai/grok-imagine-image", provider="xai", upstream_id="grok-imagine-image",
        name="Grok Imagine", good_for=gettext_noop("photorealism"),
        # xAI's price list; the input from Runware's schema, read 2026-11-28.
        cost_micro=_usd("0.02"), input_micro=_usd("0.002"),
        price_micro=_usd("0.025"), p50_seconds=9, p95_seconds=25, created=date(2026, 1, 28),
        sizes=GROK_SIZES, per_call=8, edits=1, keeps_shape=True,
    ),
    ImageModel(
        id="xai/grok-imagine-image-2.0", provider="xai", upstream_id="grok-imagine-image-2.0",
        name="Grok Imagine 2.0", good_for=gettext_noop("photorealism, fine detail"),
        # litellm's price table, medium at 1K, to which `auto` is pinned; low is 0.04. The input
        # from pages that cite docs.x.ai of 2026-10-13.
        cost_micro=_usd("0.06"), costs_micro={"low": _usd("0.04")}, input_micro=_usd("0.01"),
        price_micro=_usd("0.08"), p50_seconds=9, p95_seconds=25, created=date(2026, 8, 13),
        sizes=GROK_SIZES, per_call=8, qualities=GROK_QUALITIES, edits=1,
        keeps_shape=True, pinned=True,
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
