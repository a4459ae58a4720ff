"""Make calls with an official client, one for each line of JSON, and print what came of each.

Usage: `python -S drive.py MODULE`, with the client's packages on PYTHONPATH and nothing else: `-S`
keeps the project's own packages, in other versions, out of sight.
"""

import base64
import dataclasses
import enum
import importlib
import json
import sys
from typing import Any


def main(name: str) -> None:
    calls = importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line, object_hook=_argument)
        try:
            answer = {"returned": plain(getattr(calls, asked["call"])(**asked["arguments"]))}
        except Exception as error:
            answer = {"raised": type(error).__name__, **calls.explain(error)}
        print(json.dumps(answer), flush=True)


def _argument(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["$bytes"]) if value.keys() == {"$bytes"} else value


def plain(value: Any) -> Any:
    """What the client returned, as JSON can say it: bytes in base64, and no field that is None."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        value = {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, str | int | float | bool | None) else str(value)


if __name__ == "__main__":
    main(sys.argv[1])
