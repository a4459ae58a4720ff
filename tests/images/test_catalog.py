"""The catalogue: the nine seed models at their prices, and every row consistent in itself."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from geekhub.lib import money
from images.catalog.model import MAX_N, MAX_PROMPT, ImageModel, PriceLine, Status
from images.catalog.rows import CATALOG, as_of
from images.catalog.skus import names, price_list, sku_of
from images.providers.registry import OWNERS

SEEDS = {
    "openai/gpt-image-1": ("openai", "0.19", 15, 45),
    "openai/dall-e-3": ("openai", "0.04", 8, 20),
    "google/imagen-4": ("google", "0.04", 6, 18),
    "xai/grok-2-image": ("xai", "0.07", 10, 30),
    "fal/flux-1.1-pro": ("fal", "0.04", 7, 25),
    "fal/flux-1.1-pro-ultra": ("fal", "0.06", 12, 40),
    "fal/recraft-v3": ("fal", "0.04", 8, 28),
    "fal/ideogram-v2": ("fal", "0.08", 12, 35),
    "fal/sd-3.5-large": ("fal", "0.065", 10, 30),
}
SIZE = re.compile(r"[1-9]\d{2,3}x[1-9]\d{2,3}")
QUALITIES = {"standard", "hd", "low", "medium", "high", "auto"}


def test_the_nine_seed_models_come_first_with_their_provider_price_and_times() -> None:
    rows = [CATALOG[model_id] for model_id in SEEDS]
    told = [(row.provider, money.to_usd(row.price_micro)) for row in rows]
    assert told == [(provider, price) for provider, price, _, _ in SEEDS.values()]
    times = [(row.p50_seconds, row.p95_seconds) for row in rows]
    assert times == [(p50, p95) for _, _, p50, p95 in SEEDS.values()]
    assert list(CATALOG)[:9] == list(SEEDS)


@pytest.mark.parametrize("row", CATALOG.values(), ids=lambda row: row.id)
def test_a_row_is_consistent(row: ImageModel) -> None:
    assert CATALOG[row.id] is row
    assert re.fullmatch(r"[a-z]+/[a-z0-9.-]+", row.id)
    assert row.id.startswith(f"{row.provider}/")
    assert row.provider in OWNERS
    assert row.upstream_id
    assert row.name
    assert row.good_for
    assert row.price_micro > 0
    assert 0 < row.p50_seconds <= row.p95_seconds <= 60
    assert 1 <= row.per_call <= MAX_N
    assert 1 <= row.max_prompt <= MAX_PROMPT
    assert set(row.formats) <= {"png", "jpeg", "webp"}
    assert set(row.qualities) in (set(), QUALITIES)
    assert date(2020, 1, 1) < row.created
    assert row.created_timestamp == datetime(*row.created.timetuple()[:3], tzinfo=UTC).timestamp()


@pytest.mark.parametrize("row", CATALOG.values(), ids=lambda row: row.id)
def test_sizes_parse_and_what_is_drawn_can_be_asked_for(row: ImageModel) -> None:
    for asked, drawn in row.sizes.items():
        assert SIZE.fullmatch(asked)
        assert SIZE.fullmatch(drawn)
        # Asking for exactly what is drawn draws exactly that.
        assert row.sizes[drawn] == drawn
    assert row.default_size in row.sizes
    assert row.sizes[row.default_size] == row.default_size


@pytest.mark.parametrize("row", CATALOG.values(), ids=lambda row: row.id)
def test_who_goes_names_a_successor_that_stays(row: ImageModel) -> None:
    if row.shutdown_date or row.upstream_off:
        assert row.successor is not None
    if row.successor is not None:
        successor = CATALOG[row.successor]
        assert successor.id != row.id
        assert (successor.shutdown_date, successor.upstream_off) == (None, None)


def test_a_price_line_is_a_row_of_data() -> None:
    row = CATALOG["openai/gpt-image-1"]
    lines = (
        PriceLine("high:edit", 300_000, quality="high", inputs=1),
        PriceLine("high", 250_000, quality="high"),
        PriceLine("wide", 200_000, size="1536x1024"),
    )
    priced = replace(row, lines=lines)
    assert sku_of(priced) == sku_of(priced, quality="low", inputs=2) == row.id
    # By the provider's own word: hd is high there.
    assert sku_of(priced, quality="hd") == f"{row.id}:high"
    assert sku_of(priced, quality="high", inputs=1) == f"{row.id}:high:edit"
    assert sku_of(priced, quality="medium", size="1536x1024") == f"{row.id}:wide"
    assert sku_of(priced, quality="high", size="1536x1024") == f"{row.id}:high"
    assert price_list([priced]) == {
        row.id: 190_000,
        f"{row.id}:high:edit": 300_000,
        f"{row.id}:high": 250_000,
        f"{row.id}:wide": 200_000,
    }
    assert names([priced])[f"{row.id}:high"] == f"{row.name}, high"
    assert {row.id: row.price_micro for row in CATALOG.values()}.items() <= price_list().items()


def test_upstream_names_are_each_providers_own() -> None:
    names = [(row.provider, row.upstream_id) for row in CATALOG.values()]
    assert len(set(names)) == len(names)


def test_a_model_retires_on_the_day_we_stop_serving_it() -> None:
    day = date(2030, 6, 1)
    row = replace(CATALOG["fal/flux-1.1-pro"], shutdown_date=day)
    for today, status in [
        (date(2030, 5, 31), Status.RETIRING),
        (day, Status.RETIRED),
        (date(2030, 6, 2), Status.RETIRED),
    ]:
        for retire in (True, False):
            assert as_of(row, today, retire_switched_off=retire).status == status


def test_a_model_that_its_provider_switched_off_retires_only_if_the_operator_wants() -> None:
    row = CATALOG["openai/dall-e-3"]
    assert row.upstream_off is not None
    assert as_of(row, row.upstream_off, retire_switched_off=False) == row
    retired = as_of(row, row.upstream_off, retire_switched_off=True)
    assert (retired.status, retired.shutdown_date) == (Status.RETIRED, row.upstream_off)
    assert as_of(row, row.created, retire_switched_off=True).status == Status.RETIRING


# --- Money ------------------------------------------------------------------------------------

# The prices of the nine are the product's; of four of them the provider has ended the model.
OURS = [row for row in CATALOG.values() if row.id not in SEEDS]


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.id)
def test_no_picture_is_sold_below_what_it_may_cost(row: ImageModel) -> None:
    assert row.cost_micro is not None
    assert row.price_micro >= max([row.cost_micro, *row.costs_micro.values()])


@pytest.mark.parametrize("row", [row for row in OURS if row.edits], ids=lambda row: row.id)
def test_no_edit_is_let_in_that_costs_more_than_its_price(row: ImageModel) -> None:
    assert row.input_micro > 0
    for quality in [None, *row.qualities]:
        word = row.qualities.get(quality or "auto", "")
        cost = row.costs_micro.get(word, row.cost_micro or 0)
        for price in (row.price_micro, row.price_micro // 2, row.price_micro * 10, 0):
            most = row.most_inputs(quality, price)
            assert 0 <= most <= row.edits
            assert most == 0 or cost + most * row.input_micro <= price
        # Each of them can edit, at every quality.
        assert row.most_inputs(quality, row.price_micro) >= 1


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("openai/gpt-image-2", {"low": 9, "medium": 7, "high": 1, None: 1}),
        ("openai/gpt-image-2.5-sunburst", {"low": 3, "medium": 2, "high": 1, None: 2}),
        ("xai/grok-imagine-image", {None: 1}),
        ("xai/grok-imagine-image-2.0", {"low": 1, "high": 1, None: 1}),
        ("openai/gpt-image-1", {"low": 16, "high": 16, None: 16}),
        ("fal/flux-1.1-pro", {None: 0}),
    ],
)
def test_from_how_many_pictures_an_edit_may_start(model: str, most: dict[str | None, int]) -> None:
    row = CATALOG[model]
    assert {quality: row.most_inputs(quality, row.price_micro) for quality in most} == most
