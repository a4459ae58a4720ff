"""What google-genai's users call, in each of its majors."""

import os
from typing import Any

from google import genai
from google.genai import errors, types


def _client(key: str) -> genai.Client:
    # No version of the API is named: each major asks for the one it has by default.
    options = types.HttpOptions(base_url=os.environ["GOOGLE_ORIGIN"])
    return genai.Client(api_key=key, http_options=options)


client = _client(os.environ["GOOGLE_KEY"])


def version() -> str:
    return genai.__version__


def draw(
    model: str, contents: Any, config: dict[str, Any] | None = None, key: str | None = None
) -> Any:
    chosen = _client(key) if key else client
    return chosen.models.generate_content(model=model, contents=contents, config=config)


def draw_from(model: str, prompt: str, data: bytes, mime_type: str) -> Any:
    picture = types.Part.from_bytes(data=data, mime_type=mime_type)
    return client.models.generate_content(model=model, contents=[prompt, picture])


def stream(model: str, contents: Any, config: dict[str, Any] | None = None) -> Any:
    return list(
        client.models.generate_content_stream(model=model, contents=contents, config=config)
    )


def count(model: str, contents: Any) -> Any:
    return client.models.count_tokens(model=model, contents=contents)


def imagine(model: str, prompt: str, config: dict[str, Any] | None = None) -> Any:
    return client.models.generate_images(model=model, prompt=prompt, config=config)


def models() -> Any:
    return [model.name for model in client.models.list()]


def model(name: str) -> Any:
    return client.models.get(model=name)


def reasons() -> Any:
    """The names of why a drawing may have ended, and why a prompt may be refused."""
    return [list(types.FinishReason.__members__), list(types.BlockedReason.__members__)]


def explain(error: Exception) -> dict[str, Any]:
    if not isinstance(error, errors.APIError):
        return {"message": str(error)}
    return {"status": error.code, "code": error.status, "message": error.message}
