"""The database breaks at every statement of a request: all that is said of the request agrees.

What the client was answered, the request, the ledger, the hold, the account, the budget, the
pictures, the rollups, the reconciliation, and the same Idempotency-Key sent again.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta

import httpx
import pytest
from django.db import connection
from django.db.models import Sum
from django.utils import timezone

from accounts.keys import NewKey
from accounts.models import ApiKey, Organization
from billing import reconciliation
from billing.models import (
    BillingAccount,
    BudgetPeriod,
    Difference,
    Hold,
    HoldState,
    LedgerEntry,
    Period,
)
from billing.spending import budgets
from images.drawing import abandoned, story
from images.drawing.admit import admit
from images.drawing.gateway import open_gateway
from images.drawing.place import Place
from images.drawing.repeats import Finished, Sent
from images.drawing.request import GenerationRequest
from images.drawing.started import Started
from images.models import Generation, GenerationStatus, HourlyUsage, Image
from images.pixels.pictures import Picture
from images.usage import rollups
from images.usage.reconciliation import requests
from tests import faulty
from tests.api.test_streaming import events
from tests.emulators.base import Behaviour
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory, OrganizationFactory
from tests.faulty import Break, Happened, Script
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
        return "shows the outcome" in self.error


class Broken:
    """The application on a database that breaks; each request is a new organization's."""

    def __init__(self, app: AppServer, openai: OpenAIEmulator) -> None:
        self._app = app
        self._openai = openai
        self.said: list[Told] = []
        # How many requests the last one left to the worker.
        self.left = 0

    def request(self, way: Way, script: Script) -> Happened:
        """Make one request under a script, check that all agrees, and return what happened."""
        organization = OrganizationFactory()
        key = KeyFactory(organization=organization, sandbox=way.sandbox)
        budgets.set_budget(key.row, BONUS, Period.DAY, limit_images=100)
        with faulty.breaking(script) as happened:
            told = self._ask(key, way)
        self.said.append(told)
        where = f"{way}, broken at {happened.broken}"
        # What delivered is no error; of a stream the next picture may be the one nobody knows of.
        assert bool(told.pictures) != bool(told.error) or (way.stream and told.unknown), where
        assert not told.replayed
        self._settle(organization)
        row = Generation.objects.filter(organization=organization).first()
        delivered = row.delivered if row is not None else 0
        if told.unknown:
            one_more = len(told.pictures) + 1 if way.stream else PICTURES
            assert delivered in (len(told.pictures), one_more), where
        else:
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
            assert again.pictures[: len(told.pictures)] == told.pictures
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
        self.left = len(owners)
        names = list(running.values_list("request_id", flat=True))
        assert abandoned.expire_abandoned(owners) == self.left
        for row in Generation.objects.filter(request_id__in=names, status=GenerationStatus.FAILED):
            assert row.error_message == (
                "The request was interrupted on our side and ended later. Nothing was charged."
            )


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
    requests(now=now)
    assert list(Difference.objects.values_list("key", "expected", "found")) == []


# On PostgreSQL the server really ends the session.
GONE = Break(hang_up=connection.vendor == "postgresql")


def everywhere(broken: Broken, way: Way, script: Callable[[int], Script]) -> None:
    """Make a request for each statement, until a script begins after the last one."""
    for number in itertools.count(1):
        if not broken.request(way, script(number)).broken:
            # The fewest are a sandbox request's on PostgreSQL: it holds and charges nothing.
            assert number > 8
            return


def drawing(way: Way, broken: Broken) -> range:
    """Return the numbers of the statements that come after a request was let in.

    Prices are read now and then, so that they may be off by one.
    """
    statements = broken.request(way, lambda *_: None).statements
    return range(statements.index("COMMIT") + 2, len(statements) + 1)


