"""Rollups: equal to the ledger at any moment, built once, and no index lies about a request."""

import random
from datetime import UTC, datetime, timedelta
from importlib import import_module
from io import StringIO
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models import F, Sum
from django.test.utils import CaptureQueriesContext

from accounts.models import ApiKey
from billing.models import EntryKind, LedgerEntry
from billing.spending import prices
from geekhub.lib.moments import hour_of
from images.catalog.rows import CATALOG
from images.models import (
    ClosedHours,
    DailyLatency,
    DailyUsage,
    Generation,
    HourlyLatency,
    HourlyTagUsage,
    HourlyTotal,
    HourlyUsage,
)
from images.usage import latencies, requests, rollups
from images.usage.rollups import Difference
from images.usage.span import Place, Wanted
from images.usage.sums import Used, grouped, total
from tests.billing import race
from tests.factories import KeyFactory, OrganizationFactory
from tests.images.requests import FLUX, IMAGEN, finish, make_request

HOUR = timedelta(hours=1)
NOW = datetime(2027, 3, 14, 9, 26, tzinfo=UTC)
PRICE = {FLUX: 40_000, IMAGEN: 40_000, "fal/sd-3.5-large": 65_000}


def hour_ago(hours: int) -> datetime:
    """Return the beginning of the hour so many hours before this one."""
    return hour_of(NOW) - hours * HOUR


@pytest.fixture
def key(db: None) -> ApiKey:
    prices.publish({model.id: model.price_micro for model in CATALOG.values()})
    return KeyFactory(organization=OrganizationFactory(name="Acme", bonus="1000")).row


def everything(key: ApiKey, **fields: object) -> Wanted:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    return Wanted(start=start, end=NOW + HOUR, **fields)  # type: ignore[arg-type]


# --- Closing ----------------------------------------------------------------------------------


def test_a_closed_hour_is_summed_by_key_model_and_outcome(key: ApiKey) -> None:
    at = hour_ago(3) + timedelta(minutes=10)
    make_request(key, at, delivered=2)
    make_request(key, at, delivered=1)
    make_request(key, at, model="fal/sd-3.5-large")
    make_request(key, at, error="provider_unavailable")
    make_request(key, hour_ago(2))

    assert rollups.close_hours(now=NOW) == 3

    rows = HourlyUsage.objects.order_by("hour", "model", "error_code").values_list(
        "organization_id", "hour", "api_key_id", "sandbox", "model", "error_code", "requests",
        "images", "cost_micro",
    )  # fmt: skip
    whose = (key.organization_id, hour_ago(3), key.pk, False)
    assert list(rows) == [
        (*whose, FLUX, "", 2, 3, 120_000),
        (*whose, FLUX, "provider_unavailable", 1, 0, 0),
        (*whose, "fal/sd-3.5-large", "", 1, 1, 65_000),
        (key.organization_id, hour_ago(2), key.pk, False, FLUX, "", 1, 1, 40_000),
    ]
    assert list(rollups.prove()) == []


def test_closing_again_changes_nothing(key: ApiKey) -> None:
    make_request(key, hour_ago(5))
    assert rollups.close_hours(now=NOW) == 5
    before = list(HourlyUsage.objects.values())
    assert rollups.close_hours(now=NOW) == 0
    assert list(HourlyUsage.objects.values()) == before


def test_an_hour_with_a_running_request_is_not_closed_however_late_it_ends(key: ApiKey) -> None:
    make_request(key, hour_ago(6))
    late = make_request(key, hour_ago(4) + timedelta(minutes=59), running=True)
    make_request(key, hour_ago(3))

    rollups.close_hours(now=NOW)
    assert rollups.closed_until() == hour_ago(4)
    assert total(key.organization, everything(key)) == Used(3, 2, 1, 2, 80_000)

    finish(late, key)
    assert total(key.organization, everything(key)) == Used(3, 3, 0, 3, 120_000)
    rollups.close_hours(now=NOW)
    assert rollups.closed_until() == hour_ago(0)
    assert total(key.organization, everything(key)) == Used(3, 3, 0, 3, 120_000)
    assert list(rollups.prove()) == []


def test_an_hour_that_has_just_ended_stays_open_for_late_commits(key: ApiKey) -> None:
    make_request(key, hour_ago(2))
    just_before = hour_ago(0) + rollups.MARGIN - timedelta(microseconds=1)
    rollups.close_hours(now=just_before)
    assert rollups.closed_until() == hour_ago(1)
    rollups.close_hours(now=hour_ago(0) + rollups.MARGIN)
    assert rollups.closed_until() == hour_ago(0)


