"""Sandbox keys: every model draws for nothing, and words in the prompt cause what they say."""

import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow
from PIL import ImageChops, ImageStat

from billing.models import Hold, LedgerEntry
from images.catalog.rows import CATALOG
from images.models import Generation, GenerationStatus, Image
from tests.api.checks import (
    CODES,
    expect_books_agree,
    expect_error,
    expect_nothing_charged,
    stored_files,
)
from tests.api.test_streaming import events
from tests.emulators.base import make_picture
from tests.emulators.openai import OpenAIEmulator
from tests.server import Api


def _digests(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [row["sha256"] for row in answer.json()["data"]]


def test_every_model_draws_a_real_picture_for_nothing(
    sandbox: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for model in CATALOG.values():
        with subtests.test(model.id):
            size = next(iter(model.sizes))
            answer = sandbox.draw(model=model.id, size=size, response_format="b64_json")
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-geekhub-cost-usd"] == "0.00"
            assert answer.json()["model"] == model.id
            data = base64.b64decode(answer.json()["data"][0]["b64_json"])
            with Pillow.open(io.BytesIO(data)) as picture:
                picture.load()
                assert picture.format == "PNG"
                assert "{}x{}".format(*picture.size) == model.sizes[size]
    assert Generation.objects.filter(sandbox=True, cost_micro=0).count() == len(CATALOG)
    assert openai.calls == []
    assert Hold.objects.count() == 0
    assert not LedgerEntry.objects.filter(kind="consumption").exists()
    assert sandbox.get("credits").json()["geekhub"]["balance_usd"] == "10.00"
    assert Image.objects.count() == len(stored_files()) == len(CATALOG)


def test_the_format_asked_for_is_drawn(sandbox: Api) -> None:
    for asked, extension in (("png", "png"), ("jpeg", "jpg"), ("webp", "webp")):
        row = sandbox.draw(output_format=asked).json()["data"][0]
        assert row["mime_type"] == f"image/{asked}"
        assert row["url"].endswith(f".{extension}")


def test_the_same_prompt_and_seed_give_the_same_bytes(sandbox: Api) -> None:
    def draw(**changes: Any) -> list[Any]:
        return _digests(sandbox.draw(**{"model": "fal/flux-1.1-pro", "n": 2, "seed": 7, **changes}))

    first = draw()
    assert len(set(first)) == 2
    assert draw() == first
    for change in ({"seed": 8}, {"seed": None}, {"prompt": "a blue kite"}, {"size": "768x1024"}):
        assert not set(draw(**change)) & set(first)


def test_refuse_refuses_the_prompt_or_the_picture(sandbox: Api) -> None:
    for prompt, stage in (("sandbox:refuse", "prompt"), ("a sandbox:refuse=output kite", "output")):
        error = expect_error(sandbox.draw(prompt=prompt), "content_policy_violation", says="policy")
        assert error["stage"] == stage
    assert Generation.objects.filter(status=GenerationStatus.FAILED).count() == 2
    expect_nothing_charged()


def test_slow_takes_the_time_it_says(sandbox: Api) -> None:
    answer = sandbox.draw(prompt="a kite sandbox:slow=0.5")
    assert answer.status_code == 200
    assert 0.5 <= answer.elapsed.total_seconds() < 5
    assert 500 <= Generation.objects.get().latency_ms < 5000


def test_deliver_gives_some_of_the_pictures(sandbox: Api) -> None:
    assert len(_digests(sandbox.draw(prompt="sandbox:deliver=2", n=4))) == 2
    assert len(_digests(sandbox.draw(prompt="sandbox:deliver=9", n=3))) == 3
    expect_error(sandbox.draw(prompt="sandbox:deliver=0", n=3), "provider_unavailable")
    assert list(Generation.objects.order_by("created_at").values_list("delivered", flat=True)) == [
        2,
        3,
        0,
    ]


ERRORS = [
    "provider_unavailable",
    "rate_limit_exceeded",
    "insufficient_balance",
    "guardrail_blocked",
    "model_not_found",
    "invalid_request_error",
    "internal_error",
]


def test_error_answers_exactly_what_it_says(sandbox: Api, subtests: pytest.Subtests) -> None:
    for code in ERRORS:
        with subtests.test(code):
            answer = sandbox.draw(prompt=f"a kite sandbox:error={code}, please")
            error = expect_error(answer, code, param="model" if code == "model_not_found" else None)
            assert "sandbox" in error["message"]
            assert error["type"] == CODES[code][1]
            if code == "insufficient_balance":
                assert answer.headers["x-should-retry"] == "false"
            if code == "rate_limit_exceeded":
                assert int(answer.headers["retry-after"]) >= 1
    with subtests.test("unknown"):
        answer = sandbox.draw(prompt="sandbox:error=teapot")
        expect_error(answer, "invalid_request_error", param="prompt", says=tuple(ERRORS))
    expect_nothing_charged()
    # An imitated failure is nobody's failure: the next request draws.
    assert sandbox.draw().status_code == 200


def test_a_fallback_can_be_tried_out(sandbox: Api) -> None:
    models = ["openai/gpt-image-1", "fal/recraft-v3"]
    answer = sandbox.draw(
        model=models, prompt="a kite sandbox:error=provider_unavailable@openai/gpt-image-1"
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "fal/recraft-v3"
    assert answer.json()["geekhub"] == {
        "final_model": "fal/recraft-v3",
        "requested": models,
        "attempts": [
            {"model": "openai/gpt-image-1", "error": "provider_unavailable"},
            {"model": "fal/recraft-v3", "error": None},
        ],
        "skipped": [],
    }


def test_a_refusal_stops_a_list_that_says_so(sandbox: Api) -> None:
    models = ["openai/gpt-image-1", "fal/recraft-v3"]
    prompt = "sandbox:refuse@openai/gpt-image-1"

    assert sandbox.draw(model=models, prompt=prompt).json()["model"] == "fal/recraft-v3"
    expect_error(
        sandbox.draw(model=models, prompt=prompt, routing={"on_refusal": "stop"}),
        "content_policy_violation",
    )


def test_when_all_of_a_list_fail_the_answer_lists_them(sandbox: Api) -> None:
    models = ["openai/gpt-image-1", "fal/recraft-v3"]
    error = expect_error(
        sandbox.draw(model=models, prompt="sandbox:error=provider_unavailable"),
        "provider_unavailable",
        kind="all_candidates_failed",
        says=tuple(models),
    )
    assert error["attempts"] == [{"model": one, "error": "provider_unavailable"} for one in models]
    expect_nothing_charged()


# --- Early views --------------------------------------------------------------------------------


def _views(told: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, Any]]:
    return [
        (kind.partition(".")[2], data.get("partial_image_index", data.get("index")))
        for kind, data in told
    ]


def test_early_views_come_before_each_picture_coarse_at_first(sandbox: Api) -> None:
    answer = sandbox.draw(stream=True, partial_images=2, n=2, output_format="webp")
    assert answer.headers["content-type"] == "text/event-stream"
    told = events(answer.text)

    early = [("partial_image", 0), ("partial_image", 1)]
    assert _views(told) == [*early, ("completed", 0), *early, ("completed", 1)]
    assert [data["type"] for kind, data in told] == [kind for kind, _ in told]
    fields = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}
    for kind, data in told:
        assert data.keys() >= fields
        assert (data["size"], data["output_format"]) == ("1024x1024", "webp")
        if kind.endswith("partial_image"):
            assert data.keys() == fields | {"partial_image_index"}
    for start in (0, 3):
        drawn = [
            Pillow.open(io.BytesIO(base64.b64decode(data["b64_json"]))).convert("RGB")
            for _, data in told[start : start + 3]
        ]
        assert [one.size for one in drawn] == [(1024, 1024)] * 3
        last = drawn[-1]
        off = [ImageStat.Stat(ImageChops.difference(one, last)).mean for one in drawn]
        assert sum(off[0]) > sum(off[1]) > sum(off[2]) == 0
    # Only what is finished is kept.
    assert Image.objects.count() == len(stored_files()) == 2


def test_an_edit_has_early_views_and_a_model_without_them_has_none(sandbox: Api) -> None:
    files = [("image", ("a.png", make_picture(90, 60, "png"), "image/png"))]
    form = {"model": "openai/gpt-image-1", "prompt": "a hat", "stream": "true"}
    told = sandbox.http.post("images/edits", data={**form, "partial_images": "3"}, files=files)
    kinds = [kind for kind, _ in events(told.text)]
    assert kinds == ["image_edit.partial_image"] * 3 + ["image_edit.completed"]

    none = sandbox.draw(model="openai/dall-e-3", stream=True, partial_images=3, n=2)
    assert _views(events(none.text)) == [("completed", 0), ("completed", 1)]
    assert _views(events(sandbox.draw(stream=True).text)) == [("completed", 0)]


def test_early_views_and_failures_go_together_as_with_a_provider(sandbox: Api) -> None:
    def draw(directive: str) -> httpx.Response:
        return sandbox.draw(prompt=directive, stream=True, partial_images=1, n=2)

    # Refused when it is finished: it has been seen in part, and the answer has begun.
    told = events(draw("sandbox:refuse=output").text)
    assert [kind for kind, _ in told] == ["image_generation.partial_image"] * 2 + ["error"]
    error = told[-1][1]["error"]
    assert isinstance(error, dict)
    assert (error["code"], error["stage"]) == ("content_policy_violation", "output")
    for directive in ("refuse", "error=provider_unavailable", "deliver=0"):
        code = "content_policy_violation" if directive == "refuse" else "provider_unavailable"
        expect_error(draw(f"sandbox:{directive}"), code)
    expect_nothing_charged()

    told = events(draw("sandbox:deliver=1").text)
    assert _views(told) == [("partial_image", 0), ("completed", 0)]


def test_a_live_key_s_prompt_is_just_a_prompt(api: Api, openai: OpenAIEmulator) -> None:
    answer = api.draw(prompt="sandbox:error=internal_error")

    assert answer.status_code == 200, answer.text
    assert openai.calls[0].body["prompt"] == "sandbox:error=internal_error"
    expect_books_agree(images=1, cost_micro=190_000)
