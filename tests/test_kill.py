"""SIGKILL in the middle of a burst: pictures delivered are pictures charged, nothing is held."""

import json
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest
from django.db.models import Sum

from accounts.keys import NewKey
from accounts.models import Organization
from billing.models import BillingAccount, Hold, HoldState, LedgerEntry
from images.models import Generation, GenerationStatus, Image
from tests.api.service import Service
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.server import Api

BURST = 50
STUCK = 15
PRICE = 190_000
# Bounds, not measures: a machine with other work to do needs minutes for a burst, and a test that
# passes does not wait for them.
PATIENCE = 240


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("delivered_before", [1, 20], ids=["early", "late"])
def test_sigkill_in_a_burst_leaves_pictures_delivered_equal_to_pictures_charged(
    published: None, openai: OpenAIEmulator, tmp_path: Path, delivered_before: int
) -> None:
    organization = OrganizationFactory(bonus="100")
    key = KeyFactory(organization=organization)
    gate = threading.Event()
    # The first to come are still being drawn when the others are answered, stored and charged.
    openai.queue(*[Behaviour(gate=gate)] * STUCK)
    answers: list[httpx.Response] = []
    with Service(tmp_path, openai, REQUEST_DEADLINE_SECONDS=str(2 * PATIENCE)) as service:
        try:
            with ThreadPoolExecutor(BURST) as pool:
                futures = {pool.submit(_draw, service, key) for _ in range(BURST)}
                waiting = futures
                while len(futures) - len(waiting) < delivered_before:
                    answered, waiting = wait(waiting, PATIENCE, FIRST_COMPLETED)
                    assert answered, "no answer came"
                service.kill()
                answers = [answer for future in futures if (answer := future.result(PATIENCE))]
        finally:
            gate.set()
        assert {answer.status_code for answer in answers} == {200}
        assert delivered_before <= len(answers) < BURST
        held = Hold.objects.filter(state=HoldState.HELD).count()
        assert held >= STUCK

        service.start()
        told = service.manage("worker", "--once")
        settled = Generation.objects.filter(status=GenerationStatus.FAILED).count()
        assert settled >= STUCK
        assert f"abandoned requests settled: {settled}" in told
        _expect_settled(organization, service, answers, tmp_path)
        # A second round finds nothing to do, and the service keeps working.
        assert "abandoned requests settled: 0" in service.manage("worker", "--once")
        after = _draw(service, key)
        assert after is not None
        assert after.status_code == 200
        _expect_settled(organization, service, [*answers, after], tmp_path)


def _draw(service: Service, key: NewKey) -> httpx.Response | None:
    """Return the answer, or None when the server died meanwhile."""
    api = Api(service.origin, key.secret, timeout=PATIENCE)
    try:
        return api.draw()
    except httpx.TransportError:
        return None
    finally:
        api.http.close()


def _expect_settled(
    organization: Organization, service: Service, answers: list[httpx.Response], folder: Path
) -> None:
    assert not Hold.objects.filter(state=HoldState.HELD).exists()
    assert not Generation.objects.filter(status=GenerationStatus.RUNNING).exists()
    succeeded = Generation.objects.filter(status=GenerationStatus.SUCCEEDED)
    entries = LedgerEntry.objects.filter(kind="consumption")
    images = Image.objects.count()

    assert images == succeeded.count() == entries.aggregate(sum=Sum("quantity"))["sum"]
    assert set(entries.values_list("request_id", flat=True)) == set(
        succeeded.values_list("request_id", flat=True)
    )
    account = BillingAccount.objects.get(organization=organization)
    assert account.held_micro == 0
    assert account.spent_micro == images * PRICE
    assert account.balance_micro == 100_000_000 - images * PRICE
    # Every client with an answer was charged for it, and every charged picture can be seen.
    assert {answer.json()["id"] for answer in answers} <= set(
        succeeded.values_list("request_id", flat=True)
    )
    for name in Image.objects.values_list("name", flat=True):
        path = f"/storage/v1/object/public/generated-images/{name}"
        served = httpx.get(service.origin + path)
        assert served.status_code == 200
        assert served.content == (folder / "images" / name).read_bytes()
    usage = json.loads(service.manage("usage", str(organization.pk), "--json"))
    assert usage["total"] == {"images": images, "cost_usd": f"{images * 0.19:.2f}"}
    assert usage["held_usd"] == "0.00"
    failed = Generation.objects.filter(status=GenerationStatus.FAILED)
    assert set(failed.values_list("error_code", "cost_micro")) <= {("internal_error", 0)}
