"""Google's Gemini API: Imagen's `:predict` and the Gemini image models' `:generateContent`.

Facts it encodes (source: provider documentation; UNSURE facts take the cautious reading):

* Only the `x-goog-api-key` header counts. No key is 403; a wrong key is 400 `API_KEY_INVALID`.
* Imagen makes four pictures when `sampleCount` is not sent. The Gemini API refuses `seed`,
  `negativePrompt`, `enhancePrompt`, `addWatermark`, `storageUri` and `labels`, any safety setting
  but `block_low_and_above`, and 2K from the fast model.
* A refused picture is not charged. It shows as an entry with only `raiFilteredReason` when
  `includeRaiReason` was asked for, else as a shorter list, or as `{}` when nothing is left.
* A Gemini image model makes one picture per call and mixes text parts with pictures unless
  `responseModalities` is `["IMAGE"]`. Its refusals are HTTP 200.
* Every path is served under /v1beta and /v1, which google-genai 3.x asks by default.
* A field's name may be in snake case (google-genai 3.6.1 sends `thinking_level` so).
* `personGeneration` has no case: the SDKs write ALLOW_ADULT.
* The extra ratios are those of gemini-nano-banana-2.1 (google-genai 3.6.1); the 512 tier is UNSURE,
  so it is refused. gemini-3.1-flash-image was switched off on 29 October 2026.
* A prepaid account without credits, and one over its monthly cap, is 429 RESOURCE_EXHAUSTED; only
  the message tells it from a limit of speed.
"""

import uuid
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from aiohttp import web

from tests.emulators.base import (
    Answer,
    Behaviour,
    Call,
    Emulator,
    ErrorRow,
    Fault,
    ratio_size,
    text_tokens,
)

IMAGEN_SIZES = {
    "1:1": (1024, 1024),
    "3:4": (896, 1280),
    "4:3": (1280, 896),
    "9:16": (768, 1408),
    "16:9": (1408, 768),
}
IMAGEN_MODELS = frozenset(
    {"imagen-4.0-generate-001", "imagen-4.0-fast-generate-001", "imagen-4.0-ultra-generate-001"}
)
GEMINI_SIZES = {
    "1:1": (1024, 1024),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
}
GEMINI_SIZES_21 = GEMINI_SIZES | {
    ratio: ratio_size(ratio, 1024, 16) for ratio in ("1:4", "4:1", "1:8", "8:1")
}
GEMINI_MODELS = {
    "gemini-2.5-flash-image": GEMINI_SIZES,
    "gemini-3-pro-image": GEMINI_SIZES,
    "gemini-3.1-flash-lite-image": GEMINI_SIZES,
    "gemini-nano-banana-2.1": GEMINI_SIZES_21,
}
SCALES = {"1K": 1, "2K": 2, "4K": 4}
PICTURE_TOKENS = 1120
THOUGHT_TOKENS = 64
PROMPT_TOKENS = 480

_VERTEX_ONLY = frozenset(
    ["seed", "negativePrompt", "enhancePrompt", "addWatermark", "storageUri", "labels"]
)
_IMAGEN_PARAMETERS = frozenset(
    [
        "sampleCount",
        "aspectRatio",
        "sampleImageSize",
        "personGeneration",
        "safetySetting",
        "guidanceScale",
        "includeSafetyAttributes",
        "includeRaiReason",
        "language",
        "outputOptions",
    ]
)
_GEMINI_FIELDS = frozenset(
    [
        "contents",
        "generationConfig",
        "safetySettings",
        "systemInstruction",
        "tools",
        "toolConfig",
        "cachedContent",
        "labels",
        "serviceTier",
    ]
)
_CONFIG_FIELDS = frozenset(
    [
        "responseModalities",
        "seed",
        "imageConfig",
        "candidateCount",
        "temperature",
        "topP",
        "topK",
        "maxOutputTokens",
        "stopSequences",
        "thinkingConfig",
        "responseMimeType",
        "presencePenalty",
        "frequencyPenalty",
        "mediaResolution",
    ]
)
_PART_FIELDS = frozenset({"text", "inlineData", "fileData", "thought", "thoughtSignature"})
_THINKING = frozenset({"includeThoughts", "thinkingBudget", "thinkingLevel"})
# The enums of google-genai 3.6.1, without STOP, what says nothing and what is Vertex AI's alone.
BLOCK_REASONS = (
    "SAFETY",
    "OTHER",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "IMAGE_SAFETY",
)
FINISH_REASONS = (
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "IMAGE_OTHER",
    "NO_IMAGE",
    "SAFETY",
    "PROHIBITED_CONTENT",
    "BLOCKLIST",
    "RECITATION",
    "SPII",
    "ESCALATION",
    "PUP_LIMITED_DISABLED",
    "MAX_TOKENS",
    "LANGUAGE",
    "OTHER",
    "MALFORMED_FUNCTION_CALL",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE",
    "MALFORMED_RESPONSE",
    "CONTINUATION",
)
_TYPES = "type.googleapis.com/google.rpc."


