"""OpenAI's Images API: generations, multipart edits, streaming and the DALL-E URLs.

Facts it encodes (source: provider documentation; UNSURE facts take the cautious reading):

* GPT image models answer base64 only and refuse `response_format`; any field a model does not
  know is 400 `unknown_parameter`. Optional fields sent as `null` count as absent.
* dall-e-3 makes one picture per call, from a fixed list of sizes, and answers URLs by default.
* gpt-image-2 and later take `auto` or WxH with edges in multiples of 16, the longest at most 3840,
  at most 3:1, between 655 360 and 8 294 400 pixels. gpt-image-2 refuses a transparent background
  and `input_fidelity` (UNSURE in part); `xhigh` and `max` exist from 2.5 on.
* `auto` quality may cost the most, so it is `high` here; `auto` size is 1024x1024.
* Usage is what is billed: image output tokens by model, quality and shape, 100 more per partial
  image. The counts of gpt-image-1 are published; later ones follow from the published prices. An
  input picture counts 323 tokens, and about 3,050 for each 1024x1024 of it from gpt-image-2 on
  (UNSURE: fal's figure).
* A stream makes one picture ("Streaming is only supported with n=1.", llmgateway issue 3963 of
  6 September 2026) and ends without `[DONE]`. An error in it comes in one of three forms: nested
  under `error`, flat, or as `image_generation.failed`; clients take any data with an `error` for
  one.
* An edit is multipart, or JSON with `images` of `{image_url}` or `{file_id}` (openai 3.57.0,
  ImageInputReferenceParam). A mask stays under 4 MB, a picture under 50 MB.
* Variations belong to dall-e-2, which ended on 12 May 2026 together with the endpoint.
* Whether a refusal of the finished picture is charged is unknown; it is billed here.
"""

import base64
import binascii
import io
import re
import uuid
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from aiohttp import web
from PIL import Image

from tests.emulators.base import (
    Answer,
    Behaviour,
    Call,
    Emulator,
    ErrorRow,
    Fault,
    Upload,
    text_tokens,
)

CREATED = 1_795_312_800
MAX_UPLOAD_BYTES = 50 << 20
MAX_MASK_BYTES = 4 << 20
INPUT_IMAGE_TOKENS = 323

_SQUARE, _TALL, _WIDE = "1024x1024", "1024x1536", "1536x1024"
_TOKENS_1 = {
    "low": {_SQUARE: 272, _TALL: 408, _WIDE: 400},
    "medium": {_SQUARE: 1056, _TALL: 1584, _WIDE: 1568},
    "high": {_SQUARE: 4160, _TALL: 6240, _WIDE: 6208},
}
_TOKENS_MINI = {
    "low": {_SQUARE: 625, "other": 750},
    "medium": {_SQUARE: 1375, "other": 1875},
    "high": {_SQUARE: 4500, "other": 6500},
}
_TOKENS_2 = {
    "low": {_SQUARE: 200, "other": 167},
    "medium": {_SQUARE: 1767, "other": 1367},
    "high": {_SQUARE: 7033, "other": 5500},
}
_TOKENS_25 = {
    "low": {_SQUARE: 200},
    "medium": {_SQUARE: 433},
    "high": {_SQUARE: 1767},
    "xhigh": {_SQUARE: 3133},
    "max": {_SQUARE: 7033},
}
_GPT_FIELDS = frozenset(
    [
        "prompt",
        "model",
        "n",
        "size",
        "quality",
        "background",
        "output_format",
        "output_compression",
        "moderation",
        "stream",
        "partial_images",
        "user",
        "safety_identifier",
    ]
)
_EDIT_FIELDS = frozenset({"image", "image[]", "images", "mask", "input_fidelity"})
_ANIMATION = frozenset({"complexity", "frame_count", "frame_duration_ms"})
_DALLE_FIELDS = frozenset(["prompt", "model", "n", "size", "response_format", "user"])