def test_a_long_history_is_closed_day_by_day(key: ApiKey) -> None:
    make_request(key, hour_ago(24 * 9))
    assert rollups.close_hours(now=NOW) == 7 * 24
    assert rollups.closed_until() == hour_ago(24 * 2)
    assert rollups.close_hours(now=NOW) == 48


@pytest.mark.django_db(transaction=True)
def test_two_hosts_that_close_at_once_count_once() -> None:
    prices.publish({FLUX: 40_000})
    key = KeyFactory().row
    for hours in range(2, 8):
        make_request(key, hour_ago(hours), tags=["a"])

    results = race(4, lambda _: rollups.close_hours(now=NOW))

    assert sum(one for one in results if isinstance(one, int)) == 7
    assert HourlyUsage.objects.aggregate(Sum("requests"))["requests__sum"] == 6
    assert HourlyTagUsage.objects.aggregate(Sum("requests"))["requests__sum"] == 6
    assert HourlyLatency.objects.aggregate(Sum("requests"))["requests__sum"] == 6


def test_there_is_one_row_that_says_what_is_closed(db: None) -> None:
    rollups.close_hours(now=NOW)
    with pytest.raises(Exception, match="closed_hours_is_one_row"), transaction.atomic():
        ClosedHours.objects.create(pk=2)


# --- Rebuilding and proving -------------------------------------------------------------------


def test_what_was_changed_by_hand_is_found_and_repaired(key: ApiKey) -> None:
    make_request(key, hour_ago(30), delivered=3)
    make_request(key, hour_ago(4), delivered=2)
    rollups.close_hours(now=NOW)
    HourlyUsage.objects.filter(hour=hour_ago(4)).update(
        images=F("images") + 1, cost_micro=F("cost_micro") - 10
    )
    HourlyUsage.objects.filter(hour=hour_ago(30)).delete()

    org = key.organization_id
    assert list(rollups.prove()) == [
        Difference(org, hour_ago(30), "images", 0, 3),
        Difference(org, hour_ago(30), "cost_micro", 0, 120_000),
        Difference(org, hour_ago(4), "images", 3, 2),
        Difference(org, hour_ago(4), "cost_micro", 79_990, 80_000),
    ]
    out = StringIO()
    with pytest.raises(CommandError, match="4 differences"):
        call_command("prove_rollups", stdout=out)
    told = f"{org} {hour_ago(4).isoformat()} images: rollup 3, ledger 2"
    assert told in out.getvalue()

    out = StringIO()
    call_command("rebuild_rollups", stdout=out)
    assert out.getvalue() == "30 hours\n"
    out = StringIO()
    call_command("prove_rollups", stdout=out)
    assert out.getvalue() == "no differences\n"


def test_a_rebuild_since_a_day_leaves_the_days_before_alone(key: ApiKey) -> None:
    make_request(key, hour_ago(80))
    make_request(key, hour_ago(2))
    rollups.close_hours(now=NOW)
    HourlyUsage.objects.update(requests=7)

    call_command("rebuild_rollups", f"--since={hour_ago(24):%Y-%m-%d}", stdout=StringIO())

    rows = HourlyUsage.objects.order_by("hour").values_list("requests", flat=True)
    assert list(rows) == [7, 1]


def test_totals_and_days_changed_by_hand_are_found_and_repaired(key: ApiKey) -> None:
    at = hour_ago(50)
    make_request(key, at, delivered=3)
    make_request(key, hour_ago(2), delivered=1)
    rollups.close_hours(now=NOW)
    HourlyTotal.objects.filter(hour=at).update(images=4)
    DailyUsage.objects.filter(hour=rollups.day_of(at)).update(cost_micro=7)

    org = key.organization_id
    assert list(rollups.prove()) == [
        Difference(org, at, "images", 4, 3),
        Difference(org, rollups.day_of(at), "cost_micro of the day", 7, 120_000),
    ]
    rollups.rebuild()
    assert list(rollups.prove()) == []


CONDENSED: tuple[tuple[Any, Any, tuple[str, ...], tuple[str, ...]], ...] = (
    (DailyUsage, HourlyUsage, ("api_key", "model", "error_code"), rollups.SUMS),
    (DailyLatency, HourlyLatency, ("sandbox", "model", "bucket"), ("requests",)),
)


