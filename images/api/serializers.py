"""The request body, field by field, and a GenerationRequest of it."""

import difflib
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from typing import Any, cast

from rest_framework import serializers

from accounts.models import MAX_TAG, MAX_TAGS
from geekhub.lib import money
from images.api.errors import ApiError
from images.catalog.model import MAX_N, MAX_PROMPT
from images.drawing.request import AUTO, GenerationRequest

MAX_MODELS = 8
MAX_SEED = 2**31 - 1
MAX_COST_USD = 1_000_000
IDEMPOTENCY_KEY_MAX = 255
RETRY = re.compile(r"[0-9]{1,4}")
# The parts of an edit that are files.
FILES = ("image", "mask")
UNKNOWN = "is not a field of this endpoint."
# A NUL or a lone surrogate is legal JSON, and no text that a database takes.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Text(serializers.Field[str, Any, str, Any]):
    """A JSON string of `least` to `most` characters; nothing is converted or trimmed."""

    default_error_messages = {"null": "must be a string."}

    def __init__(self, *, most: int, least: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.least, self.most = least, most

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError("must be a string.")
        if not self.least <= len(data) <= self.most or (self.least and not data.strip()):
            raise serializers.ValidationError(
                f"must have {self.least} to {self.most} characters; it has {len(data)}."
                if data.strip() or not data
                else "must not be blank."
            )
        if odd := UNSTORABLE.search(data):
            raise serializers.ValidationError(
                f"must be text that can be stored; character {odd.start() + 1} is "
                f"U+{ord(odd[0]):04X}."
            )
        return data


class Choice(serializers.Field[str, Any, str, Any]):
    """One of a few words."""

    def __init__(self, *words: str, **options: Any) -> None:
        super().__init__(**options)
        self.words = words

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str) or data not in self.words:
            raise serializers.ValidationError(f"must be one of: {', '.join(self.words)}.")
        return data


class Integer(serializers.Field[int, Any, int, Any]):
    """A JSON integer of a range; neither `true` nor `"2"` nor `2.0` is one."""

    def __init__(self, least: int, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.least, self.most = least, most

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, int) or isinstance(data, bool):
            raise serializers.ValidationError(
                f"must be an integer from {self.least} to {self.most}."
            )
        if not self.least <= data <= self.most:
            raise serializers.ValidationError(f"must be from {self.least} to {self.most}.")
        return data


class Boolean(serializers.Field[bool, Any, bool, Any]):
    """`true` or `false`."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            raise serializers.ValidationError("must be true or false.")
        return data


class Usd(serializers.Field[int, Any, int, Any]):
    """An amount of USD as a JSON number; becomes micro-USD, rounded down."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, (int, float)) or isinstance(data, bool):
            raise serializers.ValidationError("must be an amount in USD, such as 0.25.")
        if not 0 < data <= MAX_COST_USD:
            raise serializers.ValidationError(f"must be above 0 and at most {MAX_COST_USD} USD.")
        return int(Decimal(str(data)) * money.MICRO)


class Texts(serializers.Field[list[str], Any, list[str], Any]):
    """A list of different short strings."""

    def __init__(self, *, least: int, most: int, each: int, **options: Any) -> None:
        super().__init__(**options)
        self.least, self.most = least, most
        self.each = Text(most=each)

    def to_internal_value(self, data: Any) -> list[str]:
        if not isinstance(data, list) or not self.least <= len(data) <= self.most:
            raise serializers.ValidationError(
                f"must be a list of {self.least} to {self.most} strings."
            )
        texts = [self._item(*one) for one in enumerate(data, 1)]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise serializers.ValidationError(f"must not contain duplicates: {twice!r}.")
        return texts

    def _item(self, number: int, item: Any) -> str:
        try:
            text: str = self.each.run_validation(item)
        except serializers.ValidationError as error:
            (words,) = cast(list[Any], error.detail)
            raise serializers.ValidationError(f"item {number} {words}") from error
        return text


class Models(Texts):
    """A model id, `auto`, or a list of ids in the order of preference."""

    def __init__(self, **options: Any) -> None:
        super().__init__(least=1, most=MAX_MODELS, each=100, **options)

    def to_internal_value(self, data: Any) -> list[str]:
        if isinstance(data, str):
            return [self.each.run_validation(data)]
        if not isinstance(data, list):
            raise serializers.ValidationError("must be a model id, a list of ids, or auto.")
        return super().to_internal_value(data)


class Known(serializers.Serializer[Any]):
    """A JSON object that has no other fields than these; null means absent."""

    #: Fields that are sent as files, beside it.
    files: tuple[str, ...] = ()

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise serializers.ValidationError({"": ["must be an object."]})
        for name in data:
            if name not in self.fields:
                # A lone surrogate is legal in JSON's names too, and could not be sent back.
                shown = name[:100].encode("utf-8", "backslashreplace").decode()
                known = [*self.fields, *self.files]
                raise serializers.ValidationError({shown: [unknown(name, known)]})
        return super().to_internal_value(
            {name: value for name, value in data.items() if value is not None}
        )


class RoutingSerializer(Known):
    """How `auto` and lists choose."""

    strategy = Choice("cheapest", "fastest", "balanced", required=False)
    candidates = Texts(least=1, most=MAX_MODELS, each=100, required=False)
    on_refusal = Choice("next", "stop", required=False)