@dataclass(frozen=True, slots=True)
class Model:
    """What one model accepts."""

    fields: frozenset[str]
    sizes: tuple[str, ...] | None
    qualities: tuple[str, ...]
    prompt_limit: int = 32_000
    most: int = 10
    tokens: dict[str, dict[str, int]] | None = None
    formats: tuple[str, ...] = ("png", "jpeg", "webp")
    transparent: bool = True
    fidelities: tuple[str, ...] = ("low", "high")
    # Of an input picture of 1024x1024; None where every picture counts the same.
    input_tokens: int | None = None
    ends: str | None = None


_GPT_1 = Model(
    _GPT_FIELDS,
    (_SQUARE, _TALL, _WIDE, "auto"),
    ("low", "medium", "high", "auto"),
    tokens=_TOKENS_1,
)
_GPT_15 = replace(_GPT_1, ends="2026-12-01")
_GPT_2 = Model(
    _GPT_FIELDS,
    None,
    ("low", "medium", "high", "auto"),
    tokens=_TOKENS_2,
    transparent=False,
    fidelities=(),
    input_tokens=3050,
)
_GPT_25 = Model(
    _GPT_FIELDS,
    None,
    ("low", "medium", "high", "xhigh", "max", "auto"),
    tokens=_TOKENS_25,
    input_tokens=3050,
)
_GPT_26 = replace(
    _GPT_25, fields=_GPT_FIELDS | _ANIMATION, formats=("png", "jpeg", "webp", "gif", "svg")
)
MODELS: dict[str, Model] = {
    "gpt-image-1": replace(_GPT_1, ends="2026-10-23"),
    "gpt-image-1-mini": replace(_GPT_15, tokens=_TOKENS_MINI, fidelities=("low",)),
    "gpt-image-1.5": _GPT_15,
    "gpt-image-1.5-2025-12-16": _GPT_15,
    "chatgpt-image-latest": _GPT_15,
    "gpt-image-2": _GPT_2,
    "gpt-image-2-2026-04-21": _GPT_2,
    "gpt-image-2.5-flare": _GPT_25,
    "gpt-image-2.5-flare-2026-09-08": _GPT_25,
    "gpt-image-2.5-sunburst": _GPT_25,
    "gpt-image-2.5-sunburst-2026-09-08": _GPT_25,
    "gpt-image-2.6-flare": _GPT_26,
    "gpt-image-2.6-sunburst": _GPT_26,
    "dall-e-2": Model(
        _DALLE_FIELDS,
        ("256x256", "512x512", _SQUARE),
        ("standard",),
        prompt_limit=1_000,
        ends="2026-05-12",
    ),
    "dall-e-3": Model(
        _DALLE_FIELDS | {"quality", "style"},
        (_SQUARE, "1792x1024", "1024x1792"),
        ("standard", "hd"),
        prompt_limit=4_000,
        most=1,
        ends="2026-05-12",
    ),
}


