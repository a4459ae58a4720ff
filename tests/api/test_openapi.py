"""The OpenAPI document, against itself, the URLs, the checks of bodies, and real answers."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.test import RequestFactory
from django.urls import Resolver404, resolve
from drf_spectacular.validation import validate_schema
from jsonschema import Draft202012Validator

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import Period, scopes
from billing.models.scopes import Holder
from billing.spending import budgets
from geekhub.openapi import _made as made
from geekhub.openapi import document as view
from images.api import openapi, serializers
from images.api.errors import ApiError
from images.api.serializers import EditSerializer, GenerationSerializer
from images.api.urls import urlpatterns
from tests.api.test_edits import edit
from tests.api.test_streaming import events
from tests.factories import KeyFactory
from tests.server import Api, AppServer

ROOT = Path(__file__).resolve().parents[2]
GPT, DALLE, FLUX = "openai/gpt-image-1", "openai/dall-e-3", "fal/flux-1.1-pro"
SAMPLES = {"request_id": "req_" + "0" * 24, "index": "0", "model_id": GPT}


@cache
def document() -> dict[str, Any]:
    return openapi.document()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def closed(schema: Any) -> Any:
    """Return a schema that lets no object have a key which it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(one) for name, one in schema.items()}
    return {"additionalProperties": False, **inner} if "required" in inner else inner


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    schemas = {name: closed(one) for name, one in document()["components"]["schemas"].items()}
    return Draft202012Validator({**schema, "components": {"schemas": schemas}})


def described(answer: httpx.Response) -> tuple[str, str, dict[str, Any]]:
    """Return the operation that an answer is of."""
    for method, path, operation in operations():
        pattern = re.sub(r"{(\w+)}", lambda name: ".+" if name[1] == "model_id" else "[^/]+", path)
        if method == answer.request.method.lower() and re.fullmatch(
            pattern, answer.request.url.path
        ):
            return method, path, operation
    raise AssertionError(answer.request)


def expect_as_described(answer: httpx.Response) -> str:
    """Check an answer's status, type, headers and body; return its operation and status."""
    _, _, operation = described(answer)
    said = operation["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"]
    check = validator(said["content"][kind]["schema"])
    if kind == "text/event-stream":
        bodies = [data for _, data in events(answer.text)]
        assert bodies
    else:
        bodies = [answer.json()]
    for body in bodies:
        check.validate(body)
    assert re.fullmatch(
        said["headers"]["x-request-id"]["schema"]["pattern"], answer.headers["x-request-id"]
    )
    ours = {name for name in answer.headers if name.startswith(("x-geekhub", "idempotent"))}
    assert ours <= said["headers"].keys()
    return f"{operation['operationId']} {answer.status_code}"


def test_it_is_openapi_3_1() -> None:
    assert document()["openapi"] == "3.1.0"
    validate_schema(document())
    for _, _, operation in operations():
        assert operation["security"] == [{"apiKey": []}]
    text = json.dumps(document())
    assert "](" not in text
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document()["components"]["schemas"]


