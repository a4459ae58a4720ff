"""What can be asked for: models, credits, the state of a request, health, and the pictures."""

import hashlib
import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import uuid4

import httpx
import pytest
from django.conf import settings as live_settings
from PIL import Image as Pillow
from pytest_django.fixtures import Settings

from accounts.models import Organization
from billing.models import Hold, HoldState, LedgerEntry, Period, scopes
from billing.models.scopes import Holder
from billing.spending import budgets
from images.catalog.rows import CATALOG
from images.models import Generation, Image
from tests.api.checks import expect_error, expect_nothing_happened, send_raw
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.server import Api, AppServer

PRICES = {
    "openai/gpt-image-1": "0.19",
    "openai/dall-e-3": "0.04",
    "google/imagen-4": "0.04",
    "xai/grok-2-image": "0.07",
    "fal/flux-1.1-pro": "0.04",
    "fal/flux-1.1-pro-ultra": "0.06",
    "fal/recraft-v3": "0.04",
    "fal/ideogram-v2": "0.08",
    "fal/sd-3.5-large": "0.065",
}
STORE = "/storage/v1/object/public/generated-images/"


def _path(url: str) -> str:
    assert url.startswith("http://pictures.test/")
    return url.removeprefix("http://pictures.test")


def test_the_models_are_the_catalogue_in_openai_s_shape(api: Api, openai: OpenAIEmulator) -> None:
    answer = api.get("models")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    assert body["object"] == "list"
    prices = {row["id"]: row["pricing"]["per_image_usd"] for row in body["data"]}
    assert prices.items() >= PRICES.items()
    assert prices.keys() == CATALOG.keys()
    for row in body["data"]:
        assert row["object"] == "model"
        assert row["kind"] == "image"
        assert row["owned_by"] == row["id"].split("/")[0]
        assert row["max_n"] == 8
        assert row["sizes"][0] == "auto"
        assert isinstance(row["created"], int)
    expect_nothing_happened(openai)


def test_one_model_is_found_with_its_slash_written_either_way(
    api: Api, subtests: pytest.Subtests
) -> None:
    rows = {row["id"]: row for row in api.get("models").json()["data"]}
    for model, row in rows.items():
        for path in (model, model.replace("/", "%2F"), model.replace("/", "%2f")):
            with subtests.test(path):
                answer = api.get(f"models/{path}")
                assert answer.status_code == 200
                assert answer.json() == row
    for path in ("gpt-image-1", "openai", "openai/gpt-image-0", "openai%2Fgpt-image-1%20", "%00",
                 "openai/gpt-image-1/", "%ff", "..", "auto", "x" * 2000):  # fmt: skip
        with subtests.test(path[:40]):
            answer = send_raw(
                api.origin,
                f"GET /v1/models/{path} HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: {api.http.headers['authorization']}\r\n\r\n".encode(),
            )
            expect_error(answer, "model_not_found", param="model", says="GET /v1/models lists")


def test_head_has_the_headers_and_no_body(api: Api, subtests: pytest.Subtests) -> None:
    for path in ("models", "models/openai/gpt-image-1", "credits"):
        with subtests.test(path):
            answer = api.http.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-request-id"].startswith("req_")


def test_credits_have_openrouter_s_shape_and_our_numbers(
    api: Api, sandbox: Api, acme: Organization, connect: Callable[..., Api]
) -> None:
    assert api.draw(n=2).status_code == 200
    assert sandbox.draw().status_code == 200
    colleague = connect(KeyFactory(organization=acme).secret)
    assert colleague.draw(model="openai/dall-e-3").status_code == 200

    assert api.get("credits").json() == {
        "data": {"total_credits": 10.0, "total_usage": 0.42},
        "geekhub": {
            "balance_usd": "9.58",
            "held_usd": "0.00",
            "credit_limit_usd": "0.00",
            "spent_30_days_usd": "0.42",
            "key": {"spent_usd": "0.38", "budget": None, "budgets": []},
        },
    }
    assert colleague.get("credits").json()["geekhub"]["key"]["spent_usd"] == "0.04"


