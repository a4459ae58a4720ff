"""What a past request asked for beside models and prompt, under the names of the API."""

import json
from typing import Any

from django.utils.translation import ngettext

from geekhub.lib import money
from images.catalog.parameters import PARAMETERS
from images.models import Generation


def body(row: Generation) -> dict[str, Any]:
    """Return the parameters as the API names them, without model, prompt, tags and files."""
    asked = row.parameters
    found = {name: asked[name] for name in PARAMETERS if name in asked}
    routing = {
        "strategy": asked.get("strategy"),
        "candidates": asked.get("auto_candidates"),
        "on_refusal": asked.get("on_refusal"),
    }
    if told := {name: value for name, value in routing.items() if value is not None}:
        found["routing"] = told
    if (most := asked.get("max_cost_micro")) is not None:
        found["max_cost"] = float(money.to_decimal(most))
    return found


def rows(row: Generation) -> list[tuple[str, str]]:
    """Return the same for people, one text for each name, files as how many there were."""
    found = [
        (name, plain(value))
        for outer, inner in body(row).items()
        for name, value in (
            ((f"{outer}.{key}", one) for key, one in inner.items())
            if isinstance(inner, dict)
            else [(outer, inner)]
        )
    ]
    if many := row.parameters.get("images"):
        found.append(("image", ngettext("%d image", "%d images", many) % many))
    if row.parameters.get("mask"):
        found.append(("mask", ngettext("%d image", "%d images", 1) % 1))
    return found


def plain(value: Any) -> str:
    """Return a value of a JSON body as text: words as they are, a list with commas."""
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