def test_anybody_may_have_it_and_keep_it(app: AppServer) -> None:
    with httpx.Client(base_url=app.origin, verify=False) as client:
        answer = client.get("/openapi.json")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "public, max-age=3600"
        assert "set-cookie" not in answer.headers
        assert answer.json() == document()
        tag = answer.headers["etag"]
        again = client.get("/openapi.json", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        spanish = client.get("/openapi.json", headers={"Accept-Language": "es"})
        assert spanish.content == answer.content
        assert client.post("/openapi.json").status_code in (403, 405)


def test_who_comes_first_together_with_others_gets_the_same() -> None:
    made.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        bodies = list(threads.map(lambda _: view(RequestFactory().get("/")).content, range(4)))
    assert [json.loads(body) for body in bodies] == [document()] * 4


def test_it_has_every_path_and_method_and_no_other(api: Api) -> None:
    found = set()
    for method, path, _ in operations():
        sample = re.sub(r"{(\w+)}", lambda name: SAMPLES[name[1]], path)
        found.add(resolve(sample, "images.api.urls").route)
        wrong = api.http.request("PATCH", api.origin + sample)
        allowed = set(wrong.headers["allow"].lower().split(", ")) - {"head"}
        assert (wrong.status_code, allowed) == (405, {method})
    assert found == {str(one.pattern) for one in urlpatterns}
    with pytest.raises(Resolver404):
        resolve("/v1/nothing", "images.api.urls")


# What is tried in each field; null, 2.0 and texts that no database takes are beyond JSON Schema.
VALUES: list[Any] = [
    *("", "a", "auto", "low", "high", "hd", "png", "url", "vivid", "opaque", "1024x1024"),
    *("x" * 20, "x" * 21, "x" * 100, "x" * 101, "x" * 256, "x" * 257, "x" * 4000, "x" * 4001),
    *(True, False, -1, 0, 1, 3, 4, 8, 9, 100, 101, 2**31 - 1, 2**31, 0.5, 1_000_000.5),
    *([], ["a"], ["a", "a"], ["a" * 41], [1], list("abcdefgh"), list("abcdefghi")),
    *({}, {"strategy": "fastest"}, {"strategy": "dearest"}, {"on_refusal": "stop"}, {"seed": 1}),
    *({"candidates": []}, {"candidates": ["a"]}),
]


@pytest.mark.parametrize(
    ("body", "name"),
    [(GenerationSerializer, "GenerationRequest"), (EditSerializer, "EditRequest")],
)
def test_a_body_that_it_allows_is_taken_and_no_other(
    body: type[serializers.DrawingSerializer], name: str
) -> None:
    schema = document()["components"]["schemas"][name]
    files = {"image", "mask"} if body is EditSerializer else set()
    assert schema["properties"].keys() == body().fields.keys() | files
    check = validator(schema)
    tried = [(field, value) for field in (*body().fields, "steps") for value in VALUES]
    for field, value in tried:
        sent = {"model": "auto", "prompt": "a kite", "stream": True, field: value}
        # What belongs together is beyond the document, too.
        if field in ("model", "stream"):
            sent.pop("stream" if field == "model" else "partial_images", None)
        if field == "model" and isinstance(value, list) and "auto" in value:
            continue
        files_sent = {"image": ["…"]} if body is EditSerializer else {}
        try:
            serializers.parse(sent, body)
            taken = True
        except ApiError:
            taken = False
        assert check.is_valid(sent | files_sent) is taken, (field, value)


def test_answers_are_as_described(
    api: Api,
    sandbox: Api,
    connect: Callable[[str | None], Api],
    acme: Organization,
    live_key: NewKey,
) -> None:
    budgets.set_budget(live_key.row, 5_000_000, Period.DAY)
    tagged = KeyFactory(organization=acme, tags=["summer"])
    budgets.set_for(acme.pk, Holder(scopes.TAG, "summer"), None, Period.WEEK, limit_images=100)
    few = KeyFactory(organization=acme, allowed_models=[FLUX])
    drawn = api.draw(tags=["summer"], n=2)
    request_id = drawn.json()["id"]
    named = {"Idempotency-Key": "once"}
    first = api.draw(headers=named, n=2).json()["id"]
    answers = [
        drawn,
        api.draw(model=DALLE, seed=7, quality="hd", response_format="b64_json"),
        api.draw(model=[DALLE, GPT], size="1024x1024"),
        api.draw(dry_run=True, seed=7, model=[GPT, FLUX]),
        api.draw(stream=True, partial_images=1),
        sandbox.draw(n=3, prompt="sandbox:deliver=2"),
        sandbox.draw(stream=True, partial_images=1, prompt="sandbox:refuse=output"),
        edit(api),
        edit(api, stream="true"),
        edit(api, dry_run="true"),
        api.get("generation", params={"id": request_id}),
        api.get("models"),
        api.get(f"models/{FLUX}"),
        api.get("credits"),
        connect(tagged.secret).get("credits"),
        api.get("usage"),
        api.get("usage", params={"group_by": "tag", "limit": 1}),
        api.http.delete(f"images/{request_id}/1"),
        api.http.delete(f"images/{request_id}"),
        api.http.delete(f"images/{first}/0"),
        api.draw(headers=named, n=2),  # what is left of it
        api.draw(headers=named, n=3),
        api.http.delete(f"images/{first}"),
        api.draw(headers=named, n=2),
        # Errors.
        api.draw(n=0),
        api.draw(model="nobody/none"),
        api.post(b"{}", "text/plain"),
        api.post(b" " * 2**21),
        sandbox.draw(prompt="sandbox:refuse"),
        sandbox.draw(model=[GPT, FLUX], prompt="sandbox:error=provider_unavailable"),
        *(
            sandbox.draw(prompt=f"sandbox:error={code}")
            for code in ("insufficient_balance", "rate_limit_exceeded", "internal_error")
        ),
        connect(None).draw(),
        connect(None).get("models"),
        connect("ghub_sk_live_" + "x" * 32).get("credits"),
        connect(few.secret).draw(),
        edit(api, n="0"),
        api.get("generation"),
        api.get("generation", params={"id": SAMPLES["request_id"]}),
        api.get("models/nobody"),
        api.get("usage", params={"limit": "0"}),
        api.http.delete(f"images/{SAMPLES['request_id']}"),
    ]
    failed = api.draw(model=[DALLE], prompt="x" * 4000, max_cost=0.0001)
    refused = sandbox.draw(prompt="sandbox:refuse")
    answers.append(failed)
    answers.append(sandbox.get("generation", params={"id": refused.json()["error"]["request_id"]}))

    seen = {expect_as_described(one) for one in answers}

    good = {f"{operation['operationId']} 200" for _, _, operation in operations()}
    assert good <= seen
    assert {int(one.split()[1]) for one in seen} == {
        200, 400, 401, 402, 403, 404, 410, 413, 415, 422, 429, 500, 502,
    }  # fmt: skip


def test_no_request_to_the_api_loads_the_generator() -> None:
    code = (
        "import sys, geekhub.asgi, geekhub.urls, images.api.handler;"
        "print([one for one in sys.modules if one.startswith('drf_spectacular')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert ran.stdout.decode().strip() == "[]"
