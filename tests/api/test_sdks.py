"""The official OpenAI SDKs, for Python and for Node, unchanged, against the gateway."""

import asyncio
import base64
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from pytest_django.fixtures import Settings

from accounts import keys
from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import Period
from billing.spending import budgets
from images.catalog.rows import CATALOG
from images.models import Generation
from tests import node_sdk
from tests.api.checks import REQUEST_ID, expect_books_agree, expect_nothing_happened
from tests.clients import Client, Raised
from tests.emulators.base import Behaviour, make_picture
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.server import AppServer

GPT, DALLE = "openai/gpt-image-1", "openai/dall-e-3"
KEY = {"Idempotency-Key": "order-4711"}
NODE_SECONDS = 60
type Sdk = Callable[[NewKey], OpenAI]


@pytest.fixture
def sdk(app: AppServer) -> Iterator[Sdk]:
    """Make the Python SDK's client for a key, with all its defaults."""
    clients: list[OpenAI] = []

    def make(key: NewKey) -> OpenAI:
        clients.append(OpenAI(api_key=key.secret, base_url=f"{app.origin}/v1"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_the_python_sdk_draws(sdk: Sdk, live_key: NewKey, openai: OpenAIEmulator) -> None:
    answer = sdk(live_key).images.generate(
        model=GPT, prompt="a red kite", n=2, size="1024x1536", quality="high", user="u1"
    )

    assert answer.data is not None
    assert [(row.url or "").rpartition("/")[2] for row in answer.data] == ["0.png", "1.png"]
    assert {row.b64_json for row in answer.data} == {None}
    assert answer.data[0].model_extra is not None
    assert answer.data[0].model_extra["height"] == 1536
    assert answer.model_extra is not None
    assert answer.model_extra["model"] == GPT
    assert abs(answer.created - Generation.objects.get().created_at.timestamp()) < 2
    sent_on = openai.calls[0].body
    assert (sent_on["quality"], sent_on["size"], sent_on["n"]) == ("high", "1024x1536", 2)
    assert sent_on["user"] != "u1"
    expect_books_agree(images=2, cost_micro=380_000)


def test_the_python_sdk_gets_base64(sdk: Sdk, live_key: NewKey, openai: OpenAIEmulator) -> None:
    for model in (GPT, DALLE):
        answer = sdk(live_key).images.generate(
            model=model, prompt="a red kite", response_format="b64_json"
        )
        assert answer.data is not None
        assert base64.b64decode(answer.data[0].b64_json or "") == openai.pictures[-1]
    expect_books_agree(images=2, cost_micro=230_000)


def test_the_python_sdk_sends_our_own_fields(sdk: Sdk, test_key: NewKey) -> None:
    def draw(seed: int) -> Any:
        answer = sdk(test_key).images.generate(
            model="fal/flux-1.1-pro", prompt="a kite", extra_body={"seed": seed, "tags": ["a"]}
        )
        assert answer.data is not None
        assert answer.data[0].model_extra is not None
        return answer.data[0].model_extra["sha256"]

    assert draw(7) == draw(7) != draw(8)
    assert Generation.objects.filter(tags=["a"]).count() == 3


def test_the_python_sdk_s_request_id_is_ours(sdk: Sdk, live_key: NewKey) -> None:
    raw = sdk(live_key).images.with_raw_response.generate(model=GPT, prompt="a red kite")
    assert raw.request_id == Generation.objects.get().request_id
    assert raw.headers["x-geekhub-cost-usd"] == "0.19"


def test_the_python_sdk_lists_and_finds_models(
    sdk: Sdk, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    client = sdk(live_key)
    listed = {model.id: model for model in client.models.list()}

    assert listed.keys() == CATALOG.keys()
    for model_id, model in listed.items():
        found = client.models.retrieve(model_id)
        assert found == model
        assert (found.object, found.owned_by) == ("model", model_id.split("/")[0])
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("openai/gpt-image-0")
    assert caught.value.code == "model_not_found"
    expect_nothing_happened(openai)


def test_the_asynchronous_python_sdk_draws(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    async def draw() -> list[str]:
        async with AsyncOpenAI(api_key=live_key.secret, base_url=f"{app.origin}/v1") as client:
            answers = await asyncio.gather(
                *(client.images.generate(model=DALLE, prompt="a kite", n=2) for _ in range(3))
            )
            found = await client.models.retrieve(GPT)
            assert found.id == GPT
            with pytest.raises(BadRequestError):
                await client.images.generate(model=GPT, prompt="")
        return [row.url or "" for answer in answers for row in answer.data or []]

    assert len(set(asyncio.run(draw()))) == 6
    assert len(openai.calls) == 6
    expect_books_agree(images=6, cost_micro=240_000)


def _raises(
    call: Callable[[], Any], kind: type[APIStatusError], status: int, code: str, param: str | None
) -> APIStatusError:
    with pytest.raises(APIStatusError) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert REQUEST_ID.fullmatch(error.request_id or "")
    assert error.type
    # The SDK numbers its attempts: the answer came to the first, so it was the only one.
    assert error.request.headers["x-stainless-retry-count"] == "0"
    return error


def test_the_python_sdk_s_errors_come_after_exactly_one_request(
    sdk: Sdk,
    acme: Organization,
    live_key: NewKey,
    openai: OpenAIEmulator,
    subtests: pytest.Subtests,
) -> None:
    revoked = KeyFactory(organization=acme)
    keys.revoke(revoked.row)
    poor = KeyFactory(organization=OrganizationFactory(bonus="0.01"))
    tight = KeyFactory(organization=acme)
    budgets.set_budget(tight.row, 10_000, Period.DAY)
    picky = KeyFactory(organization=acme, allowed_models=[DALLE])
    cases: list[tuple[type[APIStatusError], int, str, str | None, NewKey, dict[str, Any]]] = [
        (BadRequestError, 400, "invalid_request_error", "n", live_key, {"n": 9}),
        (BadRequestError, 400, "invalid_request_error", "size", live_key, {"size": "512x512"}),
        (AuthenticationError, 401, "key_revoked", None, revoked, {}),
        (APIStatusError, 402, "insufficient_balance", None, poor, {}),
        (PermissionDeniedError, 403, "guardrail_blocked", None, tight, {}),
        (PermissionDeniedError, 403, "guardrail_blocked", "model", picky, {}),
        (NotFoundError, 404, "model_not_found", "model", live_key, {"model": "no/such"}),
        (APIStatusError, 413, "request_too_large", None, live_key, {"prompt": "x" * 1_100_000}),
    ]
    for kind, status, code, param, key, changes in cases:
        with subtests.test(f"{status} {code} {param}"):
            client = sdk(key)
            asked = {"model": GPT, "prompt": "a red kite", **changes}
            _raises(lambda c=client, a=asked: c.images.generate(**a), kind, status, code, param)  # type: ignore[misc]
    expect_nothing_happened(openai)


def test_the_python_sdk_does_not_repeat_a_refusal_nor_a_key_s_misuse(
    sdk: Sdk, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    client = sdk(live_key)
    openai.queue(Behaviour(error="moderation_blocked"))
    _raises(
        lambda: client.images.generate(model=GPT, prompt="a kite"),
        BadRequestError, 400, "content_policy_violation", None,
    )  # fmt: skip
    assert len(openai.calls) == 1

    client.images.generate(model=GPT, prompt="a kite", extra_headers=KEY)
    _raises(
        lambda: client.images.generate(model=GPT, prompt="another", extra_headers=KEY),
        UnprocessableEntityError, 422, "idempotency_key_reused", None,
    )  # fmt: skip
    assert len(openai.calls) == 2


def test_the_python_sdk_does_not_repeat_while_the_first_is_running(
    sdk: Sdk, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    client, gate = sdk(live_key), threading.Event()
    openai.always(Behaviour(gate=gate))

    def draw() -> Any:
        return client.images.generate(model=GPT, prompt="a kite", extra_headers=KEY)

    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(draw)
            openai.wait_for_calls(1)
            _raises(draw, ConflictError, 409, "idempotency_key_in_use", None)
        finally:
            gate.set()
        assert first.result(30).model_extra["id"] == Generation.objects.get().request_id
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=190_000)


def test_the_python_sdk_repeats_only_what_cannot_cost_twice(
    sdk: Sdk, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    client = sdk(live_key)
    openai.always(Behaviour(drop="after"))
    _raises(
        lambda: client.images.generate(model=GPT, prompt="a kite"),
        InternalServerError, 502, "provider_unavailable", None,
    )  # fmt: skip
    # The provider may have drawn and billed: one request, one call.
    assert len(openai.calls) == 1
    row = Generation.objects.get()
    assert (row.status, row.cost_micro) == ("failed", 0)


def test_the_python_sdk_waits_as_the_rate_limit_says(
    serve: Callable[[], AppServer], settings: Settings, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    settings.RATE_LIMIT_RPM = 1
    with OpenAI(api_key=live_key.secret, base_url=f"{serve().origin}/v1", max_retries=0) as client:
        client.images.generate(model=DALLE, prompt="a kite")
        error = _raises(
            lambda: client.images.generate(model=DALLE, prompt="a kite"),
            RateLimitError, 429, "rate_limit_exceeded", None,
        )  # fmt: skip
    assert 0 < float(error.response.headers["retry-after-ms"]) <= 60_000
    assert len(openai.calls) == 1


def _node(app: AppServer, key: NewKey, **parameters: Any) -> dict[str, Any]:
    folder = node_sdk.node_clients()
    if folder is None:
        pytest.skip(node_sdk.why_no_node())
    done = subprocess.run(
        ["node", "draw.mjs", json.dumps({"model": GPT, "prompt": "a red kite", **parameters})],
        cwd=folder,
        env=os.environ | {"OPENAI_API_KEY": key.secret, "OPENAI_BASE_URL": f"{app.origin}/v1"},
        capture_output=True,
        text=True,
        timeout=NODE_SECONDS,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_node_sdk_draws(app: AppServer, live_key: NewKey, openai: OpenAIEmulator) -> None:
    answer = _node(app, live_key, n=2, size="1536x1024")

    assert answer["ok"], answer
    assert answer["body"]["model"] == GPT
    assert [row["url"].rpartition("/")[2] for row in answer["body"]["data"]] == ["0.png", "1.png"]
    in_base64 = _node(app, live_key, model=DALLE, response_format="b64_json")
    assert base64.b64decode(in_base64["body"]["data"][0]["b64_json"]) == openai.pictures[-1]
    expect_books_agree(images=3, cost_micro=420_000)


def test_the_node_sdk_s_errors_carry_what_happened(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    error = _node(app, live_key, size="512x512")
    assert (error["name"], error["status"]) == ("BadRequestError", 400)
    assert (error["code"], error["param"]) == ("invalid_request_error", "size")
    assert REQUEST_ID.fullmatch(error["request_id"])
    assert "1024x1024" in error["message"]

    poor = KeyFactory(organization=OrganizationFactory(bonus="0.01"))
    error = _node(app, poor)
    assert (error["name"], error["status"]) == ("APIError", 402)
    assert (error["code"], error["type"]) == ("insufficient_balance", "insufficient_quota")

    keys.revoke(live_key.row)
    error = _node(app, live_key)
    assert (error["name"], error["status"]) == ("AuthenticationError", 401)
    assert error["code"] == "key_revoked"
    expect_nothing_happened(openai)


@pytest.fixture(
    params=["newest", "second", "first", "node openai-6"],
    ids=["python 3.57.0", "python 2.54.0", "python 1.109.1", "node 6.49.0"],
)
def major(request: pytest.FixtureRequest, app: AppServer, live_key: NewKey) -> Iterator[Client]:
    """Another major of the SDK, in a process of its own."""
    name, _, package = request.param.partition(" ")
    environment = {
        "OPENAI_API_KEY": live_key.secret,
        "OPENAI_BASE_URL": f"{app.origin}/v1",
        "OPENAI_PACKAGE": package,
    }
    client = Client.of(name, "openai", environment)
    yield client
    client.close()


def test_other_majors_of_the_sdk_work_as_well(major: Client, openai: OpenAIEmulator) -> None:
    asked = {"model": GPT, "prompt": "a kite"}
    drawn = major("draw", **asked, n=2, response_format="b64_json")
    assert [base64.b64decode(row["b64_json"]) for row in drawn["data"]] == openai.pictures
    assert major("draw", **asked)["data"][0]["url"].endswith("/0.png")
    events = major("stream", **asked, partial_images=1)
    assert [event["type"].partition(".")[2] for event in events] == ["partial_image", "completed"]
    edited = major("edit", **asked, image=make_picture(64, 64, "png"))
    assert edited["data"][0]["url"].endswith("/0.png")
    expect_books_agree(images=5, cost_micro=5 * 190_000)

    assert major("models") == list(CATALOG)
    assert major("model", name=GPT)["id"] == GPT
    for changes, name, status, code in (
        ({"n": 9}, "BadRequestError", 400, "invalid_request_error"),
        ({"model": "no/such"}, "NotFoundError", 404, "model_not_found"),
        ({"key": "ghub_sk_none"}, "AuthenticationError", 401, "invalid_api_key"),
    ):
        with pytest.raises(Raised) as caught:
            major("draw", **{**asked, **changes})
        error = caught.value
        assert (error.name, error.status, error.code) == (name, status, code)
    assert len(openai.calls) == 4


def test_the_ai_sdk_draws(app: AppServer, live_key: NewKey, openai: OpenAIEmulator) -> None:
    key, url = live_key.secret, f"{app.origin}/v1"
    environment = {"AI_PROVIDER": "openai", "AI_KEY": key, "AI_URL": url}
    client = Client.of("node", "ai", environment)
    try:
        answer = client("draw", model=GPT, prompt="a kite", n=2, size="1536x1024")
        # It asks for one picture a call of a model whose name it does not know.
        drawn = {base64.b64decode(row["data"]) for row in answer["pictures"]}
        assert (len(drawn), drawn) == (2, set(openai.pictures))
        assert [(one.body["n"], one.body["size"]) for one in openai.calls] == [(1, "1536x1024")] * 2
        with pytest.raises(Raised) as caught:
            client("draw", model="no/such", prompt="a kite")
        assert (caught.value.name, caught.value.status) == ("APICallError", 404)
    finally:
        client.close()
    expect_books_agree(images=2, cost_micro=380_000)