def condensed() -> list[list[tuple[Any, ...]]]:
    """Return what the condensed tables say, each beside the hours added up here."""
    found = []
    for daily, hourly, by, sums in CONDENSED:
        days: dict[tuple[Any, ...], list[int]] = {}
        for row in hourly.objects.values("organization", "hour", *by, *sums):
            cell = (row["organization"], rollups.day_of(row["hour"]), *(row[name] for name in by))
            totals = days.setdefault(cell, [0] * len(sums))
            days[cell] = [one + row[name] for one, name in zip(totals, sums, strict=True)]
        rows = daily.objects.values_list("organization", "hour", *by, *sums)
        assert sorted(rows) == sorted((*cell, *totals) for cell, totals in days.items())
        found.append(sorted(rows))
    totals_by = ("organization", "hour", "sandbox", "error_code")
    rows = HourlyTotal.objects.values_list(*totals_by, *rollups.SUMS)
    hours = HourlyUsage.objects.order_by().values_list(*totals_by)
    assert sorted(rows) == sorted(hours.annotate(Sum("requests"), Sum("images"), Sum("cost_micro")))
    return [*found, sorted(rows)]


def test_days_and_totals_are_the_hours_after_every_closing_and_rebuilding(key: ApiKey) -> None:
    other = KeyFactory(organization=key.organization, name="other").row
    for hours in range(1, 60):
        error = "provider_unavailable" if hours % 7 == 0 else ""
        make_request(other if hours % 3 else key, hour_ago(hours), error=error)
    rollups.close_hours(now=NOW)
    before = condensed()
    assert [len(rows) > 2 for rows in before] == [True] * 3

    make_request(key, hour_ago(30) + timedelta(minutes=5))
    rollups.rebuild(hour_ago(33))
    after = condensed()
    assert after != before
    assert sum(row[-3] for row in after[0]) == 60

    rollups.rebuild()
    assert condensed() == after


def test_the_migration_sums_the_hours_that_were_closed_before(key: ApiKey) -> None:
    for hours in range(1, 60):
        make_request(key, hour_ago(hours), error="provider_unavailable" if hours % 7 == 0 else "")
    rollups.close_hours(now=NOW)
    before = condensed()
    for model in (DailyUsage, DailyLatency, HourlyTotal):
        model.objects.all().delete()

    migration = import_module("images.migrations.0005_usage_by_day")
    migration.fill(apps, SimpleNamespace(connection=connection))
    assert condensed() == before


def test_whole_days_are_read_by_the_day_and_the_rest_by_the_hour(key: ApiKey) -> None:
    for hours in range(1, 80):
        make_request(key, hour_ago(hours), latency_ms=1000)
    rollups.close_hours(now=NOW)
    wanted = Wanted(start=hour_ago(79), end=hour_ago(2), model=FLUX)
    assert total(key.organization, wanted).requests == 77
    assert latencies.by_model(key.organization, wanted)[""].requests == 77

    days = DailyUsage.objects.filter(hour__gt=wanted.start, hour__lt=rollups.day_of(wanted.end))
    assert days.count() == 2
    HourlyUsage.objects.filter(hour__gte=days.earliest("hour").hour).filter(
        hour__lt=rollups.day_of(wanted.end)
    ).delete()
    assert total(key.organization, wanted).requests == 77
    days.delete()
    left = HourlyUsage.objects.filter(hour__lt=wanted.end).count()
    assert total(key.organization, wanted).requests == left


def test_a_charge_without_a_request_is_told(key: ApiKey) -> None:
    row = make_request(key, hour_ago(4), delivered=2)
    rollups.close_hours(now=NOW)
    Generation.objects.filter(pk=row.pk).update(hold=None)
    Generation.objects.filter(pk=row.pk).delete()
    rollups.rebuild(hour_ago(4))

    assert list(rollups.prove(hour_ago(5))) == [
        Difference(key.organization_id, None, "images", 0, 2),
        Difference(key.organization_id, None, "cost_micro", 0, 80_000),
    ]