def _row(status: int, name: str, message: str, *details: dict[str, Any]) -> ErrorRow:
    error: dict[str, Any] = {"code": status, "message": message, "status": name}
    return ErrorRow(status, {}, {"error": error | ({"details": list(details)} if details else {})})


def _quota(quota_id: str, delay: str) -> tuple[dict[str, Any], dict[str, Any]]:
    violation = {"quotaMetric": "generativelanguage.googleapis.com/requests", "quotaId": quota_id}
    return (
        {"@type": f"{_TYPES}QuotaFailure", "violations": [violation]},
        {"@type": f"{_TYPES}RetryInfo", "retryDelay": delay},
    )


def _bad(message: str) -> Fault:
    return Fault(_row(400, "INVALID_ARGUMENT", message))


def _blocked(reason: str) -> ErrorRow:
    usage = {"promptTokenCount": 5, "totalTokenCount": 5}
    return ErrorRow(200, {}, {"promptFeedback": {"blockReason": reason}, "usageMetadata": usage})


def _finished(reason: str) -> ErrorRow:
    return ErrorRow(200, {}, _refusal(reason, 5))


def _refusal(reason: str, tokens: int) -> dict[str, Any]:
    message = "Unable to show the generated image."
    candidate = {"finishReason": reason, "finishMessage": message, "index": 0}
    return {
        "candidates": [candidate],
        "usageMetadata": {"promptTokenCount": tokens, "totalTokenCount": tokens},
        "responseId": uuid.uuid4().hex,
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that passed, with every default filled in."""

    model: str
    prompt: str
    n: int
    width: int
    height: int
    fmt: str = "png"
    reasons: bool = False
    attributes: bool = False
    modalities: tuple[str, ...] = ()
    thoughts: bool = False
    stream: Literal["", "sse", "array"] = ""
    count: bool = False


class GoogleEmulator(Emulator):
    """POST /v1beta/models/{model}:predict, :generateContent, :streamGenerateContent, :countTokens.

    GET /v1beta/models and /v1beta/models/{model} list what there is; all of it is under /v1, too.

    `retired` names the models that answer 404 although they once existed.
    """

    NAME = "google"
    BASE_PATH = "/v1beta"
    PICTURES = frozenset({"ok", "html", "bomb", "half", "junk"})
    ERRORS: ClassVar[dict[str, ErrorRow]] = {
        "api_key_invalid": _row(
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            {
                "@type": f"{_TYPES}ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            },
        ),
        "invalid_argument": _row(400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
        "refused_prompt": _row(
            400,
            "INVALID_ARGUMENT",
            "The prompt could not be submitted. It contains sensitive words that violate Google's "
            "Responsible AI practices. Support codes: 42237218, 57734940",
        ),
        "failed_precondition": _row(
            400, "FAILED_PRECONDITION", "User location is not supported for the API use."
        ),
        "permission_denied": _row(
            403, "PERMISSION_DENIED", "Generative Language API has not been used or is disabled."
        ),
        "not_found": _row(404, "NOT_FOUND", "models/imagen-0 is not found for API version v1beta."),
        "resource_exhausted": _row(
            429,
            "RESOURCE_EXHAUSTED",
            "You exceeded your current quota. Please retry in 41s.",
            *_quota("GenerateRequestsPerMinutePerProjectPerModel", "41s"),
        ),
        "resource_exhausted_per_day": _row(
            429,
            "RESOURCE_EXHAUSTED",
            "You exceeded your current quota.",
            *_quota("GenerateRequestsPerDayPerProjectPerModel", "41s"),
        ),
        "prepayment_depleted": _row(
            429,
            "RESOURCE_EXHAUSTED",
            "Your prepayment credits are depleted. Please go to AI Studio at "
            "https://ai.studio/projects to manage your project and billing.",
        ),
        "spending_cap": _row(
            429,
            "RESOURCE_EXHAUSTED",
            "Your project has exceeded its monthly spending cap. Please go to AI Studio at "
            "https://ai.studio/spend to manage your project spend cap.",
        ),
        "billed_users_only": _row(
            400,
            "INVALID_ARGUMENT",
            "Imagen API is only accessible to billed users at this time.",
        ),
        "internal": _row(500, "INTERNAL", "An internal error has occurred."),
        "unavailable": _row(503, "UNAVAILABLE", "The model is overloaded."),
        "deadline_exceeded": _row(504, "DEADLINE_EXCEEDED", "The deadline expired."),
        "empty": ErrorRow(200, {}, {}),
        **{f"block_{reason.lower()}": _blocked(reason) for reason in BLOCK_REASONS},
        **{f"finish_{reason.lower()}": _finished(reason) for reason in FINISH_REASONS},
    }

    def __init__(self, *, retired: frozenset[str] = frozenset(), **options: Any) -> None:
        super().__init__(**options)
        self.retired = retired

    def _routes(self, app: web.Application) -> None:
        for version in ("v1beta", "v1"):
            app.router.add_post(f"/{version}/models/{{action}}", self._generation)
            app.router.add_get(f"/{version}/models", self._models)
            app.router.add_get(f"/{version}/models/{{id}}", self._models)

    def _admit(self, key: str | None) -> None:
        if key is None:
            message = "Method doesn't allow unregistered callers. Please use API Key."
            raise Fault(_row(403, "PERMISSION_DENIED", message))
        if key != self.key:
            raise Fault(self.ERRORS["api_key_invalid"])

    async def _models(self, request: web.Request) -> web.StreamResponse:
        cards = {name: _card(name) for name in sorted(GEMINI_MODELS.keys() | IMAGEN_MODELS)}
        name = request.match_info.get("id", "")
        try:
            self._admit(request.headers.get("x-goog-api-key"))
            if name and (name not in cards or name in self.retired):
                message = f"models/{name} is not found for API version v1beta."
                raise Fault(_row(404, "NOT_FOUND", message))
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        listed = {"models": [cards[one] for one in cards if one not in self.retired]}
        return await self._send(request, Answer(200, cards.get(name, listed)), Behaviour())

    def _with_retry(self, row: ErrorRow, seconds: float) -> ErrorRow:
        """Google says how long to wait in the body; no header is promised."""
        error = dict(row.body["error"]) if isinstance(row.body, dict) else {}
        delay = {"@type": f"{_TYPES}RetryInfo", "retryDelay": f"{seconds:g}s"}
        others = [one for one in error.get("details", []) if one["@type"] != delay["@type"]]
        return row._replace(body={"error": error | {"details": [*others, delay]}})

    def _check(self, call: Call) -> Plan:
        self._admit(call.headers.get("x-goog-api-key"))
        model, _, action = call.path.rpartition("/")[2].partition(":")
        known = IMAGEN_MODELS if action == "predict" else GEMINI_MODELS.keys()
        if model not in known or action not in _ACTIONS or model in self.retired:
            version = call.path.split("/")[1]
            message = f"models/{model} is not found for API version {version}, or not for {action}."
            raise Fault(_row(404, "NOT_FOUND", message))
        if not isinstance(call.body, dict):
            raise _bad("Invalid JSON payload received.")
        if action == "predict":
            return _imagen(model, call.body)
        if action == "countTokens":
            return _counted(model, call.body)
        plan = _gemini(model, call.body)
        if action == "streamGenerateContent":
            return replace(plan, stream="sse" if call.query.get("alt") == "sse" else "array")
        return plan

    def _fail(self, plan: Plan, behaviour: Behaviour) -> Answer:
        answer = super()._fail(plan, behaviour)
        if plan.stream == "sse" and answer.status == 200:
            return Answer(200, events=[("", answer.body)])
        return Answer(answer.status, [answer.body], answer.headers) if plan.stream else answer

    def _work(self, plan: Plan, behaviour: Behaviour) -> Answer:
        if plan.count:
            tokens = text_tokens(plan.prompt)
            details = [{"modality": "TEXT", "tokenCount": tokens}]
            return Answer(200, {"totalTokens": tokens, "promptTokensDetails": details})
        if plan.model in GEMINI_MODELS:
            chunks = self._generate(plan, behaviour)
            if plan.stream == "sse":
                return Answer(200, events=[("", chunk) for chunk in chunks])
            return Answer(200, chunks if plan.stream else chunks[0])
        refused = min(behaviour.refuse or 0, plan.n)
        predictions: list[dict[str, Any]] = []
        for _ in range(max(0, plan.n - refused - behaviour.fewer)):
            data = self._make(plan.width, plan.height, plan.fmt)
            encoded = self._inline(data, behaviour)
            predictions.append({"mimeType": f"image/{plan.fmt}", "bytesBase64Encoded": encoded})
        if plan.reasons:
            reason = "Unable to show generated images. Support codes: 58061214"
            predictions += [{"raiFilteredReason": reason}] * refused
        if plan.attributes:
            scores = {"categories": ["Violence"], "scores": [0.1]}
            predictions.append({"contentType": "Positive Prompt", "safetyAttributes": scores})
        return Answer(200, {"predictions": predictions} if predictions else {})

    def _generate(self, plan: Plan, behaviour: Behaviour) -> list[dict[str, Any]]:
        """The answer: one, or one for each part when it is streamed."""
        tokens = text_tokens(plan.prompt)
        if behaviour.refuse:
            return [_refusal("IMAGE_SAFETY", tokens)]
        parts: list[dict[str, Any]] = []
        if plan.thoughts:
            parts.append({"text": "A kite it is.", "thought": True})
        if "TEXT" in plan.modalities:
            parts.append({"text": "Here is your image."})
        if "IMAGE" in plan.modalities and not behaviour.fewer:
            data = self._make(plan.width, plan.height, "png")
            picture = {"mimeType": "image/png", "data": self._inline(data, behaviour)}
            parts.append({"inlineData": picture})
        thinking = {"thoughtsTokenCount": THOUGHT_TOKENS} if plan.thoughts else {}
        usage = {
            "promptTokenCount": tokens,
            "candidatesTokenCount": PICTURE_TOKENS,
            "totalTokenCount": tokens + PICTURE_TOKENS + (THOUGHT_TOKENS if thinking else 0),
            **thinking,
        }
        common = {"modelVersion": plan.model, "responseId": uuid.uuid4().hex}
        pieces = [[part] for part in parts] if plan.stream else [parts]
        chunks = [
            {
                "candidates": [{"content": {"role": "model", "parts": piece}, "index": 0}],
                "usageMetadata": usage,
                **common,
            }
            for piece in pieces or [[]]
        ]
        chunks[-1]["candidates"][0]["finishReason"] = "STOP"
        return chunks


_ACTIONS = ("predict", "generateContent", "streamGenerateContent", "countTokens")


def _card(name: str) -> dict[str, Any]:
    """The model as GET /models shows it."""
    gemini = name in GEMINI_MODELS
    actions = ["generateContent", "countTokens"] if gemini else ["predict"]
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "inputTokenLimit": 65_536 if gemini else PROMPT_TOKENS,
        "outputTokenLimit": 32_768 if gemini else 8_192,
        "supportedGenerationMethods": actions,
    }


def _known(value: Any, allowed: frozenset[str], where: str) -> dict[str, Any]:
    """The object, when every name in it is one the API knows."""
    if not isinstance(value, dict):
        raise _bad(f"Invalid value at '{where}': expected an object.")
    read = {_camel(name): one for name, one in value.items()}
    for name in sorted(read.keys() - allowed):
        place = f" at '{where}'" if where else ""
        raise _bad(
            f'Invalid JSON payload received. Unknown name "{name}"{place}: Cannot find field.'
        )
    return read


def _camel(name: str) -> str:
    """The name as the API documents it: it also reads a name in snake case, as the SDK may send."""
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _choice(value: dict[str, Any], name: str, allowed: Any, default: str) -> str:
    chosen = value.get(name, default)
    if chosen not in tuple(allowed):
        raise _bad(f"Invalid value for {name}: {chosen!r}. Supported: {', '.join(allowed)}.")
    return str(chosen)


def _whole(value: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    number = value.get(name, default)
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise _bad(f"{name} must be between {least} and {most}, inclusive, but got {number!r}.")
    return number


def _imagen(model: str, body: dict[str, Any]) -> Plan:
    _known(body, frozenset({"instances", "parameters"}), "")
    instances = body.get("instances")
    if not isinstance(instances, list) or len(instances) != 1:
        raise _bad("Exactly one instance is required.")
    prompt = _known(instances[0], frozenset({"prompt"}), "instances[0]").get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise _bad("The prompt is missing.")
    if text_tokens(prompt) > PROMPT_TOKENS:
        raise _bad(f"The prompt is longer than {PROMPT_TOKENS} tokens.")
    parameters = body.get("parameters", {})
    if isinstance(parameters, dict):
        for name in sorted(parameters.keys() & _VERTEX_ONLY):
            raise _bad(f"{name} parameter is not supported in Gemini API.")
    _known(parameters, _IMAGEN_PARAMETERS, "parameters")
    tiers = ("1K",) if "fast" in model else ("1K", "2K")
    scale = SCALES[_choice(parameters, "sampleImageSize", tiers, "1K")]
    people = str(parameters.get("personGeneration", "allow_adult")).lower()
    allowed = ("dont_allow", "allow_adult", "allow_all")
    _choice({"personGeneration": people}, "personGeneration", allowed, people)
    _choice(parameters, "safetySetting", ("block_low_and_above",), "block_low_and_above")
    for name in ("includeRaiReason", "includeSafetyAttributes"):
        if not isinstance(parameters.get(name, False), bool):
            raise _bad(f"{name} must be a boolean.")
    options = _known(
        parameters.get("outputOptions", {}),
        frozenset({"mimeType", "compressionQuality"}),
        "parameters.outputOptions",
    )
    kind = _choice(options, "mimeType", ("image/png", "image/jpeg"), "image/png")
    if "compressionQuality" in options and kind != "image/jpeg":
        raise _bad("compressionQuality is only supported for image/jpeg.")
    _whole(options, "compressionQuality", 75, 0, 100)
    width, height = IMAGEN_SIZES[_choice(parameters, "aspectRatio", IMAGEN_SIZES, "1:1")]
    return Plan(
        model=model,
        prompt=prompt,
        n=_whole(parameters, "sampleCount", 4, 1, 4),
        width=width * scale,
        height=height * scale,
        fmt=kind.removeprefix("image/"),
        reasons=parameters.get("includeRaiReason", False),
        attributes=parameters.get("includeSafetyAttributes", False),
    )


def _counted(model: str, body: dict[str, Any]) -> Plan:
    """A call that counts: the contents, or a whole request."""
    _known(body, frozenset({"contents", "generateContentRequest"}), "")
    whole = body.get("generateContentRequest", {"contents": body.get("contents")})
    contents = _known(whole, _GEMINI_FIELDS | {"model"}, "generate_content_request").get("contents")
    return Plan(model=model, prompt=_prompt(contents), n=0, width=0, height=0, count=True)


def _number(value: dict[str, Any], name: str, least: float, most: float) -> None:
    number = value.get(name, least)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _bad(f"Invalid value at '{name}': expected a number.")
    if not least <= number <= most:
        raise _bad(f"{name} must be in the range [{least}, {most}].")


def _thoughts(config: dict[str, Any]) -> bool:
    """Whether the model's thoughts are asked for, after a check of how it shall think."""
    thinking = _known(config.get("thinkingConfig", {}), _THINKING, "thinking_config")
    levels = ("MINIMAL", "LOW", "MEDIUM", "HIGH")
    level = str(thinking.get("thinkingLevel", "LOW")).upper()
    _choice({"thinkingLevel": level}, "thinkingLevel", levels, level)
    _whole(thinking, "thinkingBudget", 0, -1, 32_768)
    if "thinkingBudget" in thinking and "thinkingLevel" in thinking:
        raise _bad("You can only set one of thinking budget and thinking level.")
    return bool(thinking.get("includeThoughts", False))


def _gemini(model: str, body: dict[str, Any]) -> Plan:
    _known(body, _GEMINI_FIELDS, "")
    config = _known(body.get("generationConfig", {}), _CONFIG_FIELDS, "generation_config")
    if config.get("candidateCount", 1) != 1:
        raise _bad("Multiple candidates is not enabled for this model.")
    _whole(config, "seed", 0, -(1 << 31), (1 << 31) - 1)
    _number(config, "temperature", 0, 2)
    _number(config, "topP", 0, 1)
    _number(config, "topK", 0, 64)
    _whole(config, "maxOutputTokens", 1, 1, 1 << 31)
    stops = config.get("stopSequences", [])
    if not isinstance(stops, list) or len(stops) > 5:
        raise _bad("stopSequences must be at most 5 strings.")
    tools = body.get("tools", [])
    if not isinstance(tools, list) or any(not isinstance(tool, dict) for tool in tools):
        raise _bad("Invalid value at 'tools'.")
    if any(tool.keys() - {"googleSearch"} for tool in tools):
        raise _bad("This model supports no tool but googleSearch.")
    modalities = config.get("responseModalities", ["TEXT", "IMAGE"])
    if not isinstance(modalities, list) or not modalities or set(modalities) - {"TEXT", "IMAGE"}:
        raise _bad(f"Invalid value for responseModalities: {modalities!r}.")
    image = _known(
        config.get("imageConfig", {}),
        frozenset({"aspectRatio", "imageSize"}),
        "generation_config.image_config",
    )
    sizes = GEMINI_MODELS[model]
    width, height = sizes[_choice(image, "aspectRatio", sizes, "1:1")]
    scale = SCALES[_choice(image, "imageSize", SCALES, "1K")]
    return Plan(
        model=model,
        prompt=_prompt(body.get("contents")),
        n=1,
        width=width * scale,
        height=height * scale,
        modalities=tuple(modalities),
        thoughts=_thoughts(config),
    )


def _prompt(contents: Any) -> str:
    """The text of the contents, which may also carry pictures."""
    if not isinstance(contents, list) or not contents:
        raise _bad("contents is not specified")
    text = ""
    for entry in contents:
        content = _known(entry, frozenset({"role", "parts"}), "contents")
        _choice(content, "role", ("user", "model"), "user")
        parts = content.get("parts")
        if not isinstance(parts, list) or not parts:
            raise _bad("contents.parts must not be empty.")
        for item in parts:
            part = _known(item, _PART_FIELDS, "contents.parts")
            if not isinstance(part.get("text", ""), str):
                raise _bad("Invalid value at 'contents.parts.text': expected a string.")
            text += part.get("text", "")
    if not text:
        raise _bad("The prompt is missing.")
    return text
