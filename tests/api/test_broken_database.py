"""The database breaks at every statement of a request: all that is said of the request agrees.

What the client was answered, the request, the ledger, the hold, the account, the budget, the
pictures, the rollups, the reconciliation, and the same Idempotency-Key sent again.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import httpx
import pytest
from django.db.models import Sum
from django.utils import timezone

from accounts.keys import NewKey
from accounts.models import Organization
from billing import budgets, reconciliation
from billing.models import (
    BillingAccount,
    BudgetPeriod,
    Difference,
    Hold,
    HoldState,
    LedgerEntry,
    Period,
)
from images import generation, rollups
from images.models import Generation, GenerationStatus, HourlyUsage, Image
from tests import faulty
from tests.api.test_streaming import events
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.faulty import Break, Script
from tests.server import Api, AppServer

PRICE = 190_000
BONUS = 10_000_000
PICTURES = 2
DOWN = Break("OperationalError")
prove = pytest.mark.skipif(not os.environ.get("PROVE"), reason="takes long; PROVE=1 runs it")


@dataclass(frozen=True, slots=True)
class Way:
    """How a request is made."""

    stream: bool
    sandbox: bool

    def __str__(self) -> str:
        return f"{'streamed' if self.stream else 'plain'}-{'sandbox' if self.sandbox else 'live'}"


PLAIN, STREAMED = Way(stream=False, sandbox=False), Way(stream=True, sandbox=False)
FREE, FREE_STREAMED = Way(stream=False, sandbox=True), Way(stream=True, sandbox=True)
WAYS = (PLAIN, STREAMED, FREE, FREE_STREAMED)


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says: the digests of pictures in their order, or the message of an error."""

    pictures: tuple[str, ...]
    error: str
    replayed: bool

    @classmethod
    def by(cls, answer: httpx.Response) -> "Told":
        """Return what it says, as JSON or as events."""
        replayed = answer.headers.get("idempotent-replayed") == "true"
        if answer.headers["content-type"] == "text/event-stream":
            told = events(answer.text)
            done = [data for kind, data in told if kind == "image_generation.completed"]
            failed = [data["error"] for kind, data in told if kind == "error"]
            assert len(told) == len(done) + len(failed)
            message = failed[0]["message"] if failed else ""  # type: ignore[index]
            return cls(tuple(str(data["sha256"]) for data in done), message, replayed)
        body = answer.json()
        if answer.status_code != 200:
            return cls((), body["error"]["message"], replayed)
        return cls(tuple(data["sha256"] for data in body["data"]), "", replayed)

    @property
    def unknown(self) -> bool:
        """Return whether it says that nobody knows yet."""
        return "could not be written down yet" in self.error


class Broken:
    """The application on a database that breaks; each request is a new organization's."""

    def __init__(self, app: AppServer, openai: OpenAIEmulator) -> None:
        self._app = app
        self._openai = openai
        self.said: list[Told] = []

    def request(self, way: Way, script: Script) -> faulty.Happened:
        """Make one request under a script, check that all agrees, and return what happened."""
        organization = OrganizationFactory()
        key = KeyFactory(organization=organization, sandbox=way.sandbox)
        budgets.set_budget(key.row, BONUS, Period.DAY, limit_images=100)
        with faulty.breaking(script) as happened:
            told = self._ask(key, way)
        self.said.append(told)
        where = f"{way} {happened.statements}"
        # A stream that has delivered ends without an error, and one that has not, with one.
        assert bool(told.pictures) != bool(told.error), where
        assert not told.replayed
        self._settle(organization)
        row = Generation.objects.filter(organization=organization).first()
        delivered = row.delivered if row is not None else 0
        if not told.unknown:
            assert delivered == len(told.pictures), (where, told)
        _expect_agreement(organization, way, delivered)

        calls = len(self._openai.calls)
        again = self._ask(key, way)
        assert not again.error, (where, again)
        assert again.replayed == bool(delivered), where
        if delivered:
            assert row is not None
            stored = row.images.values_list("sha256", flat=True)
            assert again.pictures == tuple(stored), where
            assert told.unknown or again.pictures == told.pictures
            assert len(self._openai.calls) == calls
        else:
            assert len(again.pictures) == PICTURES
        _expect_agreement(organization, way, len(again.pictures))
        return happened

    def _ask(self, key: NewKey, way: Way) -> Told:
        client = Api(self._app.origin, key.secret)
        try:
            body = {"stream": True} if way.stream else {}
            return Told.by(client.draw({"Idempotency-Key": "order-1"}, n=PICTURES, **body))
        finally:
            client.http.close()

    def _settle(self, organization: Organization) -> None:
        """Settle what the broken database left, as the worker does when its lease is over."""
        running = Generation.objects.filter(
            organization=organization, status=GenerationStatus.RUNNING
        )
        owners = list(running.values_list("owner", flat=True))
        assert generation.expire_abandoned(owners) == len(owners)