class DrawingSerializer(Known):
    """What generations and edits have in common."""

    model = Models()
    prompt = Text(most=MAX_PROMPT)
    n = Integer(1, MAX_N, required=False)
    size = Text(most=20, required=False)
    quality = Choice("auto", "standard", "hd", "low", "medium", "high", required=False)
    response_format = Choice("url", "b64_json", required=False)
    output_format = Choice("png", "jpeg", "webp", required=False)
    output_compression = Integer(0, 100, required=False)
    background = Choice("auto", "transparent", "opaque", required=False)
    user = Text(most=256, required=False)
    stream = Boolean(required=False)
    partial_images = Integer(0, 3, required=False)
    routing = RoutingSerializer(required=False)
    strict = Boolean(required=False)
    max_cost = Usd(required=False)
    dry_run = Boolean(required=False)
    tags = Texts(least=0, most=MAX_TAGS, each=MAX_TAG, required=False)


class GenerationSerializer(DrawingSerializer):
    """The body of POST /v1/images/generations."""

    style = Choice("vivid", "natural", required=False)  # type: ignore[assignment]
    moderation = Choice("auto", "low", required=False)
    seed = Integer(0, MAX_SEED, required=False)


class EditSerializer(DrawingSerializer):
    """The text parts of POST /v1/images/edits, already of their types."""

    files = FILES

    input_fidelity = Choice("low", "high", required=False)


def _own(body: type[DrawingSerializer]) -> set[str]:
    names = {*body().fields, *body.files}
    return names - DrawingSerializer().fields.keys()


# What only one of the two has, and which.
ENDPOINTS = {
    **dict.fromkeys(_own(GenerationSerializer), "POST /v1/images/generations"),
    **dict.fromkeys(_own(EditSerializer), "POST /v1/images/edits"),
}


@cache
def _checker(body: type[DrawingSerializer]) -> DrawingSerializer:
    """Return the one instance that checks all bodies: making one copies every field."""
    return body()


def parse(data: Any, body: type[DrawingSerializer] = GenerationSerializer) -> GenerationRequest:
    """Return the checked request; raises ApiError naming the first field at fault."""
    if not data:
        raise invalid("model", "is required, and so is prompt: the body is empty.")
    try:
        fields = dict(_checker(body).run_validation(data))
    except serializers.ValidationError as error:
        raise first_error(error.detail) from error
    models = fields.pop("model")
    listed = isinstance(data["model"], list) or models == [AUTO]
    routing = fields.pop("routing", {})
    if routing and not listed:
        raise invalid("routing", "is only for a list of models or auto; model is a single id.")
    if models != [AUTO] and {"strategy", "candidates"} & routing.keys():
        raise invalid(
            "routing",
            "with strategy or candidates is only for model auto; a list is tried in its own order.",
        )
    if AUTO in models and len(models) > 1:
        raise invalid(
            "model",
            "auto cannot be part of a list; put the models to choose from into routing.candidates.",
        )
    if "partial_images" in fields and not fields.get("stream"):
        raise invalid("partial_images", "needs stream: true.")
    return GenerationRequest(
        models=tuple(models),
        listed=listed,
        strategy=routing.get("strategy", "cheapest"),
        auto_candidates=tuple(routing.get("candidates", ())),
        on_refusal=routing.get("on_refusal"),
        max_cost_micro=fields.pop("max_cost", None),
        tags=tuple(fields.pop("tags", ())),
        **fields,
    )


def idempotency_key(header: str | None) -> str | None:
    """Return the Idempotency-Key header's value; raises ApiError when it is not one."""
    if header is None:
        return None
    if (
        not 0 < len(header) <= IDEMPOTENCY_KEY_MAX
        or not header.isascii()
        or not header.isprintable()
    ):
        raise invalid(
            "Idempotency-Key", f"must be 1 to {IDEMPOTENCY_KEY_MAX} printable ASCII characters."
        )
    return header


def retry(header: str | None) -> int | None:
    """Return which retry of an SDK `x-stainless-retry-count` says it is; None if it is no SDK's."""
    return int(header) if header is not None and RETRY.fullmatch(header) else None


def unknown(name: str, fields: Sequence[str]) -> str:
    """Return what is said of a field that is none: which may be meant, or which there are."""
    if name in ENDPOINTS and "prompt" in fields:
        return f"{UNKNOWN} It belongs to {ENDPOINTS[name]}."
    near = difflib.get_close_matches(name[:100].strip().lower(), fields, 1, 0.75)
    if near:
        return f"{UNKNOWN} Did you mean {near[0]}?"
    return f"{UNKNOWN} Its fields are {', '.join(fields)}."


def invalid(param: str, message: str) -> ApiError:
    """Return the 400 that names a field."""
    return ApiError("invalid_request_error", f"{param} {message}", param)


def first_error(errors: Any, path: str = "") -> ApiError:
    """Return the 400 for the first of a serializer's errors, nested fields named with a dot."""
    if isinstance(errors, dict):
        name, inner = next(iter(errors.items()))
        return first_error(inner, f"{path}.{name}".strip("."))
    first = errors[0]
    text = "is required." if getattr(first, "code", "") == "required" else str(first)
    return invalid(path, text)
