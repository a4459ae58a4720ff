"""GET /v1/usage: exact sums by day, model, key and tag, page by page, of one organization."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db.models import Sum
from django.utils import timezone

from accounts.keys import NewKey
from accounts.models import MAX_TAG, ApiKey, Organization
from billing.models import EntryKind, LedgerEntry
from geekhub.lib import money
from images.models import HourlyTagUsage
from images.usage import rollups
from tests.api.checks import expect_error
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.images.requests import FLUX, IMAGEN, close_all_hours, make_request
from tests.server import Api


def day(ago: int) -> str:
    return f"{timezone.now().astimezone(UTC) - timedelta(days=ago):%Y-%m-%d}"


def at(ago: int, hour: int = 3) -> datetime:
    return (timezone.now() - timedelta(days=ago)).replace(hour=hour, minute=59, second=59)


def numbers(requests: int, images: int, cost: str, *, failed: int = 0) -> dict[str, Any]:
    return {
        "requests": requests, "succeeded": requests - failed, "failed": failed, "running": 0,
        "images": images, "cost_usd": cost,
    }  # fmt: skip


def told(key: ApiKey) -> dict[str, str]:
    return {"prefix": key.prefix, "name": key.name}


@pytest.fixture
def key(live_key: NewKey) -> ApiKey:
    return live_key.row


@pytest.mark.parametrize("closed", [False, True])
def test_usage_by_day_model_key_and_tag(
    api: Api, key: ApiKey, acme: Organization, closed: bool
) -> None:
    ci = KeyFactory(organization=acme, name="ci").row
    make_request(key, at(3), delivered=2, tags=["web", "summer"])
    make_request(key, at(3), tags=["web"])
    make_request(key, at(3), error="provider_unavailable")
    make_request(ci, at(2), model="fal/sd-3.5-large")
    make_request(ci, at(45))
    if closed:
        close_all_hours()

    answer = api.get("usage")

    assert answer.status_code == 200, answer.text
    body = answer.json()
    first, second = {"day": day(3), "model": FLUX, "key": told(key)}, {"day": day(2)}
    assert body == {
        "object": "list",
        "start": day(29),
        "end": day(0),
        "group_by": ["day", "model", "key", "tag"],
        "sandbox": False,
        "data": [
            first | {"tag": None} | numbers(1, 0, "0.00", failed=1),
            first | {"tag": "summer"} | numbers(1, 2, "0.08"),
            first | {"tag": "web"} | numbers(2, 3, "0.12"),
            second | {"model": "fal/sd-3.5-large", "key": told(ci), "tag": None}
            | numbers(1, 1, "0.065"),
        ],
        "totals": numbers(4, 4, "0.185", failed=1),
        "has_more": False,
        "next_after": None,
    }  # fmt: skip
    assert api.get("usage", params={"group_by": "day", "start": day(45), "end": day(45)}).json()[
        "data"
    ] == [{"day": day(45)} | numbers(1, 1, "0.04")]


def test_the_numbers_are_the_ledger_s(api: Api, key: ApiKey, acme: Organization) -> None:
    for number in range(30):
        make_request(key, at(number, hour=number % 24), delivered=1 + number % 3, tags=["a", "b"])
    close_all_hours()
    make_request(key, timezone.now(), delivered=3, tags=["a", "b"])
    ledger = LedgerEntry.objects.filter(organization=acme, kind=EntryKind.CONSUMPTION).aggregate(
        images=Sum("quantity"), cost=-Sum("amount_micro")
    )
    for group_by in ("day", "model", "key", "day,model,key", "key,day"):
        body = api.get("usage", params={"group_by": group_by, "start": day(29)}).json()
        assert sum(row["images"] for row in body["data"]) == ledger["images"]
        cost = sum(money.from_usd(row["cost_usd"]) for row in body["data"])
        assert cost == ledger["cost"] == money.from_usd(body["totals"]["cost_usd"])
    # A request counts under each of its tags; the totals count it once.
    body = api.get("usage", params={"group_by": "tag", "start": day(29)}).json()
    assert [row["images"] for row in body["data"]] == [ledger["images"]] * 2
    assert body["totals"]["images"] == ledger["images"]


def test_what_was_drawn_a_moment_ago_is_in_it(
    api: Api, sandbox: Api, openai: OpenAIEmulator
) -> None:
    assert api.draw(tags=["now"]).status_code == 200
    assert sandbox.draw(n=3).status_code == 200
    live, free = (one.get("usage", params={"group_by": "tag"}).json() for one in (api, sandbox))
    assert live["data"] == [{"tag": "now"} | numbers(1, 1, "0.19")]
    # A sandbox key sees sandbox usage, and a live one paid usage.
    assert (live["sandbox"], free["sandbox"]) == (False, True)
    assert free["data"] == [{"tag": None} | numbers(1, 3, "0.00")]


def test_another_organization_s_usage_is_not_in_it(
    api: Api, key: ApiKey, globex: Organization
) -> None:
    make_request(KeyFactory(organization=globex).row, at(1))
    close_all_hours()
    body = api.get("usage").json()
    assert body["data"] == []
    assert body["totals"] == numbers(0, 0, "0.00")


@pytest.mark.parametrize("group_by", ["tag,day", "day,key,model", "model"])
def test_pages_follow_each_other_without_a_gap(
    api: Api, key: ApiKey, acme: Organization, group_by: str
) -> None:
    other = KeyFactory(organization=acme).row
    for number in range(12):
        make_request(key, at(number), tags=[f"t{number % 3}", "ü", "~"])
        make_request(other, at(number), model=IMAGEN)
    close_all_hours()
    make_request(key, timezone.now(), tags=["t1", "new"])
    params: dict[str, Any] = {"group_by": group_by, "end": day(-1)}
    whole = api.get("usage", params=params).json()["data"]
    rows: list[Any] = []
    body: dict[str, Any] = {"next_after": None, "has_more": True}
    while body["has_more"]:
        after = {"after": body["next_after"]} if body["next_after"] else {}
        body = api.get("usage", params={**params, **after, "limit": 1}).json()
        assert len(body["data"]) == 1
        rows += body["data"]
    assert rows == whole
    assert body["next_after"] is None


def _cursor(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    ("param", "value"),
    [
        *(("start", one) for one in ("x", "", "2026-2-1", "2026-02-30", "20260201", "1999-12-31",
                                     "2026-01-01T00:00", "９999-01-01", "0000-00-00")),
        *(("end", one) for one in ("x", "9999-12-31", "2026-01-01\0")),
        *(("group_by", one) for one in ("", "day,", "day,day", "hour", "DAY", "day model")),
        *(("limit", one) for one in ("0", "-1", "1001", "1.5", "x", "", "١", "9" * 5000)),
        *(("after", one) for one in (
            "", "x", "ü", _cursor([]), _cursor([["day"], ["2026-01-01"]]), _cursor({"a": 1}),
            _cursor([["day", "model", "key", "tag"], ["x", "m", "k", "t"]]), _cursor(1),
            _cursor([["day", "model", "key", "tag"], [1, None, None, None]]),
            _cursor([["day", "model", "key", "tag"],
                     ["2026-01-01", "m", "00000000-0000-0000-0000-000000000000", "\0"]]),
        )),
        ("days", "3"),
    ],
)  # fmt: skip
def test_a_parameter_that_makes_no_sense_is_named(api: Api, param: str, value: str) -> None:
    expect_error(
        api.get("usage", params={param: value}), "invalid_request_error", param=param, says=param
    )


def test_the_time_is_bounded(api: Api) -> None:
    fits = api.get("usage", params={"start": "2025-01-01", "end": "2026-02-04"})
    assert fits.status_code == 200
    for start, end in (("2025-01-01", "2026-02-05"), ("2026-01-02", "2026-01-01")):
        answer = api.get("usage", params={"start": start, "end": end})
        expect_error(answer, "invalid_request_error", param="start", says="end")


def test_only_get_with_a_key(api: Api, connect: Any) -> None:
    expect_error(connect(None).get("usage"), "missing_api_key")
    expect_error(api.http.post("usage"), "method_not_allowed", says="GET")


def test_a_keys_own_tags_are_on_its_requests(
    connect: Callable[[str | None], Api], acme: Organization
) -> None:
    # Keys had longer ones once.
    old, cut = "a" * 64, "a" * MAX_TAG
    key = KeyFactory(organization=acme, tags=["web", "prod", old])
    client = connect(key.secret)

    told = [
        client.draw({"Idempotency-Key": f"order-{number}"}, **body).json()["id"]
        for number, body in enumerate([{}, {"tags": ["summer", "prod"]}])
    ]
    ApiKey.objects.filter(pk=key.row.pk).update(tags=["other"])
    again = client.draw({"Idempotency-Key": "order-1"}, tags=["summer", "prod"])

    # Its tags are none of what was asked, so the same order is still the same.
    assert again.headers["idempotent-replayed"] == "true"
    rows = [client.get("generation", params={"id": one}).json()["data"]["tags"] for one in told]
    assert rows == [["web", "prod", cut], ["web", "prod", cut, "summer"]]
    expected = [
        {"tag": tag} | numbers(count, count, f"{count * 0.19:.2f}")
        for tag, count in ((cut, 2), ("prod", 2), ("summer", 1), ("web", 2))
    ]
    assert client.get("usage", params={"group_by": "tag"}).json()["data"] == expected
    assert rollups.close_hours(now=timezone.now() + timedelta(hours=2))
    closed = HourlyTagUsage.objects.values_list("tag", "images").order_by("tag")
    assert list(closed) == [(cut, 2), ("prod", 2), ("summer", 1), ("web", 2)]
