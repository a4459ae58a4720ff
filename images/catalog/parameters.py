"""The parameters of a request body: one table.

From a row come the API's check of the field, what `adjusted` and `strict` say, what a provider is
asked, `supports` in `/v1/models`, the code samples, docs/api.md and the OpenAPI document. A row
whose value is drawn has a field of the same name in `Drawing`.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from typing import Any

from rest_framework import serializers

from accounts.models import MAX_TAG, MAX_TAGS
from images.catalog.fields import (
    MAX_MODELS,
    Boolean,
    Choice,
    Integer,
    Models,
    Routing,
    Text,
    Texts,
    Usd,
)
from images.catalog.model import MAX_N, MAX_PROMPT, ImageModel
from images.providers.base import Drawing
from images.providers.ratios import edges, nearest

AUTO = "auto"
MAX_SEED = 2**31 - 1
LEVELS = ("low", "medium", "high")
QUALITIES = (AUTO, "standard", "hd", *LEVELS)


class Endpoint(StrEnum):
    """Where a request body is sent."""

    GENERATIONS = "POST /v1/images/generations"
    EDITS = "POST /v1/images/edits"


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A parameter that is not drawn as asked."""

    param: str
    asked: Any
    used: Any
    why: str


# What is drawn in a value's place, and why; None: it is drawn as asked.
type Difference = tuple[Any, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One field of a request body.

    `field` makes the API's check of it; `about` and `default` are its cells in docs/api.md. `only`
    is the endpoint that has it (None: both), and `openai` whether OpenAI's own SDKs know it.
    `neutral` values ask for the same as leaving it out; every model draws the `free` ones.
    A model that does not take it is not sent it, and `adjusted` says what it `lacks`; a row that
    says nothing there is for every model. `supports` is the capability's name in `/v1/models`, if
    not the parameter's own. `differs` and `sends` are for values that change on the way: what is
    drawn in a value's place and why, and what the provider is asked.
    """

    name: str
    field: Callable[..., serializers.Field[Any, Any, Any, Any]]
    about: str
    default: str = "none"
    only: Endpoint | None = None
    openai: bool = True
    neutral: tuple[Any, ...] = ()
    free: tuple[Any, ...] = ()
    takes: Callable[[ImageModel], bool] = lambda model: True
    lacks: str = ""
    supports: str = ""
    differs: Callable[[Drawing, ImageModel], Difference] | None = None
    sends: Callable[[Drawing, ImageModel], Any] | None = None

    @property
    def required(self) -> bool:
        """Return whether a body must have it."""
        return self.default == "required"

    def make(self) -> serializers.Field[Any, Any, Any, Any]:
        """Return a new field that checks it, and says what it is."""
        if self.required:
            return self.field(help_text=self.about)
        return self.field(required=False, help_text=f"{self.about}. Default: {self.default}")

    @property
    def capability(self) -> str:
        """Return what `supports` calls it."""
        return self.supports or self.name

    def adjusted(self, asked: Drawing, model: ImageModel) -> Adjustment | None:
        """Return what differs when this model draws."""
        value = getattr(asked, self.name)
        if value is None or value in self.neutral or value in self.free:
            return None
        difference = None
        if self.differs is not None:
            difference = self.differs(asked, model)
        elif not self.takes(model):
            difference = (None, self.lacks)
        if difference is None:
            return None
        used, why = difference
        return Adjustment(self.name, value, used, f"{model.id} {why}")

    def sent(self, asked: Drawing, model: ImageModel) -> Any:
        """Return what the model's provider is asked."""
        if self.sends is not None:
            return self.sends(asked, model)
        return getattr(asked, self.name) if self.takes(model) else UNASKED[self.name]


# --- Values that are changed on the way --------------------------------------------------------


def drawn_size(asked: Drawing, model: ImageModel) -> str:
    """Return the size that the model draws for what was asked."""
    size = _shape(asked, model)
    if asked.quality is not None and model.qualities.get(asked.quality) == "2K":
        # Google's upper tier is a size: both edges twice those of the lower one.
        width, height = edges(size)
        return size if max(width, height) >= 2048 else f"{2 * width}x{2 * height}"
    return size


def _shape(asked: Drawing, model: ImageModel) -> str:
    kept = model.keeps_shape and asked.images
    if asked.size not in (None, AUTO) and not kept:
        return model.sizes[asked.size]
    if not asked.images:
        return model.default_size
    # An edit keeps the shape of what it starts from, as far as the model has it.
    first = asked.images[0]
    ratios = {size.replace("x", ":"): size for size in model.sizes.values()}
    return ratios[nearest(f"{first.width}x{first.height}", ratios)]


def _other_size(asked: Drawing, model: ImageModel) -> Difference:
    drawn = drawn_size(asked, model)
    if drawn == asked.size:
        return None
    if model.keeps_shape and asked.images:
        return drawn, "keeps the shape of the input image."
    return drawn, f"generates {drawn} instead."


def _other_quality(asked: Drawing, model: ImageModel) -> Difference:
    word = model.qualities.get(asked.quality or AUTO)
    if word is None:
        return None, "has no quality setting."
    if asked.quality in LEVELS and word != asked.quality:
        return word, f"calls its nearest quality {word}."
    return None


def _upstream_quality(asked: Drawing, model: ImageModel) -> str | None:
    # Leaving it out asks for `auto`, which some rows pin: their price does not cover the dearest
    # quality, which the provider might choose. Where it is not pinned, less is sent.
    word = model.qualities.get(asked.quality or AUTO)
    return None if asked.quality is None and word == AUTO else word


def compressed_here(asked: Drawing, model: ImageModel) -> bool:
    """Return whether the provider has no way to be asked for the requested compression."""
    lossy = asked.output_compression is not None and asked.output_format in ("jpeg", "webp")
    return lossy and asked.output_format not in model.compresses


def _upstream_format(asked: Drawing, model: ImageModel) -> str | None:
    # What is compressed here is drawn without a loss before, where that can be asked for.
    output = "png" if compressed_here(asked, model) else asked.output_format
    return output if output in model.formats else None


def _lossless(asked: Drawing, model: ImageModel) -> Difference:
    if asked.output_format in ("jpeg", "webp"):
        return None
    return None, "returns a lossless image; set output_format to jpeg or webp."


def _upstream_compression(asked: Drawing, model: ImageModel) -> int | None:
    return None if _lossless(asked, model) else asked.output_compression


def _end_user(asked: Drawing, model: ImageModel) -> str | None:
    # Providers get a name that means nothing outside.
    return hashlib.sha256(asked.user.encode()).hexdigest()[:32] if asked.user else None


# --- The table ---------------------------------------------------------------------------------


def _words(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


_ROWS = [
    Parameter(
        name="model",
        field=Models,
        about=f"an id of the [catalogue](models.md), a list of 1 to {MAX_MODELS} different ids in "
        'order of preference, or `"auto"`; see [fallbacks.md](fallbacks.md)',
        default="required",
    ),
    Parameter(
        name="prompt",
        field=partial(Text, most=MAX_PROMPT),
        about=f"1 to {MAX_PROMPT} characters, fewer if the model accepts fewer",
        default="required",
    ),
    Parameter(
        name="n",
        field=partial(Integer, 1, MAX_N),
        about=f"1 to {MAX_N} images; each one delivered is charged",
        default="1",
        neutral=(1,),
    ),
    Parameter(
        name="size",
        field=partial(Text, most=20),
        about="`auto` or a `WIDTHxHEIGHT` listed for the model",
        default="the model's first size",
        neutral=(AUTO,),
        differs=_other_size,
        sends=drawn_size,
    ),
    Parameter(
        name="quality",
        field=partial(Choice, *QUALITIES),
        about=_words(QUALITIES),
        default="`auto`",
        neutral=(AUTO,),
        free=("standard",),
        differs=_other_quality,
        sends=_upstream_quality,
    ),
    Parameter(
        name="response_format",
        field=partial(Choice, "url", "b64_json"),
        about="`url` or `b64_json`; with the latter each image has its URL too",
        default="`url`",
    ),
    Parameter(
        name="output_format",
        field=partial(Choice, "png", "jpeg", "webp"),
        about="`png`, `jpeg`, `webp`; converted here if the provider cannot",
        default="what the provider sends",
        sends=_upstream_format,
    ),
    Parameter(
        name="output_compression",
        field=partial(Integer, 0, 100),
        about="0 to 100: the quality of a `jpeg` or `webp`",
        default="90 when converted here",
        differs=_lossless,
        sends=_upstream_compression,
    ),
    Parameter(
        name="background",
        field=partial(Choice, AUTO, "transparent", "opaque"),
        about="`auto`, `transparent`, `opaque`",
        default="the provider's",
        neutral=(AUTO,),
        free=("opaque",),
        takes=lambda model: model.transparent,
        lacks="supports opaque backgrounds only.",
        supports="transparent_background",
    ),
    Parameter(
        name="user",
        field=partial(Text, most=256),
        about="up to 256 characters identifying your end user; providers that accept it get a "
        "digest",
        sends=_end_user,
    ),
    Parameter(
        name="stream",
        field=Boolean,
        about="`true`: respond with [events](#streaming)",
        default="`false`",
    ),
    Parameter(
        name="partial_images",
        field=partial(Integer, 0, 3),
        about="0 to 3 partial images; needs `stream`",
        default="0",
        neutral=(0,),
        takes=lambda model: model.partial_images,
        lacks="has no partial images.",
    ),
    Parameter(
        name="routing",
        field=Routing,
        about="`strategy`, `candidates`, `on_refusal`; see [fallbacks.md](fallbacks.md)",
        openai=False,
    ),
    Parameter(
        name="strict",
        field=Boolean,
        about="`true`: anything that would be adjusted is a 400 instead",
        default="`false`",
        openai=False,
    ),
    Parameter(
        name="max_cost",
        field=Usd,
        about="an amount in USD: refuse if `n` images cost more",
        openai=False,
    ),
    Parameter(
        name="dry_run",
        field=Boolean,
        about="`true`: check and price only",
        default="`false`",
        openai=False,
    ),
    Parameter(
        name="tags",
        field=partial(Texts, least=0, most=MAX_TAGS, each=MAX_TAG),
        about=f"up to {MAX_TAGS} different strings of up to {MAX_TAG} characters, stored with "
        "the request after the key's own tags, without duplicates",
        openai=False,
    ),
    Parameter(
        name="style",
        field=partial(Choice, "vivid", "natural"),
        about="`vivid`, `natural`",
        default="the provider's",
        only=Endpoint.GENERATIONS,
        takes=lambda model: model.style,
        lacks="has no style setting.",
    ),
    Parameter(
        name="moderation",
        field=partial(Choice, AUTO, "low"),
        about="`auto`, `low`",
        default="`auto`",
        only=Endpoint.GENERATIONS,
        neutral=(AUTO,),
        takes=lambda model: model.moderation,
        lacks="has no moderation setting.",
    ),
    Parameter(
        name="seed",
        field=partial(Integer, 0, MAX_SEED),
        about=f"0 to {MAX_SEED}",
        only=Endpoint.GENERATIONS,
        openai=False,
        takes=lambda model: model.seed,
        lacks="does not support seed.",
    ),
    Parameter(
        name="input_fidelity",
        field=partial(Choice, "low", "high"),
        about="`low` or `high`; reported in `adjusted` if the model has no such setting",
        # "Defaults to low": the reference of OpenAI's image edits.
        default="`low`",
        only=Endpoint.EDITS,
        neutral=("low",),
        takes=lambda model: model.fidelity,
        lacks="has no input_fidelity setting.",
    ),
]
PARAMETERS: Mapping[str, Parameter] = {row.name: row for row in _ROWS}
# What a drawing has when it was not asked for.
UNASKED: Mapping[str, Any] = {one.name: one.default for one in fields(Drawing)}
# Those that reach a model.
DRAWN = [row for row in _ROWS if row.name in UNASKED]
# Those that a model may lack.
CAPABILITIES = [row for row in _ROWS if row.lacks]


def of(endpoint: Endpoint) -> list[Parameter]:
    """Return the parameters of an endpoint's body."""
    return [row for row in _ROWS if row.only in (None, endpoint)]


def adjustments(asked: Drawing, model: ImageModel) -> list[Adjustment]:
    """Return what differs from what was asked when this model draws."""
    return [one for row in DRAWN if (one := row.adjusted(asked, model)) is not None]


def sent(asked: Drawing, model: ImageModel) -> dict[str, Any]:
    """Return what the model's provider is asked, by parameter."""
    return {row.name: row.sent(asked, model) for row in DRAWN}


def supports(model: ImageModel) -> dict[str, bool]:
    """Return which capabilities the model has."""
    return {row.capability: row.takes(model) for row in CAPABILITIES}