# --- Asking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_a_plain_count_whatever_is_asked(key: ApiKey, seed: int) -> None:
    chance = random.Random(seed)
    other = KeyFactory(organization=key.organization, name="other").row
    stranger = KeyFactory(organization=OrganizationFactory(bonus="100")).row
    rows = []
    for _ in range(60):
        at = hour_ago(chance.randrange(0, 60)) + timedelta(minutes=chance.randrange(60))
        at = min(at, NOW)
        rows.append(
            make_request(
                chance.choice([key, other]),
                at,
                model=chance.choice([FLUX, "fal/sd-3.5-large"]),
                delivered=chance.randrange(1, 4),
                error=chance.choice(["", "", "provider_unavailable", "internal_error"]),
                tags=chance.sample(["a", "b", "ç"], chance.randrange(3)),
            )
        )
        make_request(stranger, at)
    if chance.random() < 0.5:
        rollups.close_hours(now=NOW)
    start, end = hour_ago(50) + timedelta(minutes=20), hour_ago(1) + timedelta(minutes=50)
    within = [row for row in rows if start <= row.created_at < end]
    for zone in (UTC, ZoneInfo("America/Mexico_City"), ZoneInfo("Asia/Kathmandu")):
        for by in (
            (), ("day",), ("day", "sandbox"), ("day", "model"), ("day", "model", "key", "tag"),
            ("tag",), ("error", "model"), ("model", "key", "error"),
        ):  # fmt: skip
            wanted = Wanted(start=start, end=end)
            assert grouped(key.organization, wanted, by, zone=zone) == counted(within, by, zone)
    for field, value in (
        ("key", other.pk), ("model", FLUX), ("tag", "ç"), ("status", "failed"),
        ("status", "succeeded"), ("status", "internal_error"), ("status", "running"),
    ):  # fmt: skip
        wanted = Wanted(start=start, end=end, **{field: value})  # type: ignore[arg-type]
        meant = [row for row in within if _means(row, field, value)]
        assert total(key.organization, wanted) == counted(meant, (), UTC).get((), Used())
        listed = requests.page(key.organization, wanted, size=100)
        newest = sorted(meant, key=lambda row: (row.created_at, row.request_id), reverse=True)
        assert [row.pk for row in listed] == [row.pk for row in newest]


def _means(row: Generation, field: str, value: object) -> bool:
    match field:
        case "key":
            return row.api_key_id == value
        case "model":
            return (row.model or row.requested[0]) == value
        case "tag":
            return value in row.tags
        case _:
            return value in (row.status, row.error_code)


def counted(
    rows: list[Generation], by: tuple[str, ...], zone: object
) -> dict[tuple[object, ...], Used]:
    """Return the sums, counted in the plainest way."""
    found: dict[tuple[object, ...], Used] = {}
    for row in rows:
        for tag in (row.tags or [""]) if "tag" in by else [""]:
            values = {
                "day": row.created_at.astimezone(zone).date(),  # type: ignore[arg-type]
                "model": row.model or row.requested[0],
                "key": row.api_key_id,
                "tag": tag,
                "error": row.error_code,
                "sandbox": row.sandbox,
            }
            used = found.setdefault(tuple(values[name] for name in by), Used())
            succeeded = int(row.status == "succeeded")
            used.add(Used(1, succeeded, 0, row.delivered, row.cost_micro))
    return found


def test_a_page_cut_out_of_the_sums_follows_the_one_before(key: ApiKey) -> None:
    for hours in range(30):
        make_request(key, hour_ago(hours), tags=[f"tag-{hours % 7}", "ß", "Z"])
    rollups.close_hours(now=NOW)
    by = ("tag", "day")
    whole = grouped(key.organization, everything(key), by)
    assert len(whole) > 9

    cut: dict[tuple[object, ...], Used] = {}
    after = None
    while True:
        page = grouped(key.organization, everything(key), by, after=after, limit=2)
        if not page:
            break
        cut |= page
        after = list(page)[-1]
    assert list(cut.items()) == list(whole.items())


def test_the_sum_of_an_organization_is_its_ledger_and_a_stranger_s_is_not_in_it(
    key: ApiKey,
) -> None:
    stranger = KeyFactory(organization=OrganizationFactory(bonus="100")).row
    for hours in range(40):
        make_request(key, hour_ago(hours), delivered=1 + hours % 4)
        make_request(stranger, hour_ago(hours))
    rollups.close_hours(now=NOW)
    for organization in (key.organization, stranger.organization):
        ledger = LedgerEntry.objects.filter(
            organization=organization, kind=EntryKind.CONSUMPTION
        ).aggregate(cost=-Sum("amount_micro"), images=Sum("quantity"))
        used = total(organization, everything(key))
        assert (used.cost_micro, used.images) == (ledger["cost"], ledger["images"])


