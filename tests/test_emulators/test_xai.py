"""The xAI emulator is as strict as the API."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.emulators.base import Behaviour
from tests.emulators.xai import GROK_2, IMAGINE, IMAGINE_2, IMAGINE_QUALITY, MODELS, XaiEmulator
from tests.test_emulators.conftest import opened


@pytest.fixture(scope="module")
def server() -> Iterator[XaiEmulator]:
    with XaiEmulator() as emulator:
        yield emulator


@pytest.fixture
def xai(server: XaiEmulator) -> XaiEmulator:
    server.reset()
    return server


def post(
    http: httpx.Client, xai: XaiEmulator, path: str = "generations", **fields: Any
) -> httpx.Response:
    body = {"model": IMAGINE, "prompt": "a kite", "response_format": "b64_json"} | fields
    headers = {"Authorization": f"Bearer {xai.key}"}
    return http.post(f"{xai.url}/images/{path}", json=body, headers=headers)


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"size": "1024x1024"}, 400, "Argument not supported: size"),
        ({"style": "vivid"}, 400, "Argument not supported: style"),
        ({"model": GROK_2, "aspect_ratio": "1:1"}, 400, "Argument not supported: aspect_ratio"),
        ({"model": GROK_2, "resolution": "1k"}, 400, "Argument not supported: resolution"),
        ({"model": GROK_2, "quality": "low"}, 400, "Argument not supported: quality"),
        ({"model": IMAGINE_2, "quality": "high"}, 400, "quality value(s): low, medium, auto."),
        ({"model": IMAGINE_2, "quality": "best"}, 422, "unknown variant"),
        ({"resolution": "1.5k"}, 400, "1.5K resolution is not supported"),
        ({"deferred": "yes"}, 422, "expected a boolean"),
        ({"deferred": True}, 400, "only response_format url"),
        ({"n": 11}, 400, "between 1 and 10"),
        ({"n": "2"}, 422, "n: invalid type"),
        ({"prompt": ""}, 400, "prompt"),
        ({"aspect_ratio": "7:5"}, 422, "unknown variant"),
        ({"resolution": "4k"}, 422, "unknown variant"),
        ({"response_format": "b64"}, 422, "unknown variant"),
        ({"model": "grok-0"}, 404, "grok-0"),
    ],
)
def test_refused(
    http: httpx.Client, xai: XaiEmulator, fields: dict[str, Any], status: int, error: str
) -> None:
    answer = post(http, xai, **fields)
    assert answer.status_code == status
    assert set(answer.json()) == {"code", "error"}
    assert error in answer.json()["error"]
    assert xai.billed == 0


def test_keys(http: httpx.Client, xai: XaiEmulator) -> None:
    url = f"{xai.url}/images/generations"
    assert http.post(url, json={}).status_code == 401
    wrong = http.post(url, json={}, headers={"Authorization": "Bearer no"})
    assert wrong.status_code == 400
    assert wrong.json()["error"].startswith("Incorrect API key provided")


def test_retired(http: httpx.Client, xai: XaiEmulator) -> None:
    xai.retired = frozenset({GROK_2})
    answer = post(http, xai, model=GROK_2)
    assert (answer.status_code, "deprecated" in answer.json()["error"]) == (500, True)
    xai.retired = frozenset()


@pytest.mark.parametrize(
    ("fields", "size", "ticks"),
    [
        ({"model": GROK_2}, (1024, 768), 700_000_000),
        ({"aspect_ratio": "1:1"}, (1024, 1024), 200_000_000),
        ({}, (1184, 880), 200_000_000),
        ({"aspect_ratio": "9:19.5", "quality": "whatever"}, (688, 1504), 200_000_000),
        ({"model": IMAGINE_2, "aspect_ratio": "2:1"}, (1456, 720), 600_000_000),
        ({"model": IMAGINE_2, "aspect_ratio": "1:1", "quality": "low"}, (1024,) * 2, 400_000_000),
        (
            {"model": IMAGINE_2, "aspect_ratio": "1:1", "resolution": "2k"},
            (2048, 2048),
            800_000_000,
        ),
        (
            {"model": IMAGINE_2, "aspect_ratio": "1:1", "resolution": "2k", "quality": "low"},
            (2048, 2048),
            600_000_000,
        ),
        (
            {"model": IMAGINE_2, "aspect_ratio": "1:1", "resolution": "1.5k"},
            (1536, 1536),
            700_000_000,
        ),
        ({"aspect_ratio": "21:9"}, (1568, 672), 200_000_000),
        ({"aspect_ratio": "5:2"}, (1616, 640), 200_000_000),
        ({"aspect_ratio": None, "user": None}, (1184, 880), 200_000_000),
        ({"model": IMAGINE_QUALITY, "aspect_ratio": "1:1"}, (1024,) * 2, 500_000_000),
    ],
)
def test_pictures(
    http: httpx.Client,
    xai: XaiEmulator,
    fields: dict[str, Any],
    size: tuple[int, int],
    ticks: int,
) -> None:
    body = post(http, xai, **fields, n=2, seed=7).json()
    assert opened(body["data"][0]["b64_json"]) == ("JPEG", size)
    assert body["usage"] == {"cost_in_usd_ticks": 2 * ticks}
    assert xai.billed == 2


def test_url_is_the_default(http: httpx.Client, xai: XaiEmulator) -> None:
    headers = {"Authorization": f"Bearer {xai.key}"}
    body = {"model": IMAGINE, "prompt": "a kite"}
    answer = http.post(f"{xai.url}/images/generations", json=body, headers=headers)
    picture = http.get(answer.json()["data"][0]["url"])
    assert (picture.headers["content-type"], [picture.content]) == ("image/jpeg", xai.pictures)


def test_refused_pictures_are_billed(http: httpx.Client, xai: XaiEmulator) -> None:
    xai.queue(Behaviour(refuse=1), Behaviour(error="moderation_blocked"), Behaviour(error="empty"))
    body = post(http, xai, n=3).json()
    assert [item.get("respect_moderation") for item in body["data"]] == [None, None, False]
    assert not {"url", "b64_json"} & set(body["data"][2])
    assert body["usage"] == {"cost_in_usd_ticks": 600_000_000}
    assert (xai.billed, len(xai.pictures)) == (3, 2)
    blocked = post(http, xai, n=2)
    assert blocked.status_code == 400
    assert blocked.json()["usage"] == {"cost_in_usd_ticks": 400_000_000}
    assert xai.billed == 5
    assert post(http, xai).json() == {"data": [], "usage": {"cost_in_usd_ticks": 200_000_000}}
    assert xai.billed == 6


@pytest.mark.parametrize("name", sorted(XaiEmulator.ERRORS.keys() - XaiEmulator.WHOLE_REFUSALS))
def test_error_rows(http: httpx.Client, xai: XaiEmulator, name: str) -> None:
    xai.queue(Behaviour(error=name))
    answer = post(http, xai)
    row = XaiEmulator.ERRORS[name]
    assert answer.status_code == row.status
    assert (answer.text if isinstance(row.body, str) else answer.json()) == row.body
    assert xai.billed == 0


@pytest.mark.parametrize("name", ["block_reason_above", "block_reason_null"])
def test_a_refusal_without_rows(http: httpx.Client, xai: XaiEmulator, name: str) -> None:
    xai.queue(Behaviour(error=name))
    body = post(http, xai).json()
    assert (body["block_reason"], body.get("data")) == ("CONTENT_MODERATION", None)
    assert xai.billed == 1


IMAGE = {"url": "data:image/png;base64,AAAA", "type": "image_url"}


@pytest.mark.parametrize(
    ("fields", "ticks"),
    [
        ({"image": IMAGE}, 220_000_000),
        ({"image": {"image_url": "https://x.example/a.png"}}, 220_000_000),
        ({"image": {"file_id": "file_1"}, "images": None}, 220_000_000),
        ({"images": [IMAGE, {"file_id": "file_1"}], "model": IMAGINE_2}, 800_000_000),
        ({"images": [IMAGE] * 5, "model": IMAGINE_2}, 1_100_000_000),
    ],
)
def test_inputs_of_an_edit_are_billed(
    http: httpx.Client, xai: XaiEmulator, fields: dict[str, Any], ticks: int
) -> None:
    body = post(http, xai, "edits", **fields).json()
    assert set(body["data"][0]) == {"b64_json", "mime_type"}
    assert body["usage"] == {"cost_in_usd_ticks": ticks}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"image": "https://x.example/a.png"}, 422),
        ({"image": {"url": "ftp://x"}}, 400),
        ({"image": {"url": "https://x", "file_id": "file_1"}}, 400),
        ({"image": IMAGE, "images": [IMAGE]}, 400),
        ({"images": [IMAGE] * 6}, 400),
        ({"images": []}, 400),
    ],
)
def test_an_edit_is_refused(
    http: httpx.Client, xai: XaiEmulator, fields: dict[str, Any], status: int
) -> None:
    assert post(http, xai, "edits", **fields).status_code == status
    assert xai.billed == 0


def test_deferred(http: httpx.Client, xai: XaiEmulator) -> None:
    headers = {"Authorization": f"Bearer {xai.key}"}
    xai.queue(Behaviour(polls=1), Behaviour(error="moderation_blocked"))

    def begin() -> str:
        answer = post(http, xai, deferred=True, response_format="url")
        assert (answer.status_code, set(answer.json())) == (200, {"request_id"})
        return f"{xai.url}/images/{answer.json()['request_id']}"

    drawn = begin()
    pending = http.get(drawn, headers=headers)
    assert (pending.status_code, pending.json()) == (202, {"status": "pending"})
    done = http.get(drawn, headers=headers).json()
    assert (done["status"], done["usage"]) == ("done", {"cost_in_usd_ticks": 200_000_000})
    assert http.get(done["data"][0]["url"]).content == xai.pictures[0]
    failed = http.get(begin(), headers=headers).json()
    assert (failed["status"], "rejected" in failed["error"]["error"]) == ("failed", True)
    assert http.get(f"{xai.url}/images/none", headers=headers).status_code == 404
    assert http.get(drawn).status_code == 401


def test_models(http: httpx.Client, xai: XaiEmulator) -> None:
    headers = {"Authorization": f"Bearer {xai.key}"}
    listed = http.get(f"{xai.url}/models", headers=headers).json()["data"]
    assert tuple(card["id"] for card in listed) == MODELS
    path = f"{xai.url}/image-generation-models"
    cards = {card["id"]: card for card in http.get(path, headers=headers).json()["models"]}
    assert (cards[IMAGINE]["image_price"], cards[IMAGINE]["pricing"]) == (200_000_000, [])
    assert {
        (tier["resolution"], tier["quality"]): tier["price_per_image"] // 100_000_000
        for tier in cards[IMAGINE_2]["pricing"]
    } == {
        ("1k", "low"): 4,
        ("1k", "medium"): 6,
        ("1.5k", "low"): 5,
        ("1.5k", "medium"): 7,
        ("2k", "low"): 6,
        ("2k", "medium"): 8,
    }
    assert http.get(f"{path}/{IMAGINE}", headers=headers).json() == cards[IMAGINE]
    assert http.get(f"{path}/grok-0", headers=headers).status_code == 404
    assert http.get(path).status_code == 401


def test_an_unknown_model_as_seen_in_august(http: httpx.Client, xai: XaiEmulator) -> None:
    xai.missing_model = "model_not_found"
    answer = post(http, xai, model="grok-9")
    assert answer.status_code == 400
    assert answer.json() == {"code": "invalid-argument", "error": "Model not found: grok-9"}
    xai.missing_model = "not_found"


def test_what_proxies_add(http: httpx.Client, xai: XaiEmulator) -> None:
    xai.verbose = True
    body = post(http, xai).json()
    assert (body["model"], body["data"][0]["revised_prompt"]) == (IMAGINE, "")
    assert body["data"][0]["respect_moderation"] is True
    xai.verbose = False


def test_edits_take_json(http: httpx.Client, xai: XaiEmulator) -> None:
    headers = {"Authorization": f"Bearer {xai.key}"}
    answer = http.post(f"{xai.url}/images/edits", files={"image": b"x"}, headers=headers)
    assert answer.status_code == 422


def test_data_uri(http: httpx.Client, xai: XaiEmulator) -> None:
    xai.data_uri = True
    (item,) = post(http, xai).json()["data"]
    assert item["b64_json"].startswith("data:image/jpeg;base64,")
    xai.data_uri = False