def commits(how: Break) -> Callable[[int], Script]:
    """Return the script that breaks at the n-th COMMIT."""

    def nth(number: int) -> Script:
        seen = itertools.count(1)
        return lambda _, sql: how if sql == "COMMIT" and next(seen) == number else None

    return nth


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_commit_whose_answer_is_lost_is_found_and_counts_once(broken: Broken, way: Way) -> None:
    lost = commits(replace(GONE, after=True))
    many = 4 if way.stream else 2
    broke = [len(broken.request(way, lost(number)).broken) for number in range(1, many + 2)]
    assert broke == [*([1] * many), 0]
    # Whichever of them it was, the request went on.
    assert {len(told.pictures) for told in broken.said} == {PICTURES}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_was_committed_is_told_whatever_error_it_ended_with(broken: Broken, way: Way) -> None:
    """Not a lost connection, so that nothing is tried again; the database's row says how it is."""
    broken.request(way, commits(Break("DataError", after=True))(2))
    assert len(broken.said[-1].pictures) == (1 if way.stream else PICTURES)


@pytest.mark.parametrize("way", [PLAIN, STREAMED], ids=str)
def test_a_failure_that_cannot_be_written_down_at_once_is_written_a_second_time(
    broken: Broken, openai: OpenAIEmulator, way: Way
) -> None:
    """So its money is free, and its Idempotency-Key, before a lease of minutes is over."""
    for number in itertools.count(drawing(way, broken)[0]):
        openai.queue(Behaviour(error="moderation_blocked"))
        happened = broken.request(way, faulty.at(number, how=DOWN))
        assert "content policy" in broken.said[-1].error
        assert broken.left == 0
        if not happened.broken:
            break


@pytest.mark.parametrize("way", [PLAIN, STREAMED], ids=str)
def test_a_database_that_is_away_from_any_statement_on(broken: Broken, way: Way) -> None:
    for number in drawing(way, broken):
        broken.request(way, faulty.since(number, DOWN))


@pytest.mark.parametrize(("after", "delivered"), [(False, 0), (True, PICTURES)])
def test_nobody_is_told_that_nothing_was_charged_when_nobody_knows(
    broken: Broken, after: bool, delivered: int
) -> None:
    seen = 0

    def away_since_the_charge(number: int, sql: str) -> Break | None:
        nonlocal seen
        seen += 1 if sql == "COMMIT" or seen >= 2 else 0
        return None if seen < 2 else Break(after=after) if seen == 2 else DOWN

    broken.request(PLAIN, away_since_the_charge)
    assert broken.said[-1].unknown
    assert "Nothing was charged" not in broken.said[-1].error
    row = Generation.objects.earliest("created_at")
    assert row.delivered == delivered


def test_a_refusal_is_told_while_the_database_is_away(
    broken: Broken, openai: OpenAIEmulator
) -> None:
    for number in drawing(PLAIN, broken):
        openai.queue(Behaviour(error="moderation_blocked"))
        broken.request(PLAIN, faulty.since(number, DOWN))
        assert "content policy" in broken.said[-1].error


def test_a_listener_that_hears_nothing_changes_nothing(
    serve: Callable[[], AppServer], live_key: NewKey
) -> None:
    """What is charged is delivered, also when the word of it is lost on the way to the client."""
    serve()  # for its settings
    budgets.set_budget(live_key.row, BONUS, Period.DAY, limit_images=100)

    class Deaf:
        async def partial(self, picture: Picture, index: int) -> None:
            raise AssertionError

        async def completed(self, image: Image, picture: Picture, model: str) -> None:
            raise ConnectionError

    async def draw() -> Finished:
        async with open_gateway() as gateway:
            key = ApiKey.objects.select_related("organization").get
            sent = Sent()
            begun = await gateway.db.run(
                lambda: admit(
                    gateway,
                    key(pk=live_key.row.pk),
                    GenerationRequest(
                        models=("openai/gpt-image-1",), listed=False, prompt="x", n=2, stream=True
                    ),
                    sent,
                    Place(gateway, sent.request_id),
                )
            )
            assert isinstance(begun, Started)
            finished = await story.complete(gateway, begun, Deaf())
            assert begun.generation is finished.generation
            return finished

    finished = asyncio.run(draw())
    assert (len(finished.images), finished.generation.delivered) == (PICTURES, PICTURES)
    _expect_agreement(live_key.row.organization, STREAMED, PICTURES)


