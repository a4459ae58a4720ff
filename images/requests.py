"""What a customer asks for, before it is known which model draws it."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

AUTO = "auto"

type Strategy = Literal["cheapest", "fastest", "balanced"]
type OnRefusal = Literal["next", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One checked request body. None means: not asked for.

    `models` are the ids in the order given, or `("auto",)`; `listed` tells that the body named a
    list or `auto`, whose answers say who drew. `max_cost_micro` is micro-USD for the whole request.
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

    def fingerprint(self) -> str:
        """Return a digest that two requests share exactly when they ask for the same."""
        return hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def parameters(self) -> dict[str, Any]:
        """Return what was asked beside models, prompt and tags, without what was not asked for."""
        hidden = {"models", "prompt", "tags", "user"}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in hidden and value not in (None, False, (), 0)
        }
