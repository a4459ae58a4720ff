"""What the API answers, as types: filled by `answers` and others, shown by the OpenAPI document."""

from typing import Any, Literal, NotRequired, TypedDict

from images.catalog.model import Status
from images.models import GenerationStatus
from images.providers.errors import Stage


class Adjusted(TypedDict):
    """A parameter that was not drawn as asked; `used` is null where it was ignored."""

    param: str
    asked: Any
    used: Any
    why: str


class Attempt(TypedDict):
    """A model that was called, and the code of its error if it failed."""

    model: str
    error: str | None


class Skipped(TypedDict):
    """A model that was left out, and why."""

    model: str
    reason: str


class Picture(TypedDict):
    """A delivered picture; `url` is null when the store has lost it."""

    url: str | None
    width: int
    height: int
    mime_type: str
    bytes: int
    sha256: str
    revised_prompt: NotRequired[str]
    b64_json: NotRequired[str]


class Route(TypedDict):
    """Who was asked and who drew, of a list of models or `auto`."""

    final_model: str
    requested: list[str]
    attempts: list[Attempt]
    skipped: list[Skipped]


class Drawn(TypedDict):
    """The pictures of a request; `deleted` are the indexes of those that are gone since."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Picture]
    deleted: NotRequired[list[int]]
    filtered_count: NotRequired[int]
    adjusted: NotRequired[list[Adjusted]]
    geekhub: NotRequired[Route]


class Price(TypedDict):
    """What a request would cost, in USD."""

    unit_price_usd: str
    max_cost_usd: str
    skipped: list[Skipped]


class Priced(TypedDict):
    """The answer to a dry run."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Picture]
    dry_run: Literal[True]
    adjusted: list[Adjusted]
    geekhub: Price


class InputTokens(TypedDict):
    """Zeros, as OpenAI's SDKs want them."""

    text_tokens: int
    image_tokens: int


class Tokens(TypedDict):
    """Zeros, as OpenAI's SDKs want them: pictures are priced by the piece."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: InputTokens


class PartialImage(TypedDict):
    """The event of an early view."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: str
    created_at: int
    size: str
    quality: str
    background: str
    output_format: str
    partial_image_index: int


class Completed(TypedDict):
    """The event of a picture that is kept and charged."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: str
    created_at: int
    size: str
    quality: str
    background: str
    output_format: str
    usage: Tokens
    id: str
    model: str
    index: int
    deleted: NotRequired[list[int]]
    url: str | None
    width: int
    height: int
    mime_type: str
    bytes: int
    sha256: str
    revised_prompt: NotRequired[str]


class Deleted(TypedDict):
    """The indexes of pictures that are gone, and of those whose bytes are not gone yet."""

    id: str
    object: Literal["image.deleted"]
    deleted: list[int]
    pending: list[int]


class Failure(TypedDict):
    """Why a request failed."""

    code: str
    message: str


class Audit(TypedDict):
    """Everything about one request; `latency` is in milliseconds."""

    id: str
    model: str | None
    requested: list[str]
    provider_name: str | None
    api_type: Literal["image"]
    status: GenerationStatus
    sandbox: bool
    created_at: str
    finished_at: str | None
    latency: int | None
    total_cost: float
    cost_usd: str
    num_media_completion: int
    n: int
    filtered_count: int
    parameters: dict[str, Any]
    tags: list[str]
    attempts: list[Attempt]
    skipped: list[Skipped]
    adjusted: list[Adjusted]
    error: Failure | None
    images: list[Picture]


class Audited(TypedDict):
    """One request."""

    data: Audit


class Pricing(TypedDict):
    """What a picture costs your organization now; null where the model has no price."""

    per_image_usd: str | None
    currency: Literal["USD"]


class Seconds(TypedDict):
    """How long a model usually takes."""

    p50: int
    p95: int


class Model(TypedDict):
    """A model, and what can be asked of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: Literal["image"]
    name: str
    description: str
    pricing: Pricing
    sizes: list[str]
    max_n: int
    qualities: list[str]
    supports: dict[str, bool]
    output_formats: list[str]
    max_prompt: int
    typical_seconds: Seconds
    available: bool
    status: Status
    shutdown_date: str | None
    successor: str | None


class Models(TypedDict):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class Budget(TypedDict):
    """A budget with its running period; a limit that is null does not limit."""

    scope: str
    tag: NotRequired[str]
    limit_usd: str | None
    limit_images: int | None
    period: str
    since: str
    spent_usd: str
    held_usd: str
    spent_images: int
    held_images: int


class KeyCredits(TypedDict):
    """What the key spent, and the budgets that cover it."""

    spent_usd: str
    budget: Budget | None
    budgets: list[Budget]


class Balance(TypedDict):
    """The organization's balance, exact."""

    balance_usd: str
    held_usd: str
    credit_limit_usd: str
    spent_30_days_usd: str
    key: KeyCredits


class TotalCredits(TypedDict):
    """OpenRouter's shape, in floating point."""

    total_credits: float
    total_usage: float


class Credits(TypedDict):
    """What can be spent and what was."""

    data: TotalCredits
    geekhub: Balance


class KeyName(TypedDict):
    """A key, as people know it."""

    prefix: str
    name: str


class Used(TypedDict):
    """What was used."""

    requests: int
    succeeded: int
    failed: int
    running: int
    images: int
    cost_usd: str


class UsedBy(Used):
    """What was used by a group; it has the keys that were grouped by."""

    day: NotRequired[str]
    model: NotRequired[str]
    key: NotRequired[KeyName]
    tag: NotRequired[str | None]


class Usage(TypedDict):
    """What the organization used."""

    object: Literal["list"]
    start: str
    end: str
    group_by: list[str]
    sandbox: bool
    data: list[UsedBy]
    totals: Used
    has_more: bool
    next_after: str | None


class ErrorObject(TypedDict):
    """What went wrong; branch on `code`, which is stable."""

    message: str
    type: str
    code: str
    param: str | None
    request_id: str
    stage: NotRequired[Stage]
    attempts: NotRequired[list[Attempt]]
    skipped: NotRequired[list[Skipped]]


class Error(TypedDict):
    """The envelope of every error."""

    error: ErrorObject


class ErrorEvent(TypedDict):
    """The event of a request that failed after its stream had begun."""

    type: Literal["error"]
    error: ErrorObject