def test_requests_are_found_page_by_page_without_a_gap(key: ApiKey) -> None:
    moments = [hour_ago(hours) + timedelta(minutes=30) for hours in range(0, 90, 3)]
    rows = [
        make_request(key, min(at, NOW), tags=["rare"] if number % 2 else [])
        for number, at in enumerate(moments)
        for _ in range(2)  # two at the same moment
    ]
    rollups.close_hours(now=NOW)
    for tag in ("", "rare"):
        meant = [row for row in rows if not tag or tag in row.tags]
        newest = sorted(meant, key=lambda row: (row.created_at, row.request_id), reverse=True)
        found: list[Generation] = []
        before = None
        while page := requests.page(
            key.organization, everything(key, tag=tag), before=before, size=3
        ):
            found += page
            before = Place.parse(str(Place(page[-1].created_at, page[-1].request_id)))
        assert [row.request_id for row in found] == [row.request_id for row in newest]


def test_percentiles_are_within_what_is_promised(key: ApiKey) -> None:
    times = [1, 7, 40, 180, 950, 1000, 1010, 2300, 5000, 5100, 20_000, 45_000, 60_000]
    for place, latency_ms in enumerate(times):
        make_request(key, hour_ago(place % 4), latency_ms=latency_ms)
    make_request(key, hour_ago(1), error="internal_error", latency_ms=1)
    make_request(key, hour_ago(1), latency_ms=None)
    rollups.close_hours(now=NOW)

    found = latencies.by_model(key.organization, everything(key))

    assert found.keys() == {"", FLUX}
    assert found[""].requests == len(times)
    assert found[""].p50_ms == pytest.approx(1010, rel=0.061)
    assert found[""].p95_ms == pytest.approx(60_000, rel=0.061)


def test_the_bars_of_a_histogram_are_as_wide_as_they_say(key: ApiKey) -> None:
    for latency_ms in (0, 1, 2, 999, 123_456):
        make_request(key, hour_ago(3), latency_ms=latency_ms)
    rollups.close_hours(now=NOW)
    for bar in HourlyLatency.objects.all():
        assert bar.requests == (2 if bar.bucket == 0 else 1)
    assert rollups.bucket_ms(0) == 1
    middles = [rollups.bucket_ms(one.bucket) for one in HourlyLatency.objects.order_by("bucket")]
    assert middles[1:] == [pytest.approx(one, rel=0.061, abs=0.5) for one in (2, 999, 123_456)]


def test_sandbox_requests_are_summed_apart(key: ApiKey) -> None:
    sandbox = KeyFactory(organization=key.organization, name="ci", sandbox=True).row
    make_request(key, hour_ago(3))
    make_request(sandbox, hour_ago(3), delivered=4)
    rollups.close_hours(now=NOW)
    assert total(key.organization, everything(key, sandbox=False)) == Used(1, 1, 0, 1, 40_000)
    assert total(key.organization, everything(key, sandbox=True)) == Used(1, 1, 0, 4, 0)
    assert list(rollups.prove()) == []


def test_a_request_that_drew_with_another_model_than_asked_counts_for_who_drew(
    key: ApiKey,
) -> None:
    make_request(key, hour_ago(3), model=IMAGEN, requested=[FLUX, IMAGEN])
    for _ in range(2):
        found = grouped(key.organization, everything(key), ("model",))
        assert found == {(IMAGEN,): Used(1, 1, 0, 1, 40_000)}
        rollups.close_hours(now=NOW)


@pytest.mark.parametrize(
    "text", ["", "1", "x-req_" + "0" * 24, "-1-req_" + "0" * 24, "9" * 17 + "-req_" + "0" * 24,
             "١-req_" + "0" * 24, "1-req_x", "1-req_" + "0" * 24 + "\n"],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Place.parse(text)


def test_a_rare_tag_is_looked_for_only_in_the_hours_that_the_rollups_name(key: ApiKey) -> None:
    make_request(key, hour_ago(30), tags=["rare"])
    make_request(key, hour_ago(3))
    rollups.close_hours(now=NOW)
    with CaptureQueriesContext(connection) as asked:
        found = requests.page(key.organization, everything(key, tag="rare"), size=50)

    assert len(found) == 1
    reads = [one["sql"] for one in asked if 'FROM "images_generation"' in one["sql"]]
    # The open hours; then the one hour, and no wider time that would be read beside it.
    assert [one.count('"created_at" >= ') for one in reads] == [1, 1]
    assert f"{hour_ago(30):%Y-%m-%d %H:%M}" in reads[1]
