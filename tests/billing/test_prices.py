"""Prices: append-only versions, the newest one counts, none means refused."""

import sys

import pytest
from django.db import IntegrityError, transaction

from billing.models import PriceException, PriceVersion
from billing.spending import prices
from tests.billing import race
from tests.factories import OrganizationFactory

pytestmark = pytest.mark.django_db


def versions() -> list[tuple[str, int, int]]:
    rows = PriceVersion.objects.order_by("sku", "version")
    return list(rows.values_list("sku", "version", "unit_micro"))


def test_publishing_makes_a_version_only_where_the_price_differs() -> None:
    first = prices.publish({"a/one": 40_000, "b/two": 65_000})
    assert [version.sku for version in first] == ["a/one", "b/two"]
    assert prices.publish({"a/one": 40_000, "b/two": 65_000}) == []
    again = prices.publish({"a/one": 50_000, "b/two": 65_000})
    assert [(version.sku, version.version) for version in again] == [("a/one", 2)]
    # A price that comes back is a new version, not the old one.
    prices.publish({"a/one": 40_000})
    assert versions() == [
        ("a/one", 1, 40_000),
        ("a/one", 2, 50_000),
        ("a/one", 3, 40_000),
        ("b/two", 1, 65_000),
    ]


def test_the_newest_version_is_quoted() -> None:
    prices.publish({"a/one": 40_000, "b/two": 65_000})
    (newest,) = prices.publish({"a/one": 50_000})
    assert prices.current(["a/one"]) == {"a/one": prices.Quote("a/one", newest.pk, 50_000)}
    assert set(prices.current(["b/two", "a/one"])) == {"a/one", "b/two"}


def test_a_model_without_a_price_is_named() -> None:
    prices.publish({"a/one": 40_000})
    with pytest.raises(prices.UnknownPrice, match="x/none"):
        prices.current(["a/one", "x/none"])


def test_what_publishing_would_change_is_told_and_not_done() -> None:
    prices.publish({"a/one": 40_000, "b/two": 65_000})
    pending = prices.pending({"a/one": 50_000, "b/two": 65_000, "c/new": 1})
    assert pending == {"a/one": (40_000, 50_000), "c/new": (None, 1)}
    assert len(versions()) == 2


@pytest.mark.parametrize("unit", [0, -1])
def test_a_price_that_is_not_positive_is_refused(unit: int) -> None:
    with pytest.raises(IntegrityError):
        prices.publish({"a/one": unit})
    assert versions() == []


def test_a_version_exists_once() -> None:
    prices.publish({"a/one": 40_000})
    with pytest.raises(IntegrityError), transaction.atomic():
        PriceVersion.objects.create(sku="a/one", version=1, unit_micro=50_000)


def test_a_price_that_is_read_late_comes_with_its_exceptions(db: None) -> None:
    prices.publish({"a/one": 40_000})
    organization, stranger = OrganizationFactory(), OrganizationFactory()
    book = prices.PriceBook(fresh_seconds=3600)
    assert book.current(["a/one"], organization.pk)["a/one"].unit_micro == 40_000

    prices.publish({"b/two": 65_000})
    PriceException.objects.create(organization=organization, sku="b/two", price_version=None)

    with pytest.raises(prices.UnknownPrice, match="b/two"):
        book.current(["b/two"], organization.pk)
    assert book.current(["b/two"], stranger.pk)["b/two"].unit_micro == 65_000


def test_threads_that_read_at_once_each_get_what_they_asked_for(transactional_db: None) -> None:
    unit = {f"a/{number}": 10_000 * (number + 1) for number in range(6)}
    prices.publish(unit)
    organization = OrganizationFactory()
    book = prices.PriceBook(fresh_seconds=0)

    def ask(number: int) -> list[int]:
        model = f"a/{number}"
        return [book.current([model], organization.pk)[model].unit_micro for _ in range(50)]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads take turns between any two lines
    try:
        assert race(6, ask) == [[price] * 50 for price in unit.values()]
    finally:
        sys.setswitchinterval(before)
