"""Every place that shows a price shows what a request would then be charged."""

import re
from collections.abc import Callable

import pytest
from django.utils import timezone

from accounts.models import Organization
from billing.models import LedgerEntry, PriceException, PriceState, PriceVersion
from billing.spending import prices
from geekhub.lib import money
from geekhub.staff import figures
from images.usage import platform
from tests.api.checks import expect_error
from tests.emulators.fal import FalEmulator
from tests.factories import KeyFactory
from tests.gateway import hurry
from tests.pages import owner_of
from tests.pages.visitor import Visitor
from tests.server import Api, AppServer

FLUX, ULTRA, RECRAFT = "fal/flux-1.1-pro", "fal/flux-1.1-pro-ultra", "fal/recraft-v3"


@pytest.fixture
def changed(acme: Organization, globex: Organization) -> None:
    """Dearer versions, of which Acme has one, keeps an older one of another, and a third not."""
    prices.publish({FLUX: 50_000, ULTRA: 70_000, RECRAFT: 41_000})
    # What Stripe cannot bill yet is nobody's price.
    prices.publish({FLUX: 990_000}, PriceState.DRAFT)
    old = PriceVersion.objects.get(sku=FLUX, version=1)
    PriceException.objects.create(organization=acme, sku=FLUX, price_version=old, reason="x")
    PriceException.objects.create(organization=acme, sku=RECRAFT, price_version=None, reason="x")


def shown(app: AppServer, organization: Organization, model: str) -> set[str | None]:
    """Return every price of one picture that the organization is shown, in USD."""
    api = Api(app.origin, KeyFactory(organization=organization).secret)
    visitor = Visitor(app, owner_of(organization))
    listed = {row["id"]: row for row in api.get("models").json()["data"]}
    page = visitor.get("/dashboard/playground", params={"model": model}).text
    found: set[str | None] = {
        listed[model]["pricing"]["per_image_usd"],
        api.get(f"models/{model}").json()["pricing"]["per_image_usd"],
    }
    dry = api.draw(model=model, dry_run=True)
    assert listed[model]["available"] is dry.is_success
    if dry.is_success:
        told = dry.json()["geekhub"]
        found |= {told["unit_price_usd"], told["max_cost_usd"]}
    card = re.search(
        rf'value="{model}" data-micro="(\d+)".*?class="model-price">\$([0-9.]+)', page, re.S
    )
    if card:
        found |= {money.to_usd(int(card[1])), card[2]}
        total = re.search(r'id="total"[^>]*>\s*\$([0-9.]+)', page)
        assert total
        found.add(total[1])
    else:
        found.add(None)
    api.http.close()
    visitor.http.close()
    return found


def charged(app: AppServer, organization: Organization, model: str) -> str:
    """Draw one picture; return what it cost, which the answer and the ledger say alike."""
    api = Api(app.origin, KeyFactory(organization=organization).secret)
    answer = api.draw(model=model)
    assert answer.status_code == 200, answer.text
    entry = LedgerEntry.objects.filter(organization=organization, kind="consumption").latest("pk")
    cost: str = answer.headers["x-geekhub-cost-usd"]
    assert entry.amount_micro == -round(float(cost) * 1_000_000)
    refused = api.draw(model=model, max_cost=0.01)
    expect_error(refused, "invalid_request_error", param="max_cost", says=f"costs {cost} USD")
    api.http.close()
    return cost


def test_every_price_shown_is_the_price_charged(
    changed: None,
    serve: Callable[[], AppServer],
    acme: Organization,
    globex: Organization,
    fal: FalEmulator,
) -> None:
    app = serve()
    hurry(app)
    for organization, model, price in (
        (acme, FLUX, "0.04"),
        (globex, FLUX, "0.05"),
        (acme, ULTRA, "0.07"),
        (globex, ULTRA, "0.07"),
        (globex, RECRAFT, "0.041"),
    ):
        assert charged(app, organization, model) == price
        assert shown(app, organization, model) == {price}
    # Who has no price of a model is offered none and cannot draw with it.
    assert shown(app, acme, RECRAFT) == {None}
    api = Api(app.origin, KeyFactory(organization=acme).secret)
    expect_error(api.draw(model=RECRAFT), "model_not_found", param="model", says="no price")
    api.http.close()


def test_staff_see_the_price_of_an_organization_without_exceptions(changed: None) -> None:
    earned = {model: platform.Earned() for model in (FLUX, ULTRA, "gone/away")}
    today = timezone.now().date()
    month = platform.Month(days={today: platform.Earned()}, models=earned)
    lines = {line.name: line.unit_price for line in figures._models(month)}
    assert lines == {FLUX: "$0.05", ULTRA: "$0.07", "gone/away": "–"}


def test_the_lowest_price_is_one_that_is_charged(changed: None) -> None:
    PriceVersion.objects.exclude(sku__in=[FLUX, ULTRA]).update(state=PriceState.RETIRED)
    # Version 1 of FLUX is active as well, and superseded.
    assert prices.lowest_micro() == 50_000
    PriceVersion.objects.update(state=PriceState.RETIRED)
    assert prices.lowest_micro() == 1
