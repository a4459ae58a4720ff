"""A request that has been let in, and what its drawing adds to it."""

from dataclasses import dataclass, field

from django.db import InterfaceError, OperationalError

from billing.models import Hold
from images.drawing import routing
from images.drawing.clock import Clock
from images.drawing.request import GenerationRequest
from images.drawing.routing import Candidate
from images.models import Generation, Image
from images.pixels.pictures import Picture
from images.pixels.turns import Turns
from images.providers.base import ProviderImage

# The connection broke: what was under way may have been committed or not.
BROKEN = (OperationalError, InterfaceError)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One candidate that was called, and the code of its error if it failed."""

    model: str
    error: str | None


@dataclass(slots=True, kw_only=True)
class Started:
    """A request that has been let in: what is asked, by when, and who may draw it."""

    request: GenerationRequest
    clock: Clock
    generation: Generation
    hold: Hold | None
    candidates: list[Candidate]
    skipped: list[routing.Skipped]
    sandbox: bool
    turns: Turns
    private: bool
    keeps_prompts: bool
    on_refusal: str
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Drawn:
    candidate: Candidate
    images: list[ProviderImage]
    filtered: int
    ms: int


@dataclass(frozen=True, slots=True)
class Kept:
    row: Image
    picture: Picture