def test_credits_tell_every_budget_that_covers_the_key(
    api: Api, acme: Organization, connect: Callable[..., Api]
) -> None:
    alice = acme.members.get()
    key = KeyFactory(organization=acme, actor=alice)
    mine = connect(key.secret)
    budgets.set_budget(key.row, 5_000_000, Period.MONTH)
    budgets.set_for(acme.pk, Holder(scopes.MEMBER, alice.pk), None, Period.DAY, limit_images=10)
    assert mine.draw(n=2).status_code == 200

    told = mine.get("credits").json()["geekhub"]["key"]
    since = [datetime.fromisoformat(budget.pop("since")) for budget in told["budgets"]]
    assert [(moment.hour, moment.minute) for moment in since] == [(0, 0), (0, 0)]
    assert (since[0].day, told["spent_usd"]) == (1, "0.38")
    used = {"spent_usd": "0.38", "held_usd": "0.00", "spent_images": 2, "held_images": 0}
    assert told["budgets"] == [
        {"scope": "key", "period": "month", "limit_usd": "5.00", "limit_images": None, **used},
        {"scope": "member", "period": "day", "limit_usd": None, "limit_images": 10, **used},
    ]
    told["budget"].pop("since")
    assert told["budget"] == told["budgets"][0]
    # A key that nobody of the organization made has no member's budget.
    assert api.get("credits").json()["geekhub"]["key"]["budgets"] == []
    # The whole organization's is everybody's, and comes after what is the key's own.
    budgets.set_for(acme.pk, Holder(scopes.ORGANIZATION), 9_000_000, Period.WEEK)
    for client, expected in ((mine, ["key", "member", "organization"]), (api, ["organization"])):
        told = client.get("credits").json()["geekhub"]["key"]
        assert [budget["scope"] for budget in told["budgets"]] == expected
        assert told["budget"] == told["budgets"][0]


def test_a_running_request_can_be_looked_at(api: Api, openai: OpenAIEmulator) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(api.draw, n=2, tags=["launch"])
            openai.wait_for_calls(1)
            row = Generation.objects.get()
            running = api.get(f"generation?id={row.request_id}").json()["data"]
            held = api.get("credits").json()["geekhub"]
        finally:
            gate.set()
        body = future.result(30).json()
    done = api.get(f"generation?id={row.request_id}").json()["data"]

    assert body["id"] == row.request_id == running["id"] == done["id"]
    assert (running["status"], done["status"]) == ("running", "succeeded")
    assert running["requested"] == done["requested"] == ["openai/gpt-image-1"]
    assert (running["model"], running["provider_name"]) == (None, None)
    assert (running["images"], running["finished_at"], running["latency"]) == ([], None, None)
    assert (running["total_cost"], running["error"]) == (0, None)
    assert (held["held_usd"], held["balance_usd"]) == ("0.38", "10.00")
    assert (done["model"], done["provider_name"]) == ("openai/gpt-image-1", "OpenAI")
    assert (done["total_cost"], done["cost_usd"]) == (0.38, "0.38")
    assert (done["num_media_completion"], done["n"], done["tags"]) == (2, 2, ["launch"])
    assert done["attempts"] == [{"model": "openai/gpt-image-1", "error": None}]
    assert [image["url"] for image in done["images"]] == [image["url"] for image in body["data"]]
    assert done["latency"] >= 0
    assert done["created_at"] <= done["finished_at"]
    assert done["error"] is None
    assert "a red kite" not in json.dumps(done)


def test_a_failed_request_can_be_looked_at(api: Api, openai: OpenAIEmulator) -> None:
    openai.queue(Behaviour(error="moderation_blocked"))
    error = expect_error(api.draw(), "content_policy_violation")
    found = api.get(f"generation?id={error['request_id']}").json()["data"]

    assert found["status"] == "failed"
    assert found["error"] == {"code": error["code"], "message": error["message"]}
    assert (found["images"], found["total_cost"], found["model"]) == ([], 0, None)
    attempt = {"model": "openai/gpt-image-1", "error": "content_policy_violation"}
    assert found["attempts"] == [attempt]


