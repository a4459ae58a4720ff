"""Which models there are, what they can do, where they go and what they cost: rows of data.

Prices are what a customer pays per delivered image. Sizes, qualities and limits are the
providers' own, from their documentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from enum import StrEnum

from geekhub.lib import money

OWNERS = {"openai": "OpenAI", "google": "Google", "xai": "xAI", "fal": "fal.ai"}
MAX_N = 8
MAX_PROMPT = 4000


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
    for; empty means it decides. `per_call` is the most pictures one upstream call returns.
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
    seed: bool = False
    style: bool = False
    transparent: bool = False
    moderation: bool = False
    partial_images: bool = False
    status: Status = Status.LIVE
    shutdown_date: date | None = None
    successor: str | None = None

    @property
    def default_size(self) -> str:
        """Return the size drawn when a request names none."""
        return next(iter(self.sizes.values()))

    @property
    def created_timestamp(self) -> int:
        """Return when the model appeared, in Unix seconds."""
        return int(datetime.combine(self.created, time(), UTC).timestamp())


def _as_they_are(*sizes: str) -> Mapping[str, str]:
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
DALLE_QUALITIES = {
    "standard": "standard",
    "hd": "hd",
    "low": "standard",
    "medium": "standard",
    "auto": "standard",
    "high": "hd",
}

# fmt: off
_ROWS = [
    ImageModel(
        id="openai/gpt-image-1", provider="openai", upstream_id="gpt-image-1",
        name="GPT Image 1", good_for="newest, high quality",
        price_micro=_usd("0.19"), p50_seconds=15, p95_seconds=45, created=date(2025, 4, 23),
        sizes=_as_they_are("1024x1024", "1536x1024", "1024x1536"), per_call=8,
        qualities=GPT_QUALITIES, formats=("png", "jpeg", "webp"),
        transparent=True, moderation=True, partial_images=True,
    ),
    ImageModel(
        id="openai/dall-e-3", provider="openai", upstream_id="dall-e-3",
        name="DALL·E 3", good_for="classic",
        price_micro=_usd("0.04"), p50_seconds=8, p95_seconds=20, created=date(2023, 11, 6),
        sizes=_as_they_are("1024x1024", "1792x1024", "1024x1792"),
        qualities=DALLE_QUALITIES, style=True,
    ),
    ImageModel(
        id="google/imagen-4", provider="google", upstream_id="imagen-4.0-generate-001",
        name="Imagen 4", good_for="text in the image",
        price_micro=_usd("0.04"), p50_seconds=6, p95_seconds=18, created=date(2025, 5, 20),
        sizes=_as_they_are("1024x1024", "896x1280", "1280x896", "768x1408", "1408x768"),
        per_call=4, qualities={"standard": "1K", "hd": "2K", "low": "1K", "medium": "1K",
                               "auto": "1K", "high": "2K"},
        formats=("png", "jpeg"),
    ),
    ImageModel(
        id="xai/grok-2-image", provider="xai", upstream_id="grok-2-image",
        name="Grok 2 Image", good_for="photorealism",
        price_micro=_usd("0.07"), p50_seconds=10, p95_seconds=30, created=date(2025, 3, 19),
        sizes=_as_they_are("1024x768"), per_call=8,
    ),
    ImageModel(
        id="fal/flux-1.1-pro", provider="fal", upstream_id="fal-ai/flux-pro/v1.1",
        name="FLUX 1.1 [pro]", good_for="best open-weight",
        price_micro=_usd("0.04"), p50_seconds=7, p95_seconds=25, created=date(2024, 10, 2),
        sizes=_as_they_are("1024x1024", "768x1024", "1024x768", "576x1024", "1024x576"),
        per_call=4, formats=("png", "jpeg"), seed=True, moderation=True,
    ),
    ImageModel(
        id="fal/flux-1.1-pro-ultra", provider="fal", upstream_id="fal-ai/flux-pro/v1.1-ultra",
        name="FLUX 1.1 [pro] ultra", good_for="Flux 4K",
        price_micro=_usd("0.06"), p50_seconds=12, p95_seconds=40, created=date(2024, 11, 6),
        sizes=_as_they_are("2048x2048"), per_call=4, formats=("png", "jpeg"), seed=True,
        style=True, moderation=True,
    ),
    ImageModel(
        id="fal/recraft-v3", provider="fal", upstream_id="fal-ai/recraft/v3/text-to-image",
        name="Recraft V3", good_for="typography, brand style",
        price_micro=_usd("0.04"), p50_seconds=8, p95_seconds=28, created=date(2024, 10, 30),
        sizes=_as_they_are("1024x1024", "1365x1024", "1024x1365", "1536x1024", "1024x1536"),
        style=True,
    ),
    ImageModel(
        id="fal/ideogram-v2", provider="fal", upstream_id="fal-ai/ideogram/v2",
        name="Ideogram V2", good_for="professional typography",
        price_micro=_usd("0.08"), p50_seconds=12, p95_seconds=35, created=date(2024, 8, 21),
        sizes=_as_they_are("1024x1024"), seed=True, style=True,
    ),
    ImageModel(
        id="fal/sd-3.5-large", provider="fal", upstream_id="fal-ai/stable-diffusion-v35-large",
        name="Stable Diffusion 3.5 Large", good_for="Stable Diffusion 3.5",
        price_micro=_usd("0.065"), p50_seconds=10, p95_seconds=30, created=date(2024, 10, 22),
        sizes=_as_they_are("1024x1024", "768x1024", "1024x768", "576x1024", "1024x576"),
        per_call=4, formats=("png", "jpeg"), seed=True,
    ),
]
# fmt: on

CATALOG: Mapping[str, ImageModel] = {row.id: row for row in _ROWS}
