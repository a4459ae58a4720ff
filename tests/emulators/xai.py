"""xAI's image API: the OpenAI paths with its own fields, flat errors and billed refusals.

Facts it encodes (source: provider documentation; UNSURE facts take the cautious reading):

* `size` and `style` are 400 "Argument not supported: size"; `aspect_ratio`, `resolution` and
  `quality` are refused the same way by grok-2-image. Other unknown fields are ignored.
* A value that does not deserialise is 422; a wrong key is 400, a missing one 401. `quality: high`
  of grok-imagine-image-2.0 is in the schema but not sold: 400.
* Output is JPEG, `url` by default. The ratio `auto` lets the model choose; here it chooses 4:3.
* `usage.cost_in_usd_ticks` is the price (10^10 ticks are one dollar). Refused pictures are billed,
  whether the whole request is refused (400 with usage) or single items are (200, the item has
  `respect_moderation: false` and no picture).
* The ratios 21:9 and 5:2 and a 1.5k resolution are UNSURE, so they are refused.
* Edits take JSON with the picture as a URL or data URI, never multipart.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from aiohttp import web

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
    "auto",
)
RESOLUTIONS = {"1k": 1024, "2k": 2048}
QUALITIES = ("low", "medium", "high")
GROK_2_SIZE = (1024, 768)
AUTO_RATIO = "4:3"
GROK_2, IMAGINE, IMAGINE_2 = "grok-2-image", "grok-imagine-image", "grok-imagine-image-2.0"
MODELS = (GROK_2, IMAGINE, IMAGINE_2)


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
    if model == GROK_2:
        return 7 * TICKS_PER_CENT
    if model == IMAGINE:
        return 2 * TICKS_PER_CENT
    cents = 8 if resolution == "2k" else {"low": 4}.get(quality, 6)
    return cents * TICKS_PER_CENT


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that passed, with every default filled in."""

    model: str
    n: int
    width: int
    height: int
    url: bool
    ticks: int


class XaiEmulator(Emulator):
    """POST /v1/images/generations and /v1/images/edits.

    `retired` names the models that answer 500 with a deprecation text; `data_uri` puts the prefix
    `data:image/jpeg;base64,` before the base64.
    """

    NAME = "xai"
    BASE_PATH = "/v1"
    WHOLE_REFUSALS: ClassVar[frozenset[str]] = frozenset(
        {"moderation_blocked", "empty", "block_reason"}
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
        self, *, retired: frozenset[str] = frozenset(), data_uri: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.retired = retired
        self.data_uri = data_uri

    def _routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/images/generations", self._generation)
        app.router.add_post("/v1/images/edits", self._generation)

    def _check(self, call: Call) -> Plan:
        scheme, _, key = call.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            raise Fault(self.ERRORS["unauthenticated"])
        if key != self.key:
            raise Fault(self.ERRORS["incorrect_api_key"])
        body = call.body
        if not isinstance(body, dict):
            raise _unreadable("expected a JSON object.")
        for field in ("size", "style"):
            if field in body:
                raise _bad(f"Argument not supported: {field}")
        model = _text(body, "model", "")
        if model in self.retired:
            raise Fault(self.ERRORS["deprecated_model"])
        edit = call.path.endswith("/edits")
        if model not in MODELS or (edit and model == GROK_2):
            raise Fault(
                _row(
                    404,
                    "Some requested entity was not found",
                    f"The model {model} does not exist or your team does not have access to it.",
                )
            )
        if model == GROK_2:
            for field in ("aspect_ratio", "resolution", "quality"):
                if field in body:
                    raise _bad(f"Argument not supported: {field}")
        if not _text(body, "prompt", ""):
            raise _bad("The prompt must not be empty.")
        if edit:
            _inputs(body)
        return _plan(model, body)

    def _work(self, plan: Plan, behaviour: Behaviour) -> Answer:
        refused = min(behaviour.refuse or 0, plan.n)
        self._bill(refused)
        data: list[dict[str, Any]] = []
        for _ in range(max(0, plan.n - refused - behaviour.fewer)):
            picture = self._make(plan.width, plan.height, "jpeg")
            item: dict[str, Any] = {"mime_type": "image/jpeg", "revised_prompt": ""}
            if plan.url:
                item["url"] = self._host(picture, "jpeg", behaviour)
            else:
                prefix = "data:image/jpeg;base64," if self.data_uri else ""
                item["b64_json"] = prefix + self._inline(picture, behaviour)
            data.append(item | {"respect_moderation": True})
        data += [{"revised_prompt": "", "respect_moderation": False}] * refused
        return Answer(200, {"data": data, "model": plan.model, "usage": _cost(plan, len(data))})

    def _fail(self, plan: Plan, behaviour: Behaviour) -> Answer:
        answer = super()._fail(plan, behaviour)
        if behaviour.error not in self.WHOLE_REFUSALS:
            return answer
        self._bill(plan.n)
        body = answer.body | {"usage": _cost(plan, plan.n)}
        return Answer(answer.status, body, answer.headers)


def _cost(plan: Plan, pictures: int) -> dict[str, int]:
    return {"cost_in_usd_ticks": plan.ticks * pictures}


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


def _plan(model: str, body: dict[str, Any]) -> Plan:
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
        raise _bad("The quality high is not available for this model.")
    size = GROK_2_SIZE
    if model != GROK_2:
        size = ratio_size(AUTO_RATIO if ratio == "auto" else ratio, RESOLUTIONS[resolution], 16)
    return Plan(
        model=model,
        n=n,
        width=size[0],
        height=size[1],
        url=answer == "url",
        ticks=price_ticks(model, resolution, quality),
    )


def _inputs(body: dict[str, Any]) -> None:
    """Check the picture or pictures an edit starts from."""
    images = body.get("images", [body["image"]] if "image" in body else [])
    if not isinstance(images, list) or not images:
        raise _bad("The image must not be empty.")
    for image in images:
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url.startswith(("https://", "http://", "data:image/")):
            raise _bad("The image must be a URL or a data URI.")