def _expect_agreement(organization: Organization, way: Way, pictures: int) -> None:
    charged = 0 if way.sandbox else pictures
    cost = charged * PRICE
    requests = Generation.objects.filter(organization=organization)
    assert not requests.filter(status=GenerationStatus.RUNNING).exists()
    sums = requests.aggregate(images=Sum("delivered", default=0), cost=Sum("cost_micro", default=0))
    assert sums == {"images": pictures, "cost": cost}
    assert Image.objects.filter(generation__organization=organization).count() == pictures
    entries = LedgerEntry.objects.filter(organization=organization, kind="consumption")
    sums = entries.aggregate(images=Sum("quantity", default=0), cost=Sum("amount_micro", default=0))
    assert sums == {"images": charged, "cost": -cost}
    holds = Hold.objects.filter(organization=organization)
    assert not holds.filter(state=HoldState.HELD).exists()
    assert holds.aggregate(images=Sum("captured", default=0))["images"] == charged
    account = BillingAccount.objects.get(organization=organization)
    money = (account.balance_micro, account.held_micro, account.spent_micro)
    assert money == (BONUS - cost, 0, cost)
    periods = BudgetPeriod.objects.filter(budget__organization=organization)
    assert periods.aggregate(
        held=Sum("held_micro", default=0),
        held_images=Sum("held_images", default=0),
        spent=Sum("spent_micro", default=0),
        images=Sum("spent_images", default=0),
    ) == {"held": 0, "held_images": 0, "spent": cost, "images": charged}


@pytest.fixture
def broken(serve: Callable[[], AppServer], openai: OpenAIEmulator) -> Iterator[Broken]:
    """The application; in the end rollups and reconciliation agree with all that was done."""
    openai.tiny = True
    with faulty.engine():
        yield Broken(serve(), openai)
    openai.tiny = False
    now = timezone.now() + timedelta(hours=2)
    assert rollups.close_hours(now=now)
    assert list(rollups.prove()) == []
    rolled = HourlyUsage.objects.filter(sandbox=False).aggregate(
        images=Sum("images", default=0), cost=Sum("cost_micro", default=0)
    )
    entries = LedgerEntry.objects.filter(kind="consumption")
    ledger = entries.aggregate(
        images=Sum("quantity", default=0), cost=-Sum("amount_micro", default=0)
    )
    assert rolled == ledger
    reconciliation.internal(now=now)
    assert list(Difference.objects.values_list("key", "expected", "found")) == []


def everywhere(broken: Broken, way: Way, script: Callable[[int], Script]) -> int:
    """Make a request for each statement, broken there; return how many statements there were."""
    for number in itertools.count(1):
        if not broken.request(way, script(number)).broken:
            return number - 1
    raise AssertionError


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_database_that_breaks_once_at_any_statement(broken: Broken, way: Way) -> None:
    statements = everywhere(broken, way, lambda number: faulty.at(number, how=DOWN))
    assert statements > 10
