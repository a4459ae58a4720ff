"""What openai's users call, in each of its majors."""

from typing import Any

import openai

# Retries would hide the answer under test.
client = openai.OpenAI(max_retries=0)


def version() -> str:
    return openai.__version__


def draw(key: str | None = None, max_retries: int = 0, **fields: Any) -> Any:
    chosen = client.with_options(max_retries=max_retries)
    return (chosen.with_options(api_key=key) if key else chosen).images.generate(**fields)


def stream(**fields: Any) -> Any:
    return list(client.images.generate(stream=True, **fields))


def edit(**fields: Any) -> Any:
    return client.images.edit(**fields)


def edit_stream(**fields: Any) -> Any:
    return list(client.images.edit(stream=True, **fields))


def vary(**fields: Any) -> Any:
    return client.images.create_variation(**fields)


def models() -> Any:
    return [model.id for model in client.models.list()]


def model(name: str) -> Any:
    return client.models.retrieve(name)


def explain(error: Exception) -> dict[str, Any]:
    if not isinstance(error, openai.APIError):
        return {"message": str(error)}
    named = ("status_code", "code", "type", "param")
    status, code, kind, param = (getattr(error, name, None) for name in named)
    said = {"message": error.message, "body": error.body}
    return {"status": status, "code": code, "type": kind, "param": param, **said}
