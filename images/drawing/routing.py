"""From what was asked to the models that may draw it, in order, and why one was left out."""

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils import timezone

from geekhub.lib import money
from images.catalog.model import MAX_N, ImageModel, Status
from images.catalog.rows import CATALOG, as_of
from images.drawing.request import AUTO, GenerationRequest, Inputs, Strategy
from images.providers.base import ImageRequest
from images.providers.ratios import edges, nearest

MOST_NEAR = 5
SIZE = re.compile(r"[0-9]+x[0-9]+", re.ASCII)
OPENAI_LEVELS = {"low", "medium", "high"}


class ModelNotFound(Exception):
    """No such model in the catalogue."""


class ModelUnfit(Exception):
    """A model cannot do what was asked; `param` is the field at fault."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class ModelBlocked(Exception):
    """The key's policy does not allow the model; `allowed` are those that it does."""

    def __init__(self, model_id: str, allowed: list[str]) -> None:
        super().__init__(f"This API key cannot use {model_id}.")
        self.allowed = allowed


class ModelOff(Exception):
    """A model's provider cannot be called now."""


class NoCandidate(Exception):
    """Every model of a list was left out; `off` if a provider's state was among the reasons.

    `param` is the field at fault: the one that left all of them out, or the list.
    """

    def __init__(self, skipped: "list[Skipped]", params: set[str], *, off: bool) -> None:
        super().__init__(told(skipped))
        self.skipped = skipped
        self.param = params.pop() if len(params) == 1 else "model"
        self.off = off


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A parameter that is not drawn as asked."""

    param: str
    asked: Any
    used: Any
    why: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model that was left out, and why."""

    model: str
    reason: str


