"""What the tests of the whole gateway share: all providers at once, and what a request came to."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import httpx
from django.conf import settings
from django.db.models import Sum
from PIL import Image as Pillow

from accounts.models import Organization
from billing.models import BillingAccount, Hold, HoldState, LedgerEntry
from images.drawing.gateway import Gateway
from images.drawing.limits import MemoryLimiter, RedisLimiter
from images.models import Generation, GenerationStatus, Image
from images.providers.circuit import Circuit
from images.providers.fal import Fal
from images.providers.http import HttpProvider
from tests.api.checks import expect_nothing_charged
from tests.emulators.base import Emulator
from tests.server import AppServer

type Emulators = Mapping[str, Emulator]

# What the customer pays per picture, in micro-USD, as the contract has it.
PRICES = {
    "openai/gpt-image-1": 190_000,
    "openai/dall-e-3": 40_000,
    "google/imagen-4": 40_000,
    "xai/grok-2-image": 70_000,
    "fal/flux-1.1-pro": 40_000,
    "fal/flux-1.1-pro-ultra": 60_000,
    "fal/recraft-v3": 40_000,
    "fal/ideogram-v2": 80_000,
    "fal/sd-3.5-large": 65_000,
}
GPT, DALLE, IMAGEN, GROK, FLUX, ULTRA, RECRAFT, IDEOGRAM, STABLE = PRICES


def gateway_of(app: AppServer) -> Gateway:
    """Return what a running application holds."""
    gateway = app._application.gateway
    assert gateway is not None
    return gateway


def in_flight(app: AppServer, organization: Organization) -> int:
    """Return how many of an organization's requests have a place."""
    limiter = gateway_of(app).limiter
    if isinstance(limiter, RedisLimiter):
        return int(limiter._redis.zcard(f"in_flight:{organization.pk}"))
    assert isinstance(limiter, MemoryLimiter)
    return len(limiter._in_flight.get(organization.pk, {}))


def provider_of(app: AppServer, name: str) -> HttpProvider:
    """Return a running application's client of one provider."""
    provider = gateway_of(app).providers[name]
    assert isinstance(provider, HttpProvider)
    return provider


def circuit_of(app: AppServer, name: str) -> Circuit:
    """Return a running application's circuit of one provider."""
    return provider_of(app, name).circuit


def mend(app: AppServer, name: str) -> None:
    """Close a provider's circuit, whatever has opened it."""
    circuit_of(app, name).close()


def stop_clock(app: AppServer, name: str) -> Circuit:
    """Return a provider's circuit, which stays open once it is until its `pause` is 0."""
    circuit = circuit_of(app, name)
    circuit.clock = lambda: 1000.0
    return circuit


def hurry(app: AppServer) -> None:
    """Ask after fal's jobs without the pause that a real one needs."""
    fal = provider_of(app, "fal")
    assert isinstance(fal, Fal)
    fal.poll_seconds = 0.01


def circuits(app: AppServer) -> dict[str, str]:
    """Return the circuits as an operator sees them."""
    answer = httpx.get(f"{app.origin}/ready?verbose", timeout=20)
    assert answer.status_code == 200, answer.text
    told: dict[str, str] = answer.json()["circuits"]
    return told


def calls(emulators: Emulators) -> dict[str, int]:
    """Return how often each provider was called, those left alone not mentioned."""
    return {name: len(one.calls) for name, one in emulators.items() if one.calls}


def drawn(emulators: Emulators) -> int:
    """Return how many pictures the providers made, delivered or not."""
    return sum(len(one.pictures) for one in emulators.values())


def stored(url: str) -> bytes:
    """Return the bytes behind a picture's URL, as the store keeps them."""
    name = url.removeprefix("http://pictures.test/storage/v1/object/public/generated-images/")
    assert name != url
    data: bytes = (settings.DATA_DIR / "images" / name).read_bytes()
    return data


def expect_pictures(answer: httpx.Response, count: int) -> list[dict[str, Any]]:
    """Check that an answer describes `count` stored pictures truly; return its `data`."""
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    assert len(data) == count
    assert len({row["url"] for row in data}) == count
    for row in data:
        content = stored(row["url"])
        with Pillow.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.size == (row["width"], row["height"])
            assert picture.get_format_mimetype() == row["mime_type"]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (row["bytes"], row["sha256"])
    return data


def expect_charged(answer: httpx.Response, model: str, count: int) -> None:
    """Check header, ledger, row and hold of one request: `count` pictures of `model`, once."""
    cost = PRICES[model] * count
    request_id = answer.headers["x-request-id"]
    assert float(answer.headers["x-geekhub-cost-usd"]) == cost / 1_000_000
    entries = LedgerEntry.objects.filter(request_id=request_id, kind="consumption")
    assert list(entries.values_list("sku", "quantity", "amount_micro")) == [(model, count, -cost)]
    row = Generation.objects.get(request_id=request_id)
    assert (row.status, row.model, row.delivered, row.cost_micro) == (
        GenerationStatus.SUCCEEDED,
        model,
        count,
        cost,
    )
    assert (row.hold.state, row.hold.captured) == (HoldState.CAPTURED, count)  # type: ignore[union-attr]


def expect_free(answer: httpx.Response) -> None:
    """Check that a failed answer, the only one of its test, left no charge, hold or picture."""
    assert answer.status_code >= 400
    assert "x-geekhub-cost-usd" not in answer.headers
    expect_nothing_charged()


def expect_sound_books() -> None:
    """Check that ledger, pictures, requests and credits agree, whatever happened before.

    Each request is checked on its own, so that two errors do not hide each other.
    """
    assert not Hold.objects.filter(state=HoldState.HELD).exists()
    assert not Generation.objects.filter(status=GenerationStatus.RUNNING).exists()
    charged = {
        row["request_id"]: (row["images"], -row["cost"])
        for row in LedgerEntry.objects.filter(kind="consumption")
        .values("request_id")
        .annotate(images=Sum("quantity"), cost=Sum("amount_micro"))
    }
    pictures: dict[str, int] = {}
    for request_id in Image.objects.values_list("generation__request_id", flat=True):
        pictures[request_id] = pictures.get(request_id, 0) + 1
    told = {
        row.request_id: (row.delivered, row.cost_micro)
        for row in Generation.objects.filter(status=GenerationStatus.SUCCEEDED, sandbox=False)
    }
    assert charged == told
    assert pictures == {request_id: images for request_id, (images, _) in told.items()}
    for account in BillingAccount.objects.all():
        entries = LedgerEntry.objects.filter(organization_id=account.pk)
        spent = entries.filter(kind="consumption").aggregate(sum=Sum("amount_micro"))["sum"] or 0
        assert account.held_micro == 0
        assert account.spent_micro == -spent
        assert account.balance_micro == entries.aggregate(sum=Sum("amount_micro"))["sum"]