def test_a_request_is_found_by_its_own_organization_only(
    api: Api, sandbox: Api, globex: Organization, connect: Callable[..., Api]
) -> None:
    drawn = api.draw().json()["id"]
    stranger = connect(KeyFactory(organization=globex).secret)

    missing = expect_error(api.get("generation?id=req_" + "0" * 24), "not_found", param="id")
    hidden = expect_error(stranger.get(f"generation?id={drawn}"), "not_found", param="id")
    # Nothing reveals to a stranger that the request exists.
    assert hidden["message"].replace(drawn, "") == missing["message"].replace("req_" + "0" * 24, "")
    assert sandbox.get(f"generation?id={drawn}").status_code == 200


def test_an_odd_id_is_an_error_of_the_caller(api: Api, subtests: pytest.Subtests) -> None:
    for query in ("", "?", "?id=", "?ID=req_1", "?di=1"):
        with subtests.test(query):
            answer = api.get(f"generation{query}")
            expect_error(answer, "invalid_request_error", param="id", says="is required")
    for value in ("req_", "1", "%00", "req_%00", "%ff%fe", "%ED%A0%80", "x" * 5000, "' OR 1=1 --",
                  "req_" + "A" * 24, "req_" + "0" * 24 + "%0A", "\U0001f680"):  # fmt: skip
        with subtests.test(ascii(value)[:40]):
            expect_error(api.get(f"generation?id={value}"), "not_found", param="id")
    for name, query in (
        ("1,001 parameters", "&".join(["id=1"] * 1001)),
        ("10,000 parameters", "&" * 10_000),
        ("format", "format=html&id=1"),
    ):
        with subtests.test(name):
            answer = api.get(f"generation?{query}")
            assert answer.status_code in (400, 404), answer.text
            assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


def test_health_needs_no_key_and_ready_asks_database_cache_and_store(
    serve: Callable[[], AppServer], settings: Settings
) -> None:
    origin = serve().origin
    assert httpx.get(f"{origin}/health").json() == {"status": "ok"}
    ready = httpx.get(f"{origin}/ready")
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ok", "checks": {"database": "ok", "cache": "ok", "storage": "ok"}},
    )
    (settings.DATA_DIR / "images").rmdir()
    (settings.DATA_DIR / "images").write_text("a file where the folder should be")
    ready = httpx.get(f"{origin}/ready")
    assert (ready.status_code, ready.json()) == (
        503,
        {
            "status": "unavailable",
            "checks": {"database": "ok", "cache": "ok", "storage": "failed"},
        },
    )
    assert httpx.get(f"{origin}/health").status_code == 200
    (settings.DATA_DIR / "images").unlink()
    assert httpx.get(f"{origin}/ready").status_code == 200


def test_a_picture_is_served_for_good_without_a_key(
    api: Api, app: AppServer, acme: Organization, openai: OpenAIEmulator
) -> None:
    rows = api.draw(n=2).json()["data"]
    folder = f"{STORE}{acme.pk}/{Generation.objects.get().pk}"

    assert [_path(row["url"]) for row in rows] == [f"{folder}/0.png", f"{folder}/1.png"]
    for row, made in zip(rows, openai.pictures, strict=True):
        answer = httpx.get(app.origin + _path(row["url"]))
        assert answer.status_code == 200
        assert answer.content == made
        assert row["bytes"] == len(made) == int(answer.headers["content-length"])
        assert row["sha256"] == hashlib.sha256(made).hexdigest()
        assert (row["width"], row["height"], row["mime_type"]) == (1024, 1024, "image/png")
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
        head = httpx.head(app.origin + _path(row["url"]))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == "image/png"
        assert head.headers["content-length"] == str(len(made))


