"""The usage page: every request, found by its filters, one of them, and all of them as a file."""

import asyncio
import codecs
import csv
import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import AsyncClient, Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import ApiKey, Organization, Role
from billing.models import LedgerEntry
from images.models import Generation
from images.usage import csv as usage_csv
from tests.factories import KeyFactory
from tests.images.requests import FLUX, IMAGEN, close_all_hours, make_request
from tests.pages import BACKEND, log_in, member_of, owner_of

PATH = "/dashboard/usage"


@pytest.fixture
def key(acme: Organization) -> ApiKey:
    return KeyFactory(organization=acme).row


@pytest.fixture
def page(acme: Organization, client: Client) -> Client:
    """A client with a viewer of Acme: the role that may do least."""
    return log_in(client, member_of(acme, Role.VIEWER))


def ago(**time: float) -> datetime:
    return timezone.now() - timedelta(**time)


def shown(client: Client, query: str = "") -> list[str]:
    """Return the ids of the requests that the page lists, in its order."""
    answer = client.get(PATH + query)
    assert answer.status_code == 200, answer.status_code
    return re.findall(r"<small class=\"soft cut\">(req_[0-9a-f]{24})</small>", answer.text)


# --- Who may ----------------------------------------------------------------------------------


def test_a_stranger_finds_neither_request_nor_key(
    key: ApiKey, globex: Organization, client: Client
) -> None:
    row = make_request(key, ago(hours=1))
    log_in(client, owner_of(globex))
    assert client.get(f"{PATH}/{row.request_id}").status_code == 404
    assert client.get(f"{PATH}?key={key.pk}").status_code == 404
    assert client.get(f"{PATH}/export.csv?key={key.pk}").status_code == 404
    assert client.get(f"{PATH}?organization=acme").status_code == 404
    for query in ("", f"?q={row.request_id}", "?since=2020-01-01"):
        answer = client.get(PATH + query)
        # Only what was typed comes back.
        assert f"/dashboard/usage/{row.request_id}" not in answer.text
        assert answer.text.count(row.request_id) == (2 if "q=" in query else 0)


@pytest.mark.parametrize("path", [PATH, f"{PATH}/export.csv", f"{PATH}/req_{'0' * 24}"])
def test_nobody_sees_it_without_a_login(path: str, client: Client, db: None) -> None:
    answer = client.get(path)
    assert answer.status_code == 302
    assert answer["location"].startswith("/login?next=/dashboard/usage")


@pytest.mark.parametrize("role", Role)
def test_every_role_sees_the_usage(
    role: Role, acme: Organization, key: ApiKey, client: Client
) -> None:
    row = make_request(key, ago(hours=1))
    log_in(client, member_of(acme, role))
    assert shown(client) == [row.request_id]
    assert client.get(f"{PATH}/{row.request_id}").status_code == 200


@pytest.mark.parametrize("name", ["req_", "x", "req_" + "0" * 24, "req_" + "g" * 24])
def test_a_request_that_is_none_is_not_found(name: str, page: Client) -> None:
    assert page.get(f"{PATH}/{name}").status_code == 404


# --- The list ---------------------------------------------------------------------------------


def test_a_request_is_shown_with_all_that_is_asked_for(page: Client, key: ApiKey) -> None:
    make_request(
        key,
        datetime.now(UTC).replace(hour=0, minute=0, second=1),
        model=IMAGEN,
        requested=[FLUX, IMAGEN],
        delivered=2,
        latency_ms=2350,
        tags=["<b>bold</b>"],
        pictures=True,
    )
    text = page.get(PATH).text
    for told in (
        "requested: fal/flux-1.1-pro, google/imagen-4", "prod-web", "2 of 2", "1024x768", "0.08",
        "2.35", "Succeeded", "+1", "-0/small.webp", "&lt;b&gt;bold&lt;/b&gt;", "(UTC+0000)",
    ):  # fmt: skip
        assert told in text, told
    assert "<b>bold" not in text


