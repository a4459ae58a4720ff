"""One row of the catalogue: what a model can do, where it goes and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from enum import StrEnum

MAX_SEED = 2**31 - 1
MAX_N = 8
MAX_PROMPT = 4000
# The most pictures an edit may start from.
MAX_INPUTS = 16


class Status(StrEnum):
    """Where a model is in its life."""

    LIVE = "live"
    RETIRING = "retiring"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class PriceLine:
    """What images of a certain quality or size cost instead of their model's price, in micro-USD.

    `name` ends the sku: `openai/gpt-image-2:high`. `quality` is the provider's own word and `size`
    the one that is generated, None for any; `inputs` is the least number of input images.
    """

    name: str
    price_micro: int
    quality: str | None = None
    size: str | None = None
    inputs: int = 0


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
    `good_for` is English, as the API says it; a page translates it.
    `cost_micro` is what the provider is known to charge us for a picture at the default size and at
    the quality that `auto` means here, the dearest where the provider itself decides; None: it is
    not known. Customers are not told. `costs_micro` is the most one may cost by the
    provider's word for a quality, where that differs; `input_micro` is what each picture that an
    edit starts from adds.
    `lines` are prices for certain qualities, sizes and numbers of input images; the first that
    covers a request is its price, and `price_micro` where none does.
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
    cost_micro: int | None = None
    costs_micro: Mapping[str, int] = field(default_factory=dict)
    input_micro: int = 0
    lines: tuple[PriceLine, ...] = ()
    status: Status = Status.LIVE
    shutdown_date: date | None = None
    upstream_off: date | None = None
    successor: str | None = None

    @property
    def default_size(self) -> str:
        """Return the size drawn when a request names none."""
        return next(iter(self.sizes.values()))

    def line(self, quality: str | None, size: str | None, inputs: int) -> PriceLine | None:
        """Return the price line that covers a request, by what it asked for; None: the model's."""
        word = self.qualities.get(quality or "auto")
        drawn = self.sizes.get(size or "", self.default_size)
        for line in self.lines:
            fits = line.quality in (None, word) and line.size in (None, drawn)
            if fits and inputs >= line.inputs:
                return line
        return None

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
