"""The kinds of fields a request body has: what JSON each takes, and what is said of anything else.

Nothing is converted or trimmed.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar, cast

from rest_framework import serializers

from geekhub.lib import money

MAX_COST_USD = 1_000_000
MAX_MODELS = 8
UNKNOWN = "is not a field of this endpoint."
# A NUL or a lone surrogate is legal JSON, and no text that a database takes.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")

type Schema = dict[str, Any]


class Kind[T](serializers.Field[T, Any, T, Any]):
    """A field that says what it takes."""

    def schema(self) -> Schema:
        """Return the JSON Schema of what it takes."""
        raise NotImplementedError


class Text(Kind[str]):
    """A JSON string of `least` to `most` characters."""

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

    def schema(self) -> Schema:
        return {"type": "string", "minLength": self.least, "maxLength": self.most}


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *words: str, **options: Any) -> None:
        super().__init__(**options)
        self.words = words

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str) or data not in self.words:
            raise serializers.ValidationError(f"must be one of: {', '.join(self.words)}.")
        return data

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.words)}


class Integer(Kind[int]):
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

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


class Boolean(Kind[bool]):
    """`true` or `false`."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            raise serializers.ValidationError("must be true or false.")
        return data

    def schema(self) -> Schema:
        return {"type": "boolean"}


class Usd(Kind[int]):
    """An amount of USD as a JSON number; becomes micro-USD, rounded down."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, (int, float)) or isinstance(data, bool):
            raise serializers.ValidationError("must be an amount in USD, such as 0.25.")
        if not 0 < data <= MAX_COST_USD:
            raise serializers.ValidationError(f"must be above 0 and at most {MAX_COST_USD} USD.")
        return int(Decimal(str(data)) * money.MICRO)

    def schema(self) -> Schema:
        return {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_COST_USD}


class Texts(Kind[list[str]]):
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

    def schema(self) -> Schema:
        return {
            "type": "array",
            "items": self.each.schema(),
            "minItems": self.least,
            "maxItems": self.most,
            "uniqueItems": True,
        }


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

    def schema(self) -> Schema:
        return {"oneOf": [self.each.schema(), super().schema()]}


class Known(serializers.Serializer[Any]):
    """A JSON object that has no other fields than these; null means absent."""

    #: Fields that are sent as files, beside it.
    files: ClassVar[tuple[str, ...]] = ()
    #: Fields of other endpoints, and which.
    elsewhere: ClassVar[Mapping[str, str]] = {}

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise serializers.ValidationError({"": ["must be an object."]})
        for name in data:
            if name not in self.fields:
                # A lone surrogate is legal in JSON's names too, and could not be sent back.
                shown = name[:100].encode("utf-8", "backslashreplace").decode()
                raise serializers.ValidationError({shown: [self.unknown(name)]})
        return super().to_internal_value(
            {name: value for name, value in data.items() if value is not None}
        )

    def unknown(self, name: str) -> str:
        """Return what is said of a field that is none: which may be meant, or which there are."""
        if name in self.elsewhere:
            return f"{UNKNOWN} It belongs to {self.elsewhere[name]}."
        known: Sequence[str] = [*self.fields, *self.files]
        near = difflib.get_close_matches(name[:100].strip().lower(), known, 1, 0.75)
        if near:
            return f"{UNKNOWN} Did you mean {near[0]}?"
        return f"{UNKNOWN} Its fields are {', '.join(known)}."


class Routing(Known):
    """How `auto` and lists choose."""

    strategy = Choice("cheapest", "fastest", "balanced", required=False)
    candidates = Texts(least=1, most=MAX_MODELS, each=100, required=False)
    on_refusal = Choice("next", "stop", required=False)