def test_a_failed_request_says_why_and_costs_nothing(page: Client, key: ApiKey) -> None:
    # A whole minute: no fraction of a second may look like the price.
    at = ago(minutes=5).replace(second=0, microsecond=0)
    make_request(key, at, error="content_policy_violation")
    text = page.get(PATH).text
    assert "Failed" in text
    assert "content_policy_violation" in text
    assert "The provider refused the prompt or the image." in text
    assert "0.04" not in text


@pytest.mark.parametrize("closed", [False, True])
def test_filters_stand_in_the_url(
    page: Client, acme: Organization, key: ApiKey, closed: bool
) -> None:
    other = KeyFactory(organization=acme, name="ci").row
    at = ago(hours=30)
    flux = make_request(key, at, tags=["a&b"])
    imagen = make_request(other, at - timedelta(hours=3), model=IMAGEN)
    failed = make_request(key, at - timedelta(hours=6), error="internal_error")
    old = make_request(key, ago(days=60))
    if closed:
        close_all_hours()
    ids = {row.request_id: name for row, name in (
        (flux, "flux"), (imagen, "imagen"), (failed, "failed"), (old, "old"))}  # fmt: skip
    day = f"{ago(days=60):%Y-%m-%d}"
    for query, wanted in {
        "": ["flux", "imagen", "failed"],
        f"?key={other.pk}": ["imagen"],
        f"?model={IMAGEN}": ["imagen"],
        f"?model={FLUX}": ["flux", "failed"],
        "?status=failed": ["failed"],
        "?status=internal_error": ["failed"],
        "?status=provider_unavailable": [],
        "?status=succeeded": ["flux", "imagen"],
        "?status=running": [],
        "?tag=a%26b": ["flux"],
        "?tag=a": [],
        f"?since={day}": ["flux", "imagen", "failed", "old"],
        f"?since={day}&until={day}": ["old"],
        f"?until={day}": ["old"],
        f"?since={day}&model={FLUX}&status=succeeded": ["flux", "old"],
        f"?q={old.request_id}": ["old"],
        "?q=req_000000000000000000000000": [],
        "?q=nonsense": [],
    }.items():
        assert [ids[one] for one in shown(page, query)] == wanted, query


def test_totals_are_of_all_that_match_and_not_of_the_page(page: Client, key: ApiKey) -> None:
    for number in range(120):
        make_request(key, ago(hours=number), delivered=1)
    make_request(key, ago(hours=2), error="internal_error")
    close_all_hours()
    text = page.get(PATH).text
    numbers = re.findall(r'<p class="number">([^<]*)</p>', text)
    assert numbers == ["121", "120", "$4.80", "1"]


def test_older_requests_are_a_link_away_and_none_is_lost(page: Client, key: ApiKey) -> None:
    rows = [make_request(key, ago(minutes=10 * number)) for number in range(70)]
    seen: list[str] = []
    query = ""
    for _ in range(3):
        text = page.get(PATH + query).text
        seen += re.findall(r"<small class=\"soft cut\">(req_[0-9a-f]{24})</small>", text)
        link = re.search(r'rel="next" href="/dashboard/usage(\?[^"]*)"', text)
        query = link[1].replace("&amp;", "&") if link else ""
    assert query == ""
    assert seen == [row.request_id for row in rows]


@pytest.mark.parametrize(
    "query",
    ["?since=x", "?until=2026-02-30", "?since=2026-02-01&until=2026-01-01", "?model=gpt-9",
     "?status=odd", "?tag=" + "x" * 41, "?since=1999-12-31", "?until=9999-12-31", "?tag=%00"],
)  # fmt: skip
def test_a_filter_that_makes_no_sense_is_told_at_its_field(
    query: str, page: Client, key: ApiKey
) -> None:
    row = make_request(key, ago(hours=1))
    answer = page.get(PATH + query)
    assert answer.status_code == 400
    assert 'class="errors"' in answer.text
    assert row.request_id not in answer.text
    assert page.get(f"{PATH}/export.csv{query}").status_code == 400


