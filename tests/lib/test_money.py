"""Money: micro-USD in, exact text out, and never a rounded digit."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geekhub.lib import money

# What the database's columns hold.
LARGEST = 10**18 - 1


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("0", 0),
        ("0.00", 0),
        ("-0", 0),
        ("0.04", 40_000),
        ("0.065", 65_000),
        ("0.000001", 1),
        ("1", 1_000_000),
        ("2.50", 2_500_000),
        ("-2.5", -2_500_000),
        ("1e3", 1_000_000_000),
        ("1E-6", 1),
        (" 7 ", 7_000_000),
        ("0.1000000000000000000000000000000000", 100_000),
        ("999999999999.999999", LARGEST),
        ("-999999999999.999999", -LARGEST),
        (Decimal("0.19"), 190_000),
    ],
)
def test_an_amount_of_usd_is_a_number_of_micro_usd(text: str | Decimal, micro: int) -> None:
    assert money.from_usd(text) == micro


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "x", "1,5", "$1", "0x10", "1 2", "--1", "1.2.3"),
        *("nan", "sNaN", "inf", "-Infinity"),
        # finer than a micro-dollar, also far behind the point
        *("0.0000001", "1.0000005", "1.0000000000000000000000000000001", "1e-7", "1e-999999"),
        # larger than any column
        *("1000000000000", "1e18", "1e400", "1e999999", "-1e999999", "9" * 40),
    ],
)
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        money.from_usd(text)


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0.00"),
        (1, "0.000001"),
        (10, "0.00001"),
        (40_000, "0.04"),
        (65_000, "0.065"),
        (100_000, "0.10"),
        (190_000, "0.19"),
        (999_999, "0.999999"),
        (1_000_000, "1.00"),
        (1_500_000, "1.50"),
        (1_000_001, "1.000001"),
        (-1, "-0.000001"),
        (-2_500_000, "-2.50"),
        (-40_000, "-0.04"),
        (123_456_789_000_000, "123456789.00"),
    ],
)
def test_micro_usd_are_told_exactly_and_with_two_decimals_at_least(micro: int, text: str) -> None:
    assert money.to_usd(micro) == text
    assert money.to_decimal(micro) == Decimal(text)


@given(st.integers(-LARGEST, LARGEST))
def test_every_amount_survives_the_way_out_and_back(micro: int) -> None:
    text = money.to_usd(micro)
    assert money.from_usd(text) == micro
    assert money.from_usd(money.to_decimal(micro)) == micro
    assert len(text.partition(".")[2]) >= 2
    assert float(text) == pytest.approx(micro / 10**6)


@given(st.text() | st.from_regex(r"-?[0-9]{0,25}\.?[0-9]{0,25}(e-?[0-9]{1,6})?", fullmatch=True))
def test_any_text_is_an_exact_amount_or_refused(text: str) -> None:
    try:
        micro = money.from_usd(text)
    except ValueError:
        return
    assert abs(micro) <= LARGEST
    assert Decimal(text).compare(Decimal(micro).scaleb(-6)) == 0
