"""The request body: JSON, and nothing that only looks like it."""

import json
from typing import Any, NoReturn

from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

MAX_DEPTH = 20
MAX_DIGITS = 4000
TOO_DEEP = f"nested too deeply; at most {MAX_DEPTH} levels are allowed"


class StrictJsonParser(BaseParser):
    """Parses UTF-8 JSON; refuses duplicate keys, NaN, Infinity and deep nesting."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        try:
            text = stream.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ParseError(
                f"The body is not valid UTF-8 at byte {error.start}; it must be JSON in UTF-8."
            ) from error
        try:
            value = loads(text)
        except ValueError as error:
            raise ParseError(f"The body is {error}.") from error
        if not isinstance(value, dict):
            raise ParseError("The body must be a JSON object.")
        return value


def loads(text: str) -> Any:
    """Return the value of a JSON text; raises ValueError with the rest of "The body is …"."""
    if text.startswith("\ufeff"):
        raise ValueError("not valid JSON: it starts with a byte order mark; remove it")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_int=_int
        )
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if _depth(value) > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:100]!r} appears twice")
    return seen


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(digits)


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return deepest
