"""Whatever is sent: no fault of ours, no hold left, and nothing charged that was not delivered."""

import json
from typing import Any

import httpx
import hypothesis
from hypothesis import given
from hypothesis import strategies as st

from billing.models import Hold, HoldState, LedgerEntry
from images.catalog.rows import CATALOG
from images.models import Generation, GenerationStatus, Image
from tests.api.checks import CODES, KEYS_OF_AN_ERROR, REQUEST_ID
from tests.emulators.base import Behaviour
from tests.gateway import PRICES, Emulators, drawn, expect_sound_books
from tests.server import Api

IDS = sorted(CATALOG)
FEW = sorted(PRICES)
SIZES = ["auto", "1024x1024", "1792x1024", "1024x768", "3x3", "0x0", "1024X1024", "9" * 20, ""]

texts = st.text(max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | texts
    | st.sampled_from(["a red kite", "\0", "\ud800", "auto"])
)
wild = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
ids = st.sampled_from([*FEW, *FEW, *IDS, "auto", "no/model", ""])
models = ids | st.lists(ids, max_size=4) | st.lists(st.sampled_from(FEW), min_size=2, unique=True)
routing = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(["cheapest", "fastest", "balanced", "best"]),
        "candidates": st.lists(ids, max_size=4),
        "on_refusal": st.sampled_from(["next", "stop", "go"]),
    },
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy that is good nearly always and anything at all otherwise."""
    return st.sampled_from(range(16)).flatmap(lambda dice: wild if dice == 11 else good)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "n": mostly(st.integers(-1, 9)),
    "size": mostly(st.sampled_from(SIZES)),
    "quality": mostly(st.sampled_from(["auto", "standard", "hd", "low", "medium", "high", "4k"])),
    "style": mostly(st.sampled_from(["vivid", "natural", "wild"])),
    "response_format": mostly(st.sampled_from(["url", "b64_json"])),
    "output_format": mostly(st.sampled_from(["png", "jpeg", "webp", "gif"])),
    "output_compression": mostly(st.integers(-1, 101)),
    "background": mostly(st.sampled_from(["auto", "transparent", "opaque"])),
    "moderation": mostly(st.sampled_from(["auto", "low", "off"])),
    "seed": mostly(st.integers(-1, 2**31)),
    "user": mostly(texts),
    "stream": mostly(st.booleans()),
    "partial_images": mostly(st.integers(-1, 4)),
    "routing": mostly(routing),
    "strict": mostly(st.booleans()),
    "max_cost": mostly(st.floats(-1, 2) | st.integers(0, 2)),
    "dry_run": mostly(st.booleans()),
    "tags": mostly(st.lists(st.text(max_size=41), max_size=9)),
}
PROMPTS = st.sampled_from(["a red kite", "x" * 1001, "y " * 1500, "漢" * 300]) | texts
# Few fields at a time, or nearly every body would have one at fault.
valid_ish = st.builds(
    lambda required, kind, names, values: required | kind | {name: values[name] for name in names},
    st.fixed_dictionaries({"model": mostly(models), "prompt": mostly(PROMPTS)}),
    st.sampled_from([{}, {"stream": True}, {"dry_run": True}, {}]),
    st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True),
    st.fixed_dictionaries(FIELDS),
)
some_fields = st.dictionaries(st.sampled_from(["model", "prompt", *FIELDS]) | texts, wild)
bodies = st.sampled_from(range(8)).flatmap(
    lambda dice: some_fields | wild if dice == 5 else valid_ish
)


def expect_envelope(answer: httpx.Response) -> str:
    """Check that an error is one of the table, as every error is; return its code."""
    error = answer.json()["error"]
    assert error.keys() >= KEYS_OF_AN_ERROR
    assert CODES[error["code"]][0] == answer.status_code
    assert error["code"] != "internal_error"
    assert REQUEST_ID.fullmatch(error["request_id"])
    assert answer.headers["x-request-id"] == error["request_id"]
    code: str = error["code"]
    return code


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the data of a stream's events."""
    lines = answer.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def expect_a_sound_answer(body: Any, answer: httpx.Response) -> tuple[int, str]:
    """Check one answer against all that was written down of its request; return how it ended."""
    assert answer.status_code < 500 or answer.status_code == 502, answer.text
    assert not Hold.objects.filter(state=HoldState.HELD).exists()
    request_id = answer.headers["x-request-id"]
    charged = LedgerEntry.objects.filter(request_id=request_id, kind="consumption")
    images = sum(charged.values_list("quantity", flat=True))
    cost = -sum(charged.values_list("amount_micro", flat=True))
    row = Generation.objects.filter(request_id=request_id).first()
    stored = Image.objects.filter(generation__request_id=request_id).count()
    assert stored == images
    if answer.status_code != 200:
        code = expect_envelope(answer)
        assert images == 0
        assert row is None or row.status == GenerationStatus.FAILED
        return answer.status_code, code
    if answer.headers["content-type"].startswith("text/event-stream"):
        told = events(answer)
        completed = [one for one in told if one["type"] == "image_generation.completed"]
        assert len(completed) == images
        assert all(one["error"]["code"] != "internal_error" for one in told if "error" in one)
        return 200, "stream"
    if answer.json().get("dry_run"):
        assert (row, images) == (None, 0)
        return 200, "dry_run"
    assert row is not None
    assert 0 < images == len(answer.json()["data"]) == row.delivered <= row.n
    assert float(answer.headers["x-geekhub-cost-usd"]) == cost / 1_000_000
    assert answer.json()["model"] == row.model
    limit = body.get("max_cost")
    assert limit is None or cost <= limit * 1_000_000
    assert not (body.get("strict") and answer.json().get("adjusted"))
    return 200, "drawn"


def explore(api: Api, examples: int) -> set[tuple[int, str]]:
    """Send bodies of all kinds, always the same ones, and return how they ended."""
    ends: set[tuple[int, str]] = set()

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.example({"model": "no/model", "prompt": "a red kite"})
    @given(bodies)
    def look(body: Any) -> None:
        answer = api.post(json.dumps(body).encode())
        ends.add(expect_a_sound_answer(body, answer))

    look()
    return ends


def test_any_body_is_answered_and_only_what_is_delivered_is_charged(
    api: Api, tiny: None, emulators: Emulators
) -> None:
    ends = explore(api, 200)

    # The bodies were neither all good nor all bad.
    assert {(200, "drawn"), (200, "stream"), (200, "dry_run")} <= ends
    assert {(400, "invalid_request_error"), (404, "model_not_found")} <= ends
    # Nothing was drawn for nobody.
    assert drawn(emulators) == Image.objects.count() > 0
    assert not [one for one in emulators.values() if one.leaks]
    expect_sound_books()


def test_any_body_is_answered_also_when_providers_fail(
    api: Api, tiny: None, emulators: Emulators
) -> None:
    soon = 0.01
    failing = {
        "openai": [Behaviour(error="server_error", retry_after=soon), Behaviour(fewer=1)],
        "google": [Behaviour(error="unavailable", retry_after=soon), Behaviour(refuse=1)],
        "xai": [Behaviour(error="moderation_blocked"), Behaviour(cut=True)],
        "fal": [Behaviour(refuse=1), Behaviour(picture="404"), Behaviour(drop="before")],
    }
    for seed, (name, behaviours) in enumerate(failing.items()):
        emulators[name].random(seed, 0.4, [*behaviours, Behaviour(drop="after")])

    ends = explore(api, 120)

    # Refusals have a test of their own; here a provider may be left alone before it refuses.
    assert {(200, "drawn"), (502, "provider_unavailable")} <= ends
    expect_sound_books()