def test_only_pictures_leave_the_store(
    api: Api, app: AppServer, acme: Organization, settings: Settings, subtests: pytest.Subtests
) -> None:
    own = _path(api.draw().json()["data"][0]["url"])
    # A real picture beside the store: only its place keeps it from being served.
    picture = settings.DATA_DIR / "images" / Image.objects.get().name
    (settings.DATA_DIR / "secret.png").write_bytes(picture.read_bytes())
    (settings.DATA_DIR / "images" / "notes.png").write_text("no picture")
    (settings.DATA_DIR / "images" / "page.html").write_text("<script>alert(1)</script>")
    (settings.DATA_DIR / "images" / ".hidden.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    folder = own.rpartition("/")[0]
    paths = [
        *(STORE, STORE.rstrip("/"), f"{STORE}{acme.pk}", f"{folder}/", f"{folder}/1.png"),
        *(f"{folder}/0.jpg", f"{own}/", f"{own}%00", f"{own}%00.txt", f"{folder}//0.png"),
        *(f"{STORE}{uuid4()}/{uuid4()}/0.png", f"{STORE}notes.png", f"{STORE}page.html"),
        *(f"{STORE}.hidden.png", f"{STORE}../secret.png", f"{STORE}../secret_key"),
        *(f"{STORE}%2e%2e/secret.png", f"{STORE}..%2fsecret.png", f"{STORE}..%5csecret.png"),
        *(
            f"{STORE}%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            f"{STORE}/etc/passwd",
            f"{STORE}%2fetc%2fpasswd",
        ),
        *(f"{STORE}....//secret.png", f"{STORE}%252e%252e/secret.png", f"{STORE}%c0%ae%c0%ae/x"),
        *(
            f"{STORE}{acme.pk}/../../secret.png",
            f"{STORE}{'x' * 300}.png",
            f"{STORE}{'a/' * 2000}x",
        ),
        "/storage/v1/object/public/other-bucket/0.png",
    ]
    for path in paths:
        with subtests.test(path[len(STORE) - 2 :][:50]):
            # No HTTP client: it would tidy the dots away.
            answer = send_raw(
                app.origin, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
            )
            assert answer.status_code == 404, answer.text[:200]
            assert b"PNG" not in answer.content
            assert b"root:" not in answer.content
            assert b"alert(1)" not in answer.content
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        with subtests.test(method):
            assert httpx.request(method, app.origin + own).status_code in (403, 405)
    assert httpx.get(app.origin + own).status_code == 200


def test_the_type_of_a_picture_is_read_from_its_bytes(
    api: Api, app: AppServer, openai: OpenAIEmulator
) -> None:
    # The provider says PNG on the outside of every answer; the bytes show what it sends.
    asked = api.draw(output_format="jpeg", size="1536x1024", response_format="b64_json")
    row = asked.json()["data"][0]

    assert row["url"].endswith("/0.jpg")
    assert row["mime_type"] == "image/jpeg"
    answer = httpx.get(app.origin + _path(row["url"]))
    assert answer.headers["content-type"] == "image/jpeg"
    with Pillow.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (1536, 1024))
    assert Image.objects.get().mime_type == "image/jpeg"
    # Also when the file's name says otherwise, as after a copy by hand.
    name = live_settings.DATA_DIR / "images" / Image.objects.get().name
    wrong = name.with_name("7.png")
    wrong.write_bytes(name.read_bytes())
    served = httpx.get(app.origin + _path(row["url"]).replace("0.jpg", "7.png"))
    assert served.headers["content-type"] == "image/jpeg"


def test_a_dry_run_prices_and_does_nothing(api: Api, openai: OpenAIEmulator) -> None:
    answer = api.draw(dry_run=True, n=3, model=["openai/dall-e-3", "openai/gpt-image-1"])

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["dry_run"], body["data"]) == (True, [])
    assert body["id"] == answer.headers["x-request-id"]
    # The price of the first model, and the cost of the most expensive one.
    assert body["model"] == "openai/dall-e-3"
    assert body["geekhub"]["unit_price_usd"] == "0.04"
    assert body["geekhub"]["max_cost_usd"] == "0.57"
    expect_nothing_happened(openai)


def test_the_hold_and_the_row_are_there_before_the_provider_is_called(
    api: Api, openai: OpenAIEmulator
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(api.draw)
            openai.wait_for_calls(1)
            row, hold = Generation.objects.get(), Hold.objects.get()
            assert (row.status, row.hold_id, hold.state) == ("running", hold.pk, HoldState.HELD)
            assert hold.request_id == row.request_id
            assert not LedgerEntry.objects.filter(kind="consumption").exists()
            assert not (live_settings.DATA_DIR / "images" / str(row.organization_id)).exists()
        finally:
            gate.set()
        assert future.result(30).status_code == 200
