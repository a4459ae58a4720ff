"""What a customer asks for, before it is known which model draws it."""

import hashlib
from dataclasses import dataclass, fields
from typing import Any, Literal

import orjson

from images.catalog.parameters import DRAWN, UNASKED
from images.providers.base import Drawing

type Strategy = Literal["cheapest", "fastest", "balanced"]
type OnRefusal = Literal["next", "stop"]

FILES = {"images", "mask"}
# What every fingerprint is made of. A field that came later counts only where it is asked for, so
# that requests from before it are still recognized when they are repeated.
FIRST = {
    "models", "listed", "prompt", "n", "size", "quality", "style", "response_format",
    "output_format", "output_compression", "background", "moderation", "seed", "user", "stream",
    "partial_images", "strategy", "auto_candidates", "on_refusal", "strict", "max_cost_micro",
    "dry_run", "tags",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(Drawing):
    """One checked request body. None means: not asked for.

    `models` are the ids in the order given, or `("auto",)`; `listed` tells that the body named a
    list or `auto`, whose answers say who drew. `max_cost_micro` is micro-USD for the whole request.
    """

    models: tuple[str, ...]
    listed: bool
    response_format: Literal["url", "b64_json"] = "url"
    stream: bool = False
    strategy: Strategy = "cheapest"
    auto_candidates: tuple[str, ...] = ()
    on_refusal: OnRefusal | None = None
    strict: bool = False
    max_cost_micro: int | None = None
    dry_run: bool = False
    tags: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a digest that two requests share exactly when they ask for the same."""
        neutral = {row.name: row.neutral for row in DRAWN}
        told: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value in neutral.get(one.name, ()):
                value = UNASKED[one.name]
            if one.name in FIRST or (one.name not in FILES and value != one.default):
                told[one.name] = value
        if self.images:
            told["inputs"] = {
                "images": [image.sha256 for image in self.images],
                "mask": self.mask.sha256 if self.mask else None,
            }
            told.setdefault("input_fidelity", None)
        return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def parameters(self) -> dict[str, Any]:
        """Return what was asked beside models, prompt and tags, without what was not asked for."""
        hidden = {"models", "prompt", "tags", "user", *FILES}
        told = {
            one.name: list(value) if isinstance(value, tuple) else value
            for one in fields(self)
            if one.name not in hidden and (value := getattr(self, one.name)) != one.default
        }
        if self.images:
            told |= {"edit": True, "images": len(self.images)}
            if self.mask is not None:
                told["mask"] = True
        return told
