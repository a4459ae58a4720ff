"""A past request as a curl command that asks for the same again."""

import json
import shlex
from typing import Any

from images.models import Generation
from images.pages import parameters


def curl(row: Generation, origin: str) -> str:
    """Return the command; what was not kept, the key, a prompt, files, is a word in capitals."""
    body = _body(row)
    edit = row.parameters.get("edit", False)
    key = "ghub_sk_test_YOUR_KEY" if row.sandbox else "ghub_sk_live_YOUR_KEY"
    path = "edits" if edit else "generations"
    parts = [f"curl {origin}/v1/images/{path}", f'-H "Authorization: Bearer {key}"']
    if edit:
        files = ["image[]=@IMAGE.png"] * int(row.parameters.get("images", 1))
        files += ["mask=@MASK.png"] if row.parameters.get("mask") else []
        texts = [f"{name}={_text(value)}" for name, value in body.items()]
        parts += [f"-F {shlex.quote(one)}" for one in files]
        # Not -F, which would read a file for a prompt that begins with an @.
        parts += [f"--form-string {shlex.quote(one)}" for one in texts]
    else:
        parts.append('-H "Content-Type: application/json"')
        parts.append(f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}")
    return " \\\n  ".join(parts)


def _body(row: Generation) -> dict[str, Any]:
    models = row.requested
    body: dict[str, Any] = {
        "model": models if row.parameters.get("listed") and models != ["auto"] else models[0],
        "prompt": row.prompt or "THE PROMPT WAS NOT KEPT",
    }
    body |= parameters.body(row)
    # The key adds its own.
    if tags := [tag for tag in row.tags if tag not in row.api_key.tags]:
        body["tags"] = tags
    return body


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
