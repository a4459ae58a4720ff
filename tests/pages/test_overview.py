"""The overview: exact numbers of thirty days of the viewer, and the next step."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from accounts import keys
from accounts.models import ApiKey, Organization, Role
from billing.models import EntryKind
from billing.spending import ledger
from images.pages import charts, overview
from tests.factories import KeyFactory
from tests.images.requests import FLUX, IMAGEN, close_all_hours, make_request
from tests.pages import log_in, member_of, owner_of

PATH = "/dashboard"


@pytest.fixture
def key(acme: Organization) -> ApiKey:
    return KeyFactory(organization=acme).row


def ago(**time: float) -> datetime:
    return timezone.now() - timedelta(**time)


def numbers(text: str) -> list[str]:
    return re.findall(r'<p class="number">([^<]*)</p>', text)


def cells(text: str, label: str) -> list[list[str]]:
    """Return the cells of the table of a name, without markup."""
    table = re.search(rf'aria-label="{label}".*?<tbody>(.*?)</tbody>', text, re.S)
    assert table is not None, label
    rows = re.findall(r"<tr>(.*?)</tr>", table[1], re.S)
    parts = [re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", " ", one).split()) for one in row] for row in parts]


@pytest.mark.parametrize("closed", [False, True])
def test_the_numbers_are_the_ledger_s(
    client: Client, acme: Organization, key: ApiKey, closed: bool
) -> None:
    ci = KeyFactory(organization=acme, name="ci").row
    make_request(key, ago(days=2), delivered=2, latency_ms=1000)
    make_request(key, ago(days=2), model="fal/sd-3.5-large", latency_ms=3000)
    make_request(ci, ago(days=4), model=IMAGEN, latency_ms=2000)
    make_request(ci, ago(days=5), error="provider_unavailable")
    make_request(ci, ago(days=40), delivered=8)
    if closed:
        close_all_hours()
    log_in(client, owner_of(acme))
    text = client.get(PATH).text

    # 10 USD were given; 2 + 8 + 1 pictures at 0.04 and one at 0.065.
    assert numbers(text)[:3] == ["$9.495", "$0.185", "75%"]
    assert float(numbers(text)[3]) == pytest.approx(2.0, rel=0.062)
    assert "for 4 images" in text
    assert "3 of 4 requests" in text
    assert [row[:3] for row in cells(text, "By model")] == [
        [FLUX, "2", "0.08"], ["fal/sd-3.5-large", "1", "0.065"], [IMAGEN, "1", "0.04"],
    ]  # fmt: skip
    assert cells(text, "By key") == [
        [f"prod-web {key.prefix}…", "2", "3", "0.145"], [f"ci {ci.prefix}…", "2", "1", "0.04"],
    ]  # fmt: skip
    assert [row[::2] for row in cells(text, "Errors")] == [["provider_unavailable", "1"]]
    days = dict(cells(text, "USD per day"))
    assert len(days) == 30
    assert {day: told for day, told in days.items() if told != "$0.00"} == {
        f"{ago(days=2):%Y-%m-%d}": "$0.145", f"{ago(days=4):%Y-%m-%d}": "$0.04",
    }  # fmt: skip
    assert set(dict(cells(text, "Images per day")).values()) == {"0", "1", "3"}


def test_a_day_is_the_viewer_s(client: Client, acme: Organization, key: ApiKey) -> None:
    noon = timezone.now().replace(hour=12, minute=0, second=0, microsecond=0)
    late = noon - timedelta(days=3) + timedelta(hours=6, minutes=30)  # 18:30 UTC
    make_request(key, late)
    close_all_hours()
    log_in(client, owner_of(acme))
    for zone, days in (("UTC", 0), ("America/Mexico_City", 0), ("Asia/Kolkata", 1)):
        client.cookies["timezone"] = zone
        text = client.get(PATH).text
        spent = {day for day, told in cells(text, "USD per day") if told != "$0.00"}
        assert spent == {f"{late + timedelta(days=days):%Y-%m-%d}"}, zone
        assert zone in text


def test_sandbox_is_apart_and_shown_alone_when_there_is_nothing_else(
    client: Client, acme: Organization, key: ApiKey
) -> None:
    ci = KeyFactory(organization=acme, name="ci", sandbox=True).row
    make_request(ci, ago(hours=1), delivered=3)
    log_in(client, owner_of(acme))
    assert numbers(client.get(PATH).text)[:2] == ["$10.00", "free"]
    make_request(key, ago(hours=1))
    assert numbers(client.get(PATH).text)[:2] == ["$9.96", "$0.04"]
    text = client.get(f"{PATH}?kind=sandbox").text
    assert "for 3 images" in text
    assert client.get(f"{PATH}?kind=odd").status_code == 200


def test_a_chart_s_months_are_written_as_the_language_does(
    client: Client, acme: Organization, key: ApiKey
) -> None:
    make_request(key, ago(days=1))
    owner = log_in(client, owner_of(acme))
    day = re.compile(r"<span>\d{1,2} (\w{3})</span>")
    for language, good in (("en", str.istitle), ("es", str.islower)):
        client.cookies[settings.LANGUAGE_COOKIE_NAME] = language
        months = day.findall(owner.get("/dashboard").text)
        assert len(months) >= 6
        assert all(map(good, months)), months


def test_a_low_balance_is_told_with_how_long_it_lasts(
    client: Client, acme: Organization, key: ApiKey
) -> None:
    log_in(client, owner_of(acme))
    make_request(key, ago(hours=1))
    assert "Low balance" not in client.get(PATH).text
    ledger.record(acme, EntryKind.ADJUSTMENT, -9_000_000, entry_key="x", note="test")
    text = client.get(PATH).text
    assert "Low balance" in text
    # 0.96 USD at 0.04 USD a week.
    assert "$0.96 available: about 168 days" in text


def test_a_fast_spender_is_warned_earlier(client: Client, acme: Organization, key: ApiKey) -> None:
    for _ in range(20):
        make_request(key, ago(hours=30), model="openai/gpt-image-1", delivered=2)
    log_in(client, owner_of(acme))
    # 2.40 USD are left of 10, after 7.60 in a week.
    assert "$2.40 available: about 2 days" in client.get(PATH).text


def test_the_latest_pictures_are_shown_and_deleted_ones_are_not(
    client: Client, acme: Organization, key: ApiKey
) -> None:
    row = make_request(key, ago(hours=1), delivered=2, pictures=True)
    row.images.filter(index=0).update(deleted_at=timezone.now())
    log_in(client, owner_of(acme))
    text = client.get(PATH).text
    assert "-1/small.webp" in text
    assert "-0/small.webp" not in text
    assert f'href="/dashboard/usage/{row.request_id}"' in text


def test_the_first_run_shows_the_next_step(acme: Organization, client: Client) -> None:
    log_in(client, owner_of(acme))
    text = client.get(PATH).text
    assert "No keys yet" in text
    assert 'href="/dashboard/keys/new"' in text
    KeyFactory(organization=acme)
    text = client.get(PATH).text
    assert "Waiting for the first request" in text
    log_in(client, member_of(acme, Role.VIEWER))
    assert "/dashboard/keys/new" not in client.get(PATH).text


def test_a_stranger_sees_nothing_of_it(globex: Organization, key: ApiKey, client: Client) -> None:
    row = make_request(key, ago(hours=1), pictures=True)
    log_in(client, owner_of(globex))
    text = client.get(PATH).text
    assert row.request_id not in text
    assert "Waiting" in text or "No keys yet" in text
    assert client.get(f"{PATH}?organization=acme").status_code == 404


def test_anonymous_is_sent_to_the_login(client: Client, db: None) -> None:
    assert client.get(PATH)["location"] == "/login?next=/dashboard"


def test_a_success_rate_is_never_rounded_up_to_all() -> None:
    for succeeded, failed, told in ((999, 1, "99.9"), (9999, 1, "99.9"), (5, 0, "100"), (0, 3, "0"),
                                    (0, 0, ""), (2, 1, "66.6")):  # fmt: skip
        total = overview.Used(succeeded + failed, succeeded)
        month = overview.Month(False, total, *[charts.daily([], str)] * 2, [], [], [], None)
        assert month.success == told


@pytest.mark.parametrize(
    ("value", "top"), [(0, 2), (1, 2), (3, 4), (7, 8), (9, 20), (61, 80), (185_000, 200_000)]
)
def test_a_chart_ends_at_a_round_number(value: int, top: int) -> None:
    chart = charts.daily([(datetime.now(UTC).date(), value)], str)
    assert chart.ticks == [str(top), str(top // 2), "0"]
    assert float(chart.bars[0].height) == (0 if not value else pytest.approx(180 * value / top))


def test_the_page_holds_no_style_of_its_own(
    client: Client, acme: Organization, key: ApiKey
) -> None:
    row = make_request(key, ago(hours=1), pictures=True)
    log_in(client, owner_of(acme))
    for path in (PATH, "/dashboard/usage", f"/dashboard/usage/{row.request_id}"):
        answer = client.get(path)
        assert " style=" not in answer.text
        assert "<style" not in answer.text
        assert "onclick" not in answer.text
        assert len(answer.content) < 150_000


def test_a_running_request_is_in_neither_number(
    client: Client, acme: Organization, key: ApiKey
) -> None:
    make_request(key, ago(minutes=3))
    make_request(key, ago(minutes=2), error="provider_unavailable")
    make_request(key, ago(seconds=2), running=True)
    make_request(key, ago(seconds=1), running=True)
    log_in(client, owner_of(acme))
    text = client.get(PATH).text
    assert numbers(text)[2] == "50%"
    assert "1 of 2 requests, 2 running" in text


def test_a_playground_s_spend_names_its_person(client: Client, acme: Organization) -> None:
    owner, other = owner_of(acme), member_of(acme, Role.DEVELOPER)
    other.name = "Bruno"
    other.save()
    for person in (owner, other):
        key = keys.playground(acme, person, sandbox=False)
        make_request(key, ago(hours=1))
    log_in(client, owner)
    assert {row[0].rsplit(" ", 1)[0] for row in cells(client.get(PATH).text, "By key")} == {
        f"Playground · {owner.email}",
        "Playground · Bruno",
    }
