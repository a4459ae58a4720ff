"""What a customer asks for, before it is known which model draws it."""

import hashlib
from dataclasses import dataclass, fields
from typing import Any, Literal

import orjson

from images.pixels.pictures import Upload

AUTO = "auto"
# What asks for the same as leaving the field out. `input_fidelity`: API reference of OpenAI's
# image edits ("Defaults to low").
NEUTRAL = {
    "size": AUTO,
    "quality": AUTO,
    "background": AUTO,
    "moderation": AUTO,
    "input_fidelity": "low",
}

type Strategy = Literal["cheapest", "fastest", "balanced"]
type OnRefusal = Literal["next", "stop"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The pictures an edit starts from; the mask's transparent parts are drawn anew."""

    images: tuple[Upload, ...]
    mask: Upload | None = None

    def digests(self) -> dict[str, Any]:
        """Return what tells these pictures from others."""
        return {
            "images": [image.sha256 for image in self.images],
            "mask": self.mask.sha256 if self.mask else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One checked request body. None means: not asked for.

    `models` are the ids in the order given, or `("auto",)`; `listed` tells that the body named a
    list or `auto`, whose answers say who drew. `max_cost_micro` is micro-USD for the whole request.
    `inputs` make it an edit.
    """

    models: tuple[str, ...]
    listed: bool
    prompt: str
    n: int = 1
    size: str | None = None
    quality: str | None = None
    style: str | None = None
    response_format: Literal["url", "b64_json"] = "url"
    output_format: str | None = None
    output_compression: int | None = None
    background: str | None = None
    moderation: str | None = None
    seed: int | None = None
    user: str | None = None
    stream: bool = False
    partial_images: int = 0
    strategy: Strategy = "cheapest"
    auto_candidates: tuple[str, ...] = ()
    on_refusal: OnRefusal | None = None
    strict: bool = False
    max_cost_micro: int | None = None
    dry_run: bool = False
    tags: tuple[str, ...] = ()
    inputs: Inputs | None = None
    input_fidelity: str | None = None

    def fingerprint(self) -> str:
        """Return a digest that two requests share exactly when they ask for the same."""
        told = self._plain()
        if self.inputs is not None:
            told |= {"inputs": self.inputs.digests(), "input_fidelity": self.input_fidelity}
        told |= {name: None for name, value in NEUTRAL.items() if told.get(name) == value}
        return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def parameters(self) -> dict[str, Any]:
        """Return what was asked beside models, prompt and tags, without what was not asked for."""
        hidden = {"models", "prompt", "tags", "user", "inputs"}
        told = {
            one.name: list(value) if isinstance(value, tuple) else value
            for one in fields(self)
            if one.name not in hidden and (value := getattr(self, one.name)) != one.default
        }
        if self.inputs is not None:
            told |= {"edit": True, "images": len(self.inputs.images)}
            if self.inputs.mask is not None:
                told["mask"] = True
        return told

    def _plain(self) -> dict[str, Any]:
        """Return the fields that edits and generations share."""
        own = {"inputs", "input_fidelity"}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in own}
