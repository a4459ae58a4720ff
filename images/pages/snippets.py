"""A request as code that runs as it is, once the placeholder is a key."""

import json
import shlex
from dataclasses import dataclass

from images.catalog.parameters import PARAMETERS
from images.drawing.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Snippet:
    """A program: `id` for the page, its language's name, its text."""

    id: str
    label: str
    code: str


def snippets(
    request: GenerationRequest, models: list[str], *, origin: str, sandbox: bool
) -> list[Snippet]:
    """Return the request in curl, Python and Node, sent once for each model.

    `origin` is where the API is, without `/v1`.
    """
    key = "ghub_sk_test_YOUR_KEY" if sandbox else "ghub_sk_live_YOUR_KEY"
    parameters = {"prompt": request.prompt} | request.parameters()
    del parameters["listed"]  # follows from the body's shape
    makers = (("curl", "curl", curl), ("python", "Python", python), ("node", "Node", node))
    return [Snippet(id, label, make(parameters, models, origin, key)) for id, label, make in makers]


type Parameters = dict[str, str | int]


def curl(parameters: Parameters, models: list[str], origin: str, key: str) -> str:
    """Return one call for each model."""
    return "\n\n".join(
        f"curl {origin}/v1/images/generations \\\n"
        f'  -H "Authorization: Bearer {key}" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d {shlex.quote(_literal({'model': model} | parameters))}"
        for model in models
    )


def python(parameters: Parameters, models: list[str], origin: str, key: str) -> str:
    """Return a program for the official SDK."""
    many = len(models) > 1
    known = {name: value for name, value in parameters.items() if PARAMETERS[name].openai}
    lines = [f"model={'model' if many else _literal(models[0])},"]
    lines += [f"{name}={_literal(value)}," for name, value in known.items()]
    # What OpenAI's SDK for Python does not know.
    if extra := {name: parameters[name] for name in parameters.keys() - known.keys()}:
        lines.append(f"extra_body={_literal(extra)},")
    call = ["images = client.images.generate(", *(f"    {line}" for line in lines), ")"]
    call.append("for image in images.data:")
    call.append(f"    print({'model, ' if many else ''}image.url)")
    if many:
        call = [f"for model in {_literal(models)}:", *(f"    {line}" for line in call)]
    return "\n".join(
        [
            "# pip install openai",
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{origin}/v1", api_key="{key}")',
            *call,
        ]
    )


def node(parameters: Parameters, models: list[str], origin: str, key: str) -> str:
    """Return a program for the official SDK."""
    many = len(models) > 1
    lines = ["model," if many else f"model: {_literal(models[0])},"]
    lines += [f"{name}: {_literal(value)}," for name, value in parameters.items()]
    call = [
        "const images = await client.images.generate({",
        *(f"  {line}" for line in lines),
        "});",
    ]
    told = "model, image.url" if many else "image.url"
    call.append(f"for (const image of images.data) console.log({told});")
    if many:
        call = [f"for (const model of {_literal(models)}) {{", *(f"  {one}" for one in call), "}"]
    return "\n".join(
        [
            "// npm install openai",
            'import OpenAI from "openai";',
            "",
            f'const client = new OpenAI({{ baseURL: "{origin}/v1", apiKey: "{key}" }});',
            *call,
        ]
    )


def _literal(value: object) -> str:
    # JSON is a literal of all three languages, as long as it holds no true, false or null.
    return json.dumps(value, ensure_ascii=False)
