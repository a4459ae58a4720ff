"""docs/api.md against the running service."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

from django.core.management import call_command

from images.api.serializers import FILES, EditSerializer
from tests.api.test_edits import edit
from tests.server import Api

API = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()


def section(title: str) -> str:
    """Return the text below a heading, up to the next one of its level."""
    found = re.search(rf"^## {re.escape(title)}.*?(?=^## |\Z)", API, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0]


def sample(title: str) -> Any:
    """Return the last JSON of a section; what is left out in it is an empty object."""
    text = re.findall(r"```json\n(.*?)```", section(title), re.DOTALL)[-1]
    return json.loads(text.replace("…}", '"x": 1}'))


def keys(value: Any, path: str = "") -> set[str]:
    """Return the path of every key of an object; the items of a list have one path."""
    found: set[str] = set()
    if isinstance(value, dict):
        for name, inner in value.items():
            found |= {f"{path}.{name}"} | keys(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            found |= keys(inner, f"{path}[]")
    return found


def test_the_tables_are_those_of_the_catalogue() -> None:
    """CommandError where a page is not what `write_docs` would write."""
    call_command("write_docs", check=True, stderr=StringIO())


def test_every_key_of_a_model_is_explained(api: Api) -> None:
    named = set(re.findall(r"`([a-z_0-9]+)`", section("Models: GET /v1/models")))
    row = api.get("models/openai/gpt-image-1").json()
    told = {path.rpartition(".")[2] for path in keys(row)}
    assert told - named == set()


def test_every_field_of_an_edit_is_explained() -> None:
    named = set(re.findall(r"`([a-z_]+)`", section("Edit: POST /v1/images/edits")))
    assert {*EditSerializer().fields, *FILES} - named == set()


def test_the_answer_is_as_the_sample_shows(sandbox: Api) -> None:
    shown = sample("Generate: POST /v1/images/generations")
    real = sandbox.draw(model="fal/flux-1.1-pro", size="1792x1024", output_format="png").json()
    assert keys(real) == keys(shown)
    assert real["adjusted"] == shown["adjusted"]
    picture, other = real["data"][0], shown["data"][0]
    assert [picture[name] for name in ("width", "height")] == [other["width"], other["height"]]
    looked_up = sandbox.get("generation", params={"id": real["id"]}).json()
    expected = keys(sample("One request: GET /v1/generation"))
    assert keys(looked_up) - expected <= {
        *(".data.adjusted[].param", ".data.adjusted[].asked", ".data.adjusted[].used"),
        *(".data.adjusted[].why", ".data.parameters.size", ".data.parameters.output_format"),
    }
    assert expected <= keys(looked_up)


def test_the_other_samples_are_as_real(api: Api) -> None:
    drawn = api.draw(tags=["summer"]).json()["id"]
    assert keys(api.get("usage").json()) == keys(sample("Usage: GET /v1/usage"))
    # No budget covers this key; what one is made of has tests of its own.
    real, shown = keys(api.get("credits").json()), keys(sample("Credits: GET /v1/credits"))
    assert {path for path in shown if ".budget" not in path} == {
        path for path in real if ".budget" not in path
    }
    deleted = api.http.delete(f"images/{drawn}").json()
    assert keys(deleted) == keys(sample("Delete images: DELETE /v1/images/{request id}"))
    assert edit(api).status_code == 200
