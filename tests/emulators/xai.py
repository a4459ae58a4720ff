"""xAI's image API: the OpenAI paths with its own fields, flat errors and billed refusals.

Facts it encodes (source: provider documentation; UNSURE facts take the cautious reading):

* `size` and `style` are 400 "Argument not supported: size"; `aspect_ratio`, `resolution` and
  `quality` are refused the same way by grok-2-image. Other unknown fields are ignored.
* A value that does not deserialise is 422, `null` counts as absent; a wrong key is 400, a missing
  one 401. `quality: high` of grok-imagine-image-2.0 is in the schema but not sold, and 1.5k is
  2.0's alone: 400 (measured on 22 September 2026, a public notebook of the API). The other
  imagine models take any quality and ignore it.
* An unknown model is 404, or 400 `invalid-argument` "Model not found" (seen in August 2026):
  `missing_model` says which.
* Output is JPEG, `url` by default. The ratio `auto` lets the model choose; here it chooses 4:3.
* `usage.cost_in_usd_ticks` is the price (10^10 ticks are one dollar). Refused pictures are billed,
  whether the whole request is refused (400 with usage) or single items are (200, the item has
  `respect_moderation: false` and no picture).
* A picture in the answer has its bytes or URL and `mime_type`, as xAI's OpenAPI has it. Proxies,
  and xAI in the past, add `revised_prompt`, `respect_moderation` and `model`: `verbose`.
* Edits take JSON, never multipart: `image` or `images`, each `{url}`, `{image_url}` or
  `{file_id}`, at most five. Each is billed: 1 cent by 2.0, 0.2 by grok-imagine-image.
* `deferred: true` is answered with a `request_id` for GET /images/{id}: 202 `pending`, then 200
  with `status` `done` or `failed`. It gives URLs only.
"""

import base64
import io
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from aiohttp import web
from PIL import Image

from tests.emulators.base import Answer, Behaviour, Call, Emulator, ErrorRow, Fault, ratio_size

TICKS_PER_CENT = 100_000_000
RATIOS = (
    "1:1",
    "3:4",
    "4:3",
    "9:16",
    "16:9",
    "2:3",
    "3:2",
    "9:19.5",
    "19.5:9",
    "9:20",
    "20:9",
    "1:2",
    "2:1",
    "21:9",
    "5:2",
    "auto",
)
RESOLUTIONS = {"1k": 1024, "1.5k": 1536, "2k": 2048}
QUALITIES = ("low", "medium", "high", "auto")
GROK_2_SIZE = (1024, 768)
AUTO_RATIO = "4:3"
GROK_2, IMAGINE, IMAGINE_2 = "grok-2-image", "grok-imagine-image", "grok-imagine-image-2.0"
IMAGINE_QUALITY = "grok-imagine-image-quality"
MODELS = (GROK_2, IMAGINE, IMAGINE_QUALITY, IMAGINE_2)
CREATED = 1_780_000_000
MOST_INPUTS = 5


def _row(status: int, code: str, error: str, **extra: Any) -> ErrorRow:
    return ErrorRow(status, {}, {"code": code, "error": error, **extra})


_INVALID = "Client specified an invalid argument"
_MODERATED = "Generated image rejected by content moderation."


def _bad(error: str) -> Fault:
    return Fault(_row(400, _INVALID, error))


def _unreadable(error: str) -> Fault:
    return Fault(_row(422, "Unprocessable entity", f"Failed to deserialize the JSON body: {error}"))


def price_ticks(model: str, resolution: str, quality: str) -> int:
    """What one picture costs, in ticks."""
    cents = {GROK_2: 7, IMAGINE: 2, IMAGINE_QUALITY: 5}.get(model)
    if cents is None:
        cents = {"1k": 4, "1.5k": 5, "2k": 6}[resolution] + (0 if quality == "low" else 2)
    return cents * TICKS_PER_CENT