def output_tokens(model: str, quality: str, size: str) -> int:
    """The image output tokens one picture costs."""
    table = (MODELS[model].tokens or {})[quality]
    if size in table:
        return table[size]
    if "other" in table:
        return table["other"]
    wide, high = map(int, size.split("x"))
    return -(-table[_SQUARE] * wide * high // (1024 * 1024))


def error_body(
    message: str, kind: str, code: str | None = None, param: str | None = None, **extra: Any
) -> dict[str, Any]:
    """The envelope of every OpenAI error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code} | extra}


def _row(status: int, message: str, kind: str, code: str | None = None, **more: Any) -> ErrorRow:
    return ErrorRow(status, {}, error_body(message, kind, code, **more))


_INVALID, _MISSING = "invalid_request_error", "missing_required_parameter"
_SAFETY = (
    "Your request was rejected by the safety system. If you believe this is an error, contact us "
    "at help.openai.com and include the request ID."
)


def _safety(stage: str) -> dict[str, Any]:
    return {"moderation_details": {"moderation_stage": stage, "categories": ["sexual"]}}


def _unknown(name: str) -> ErrorRow:
    message = f"The model `{name}` does not exist or you do not have access to it."
    return _row(404, message, _INVALID, "model_not_found", param="model")


def _card(name: str, model: Model) -> dict[str, Any]:
    """The model as GET /models shows it."""
    card = {"id": name, "object": "model", "created": CREATED, "owned_by": "openai"}
    return card | {"shutdown_date": model.ends}


def _bad(message: str, param: str | None, code: str = "invalid_value") -> Fault:
    return Fault(_row(400, message, _INVALID, code, param=param))


# How an error comes inside a stream, by the ending of its name: nested under `error` in an event
# of that name, flat in such an event, nested without a name of the event, and as
# `image_generation.failed`.
STREAM_FORMS = ("", "_flat", "_bare", "_failed")
_STREAM_ROWS = {
    "stream_server_error": _row(500, "The server had an error.", "server_error"),
    "stream_moderation_blocked": _row(
        400, _SAFETY, "image_generation_user_error", "moderation_blocked", **_safety("output")
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that passed, with every default filled in."""

    model: str
    prompt: str
    n: int
    width: int
    height: int
    quality: str
    fmt: str
    background: str
    url: bool
    stream: bool
    partials: int
    input_tokens: int
    frames: int
    event: Literal["image_generation", "image_edit"]

    @property
    def size(self) -> str:
        """The size as the API writes it."""
        return f"{self.width}x{self.height}"


class OpenAIEmulator(Emulator):
    """POST /v1/images/generations, /edits and /variations, GET /v1/models and /v1/models/{id}.

    `retired` names the models that answer 404 although they once existed.
    """

    NAME = "openai"
    BASE_PATH = "/v1"
    KNOBS = Emulator.KNOBS - {"refuse"}
    STREAM_ERRORS: ClassVar[frozenset[str]] = frozenset(
        f"{name}{form}" for name in _STREAM_ROWS for form in STREAM_FORMS
    )
    BILLED_ERRORS = frozenset({"moderation_blocked_output"}) | {
        f"stream_moderation_blocked{form}" for form in STREAM_FORMS
    }
    ERRORS: ClassVar[dict[str, ErrorRow]] = {
        "invalid_value": _row(
            400, "Invalid value: '1x1'.", _INVALID, "invalid_value", param="size"
        ),
        "unknown_parameter": _row(
            400,
            "Unknown parameter: 'response_format'.",
            _INVALID,
            "unknown_parameter",
            param="response_format",
        ),
        "moderation_blocked": _row(
            400, _SAFETY, "image_generation_user_error", "moderation_blocked", **_safety("input")
        ),
        "moderation_blocked_output": _row(
            400, _SAFETY, "image_generation_user_error", "moderation_blocked", **_safety("output")
        ),
        "moderation_blocked_plain": _row(
            400, _SAFETY, "image_generation_user_error", "moderation_blocked"
        ),
        "content_policy_violation": _row(400, _SAFETY, _INVALID, "content_policy_violation"),
        "content_policy_violation_user": _row(
            400, _SAFETY, "image_generation_user_error", "content_policy_violation"
        ),
        "billing_hard_limit_reached": _row(
            400, "Billing hard limit has been reached", _INVALID, "billing_hard_limit_reached"
        ),
        "billing_hard_limit_reached_429": _row(
            429, "Billing hard limit has been reached", _INVALID, "billing_hard_limit_reached"
        ),
        "invalid_api_key": _row(
            401, "Incorrect API key provided: sk-***.", _INVALID, "invalid_api_key"
        ),
        "organization_not_verified": _row(
            403, "Your organization must be verified to use the model `gpt-image-1`.", _INVALID
        ),
        "unsupported_country": _row(403, "Country, region, or territory not supported", _INVALID),
        "model_not_found": _row(
            404, "The model `gpt-image-0` does not exist.", _INVALID, "model_not_found"
        ),
        "model_retired": _row(
            400, "The model `dall-e-3` has been deprecated.", _INVALID, "model_not_found"
        ),
        "rate_limit_exceeded": _row(
            429,
            "Rate limit reached for gpt-image-1 on input-images per min. Please try again in 2.4s.",
            "input-images",
            "rate_limit_exceeded",
        ),
        "insufficient_quota": _row(
            429,
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            "insufficient_quota",
        ),
        "credit_balance_exhausted": _row(
            429,
            "Your credit balance is exhausted.",
            "insufficient_quota",
            "credit_balance_exhausted",
        ),
        "organization_spend_limit_exceeded": _row(
            429,
            "Your organization reached its spend limit.",
            "insufficient_quota",
            "organization_spend_limit_exceeded",
        ),
        "project_spend_limit_exceeded": _row(
            429,
            "Your project reached its spend limit.",
            "insufficient_quota",
            "project_spend_limit_exceeded",
        ),
        "billing_not_active": _row(
            429,
            "Your account is not active, please check your billing details on our website.",
            "billing_not_active",
            "billing_not_active",
        ),
        "slow_down": _row(429, "Slow down.", "rate_limit_error", "slow_down"),
        "server_error": _row(500, "The server had an error.", "server_error"),
        "server_is_overloaded": _row(
            503, "The server is overloaded.", "service_unavailable_error", "server_is_overloaded"
        ),
        **{f"{name}{form}": row for name, row in _STREAM_ROWS.items() for form in STREAM_FORMS},
    }

    def __init__(self, *, retired: frozenset[str] = frozenset(), **options: Any) -> None:
        super().__init__(**options)
        self.retired = retired

    def _routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/images/generations", self._generation)
        app.router.add_post("/v1/images/edits", self._generation)
        app.router.add_post("/v1/images/variations", self._generation)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{id:.+}", self._models)

    async def _models(self, request: web.Request) -> web.Response:
        wanted = request.match_info.get("id")
        listed = {name: model for name, model in MODELS.items() if name not in self.retired}
        answer: Any = {"object": "list", "data": [_card(*one) for one in listed.items()]}
        status = 200
        if request.headers.get("authorization") != f"Bearer {self.key}":
            status, _, answer = self.ERRORS["invalid_api_key"]
        elif wanted is not None and wanted not in listed:
            status, _, answer = _unknown(wanted)
        elif wanted is not None:
            answer = _card(wanted, listed[wanted])
        return web.json_response(answer, status=status, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {
            "x-request-id": f"req_{uuid.uuid4().hex}",
            "openai-processing-ms": "12",
            "openai-version": "2020-10-01",
            "openai-organization": "org-test",
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "250000",
            "x-ratelimit-remaining-tokens": "249000",
            "x-ratelimit-reset-tokens": "6m0s",
        }

    def _with_retry(self, row: ErrorRow, seconds: float) -> ErrorRow:
        extra = {"retry-after": f"{seconds:g}", "retry-after-ms": f"{seconds * 1000:.0f}"}
        return row._replace(headers={**row.headers, **extra})

    def _check(self, call: Call) -> Plan:
        sent = call.headers.get("authorization", "")
        if sent != f"Bearer {self.key}":
            message = (
                f"Incorrect API key provided: {sent[7:11]}***."
                if sent.startswith("Bearer ")
                else "You didn't provide an API key."
            )
            code = "invalid_api_key" if sent.startswith("Bearer ") else None
            raise Fault(_row(401, message, _INVALID, code))
        kind = call.path.rpartition("/")[2]
        if call.form is not None and kind != "generations":
            body = _typed(call.form)
        elif isinstance(call.body, dict) and kind != "variations":
            body = {name: value for name, value in call.body.items() if value is not None}
        elif kind == "variations":
            raise Fault(_row(400, "This endpoint takes multipart/form-data.", _INVALID))
        else:
            raise Fault(_row(400, "We could not parse the JSON body of your request.", _INVALID))
        if kind != "variations":
            return self._plan(body, kind == "edits")
        if len(_files(body, "image")) != 1:
            raise _bad("Missing required parameter: 'image'.", "image", _MISSING)
        _open(_files(body, "image")[0], "image", ("PNG",), MAX_MASK_BYTES)
        if "prompt" in body:
            raise _bad("Unknown parameter: 'prompt'.", "prompt", "unknown_parameter")
        variation = {"model": "dall-e-2", "prompt": "a variation"} | body
        del variation["image"]
        if variation["model"] != "dall-e-2":
            raise _bad("Invalid value for 'model': only dall-e-2 makes variations.", "model")
        return self._plan(variation, False)

    def _plan(self, body: dict[str, Any], edit: bool) -> Plan:
        name = body.get("model", "dall-e-2")
        if not isinstance(name, str):
            raise _bad("Invalid type for 'model': expected a string.", "model", "invalid_type")
        model = MODELS.get(name)
        if model is None or name in self.retired or (edit and model.tokens is None):
            raise Fault(_unknown(name))
        allowed = model.fields
        if edit:
            allowed = allowed - {"moderation"} | _EDIT_FIELDS
            allowed -= set() if model.fidelities else {"input_fidelity"}
        for unknown in sorted(body.keys() - allowed):
            raise _bad(f"Unknown parameter: '{unknown}'.", unknown, "unknown_parameter")
        prompt = body.get("prompt")
        if prompt is None or prompt == "":
            raise _bad("Missing required parameter: 'prompt'.", "prompt", _MISSING)
        if not isinstance(prompt, str):
            raise _bad("Invalid type for 'prompt': expected a string.", "prompt", "invalid_type")
        if len(prompt) > model.prompt_limit:
            raise _bad(
                f"Invalid 'prompt': string too long. Expected a string with maximum length "
                f"{model.prompt_limit}, but got a string with length {len(prompt)} instead.",
                "prompt",
                "string_above_max_length",
            )
        if model.most == 1 and body.get("n", 1) != 1:
            raise _bad("Invalid value: this model makes one picture, n must be 1.", "n")
        n = _integer(body, "n", 1, 1, model.most)
        stream = body.get("stream", False)
        if not isinstance(stream, bool):
            raise _bad("Invalid type for 'stream': expected a boolean.", "stream", "invalid_type")
        if stream and n > 1:
            raise Fault(_row(400, "Streaming is only supported with n=1.", _INVALID))
        if "partial_images" in body and not stream:
            raise _bad("'partial_images' is only allowed when streaming.", "partial_images")
        fmt, background = self._look(body, model)
        for field in ("user", "safety_identifier"):
            if not isinstance(body.get(field, ""), str):
                raise _bad(f"Invalid type for '{field}'.", field, "invalid_type")
        _choice(body, "moderation", ("low", "auto"), "auto")
        _choice(body, "style", ("vivid", "natural"), "vivid")
        _choice(body, "input_fidelity", model.fidelities, "low")
        quality = _choice(body, "quality", model.qualities, "auto" if model.tokens else "standard")
        answer = _choice(body, "response_format", ("url", "b64_json"), "url")
        width, height = _size(body, model)
        return Plan(
            model=name,
            prompt=prompt,
            n=n,
            width=width,
            height=height,
            quality="high" if quality == "auto" else quality,
            fmt=fmt,
            background=background,
            url=model.tokens is None and answer == "url",
            stream=stream,
            partials=_integer(body, "partial_images", 0, 0, 3),
            input_tokens=_inputs(body, model) if edit else 0,
            frames=_frames(body, fmt, n, stream),
            event="image_edit" if edit else "image_generation",
        )

    @staticmethod
    def _look(body: dict[str, Any], model: Model) -> tuple[str, str]:
        fmt = _choice(body, "output_format", model.formats, "png")
        background = _choice(body, "background", ("transparent", "opaque", "auto"), "auto")
        if background == "transparent" and (fmt == "jpeg" or not model.transparent):
            raise _bad("Transparent background is not supported here.", "background")
        compression = _integer(body, "output_compression", 100, 0, 100)
        if fmt in ("png", "gif", "svg") and compression != 100:
            raise _bad(
                f"Compression less than 100 is not supported for {fmt.upper()} output format.",
                "output_compression",
            )
        return fmt, "opaque" if background == "auto" else background

    def _work(self, plan: Plan, behaviour: Behaviour) -> Answer:
        alpha = plan.background == "transparent"
        made = [
            self._make(plan.width, plan.height, plan.fmt, alpha=alpha, frames=plan.frames)
            for _ in range(max(0, plan.n - behaviour.fewer))
        ]
        if MODELS[plan.model].tokens is None:
            return Answer(200, {"created": CREATED, "data": self._dalle(plan, made, behaviour)})
        shape = {
            "background": plan.background,
            "output_format": plan.fmt,
            "quality": plan.quality,
            "size": plan.size,
        }
        if plan.stream:
            return Answer(200, events=self._events(plan, made, behaviour, shape))
        data = [{"b64_json": self._inline(picture, behaviour)} for picture in made]
        usage = _usage(plan, len(made))
        return Answer(200, {"created": CREATED, **shape, "data": data, "usage": usage})

    def _dalle(self, plan: Plan, made: list[bytes], behaviour: Behaviour) -> list[dict[str, str]]:
        revised = (
            {"revised_prompt": f"{plan.prompt}, in detail"} if plan.model != "dall-e-2" else {}
        )
        if plan.url:
            return [revised | {"url": self._host(data, "png", behaviour)} for data in made]
        return [revised | {"b64_json": self._inline(data, behaviour)} for data in made]

    def _events(
        self, plan: Plan, made: list[bytes], behaviour: Behaviour, shape: dict[str, str]
    ) -> list[tuple[str, dict[str, Any]]]:
        events = self._partials(plan, shape)
        done = f"{plan.event}.completed"
        usage = _usage(plan, 1)
        for picture in made:
            data = {"type": done, "b64_json": self._inline(picture, behaviour)}
            events.append((done, data | {"created_at": CREATED, **shape, "usage": usage}))
        return events

    def _partials(self, plan: Plan, shape: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
        name = f"{plan.event}.partial_image"
        events = []
        for index in range(plan.partials):
            sketch = self._draw(plan.width, plan.height, plan.fmt)
            data: dict[str, Any] = {"type": name, "b64_json": self._inline(sketch, Behaviour())}
            data |= {"created_at": CREATED, **shape, "partial_image_index": index}
            events.append((name, data))
        return events

    def _fail(self, plan: Plan, behaviour: Behaviour) -> Answer:
        answer = super()._fail(plan, behaviour)
        if not (plan.stream and behaviour.error in self.STREAM_ERRORS):
            return answer
        shape = {
            "size": plan.size,
            "quality": plan.quality,
            "background": plan.background,
            "output_format": plan.fmt,
        }
        error = _in_stream(str(behaviour.error), answer.body, plan.event)
        return Answer(200, events=[*self._partials(plan, shape), error])


def _in_stream(name: str, body: dict[str, Any], event: str) -> tuple[str, dict[str, Any]]:
    """The event that an error is, in the form that the ending of its name says."""
    if name.endswith("_flat"):
        return "error", {**body["error"], "type": "error"}
    if name.endswith("_failed"):
        return f"{event}.failed", {"type": f"{event}.failed", **body}
    return ("", body) if name.endswith("_bare") else ("error", {"type": "error", **body})


def _usage(plan: Plan, pictures: int) -> dict[str, Any]:
    text, image = text_tokens(plan.prompt), plan.input_tokens
    each = output_tokens(plan.model, plan.quality, plan.size) + 100 * plan.partials
    output = pictures * each
    return {
        "input_tokens": text + image,
        "output_tokens": output,
        "total_tokens": text + image + output,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
    }


def _choice(body: dict[str, Any], field: str, allowed: tuple[str, ...], default: str) -> str:
    value = body.get(field, default)
    if field in body and value not in allowed:
        names = ", ".join(f"'{name}'" for name in allowed)
        raise _bad(f"Invalid value: '{value}'. Supported values are: {names}.", field)
    return str(value)


def _integer(body: dict[str, Any], field: str, default: int, least: int, most: int) -> int:
    value = body.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(f"Invalid type for '{field}': expected an integer.", field, "invalid_type")
    if value > most:
        message = f"Invalid '{field}': integer above maximum value. Expected a value <= {most}."
        raise _bad(message, field, "integer_above_max_value")
    if value < least:
        message = f"Invalid '{field}': integer below minimum value. Expected a value >= {least}."
        raise _bad(message, field, "integer_below_min_value")
    return value


def _size(body: dict[str, Any], model: Model) -> tuple[int, int]:
    size = body.get("size", _SQUARE)
    if model.sizes is not None:
        size = _choice(body, "size", model.sizes, _SQUARE)
    if size == "auto":
        size = _SQUARE
    match = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", size if isinstance(size, str) else "")
    if match is None:
        raise _bad(f"Invalid value: '{size}'. Expected 'auto' or WIDTHxHEIGHT.", "size")
    wide, high = int(match[1]), int(match[2])
    if model.sizes is None and (
        wide % 16
        or high % 16
        or max(wide, high) > 3840
        or max(wide, high) > 3 * min(wide, high)
        or not 655_360 <= wide * high <= 8_294_400
    ):
        raise _bad(f"Invalid value: '{size}'. The size breaks the rules of this model.", "size")
    return wide, high


def _typed(form: dict[str, str | list[Upload]]) -> dict[str, Any]:
    """The form with its numbers and booleans read from their text."""
    body: dict[str, Any] = dict(form)
    for field in ("n", "partial_images", "output_compression", "frame_count", "frame_duration_ms"):
        text = body.get(field)
        if isinstance(text, str) and re.fullmatch(r"-?\d{1,6}", text):
            body[field] = int(text)
    if body.get("stream") in ("true", "false"):
        body["stream"] = body["stream"] == "true"
    return body


def _frames(body: dict[str, Any], fmt: str, n: int, stream: bool) -> int:
    """How many pictures one answer shows after another, after a check of what goes with it."""
    _choice(body, "complexity", ("low", "medium", "high"), "medium")
    if fmt != "gif":
        for field in ("frame_count", "frame_duration_ms"):
            if field in body:
                raise _bad(f"'{field}' is only supported with output_format=gif.", field)
    if fmt in ("gif", "svg") and (stream or "mask" in body or (fmt == "svg" and n > 1)):
        raise _bad(f"output_format={fmt} takes no stream and no mask, svg only n=1.", "n")
    _integer(body, "frame_duration_ms", 200, 1, 655_350)
    return _integer(body, "frame_count", 9, 2, 16) if fmt == "gif" else 1


def _inputs(body: dict[str, Any], model: Model) -> int:
    """Check the input pictures and the mask; the tokens that the pictures count."""
    if isinstance(body.get("images"), list):
        images = [_referred(one) for one in body["images"]]
    else:
        images = [*_files(body, "image"), *_files(body, "image[]")]
    if not images:
        raise _bad("Missing required parameter: 'image'.", "image", _MISSING)
    if len(images) > 16:
        raise _bad("Too many images: at most 16 are allowed.", "image")
    kinds = ("PNG", "JPEG", "WEBP")
    sizes = [
        _open(one, "image", kinds, MAX_UPLOAD_BYTES).size if one is not None else (1024, 1024)
        for one in images
    ]
    for mask in _files(body, "mask"):
        picture = _open(mask, "mask", ("PNG",), MAX_MASK_BYTES)
        if picture.mode not in ("RGBA", "LA") or picture.size != sizes[0]:
            raise _bad("Invalid mask: it needs alpha and the size of the first image.", "mask")
    if model.input_tokens is None:
        return len(images) * INPUT_IMAGE_TOKENS
    return sum(-(-model.input_tokens * wide * high // (1024 * 1024)) for wide, high in sizes)


def _referred(image: Any) -> Upload | None:
    """A picture of a JSON edit: a data URL's bytes, or None for one that is fetched elsewhere."""
    if not isinstance(image, dict) or len(image.keys() & {"image_url", "file_id"}) != 1:
        raise _bad("Expected exactly one of 'image_url' and 'file_id'.", "images")
    url = image.get("image_url", "https://files.example/" + str(image.get("file_id")))
    if not isinstance(url, str) or not url.startswith(("https://", "data:image/")):
        raise _bad("Invalid 'image_url': expected an https or data URL.", "images")
    if url.startswith("https://"):
        return None
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise _bad("Invalid 'image_url': the base64 does not decode.", "images") from error
    return Upload("image", url.removeprefix("data:").partition(";")[0], data)


def _files(body: dict[str, Any], field: str) -> list[Upload]:
    value = body.get(field, [])
    if not isinstance(value, list):
        raise _bad(f"Invalid type for '{field}': expected a file.", field, "invalid_type")
    return value


def _open(upload: Upload, field: str, kinds: tuple[str, ...], limit: int) -> Image.Image:
    if len(upload.data) >= limit:
        raise _bad(f"Invalid '{field}': the file is too large.", field)
    try:
        picture = Image.open(io.BytesIO(upload.data), formats=kinds)
    except OSError as error:
        raise _bad(f"Invalid file '{field}': unsupported mimetype.", field) from error
    return picture