@pytest.mark.parametrize("place", ["", "x", "1-req_1", f"{'9' * 30}-req_{'0' * 24}"])
def test_a_place_that_is_none_is_not_found(place: str, page: Client) -> None:
    assert page.get(f"{PATH}?before={place}").status_code == 404


def test_nothing_yet_shows_the_next_step(acme: Organization, client: Client) -> None:
    log_in(client, owner_of(acme))
    text = client.get(PATH).text
    assert "No requests in the last 30 days" in text
    assert 'href="/dashboard/keys/new"' in text
    text = client.get(f"{PATH}?tag=x").text
    assert "No results" in text


# --- The viewer's time ------------------------------------------------------------------------


def test_times_and_days_are_the_viewer_s(page: Client, key: ApiKey) -> None:
    early = datetime(2026, 3, 10, 4, 30, tzinfo=UTC)
    row = make_request(key, early)
    assert shown(page, "?since=2026-03-10&until=2026-03-10") == [row.request_id]

    page.cookies["timezone"] = "America/Mexico_City"
    text = page.get(f"{PATH}?since=2026-03-09&until=2026-03-09").text
    assert "2026-03-09 22:30:00" in text
    assert 'datetime="2026-03-09T22:30:00-06:00"' in text
    assert "America/Mexico_City (UTC-0600)" in text
    assert shown(page, "?since=2026-03-10&until=2026-03-10") == []


@pytest.mark.parametrize("zone", ["Nowhere/City", "../../etc/passwd", "x" * 5000, "%00"])
def test_a_time_zone_that_is_none_is_utc(zone: str, page: Client, key: ApiKey) -> None:
    make_request(key, ago(hours=1))
    page.cookies["timezone"] = zone
    assert "Times are in UTC (UTC+0000)" in page.get(PATH).text


# --- One request ------------------------------------------------------------------------------


def test_a_request_in_detail(page: Client, key: ApiKey) -> None:
    ApiKey.objects.filter(pk=key.pk).update(tags=["web"])
    row = make_request(
        key,
        ago(hours=1),
        model=IMAGEN,
        delivered=2,
        pictures=True,
        requested=[FLUX, IMAGEN],
        tags=["web", "summer"],
        prompt="it's a <kite>",
        parameters={"listed": True, "n": 2, "size": "1024x1024", "on_refusal": "stop",
                    "max_cost_micro": 500_000, "strict": True},
        attempts=[{"model": FLUX, "error": "provider_unavailable"},
                  {"model": IMAGEN, "error": None}],
        skipped=[{"model": "openai/dall-e-3", "reason": "draws one at a time"}],
        adjusted=[{"param": "size", "asked": "1x1", "used": None, "why": "It has no such size."}],
    )  # fmt: skip
    text = page.get(f"{PATH}/{row.request_id}").text
    for told in (
        "it&#x27;s a &lt;kite&gt;", "provider_unavailable", "skipped: draws one at a time",
        "It has no such size.", "2 of 2 delivered", "0.png", "1.png", "$0.08", "-0.08", "summer",
    ):  # fmt: skip
        assert told in text, told
    code = re.search(r'<code id="curl">(.*?)</code>', text, re.S)
    assert code is not None
    assert "ghub_sk_live_YOUR_KEY" in code[1]
    assert key.prefix not in code[1]
    for told in (
        "&quot;model&quot;: [&quot;fal/flux-1.1-pro&quot;, &quot;google/imagen-4&quot;]",
        "&quot;routing&quot;: {&quot;on_refusal&quot;: &quot;stop&quot;}",
        "&quot;max_cost&quot;: 0.5", "&quot;strict&quot;: true",
        # Without the key's own tag, which is added again automatically.
        "&quot;tags&quot;: [&quot;summer&quot;]",
    ):  # fmt: skip
        assert told in code[1], told
    assert LedgerEntry.objects.filter(request_id=row.request_id).count() == 1