# --- Somebody else ends the request meanwhile ---------------------------------------------------


class Worker:
    """The worker on another host, which believes that this process is dead."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.settled = 0
        # Its connection is there before the engine is exchanged, and is never broken.
        self._thread.submit(lambda: connection.ensure_connection()).result()

    def settles(self, when: Callable[[list[str]], bool]) -> Script:
        """Return the script in which it settles all that runs, once `when` holds of the past."""
        past: list[str] = []

        def script(number: int, sql: str) -> None:
            if not self.settled and when(past):
                self.settled = self._thread.submit(self._settle).result()
            past.append(sql)

        return script

    def _settle(self) -> int:
        running = Generation.objects.filter(status=GenerationStatus.RUNNING)
        return abandoned.expire_abandoned(list(running.values_list("owner", flat=True)))

    def close(self) -> None:
        """Close its connection."""
        self._thread.submit(lambda: connection.close()).result()
        self._thread.shutdown()


@pytest.fixture
def worker(transactional_db: None) -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_request_that_the_worker_ends_meanwhile_is_told_as_it_was_ended(
    worker: Worker, broken: Broken, way: Way, commits: int
) -> None:
    """After so many COMMITs: before the charge, between two pictures, or before the end."""
    broken.request(way, worker.settles(lambda past: past.count("COMMIT") == commits))
    pictures = {1: 0, 2: 1, 3: 2}[commits] if way.stream else (0 if commits == 1 else PICTURES)
    assert len(broken.said[-1].pictures) == pictures
    assert worker.settled == (way.stream or commits == 1)
    assert not broken.said[-1].unknown


@pytest.mark.parametrize("way", [PLAIN, FREE], ids=str)
def test_a_request_that_the_worker_ends_while_it_fails_has_failed(
    worker: Worker, broken: Broken, openai: OpenAIEmulator, way: Way
) -> None:
    numbers = drawing(way, broken)
    ended = worker.settles(lambda past: 'JOIN "billing_hold"' in (past or [""])[-1])
    fails = Break("DataError")
    broken.request(
        way, lambda number, sql: ended(number, sql) or (fails if number == numbers[1] else None)
    )
    assert worker.settled == 1
    assert "could not be stored. Nothing was charged." in broken.said[-1].error


@pytest.mark.parametrize("way", [PLAIN, STREAMED], ids=str)
def test_a_database_that_breaks_at_any_statement(broken: Broken, way: Way) -> None:
    everywhere(broken, way, lambda number: faulty.at(number, how=GONE))


@prove
@pytest.mark.prove
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "error", ["OperationalError", "InterfaceError", "DataError", "IntegrityError"]
)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_error_at_every_statement(
    broken: Broken, way: Way, error: faulty.Error, after: bool
) -> None:
    everywhere(broken, way, lambda number: faulty.at(number, how=Break(error, after=after)))


@prove
@pytest.mark.prove
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", ["OperationalError", "DataError"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_both_tries_break_at_every_two_statements(
    broken: Broken, way: Way, error: faulty.Error, after: bool
) -> None:
    how = Break(error, after=after)
    numbers = drawing(way, broken)
    for first in numbers:
        for more in itertools.count(1):

            def script(number: int, sql: str, first: int = first, more: int = more) -> Break | None:
                return DOWN if number == first else how if number == first + more else None

            if len(broken.request(way, script).broken) < 2:
                break


@prove
@pytest.mark.prove
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_away_from_every_statement_on(broken: Broken, way: Way, after: bool) -> None:
    def first_after(first: int) -> Script:
        return lambda number, _: (
            Break(after=after) if number == first else DOWN if number > first else None
        )

    everywhere(broken, way, first_after)
