"""Requests, their charges and their pictures: what goes apart is found, and only that."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import Comparison, Difference, DifferenceState, Reconciliation
from billing.spending import holds, prices
from geekhub.work import jobs
from images.catalog.rows import CATALOG
from images.models import Generation, GenerationStatus, Image
from images.usage import reconciliation
from tests.billing import authorize, capture
from tests.factories import KeyFactory, OrganizationFactory
from tests.images.requests import FLUX, make_request

PRICE = 40_000
HOURS = timedelta(hours=1)


@pytest.fixture
def key(db: None) -> ApiKey:
    prices.publish({model.id: model.price_micro for model in CATALOG.values()})
    return KeyFactory(organization=OrganizationFactory(name="Acme", bonus="1000")).row


@pytest.fixture
def request_(key: ApiKey) -> Generation:
    """A live request that delivered two pictures, beside every other kind of request."""
    now = timezone.now()
    free = KeyFactory(organization=key.organization, sandbox=True).row
    make_request(free, now - HOURS, delivered=3, pictures=True)
    make_request(key, now - HOURS, error="provider_unavailable")
    make_request(key, now - HOURS, running=True)
    part = make_request(key, now, running=True, n=1)
    assert part.hold is not None
    with transaction.atomic():
        cost = -holds.capture_one(part.hold, sku=FLUX).amount_micro
    Generation.objects.filter(pk=part.pk).update(delivered=1, cost_micro=cost)
    _picture(part, 0)
    return make_request(key, now - HOURS, delivered=2, pictures=True)


def _picture(row: Generation, index: int) -> Image:
    return Image.objects.create(
        generation=row, index=index, name=f"{row.pk}/{index}", mime_type="image/png",
        width=1, height=1, bytes=1, sha256="0" * 64,
    )  # fmt: skip


def found(row: Generation | None = None) -> dict[str, tuple[int, int]]:
    """Compare, and return expected and found of every open difference, by kind."""
    run = reconciliation.requests(now=timezone.now())
    rows = Difference.objects.filter(state=DifferenceState.OPEN)
    assert run.differences == rows.count() == rows.values("kind").distinct().count()
    for one in rows:
        assert row is None or (one.hour, one.organization) == (row.created_at, row.organization)
    return {one.kind: (one.expected, one.found) for one in rows}


def test_requests_that_agree_show_nothing(request_: Generation) -> None:
    Image.objects.update(deleted_at=timezone.now())  # its row stays
    assert found() == {}
    run = Reconciliation.objects.get()
    assert (run.kind, run.checked, run.differences) == ("requests", 5, 0)


APART: dict[str, tuple[Callable[[Generation], object], dict[str, tuple[int, int]]]] = {
    # What a broken capture once left: a delivery that nobody was charged for, or can see.
    "a phantom": (
        lambda row: (
            row.images.all().delete(),
            Generation.objects.filter(pk=row.pk).update(hold=None),
        ),
        {
            "request_images": (0, 2),
            "request_cost": (0, 2 * PRICE),
            "request_pictures": (2, 0),
            "charge_without_request": (0, 2),
        },
    ),
    "delivered": (
        lambda row: Generation.objects.filter(pk=row.pk).update(delivered=1),
        {"request_images": (2, 1), "request_pictures": (1, 2)},
    ),
    "cost": (
        lambda row: Generation.objects.filter(pk=row.pk).update(cost_micro=F("cost_micro") + 1),
        {"request_cost": (2 * PRICE, 2 * PRICE + 1)},
    ),
    "a picture gone": (
        lambda row: row.images.get(index=1).delete(),
        {"request_pictures": (2, 1)},
    ),
    "a picture more": (lambda row: _picture(row, 2), {"request_pictures": (2, 3)}),
    "a charge of a failed request": (
        lambda row: (
            row.images.all().delete(),
            Generation.objects.filter(pk=row.pk).update(
                status=GenerationStatus.FAILED, delivered=0, cost_micro=0
            ),
        ),
        {"request_images": (2, 0), "request_cost": (2 * PRICE, 0)},
    ),
}


@pytest.mark.parametrize("what", APART)
def test_what_goes_apart_is_found(request_: Generation, what: str) -> None:
    take_apart, expected = APART[what]
    take_apart(request_)
    assert found() == expected


def test_a_difference_is_closed_when_it_agrees_again(request_: Generation) -> None:
    Generation.objects.filter(pk=request_.pk).update(delivered=1)
    assert set(found(request_)) == {"request_images", "request_pictures"}
    Generation.objects.filter(pk=request_.pk).update(delivered=2)
    assert found() == {}
    assert set(Difference.objects.values_list("state", flat=True)) == {DifferenceState.CLOSED}


def test_a_picture_of_the_sandbox_that_is_gone_is_found(request_: Generation) -> None:
    free = Generation.objects.get(sandbox=True)
    free.images.get(index=0).delete()
    assert found(free) == {"request_pictures": (3, 2)}


def test_a_charge_that_belongs_to_no_request_is_found(request_: Generation, key: ApiKey) -> None:
    capture(authorize(key, FLUX, quantity=3), model=FLUX, delivered=3)
    assert found() == {"charge_without_request": (0, 3)}


def test_older_requests_are_left_to_the_daily_job(request_: Generation, key: ApiKey) -> None:
    long_ago = timezone.now() - timedelta(days=5)
    Generation.objects.filter(pk=request_.pk).update(created_at=long_ago, delivered=1)
    assert found() == {}
    often, daily = (one for one in jobs.IMAGES if "differences" in one.name)
    assert often.run(timezone.now()) == 0
    assert daily.run(timezone.now()) == 2
    # And what the daily one found is not closed by the other, which has not looked.
    assert often.run(timezone.now()) == 0
    assert Difference.objects.filter(state=DifferenceState.OPEN).count() == 2
    assert set(Reconciliation.objects.values_list("kind", flat=True)) == {Comparison.REQUESTS}
