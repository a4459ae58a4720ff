"""What others wrote, taken as data: JSON and text of providers, stores and webhooks."""

import json
import re
from typing import Any, NoReturn

import orjson

# PostgreSQL stores no NUL; a lone surrogate cannot be encoded, so neither stored nor sent.
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


def parse(body: bytes) -> Any:
    """Return what a JSON text says; raises ValueError.

    A text with half an emoji (`"\\ud83d"`, which JavaScript writes when it cuts one) is taken, too:
    a picture that has been paid for is not lost with it. `text()` takes the half away.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(body, parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise error from None


def text(value: object, most: int) -> str:
    """Return a text as it may be stored and sent, cut to `most` characters; empty for no text."""
    return _UNUSABLE.sub("", value[:most]) if isinstance(value, str) else ""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