def input_ticks(model: str) -> int:
    """What one input picture of an edit costs, in ticks."""
    return TICKS_PER_CENT // 5 if model == IMAGINE else TICKS_PER_CENT


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that passed, with every default filled in."""

    model: str
    n: int
    width: int
    height: int
    url: bool
    ticks: int
    inputs: int = 0
    deferred: bool = False


class XaiEmulator(Emulator):
    """POST /v1/images/generations and /v1/images/edits, GET /v1/images/{id}, and the models.

    `retired` names the models that answer 500 with a deprecation text; `data_uri` puts the prefix
    `data:image/jpeg;base64,` before the base64; `verbose` adds the fields that proxies send; an
    unknown model is answered with the row `missing_model`. Of a deferred request `polls` is the
    number of answers with `pending`.
    """

    NAME = "xai"
    BASE_PATH = "/v1"
    KNOBS = Emulator.KNOBS | {"polls"}
    WHOLE_REFUSALS: ClassVar[frozenset[str]] = frozenset(
        {"moderation_blocked", "empty", "block_reason", "block_reason_above", "block_reason_null"}
    )
    ERRORS: ClassVar[dict[str, ErrorRow]] = {
        "invalid_argument": _row(400, _INVALID, "Invalid argument."),
        "incorrect_api_key": _row(
            400,
            _INVALID,
            "Incorrect API key provided: xa***. You can obtain one at https://console.x.ai.",
        ),
        "moderation_blocked": _row(400, _INVALID, _MODERATED),
        "empty": ErrorRow(200, {}, {"data": []}),
        "block_reason": ErrorRow(
            200, {}, {"data": [{"block_reason": "CONTENT_MODERATION", "revised_prompt": ""}]}
        ),
        "block_reason_above": ErrorRow(200, {}, {"block_reason": "CONTENT_MODERATION"}),
        "block_reason_null": ErrorRow(
            200, {}, {"block_reason": "CONTENT_MODERATION", "data": None}
        ),
        "unauthenticated": _row(401, "Unauthenticated", "No authorization header."),
        "no_credits_402": _row(402, "Payment required", "Your team has run out of credits."),
        "no_credits": _row(
            403,
            "The caller does not have permission to execute the specified operation",
            "Your team has either used all available credits or reached its spending limit.",
        ),
        "permission_denied": _row(
            403,
            "The caller does not have permission to execute the specified operation",
            "The API key is blocked or its team is.",
        ),
        "not_found": _row(
            404,
            "Some requested entity was not found",
            "The model grok-0 does not exist or your team does not have access to it.",
        ),
        "model_not_found": _row(400, "invalid-argument", "Model not found: grok-0"),
        "unprocessable": _row(
            422,
            "Unprocessable entity",
            "Failed to deserialize the JSON body: unknown variant `x`.",
        ),
        "rate_limited": _row(
            429,
            "Some resource has been exhausted",
            "Too many requests. Your team's rate limit is 300 per minute.",
        ),
        "deprecated_model": _row(
            500,
            "Internal error",
            "The model grok-2-image is deprecated, use grok-imagine-image instead.",
        ),
        "internal": _row(500, "Internal error", "Internal server error."),
        "bad_gateway": ErrorRow(502, {}, "<html><body>Bad Gateway</body></html>"),
        "unavailable": _row(
            503, "The service is currently unavailable", "The service is overloaded."
        ),
        "gateway_timeout": ErrorRow(504, {}, "<html><body>Gateway Timeout</body></html>"),
        "nested": ErrorRow(
            400,
            {},
            {"error": {"message": "Invalid argument.", "type": "invalid", "code": None}},
        ),
        "without_code": ErrorRow(500, {}, {"error": "Something went wrong."}),
    }

    def __init__(
        self,
        *,
        retired: frozenset[str] = frozenset(),
        data_uri: bool = False,
        verbose: bool = False,
        missing_model: Literal["not_found", "model_not_found"] = "not_found",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.retired = retired
        self.data_uri = data_uri
        self.verbose = verbose
        self.missing_model = missing_model

    def reset(self) -> None:
        """Forget every record, behaviour and deferred request."""
        super().reset()
        with self._changed:
            self._jobs: OrderedDict[str, tuple[int, Answer]] = OrderedDict()

    def _routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/images/generations", self._generation)
        app.router.add_post("/v1/images/edits", self._generation)
        app.router.add_get("/v1/images/{id}", self._deferred)
        for path in ("/v1/models", "/v1/image-generation-models"):
            app.router.add_get(path, self._models)
            app.router.add_get(path + "/{id}", self._models)

    def _admit(self, sent: str) -> None:
        scheme, _, key = sent.partition(" ")
        if scheme != "Bearer" or not key:
            raise Fault(self.ERRORS["unauthenticated"])
        if key != self.key:
            raise Fault(self.ERRORS["incorrect_api_key"])

    def _missing(self, model: str) -> Fault:
        row = self.ERRORS[self.missing_model]
        body = {name: text.replace("grok-0", model) for name, text in dict(row.body).items()}
        return Fault(row._replace(body=body))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        images = request.path.startswith("/v1/image-generation-models")
        name = request.match_info.get("id")
        cards = {one: _card(one, images) for one in MODELS if one not in self.retired}
        try:
            self._admit(request.headers.get("authorization", ""))
            if name is not None and name not in cards:
                raise self._missing(name)
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        listed = {"models": [*cards.values()]}
        if not images:
            listed = {"object": "list", "data": [*cards.values()]}
        return await self._send(request, Answer(200, cards[name] if name else listed), Behaviour())

    async def _deferred(self, request: web.Request) -> web.StreamResponse:
        try:
            self._admit(request.headers.get("authorization", ""))
            with self._changed:
                polls, answer = self._jobs.get(request.match_info["id"], (0, None))
                if answer is None:
                    raise Fault(self.ERRORS["not_found"])
                self._jobs[request.match_info["id"]] = max(0, polls - 1), answer
        except Fault as fault:
            answer, polls = fault.answer, 0
        if polls:
            answer = Answer(202, {"status": "pending"})
        return await self._send(request, answer, Behaviour())

    def _defer(self, done: Answer, polls: int) -> Answer:
        """Keep the answer for who asks for it, and say under which name."""
        body = {**done.body, "status": "done"}
        if done.status >= 400:
            body = {"status": "failed", "error": done.body}
        name = str(uuid.uuid4())
        with self._changed:
            self._jobs[name] = polls, Answer(200, body)
            while len(self._jobs) > self._keep:
                self._jobs.popitem(last=False)
        return Answer(200, {"request_id": name})

    def _check(self, call: Call) -> Plan:
        self._admit(call.headers.get("authorization", ""))
        if not isinstance(call.body, dict):
            raise _unreadable("expected a JSON object.")
        body = {name: value for name, value in call.body.items() if value is not None}
        for field in ("size", "style"):
            if field in body:
                raise _bad(f"Argument not supported: {field}")
        model = _text(body, "model", "")
        if model in self.retired:
            raise Fault(self.ERRORS["deprecated_model"])
        edit = call.path.endswith("/edits")
        if model not in MODELS or (edit and model == GROK_2):
            raise self._missing(model)
        if model == GROK_2:
            for field in ("aspect_ratio", "resolution", "quality"):
                if field in body:
                    raise _bad(f"Argument not supported: {field}")
        if not _text(body, "prompt", ""):
            raise _bad("The prompt must not be empty.")
        return _plan(model, body, _inputs(body) if edit else 0)

    def _work(self, plan: Plan, behaviour: Behaviour) -> Answer:
        refused = min(behaviour.refuse or 0, plan.n)
        self._bill(refused)
        data: list[dict[str, Any]] = []
        for _ in range(max(0, plan.n - refused - behaviour.fewer)):
            picture = self._make(plan.width, plan.height, "jpeg")
            item: dict[str, Any] = {"mime_type": "image/jpeg"}
            if plan.url:
                item["url"] = self._host(picture, "jpeg", behaviour)
            else:
                prefix = "data:image/jpeg;base64," if self.data_uri else ""
                item["b64_json"] = prefix + self._inline(picture, behaviour)
            data.append(item | (_MORE if self.verbose else {}))
        data += [{**(_MORE if self.verbose else {}), "respect_moderation": False}] * refused
        body = {"data": data, "usage": _cost(plan, len(data))}
        answer = Answer(200, body | ({"model": plan.model} if self.verbose else {}))
        return self._defer(answer, behaviour.polls or 0) if plan.deferred else answer

    def _fail(self, plan: Plan, behaviour: Behaviour) -> Answer:
        answer = super()._fail(plan, behaviour)
        if behaviour.error not in self.WHOLE_REFUSALS:
            return answer
        self._bill(plan.n)
        body = answer.body | {"usage": _cost(plan, plan.n)}
        answer = Answer(answer.status, body, answer.headers)
        return self._defer(answer, behaviour.polls or 0) if plan.deferred else answer


# What proxies say of each picture beside it.
_MORE = {"revised_prompt": "", "respect_moderation": True}


def _card(name: str, images: bool) -> dict[str, Any]:
    """The model as its list shows it; the prices are in ticks."""
    card: dict[str, Any] = {"id": name, "created": CREATED, "object": "model", "owned_by": "xai"}
    if not images:
        return card
    tiers = [
        {"quality": quality, "resolution": resolution, "price_per_image": price}
        for resolution in RESOLUTIONS
        for quality in ("low", "medium")
        for price in [price_ticks(name, resolution, quality)]
    ]
    return card | {
        "aliases": [],
        "fingerprint": "fp_emulator",
        "version": "1.0.0",
        "max_prompt_length": 8000,
        "input_modalities": ["text"] if name == GROK_2 else ["text", "image"],
        "output_modalities": ["image"],
        "image_price": price_ticks(name, "1k", "medium"),
        "pricing": tiers if name == IMAGINE_2 else [],
    }


def _cost(plan: Plan, pictures: int) -> dict[str, int]:
    inputs = plan.inputs * input_ticks(plan.model)
    return {"cost_in_usd_ticks": plan.ticks * pictures + inputs}


def _text(body: dict[str, Any], field: str, default: str) -> str:
    value = body.get(field, default)
    if not isinstance(value, str):
        raise _unreadable(f"{field}: invalid type, expected a string.")
    return value


def _choice(body: dict[str, Any], field: str, allowed: tuple[str, ...], default: str) -> str:
    value = _text(body, field, default)
    if value not in allowed:
        raise _unreadable(f"{field}: unknown variant `{value}`.")
    return value


def _plan(model: str, body: dict[str, Any], inputs: int) -> Plan:
    n = body.get("n", 1)
    if isinstance(n, bool) or not isinstance(n, int):
        raise _unreadable("n: invalid type, expected an integer.")
    if not 1 <= n <= 10:
        raise _bad("n must be between 1 and 10.")
    _text(body, "user", "")
    answer = _choice(body, "response_format", ("url", "b64_json"), "url")
    resolution = _choice(body, "resolution", tuple(RESOLUTIONS), "1k")
    ratio = _choice(body, "aspect_ratio", RATIOS, "auto")
    quality = _choice(body, "quality", QUALITIES, "medium") if model == IMAGINE_2 else "medium"
    if quality == "high":
        only = "low, medium, auto"
        raise _bad(f"This model only supports the following quality value(s): {only}.")
    if resolution == "1.5k" and model != IMAGINE_2:
        raise _bad("1.5K resolution is not supported for this model.")
    deferred = body.get("deferred", False)
    if not isinstance(deferred, bool):
        raise _unreadable("deferred: invalid type, expected a boolean.")
    if deferred and answer != "url":
        raise _bad("Deferred requests support only response_format url.")
    size = GROK_2_SIZE
    if model != GROK_2:
        shape = _detected(body) if ratio == "auto" else ratio
        size = ratio_size(shape, RESOLUTIONS[resolution], 16)
    return Plan(
        model=model,
        n=n,
        width=size[0],
        height=size[1],
        url=answer == "url",
        ticks=price_ticks(model, resolution, quality),
        inputs=inputs,
        deferred=deferred,
    )


def _detected(body: dict[str, Any]) -> str:
    """The ratio that `auto` means: of the one picture an edit starts from, where it is sent."""
    image = body.get("image")
    url = str(image.get("url") or image.get("image_url")) if isinstance(image, dict) else ""
    if not url.startswith("data:image/"):
        return AUTO_RATIO
    try:
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
            return "{}:{}".format(*picture.size)
    except (ValueError, OSError):
        return AUTO_RATIO


def _inputs(body: dict[str, Any]) -> int:
    """Check the picture or pictures an edit starts from; how many there are."""
    if "image" in body and "images" in body:
        raise _bad("Only one of image and images may be set.")
    images = body.get("images", [body["image"]] if "image" in body else [])
    if not isinstance(images, list) or not images:
        raise _bad("The image must not be empty.")
    if len(images) > MOST_INPUTS:
        raise _bad(f"At most {MOST_INPUTS} images are allowed.")
    for image in images:
        if not isinstance(image, dict):
            raise _unreadable("image: invalid type, expected an object.")
        named = [image[name] for name in ("url", "image_url", "file_id") if image.get(name)]
        if len(named) != 1 or not isinstance(named[0], str):
            raise _bad("The image must be a URL, a data URI or a file.")
        schemes = ("https://", "http://", "data:image/")
        if not image.get("file_id") and not named[0].startswith(schemes):
            raise _bad("The image must be a URL or a data URI.")
    return len(images)