def told(skipped: "list[Skipped]") -> str:
    """Return the reasons as sentences, each with its model, which most of them name already."""
    return " ".join(
        one.reason if one.model in one.reason else f"{one.model}: {one.reason.rstrip('.')}."
        for one in skipped
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may draw, and what it will be asked."""

    model: ImageModel
    adjusted: tuple[Adjustment, ...]
    request: GenerationRequest

    @property
    def compressed_here(self) -> bool:
        """Return whether a compression was asked for that the provider cannot be told."""
        asked = self.request
        lossy = asked.output_compression is not None and asked.output_format in ("jpeg", "webp")
        return lossy and asked.output_format not in self.model.compresses

    def for_provider(self, *, deadline: float, sandbox: bool, caller: str) -> ImageRequest:
        """Return the provider's request; `deadline` is the event loop's time."""
        asked, model = self.request, self.model
        ignored = {one.param for one in self.adjusted if one.used is None}
        partial_images = asked.partial_images if model.partial_images else 0
        return ImageRequest(
            model=model.id,
            upstream_id=model.upstream_id,
            prompt=asked.prompt,
            deadline=deadline,
            n=asked.n,
            # A model that sends early views draws one picture a call.
            per_call=MAX_N if sandbox else 1 if partial_images else model.per_call,
            size=_drawn_size(asked, model),
            quality=self._upstream_quality(),
            style=asked.style if model.style else None,
            output_format=self._upstream_format(sandbox=sandbox),
            output_compression=(
                None if "output_compression" in ignored else asked.output_compression
            ),
            background=asked.background if model.transparent else None,
            moderation=asked.moderation if model.moderation else None,
            seed=asked.seed if model.seed or sandbox else None,
            # Providers get a name for the end user that means nothing outside.
            user=hashlib.sha256(asked.user.encode()).hexdigest()[:32] if asked.user else None,
            partial_images=partial_images,
            images=asked.inputs.images if asked.inputs else (),
            mask=asked.inputs.mask if asked.inputs else None,
            input_fidelity=asked.input_fidelity if model.fidelity else None,
            caller=caller,
        )

    def _upstream_quality(self) -> str | None:
        # Leaving it out asks for `auto`, which some rows pin: their price does not cover the
        # dearest quality, which the provider might choose. Where it is not pinned, less is sent.
        asked = self.request.quality
        word = self.model.qualities.get(asked or AUTO)
        return None if asked is None and word == AUTO else word

    def _upstream_format(self, *, sandbox: bool) -> str | None:
        # What is compressed here is drawn without a loss before, where that can be asked for.
        asked = "png" if self.compressed_here and not sandbox else self.request.output_format
        return asked if sandbox or asked in self.model.formats else None


def listing() -> list[ImageModel]:
    """Return every row of the catalogue as it stands today, retired ones too."""
    today = timezone.now().date()
    return [
        as_of(row, today, retire_switched_off=settings.RETIRE_SWITCHED_OFF)
        for row in CATALOG.values()
    ]


def editors() -> list[ImageModel]:
    """Return the rows in service that can edit."""
    return [row for row in listing() if row.edits and row.status != Status.RETIRED]


def find(model_id: str) -> ImageModel:
    """Return the row that serves a model id, the operator's aliases followed.

    Raises ModelNotFound; of a retired model it names the successor.
    """
    row = CATALOG.get(settings.MODEL_ALIASES.get(model_id, model_id))
    if row is None:
        raise ModelNotFound(
            f"The model {model_id[:100]!r} does not exist.{_near(model_id[:100])} "
            "GET /v1/models lists the models."
        )
    row = as_of(row, timezone.now().date(), retire_switched_off=settings.RETIRE_SWITCHED_OFF)
    if row.status == Status.RETIRED:
        instead = f" Use {row.successor} instead." if row.successor else ""
        raise ModelNotFound(f"The model {row.id} was retired on {row.shutdown_date}.{instead}")
    return row


def _near(model_id: str) -> str:
    """Return a question for the ids that may be meant: nearly that, or with it in them."""
    ids = [row.id for row in listing() if row.status != Status.RETIRED]
    known = {one.partition("/")[2]: one for one in ids} | {one: one for one in ids}
    word = model_id.strip().lower()
    near = [known[one] for one in difflib.get_close_matches(word, known, 1, 0.75)]
    if not near and len(word) > 2:
        near = [one for one in ids if word in one][:MOST_NEAR]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def named(request: GenerationRequest) -> list[tuple[str, ImageModel]]:
    """Return the ids a request names with the rows that serve them.

    For a bare `auto` these are all rows, or all that can edit. Raises ModelNotFound.
    """
    if request.models != (AUTO,):
        return [(model_id, find(model_id)) for model_id in request.models]
    if request.auto_candidates:
        return [(model_id, find(model_id)) for model_id in request.auto_candidates]
    every = listing() if request.inputs is None else editors()
    return [(row.id, row) for row in every if row.status != Status.RETIRED]


def candidates(
    request: GenerationRequest,
    *,
    allowed: list[str] | None,
    off: Callable[[ImageModel], str | None],
    prices: Mapping[str, int],
    latencies: Mapping[str, float],
) -> tuple[list[Candidate], list[Skipped]]:
    """Return who may draw, best first, and who was left out.

    `allowed` are the ids the key may use (None: all), `off` tells why a model's provider cannot be
    called now, `prices` are micro-USD per image, `latencies` recent medians in seconds. A single
    model raises ModelUnfit, ModelBlocked or ModelOff where a list skips; a list without
    anybody left raises NoCandidate. ModelNotFound is raised always.
    """
    fitting: list[Candidate] = []
    skipped: list[Skipped] = []
    params: set[str] = set()
    any_off = False
    models = named(request)
    if request.models == (AUTO,):
        models.sort(key=_preference(request.strategy, prices, latencies))
    for asked, model in models:
        try:
            if allowed is not None and model.id not in allowed:
                raise ModelBlocked(model.id, allowed)
            candidate = Candidate(model, fit(request, asked, model, prices[model.id]), request)
        except (ModelUnfit, ModelBlocked) as error:
            if not request.listed:
                raise
            skipped.append(Skipped(model.id, str(error)))
            params.add(error.param if isinstance(error, ModelUnfit) else "model")
            continue
        reason = off(model)
        if reason is None:
            fitting.append(candidate)
        elif request.listed:
            skipped.append(Skipped(model.id, reason))
            any_off = True
        else:
            raise ModelOff(f"{model.id} is unavailable now: {reason}.")
    if not fitting:
        raise NoCandidate(skipped, params, off=any_off)
    return fitting, skipped


def _preference(
    strategy: Strategy, prices: Mapping[str, int], latencies: Mapping[str, float]
) -> Callable[[tuple[str, ImageModel]], tuple[float, int]]:
    """Return the sort key of a strategy; a model without history counts as the slowest."""
    dearest = max(prices.values())
    slowest = max(latencies.values(), default=0.0)

    def key(named: tuple[str, ImageModel]) -> tuple[float, int]:
        price = prices[named[1].id]
        latency = latencies.get(named[1].id, slowest)
        match strategy:
            case "fastest":
                return (latency if named[1].id in latencies else math.inf, price)
            case "balanced" if slowest:
                return (0.6 * price / dearest + 0.4 * latency / slowest, price)
            case _:
                return (float(price), price)

    return key


def fit(
    request: GenerationRequest, asked: str, model: ImageModel, price_micro: int
) -> tuple[Adjustment, ...]:
    """Return what differs from what was asked when `model` draws for the id `asked`.

    Raises ModelUnfit when it cannot draw that, or when `strict` forbids what differs.
    """
    if len(request.prompt) > model.max_prompt:
        raise ModelUnfit(
            "prompt",
            f"The prompt has {len(request.prompt)} characters; {model.id} takes at most "
            f"{model.max_prompt}.",
        )
    if request.inputs is not None:
        _fit_inputs(request.inputs, model, request.quality, price_micro)
    if request.size not in (None, AUTO) and request.size not in model.sizes:
        form = "" if SIZE.fullmatch(str(request.size)) else " A size is auto or WIDTHxHEIGHT."
        allowed = f"Allowed: auto, {', '.join(model.sizes)}."
        raise ModelUnfit("size", f"{model.id} does not support {request.size}.{form} {allowed}")
    cost_micro = price_micro * request.n
    if request.max_cost_micro is not None and cost_micro > request.max_cost_micro:
        what = "1 image" if request.n == 1 else f"{request.n} images"
        raise ModelUnfit(
            "max_cost",
            f"{what} of {model.id} {'costs' if request.n == 1 else 'cost'} "
            f"{money.to_usd(cost_micro)} USD, more than max_cost "
            f"{money.to_usd(request.max_cost_micro)}.",
        )
    if (
        model.transparent
        and request.background == "transparent"
        and request.output_format == "jpeg"
    ):
        raise ModelUnfit("background", "A transparent background needs output_format png or webp.")
    adjusted = tuple(_adjustments(request, asked, model))
    if request.strict and adjusted:
        first = adjusted[0]
        raise ModelUnfit(first.param, f"strict: {first.why}")
    return adjusted


def _fit_inputs(inputs: Inputs, model: ImageModel, quality: str | None, price_micro: int) -> None:
    """Raise ModelUnfit when the model cannot start from these pictures at its price."""
    if not model.edits:
        able = ", ".join(row.id for row in editors())
        raise ModelUnfit("model", f"{model.id} cannot edit images. These can: {able}.")
    count = len(inputs.images)
    if count > model.edits:
        what = "one image" if model.edits == 1 else f"at most {model.edits} images"
        raise ModelUnfit("image", f"{model.id} takes {what} as input; you sent {count}.")
    most = {each: model.most_inputs(each, price_micro) for each in model.qualities or (AUTO,)}
    if count > most[quality if quality in most else AUTO]:
        able = ", ".join(f"{each} {number}" for each, number in most.items())
        raise ModelUnfit("image", f"{model.id} takes fewer input images at this quality: {able}.")
    if inputs.mask is not None and not model.masks:
        raise ModelUnfit("mask", f"{model.id} does not support masks.")


def _adjustments(request: GenerationRequest, asked: str, model: ImageModel) -> list[Adjustment]:
    found: list[Adjustment] = []

    def note(param: str, asked: Any, used: Any, why: str) -> None:
        found.append(Adjustment(param, asked, used, f"{model.id} {why}"))

    if asked != model.id:
        note("model", asked, model.id, f"is used in place of {asked}.")
    drawn = _drawn_size(request, model)
    if request.size not in (None, AUTO) and drawn != request.size:
        kept = model.keeps_shape and request.inputs is not None
        why = "keeps the shape of the input image." if kept else f"generates {drawn} instead."
        note("size", request.size, drawn, why)
    if request.quality in OPENAI_LEVELS | {"hd"}:
        word = model.qualities.get(request.quality)
        if word is None:
            note("quality", request.quality, None, "has no quality setting.")
        elif request.quality in OPENAI_LEVELS and word != request.quality:
            note("quality", request.quality, word, f"calls its nearest quality {word}.")
    if request.seed is not None and not model.seed:
        note("seed", request.seed, None, "does not support seed.")
    if request.style is not None and not model.style:
        note("style", request.style, None, "has no style setting.")
    if request.background == "transparent" and not model.transparent:
        note("background", request.background, None, "supports opaque backgrounds only.")
    if request.moderation == "low" and not model.moderation:
        note("moderation", request.moderation, None, "has no moderation setting.")
    if request.partial_images and not model.partial_images:
        note("partial_images", request.partial_images, None, "has no partial images.")
    if request.input_fidelity == "high" and not model.fidelity:
        note("input_fidelity", "high", None, "has no input_fidelity setting.")
    if request.output_compression is not None and request.output_format in (None, "png"):
        note(
            "output_compression",
            request.output_compression,
            None,
            "returns a lossless image; set output_format to jpeg or webp.",
        )
    return found


def _drawn_size(request: GenerationRequest, model: ImageModel) -> str:
    size = _shape(request, model)
    if request.quality is not None and model.qualities.get(request.quality) == "2K":
        # Google's upper tier is a size: both edges twice those of the lower one.
        width, height = edges(size)
        return size if max(width, height) >= 2048 else f"{2 * width}x{2 * height}"
    return size


def _shape(request: GenerationRequest, model: ImageModel) -> str:
    kept = model.keeps_shape and request.inputs is not None
    if request.size not in (None, AUTO) and not kept:
        return model.sizes[request.size]
    if request.inputs is None:
        return model.default_size
    # An edit keeps the shape of what it starts from, as far as the model has it.
    first = request.inputs.images[0]
    ratios = {size.replace("x", ":"): size for size in model.sizes.values()}
    return ratios[nearest(f"{first.width}x{first.height}", ratios)]
