"""From what was asked to the models that may draw it, in order, and why one was left out."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from django.conf import settings
from django.utils import timezone

from geekhub.lib import money
from images.catalog import parameters
from images.catalog.model import MAX_N, ImageModel, Status
from images.catalog.parameters import AUTO, Adjustment
from images.catalog.rows import CATALOG, as_of
from images.catalog.skus import sku_of
from images.drawing.request import GenerationRequest, Strategy
from images.providers.base import ImageRequest

MOST_NEAR = 5
SIZE = re.compile(r"[0-9]+x[0-9]+", re.ASCII)


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
    def sku(self) -> str:
        """Return the sku that its pictures are of."""
        return _sku(self.request, self.model)

    @property
    def compressed_here(self) -> bool:
        """Return whether the provider has no way to be asked for the requested compression."""
        return parameters.compressed_here(self.request, self.model)

    def for_provider(self, *, deadline: float, sandbox: bool, caller: str) -> ImageRequest:
        """Return the provider's request; `deadline` is the event loop's time."""
        asked, model = self.request, self.model
        sent = parameters.sent(asked, model)
        if sandbox:
            # It takes any seed and draws any format, whichever the model.
            sent |= {"seed": asked.seed, "output_format": asked.output_format}
        # A model that sends early views draws one picture a call.
        per_call = 1 if sent["partial_images"] else model.per_call
        return ImageRequest(
            model=model.id,
            upstream_id=model.upstream_id,
            deadline=deadline,
            per_call=MAX_N if sandbox else per_call,
            images=asked.images,
            mask=asked.mask,
            caller=caller,
            **sent,
        )


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
    every = editors() if request.images else listing()
    return [(row.id, row) for row in every if row.status != Status.RETIRED]


def skus(request: GenerationRequest) -> dict[str, str]:
    """Return the sku of what each model that is named would draw, by its id.

    Raises ModelNotFound.
    """
    return {model.id: _sku(request, model) for _, model in named(request)}


def _sku(request: GenerationRequest, model: ImageModel) -> str:
    inputs = len(request.images)
    return sku_of(model, quality=request.quality, size=request.size, inputs=inputs)


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
    if request.images:
        _fit_inputs(request, model, price_micro)
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
    adjusted = tuple(parameters.adjustments(request, model))
    if asked != model.id:
        why = f"{model.id} is used in place of {asked}."
        adjusted = (Adjustment("model", asked, model.id, why), *adjusted)
    if request.strict and adjusted:
        first = adjusted[0]
        raise ModelUnfit(first.param, f"strict: {first.why}")
    return adjusted


def _fit_inputs(request: GenerationRequest, model: ImageModel, price_micro: int) -> None:
    """Raise ModelUnfit when the model cannot start from these pictures at its price."""
    if not model.edits:
        able = ", ".join(row.id for row in editors())
        raise ModelUnfit("model", f"{model.id} cannot edit images. These can: {able}.")
    count = len(request.images)
    if count > model.edits:
        what = "one image" if model.edits == 1 else f"at most {model.edits} images"
        raise ModelUnfit("image", f"{model.id} takes {what} as input; you sent {count}.")
    most = {each: model.most_inputs(each, price_micro) for each in model.qualities or (AUTO,)}
    if count > most[request.quality if request.quality in most else AUTO]:
        able = ", ".join(f"{each} {number}" for each, number in most.items())
        raise ModelUnfit("image", f"{model.id} takes fewer input images at this quality: {able}.")
    if request.mask is not None and not model.masks:
        raise ModelUnfit("mask", f"{model.id} does not support masks.")