def test_a_prompt_that_was_not_kept_is_not_made_up(page: Client, key: ApiKey) -> None:
    row = make_request(key, ago(hours=1), prompt="")
    text = page.get(f"{PATH}/{row.request_id}").text
    assert "not kept" in text
    assert "THE PROMPT WAS NOT KEPT" in text


def test_a_deleted_picture_is_not_shown(page: Client, key: ApiKey) -> None:
    row = make_request(key, ago(hours=1), delivered=2, pictures=True)
    row.images.filter(index=1).update(deleted_at=timezone.now())
    text = page.get(f"{PATH}/{row.request_id}").text
    assert "/0.png" in text
    assert "/1.png" not in text
    assert "1 deleted" in text


# --- The file ---------------------------------------------------------------------------------


def exported(client: Client, query: str = "") -> list[list[str]]:
    answer = client.get(f"{PATH}/export.csv{query}")
    assert answer.status_code == 200
    assert answer["content-type"] == "text/csv; charset=utf-8"
    file = answer.getvalue()
    # Excel reads what does not begin so as Latin.
    assert file.startswith(codecs.BOM_UTF8)
    return list(csv.reader(io.StringIO(file.decode("utf-8-sig"))))


def test_the_file_has_what_the_page_has(page: Client, key: ApiKey) -> None:
    rows = [make_request(key, ago(hours=number), tags=["a", "b"]) for number in range(3)]
    failed = make_request(key, ago(hours=9), error="internal_error", latency_ms=None)
    page.cookies["timezone"] = "America/Mexico_City"
    head, *lines = exported(page)
    assert tuple(head) == usage_csv.COLUMNS
    assert [line[0] for line in lines] == [*(row.request_id for row in rows), failed.request_id]
    first = dict(zip(head, lines[0], strict=True))
    assert first.items() >= {
        "key": "prod-web", "sandbox": "no", "model": FLUX, "n": "1", "delivered": "1",
        "cost_usd": "0.04", "latency_ms": "1000", "status": "succeeded", "error": "", "tags": "a b",
    }.items()  # fmt: skip
    assert datetime.fromisoformat(first["time"]) == rows[0].created_at
    assert first["time"].endswith("-06:00")
    assert dict(zip(head, lines[-1], strict=True))["latency_ms"] == ""
    assert [line[0] for line in exported(page, "?status=failed")[1:]] == [failed.request_id]


def test_a_spreadsheet_runs_nothing_of_it(page: Client, acme: Organization) -> None:
    key = KeyFactory(organization=acme, name="=HYPERLINK(1)").row
    make_request(key, ago(hours=1), tags=["+1", "@x"])
    _, line = exported(page)
    assert line[2] == "'=HYPERLINK(1)"
    assert line[-1] == "'+1 @x"


def test_a_file_of_many_pages_has_each_request_once(
    page: Client, key: ApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_request(key, ago(minutes=number)) for number in range(25)]
    monkeypatch.setattr(usage_csv, "PAGE", 7)
    assert [line[0] for line in exported(page)[1:]] == [row.request_id for row in rows]


@pytest.mark.django_db(transaction=True)
def test_the_file_is_sent_while_it_is_written(
    key: ApiKey,
    acme: Organization,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    tmp_path: Path,
) -> None:
    settings.STATIC_ROOT = tmp_path
    rows = [make_request(key, ago(minutes=number)) for number in range(5)]
    monkeypatch.setattr(usage_csv, "PAGE", 2)

    async def parts() -> list[bytes]:
        client = AsyncClient()
        await client.aforce_login(owner_of_acme, backend=BACKEND)
        answer = await client.get(f"{PATH}/export.csv")
        found = [part async for part in answer.streaming_content]  # type: ignore[attr-defined]
        # As the end of a request does, which this client leaves out.
        await sync_to_async(connections.close_all)()
        return found

    owner_of_acme = owner_of(acme)
    found = asyncio.run(parts())
    assert [part.count(b"\n") for part in found] == [3, 2, 1]
    for row in rows:
        assert row.request_id.encode() in b"".join(found)
    assert Generation.objects.count() == 5
