"""SIGKILL at every point between a hold and Stripe's acknowledgement, until all is at rest."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from django.db.models import Count, Sum

from accounts.models import ApiKey
from billing.models import (
    BillingAccount,
    EntryKind,
    Hold,
    HoldState,
    LedgerEntry,
    MeteredEntry,
    MeterEvent,
    MeterState,
)
from billing.spending import prices
from tests.api.service import ROOT, database_url
from tests.billing import PRICES
from tests.billing.kill.program import AT_REST, ON_ITS_WAY, POINTS, Order
from tests.billing.metered import Metered, sell
from tests.emulators.stripe import Fault, StripeEmulator

PRICE = PRICES["a/cheap"]
# How often at each point.
KILLS = 10 if os.environ.get("PROVE") else 1
LIVES = 300
START = "import django; django.setup(); from tests.billing.kill.program import main; main()"
LOSSY = [
    Fault(kind, "/v1/billing/meter_events")
    for kind in ("drop_before", "drop_after", "500_before", "500_after", "429", "lock")
]

prove = pytest.mark.skipif(not os.environ.get("PROVE"), reason="takes long; PROVE=1 runs it")


class Program:
    """The program that dies, in a process of its own on the test's database."""

    def __init__(self, emulator: StripeEmulator, folder: Path) -> None:
        self._log = (folder / "log").open("ab")
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", START],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "geekhub.settings",
                "DATABASE_URL": database_url(),
                "DATA_DIR": str(folder),
                "DEBUG": "true",
                "SECRET_KEY": "only-for-tests",
                "STRIPE_SECRET_KEY": emulator.key,
                "STRIPE_WEBHOOK_SECRET": emulator.webhook_secret,
                "STRIPE_API_BASE": emulator.url,
                "STRIPE_METER_EVENTS_BASE": emulator.url,
                "STRIPE_METER_RATE": "10000",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def live(self, order: Order) -> int:
        """Return how one life ended: its exit code, or minus the signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            fields = {name: getattr(order, name) for name in Order.__slots__}
            self._process.stdin.write(json.dumps(fields) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._log.close()


class World:
    """Organizations, and what they ask for."""

    def __init__(self, metered: Metered, folder: Path) -> None:
        self.metered, self.folder = metered, folder
        self.keys: list[ApiKey] = []
        self.requests: list[tuple[str, str, int, int]] = []

    def found(self) -> None:
        """Add two organizations, one of which cannot pay for all that will be asked."""
        self.keys += [self.metered.customer(bonus="0.50"), self.metered.customer()]

    def ask(self, count: int, seed: str) -> None:
        """Add requests for one to four images, some of which are not delivered."""
        dice = random.Random(seed)
        for _ in range(count):
            key = self.keys[-1 - len(self.requests) % 2]
            quantity = dice.randint(1, 4)
            name = f"req_{len(self.requests)}"
            self.requests.append((name, str(key.pk), quantity, dice.randint(0, quantity)))

    def order(self, points: list[str], probability: float, seed: str, threads: int = 1) -> Order:
        """Return the order for one life, now."""
        now = self.metered.emulator.clock.time
        return Order(
            self.requests, points, probability, seed, now, threads, folder=str(self.folder)
        )

    def lines(self, name: str) -> list[str]:
        """Return what the lives have written down."""
        path = self.folder / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def deaths(self) -> Counter[str]:
        """Return how many died where."""
        return Counter(self.lines("deaths"))

    def live_until_rest(self, program: Program, points: list[str], seed: str) -> None:
        """Begin life after life, each a lease later, until one finds nothing left to do."""
        for turn in range(LIVES):
            end = program.live(self.order(points, 0.25, f"{seed}:{turn}"))
            if end == AT_REST:
                return
            assert end in (-signal.SIGKILL, ON_ITS_WAY), (self.folder / "log").read_text()[-4000:]
            self.metered.advance(minutes=3)
        raise AssertionError(f"not at rest after {LIVES} lives")


@pytest.fixture
def world(transactional_db: None, stripe_account: StripeEmulator, tmp_path: Path) -> World:
    prices.publish(PRICES)
    return World(sell(stripe_account), tmp_path)


def expect_all_is_right(world: World) -> None:
    """Check the invariants of the design, I1 to I6, and that all were answered."""
    entries = LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION)
    for key in world.keys:
        expect_books_agree(world, key)

    # What was delivered was captured, and the other way; never two answers with pictures. (Two
    # processes may be asked the same at once: one of them finds the balance held by the other,
    # which captures, dies before it answers, and is not asked again.)
    answers = {tuple(line.split()) for line in world.lines("answers")}
    assert {name for name, _ in answers} == {name for name, *_ in world.requests}
    delivered = {(name, images) for name, images in answers if images not in ("0", "402")}
    assert len(delivered) == len(dict(delivered))
    captured = {
        (hold.request_id, str(hold.captured)) for hold in Hold.objects.all() if hold.captured
    }
    assert delivered <= captured
    refused = {name for name, answer in answers if answer == "402"}
    assert {name for name, _ in captured - delivered} <= refused
    assert not Hold.objects.filter(state=HoldState.HELD).exists()

    # I3: one ledger row for each captured hold.
    assert entries.count() == entries.values("hold").distinct().count() == len(captured)
    # I4: each is in exactly one event, which is the sum of its rows and was never sent otherwise.
    assert MeteredEntry.objects.count() == entries.count()
    sums = MeterEvent.objects.annotate(
        of_rows=Sum("entries__ledger_entry__quantity"), rows=Count("entries")
    )
    assert all(event.quantity == event.of_rows for event in sums)
    by_identifier: dict[str, list[object]] = {}
    for request in world.metered.sent():
        if request.params:
            by_identifier.setdefault(request.params["identifier"], []).append(request.params)
    assert all(payload == all_[0] for all_ in by_identifier.values() for payload in all_)
    assert set(by_identifier) == set(MeterEvent.objects.values_list("identifier", flat=True))
    # I5: none is unknown any more.
    assert unsettled() == []


def unsettled() -> list[tuple[str, ...]]:
    """Return the holds that are open, and the meter events that are not accepted."""
    open_holds = Hold.objects.filter(state=HoldState.HELD)
    events = MeterEvent.objects.exclude(state=MeterState.ACCEPTED)
    return [
        *open_holds.values_list("request_id", "state"),
        *events.values_list("identifier", "state", "last_error"),
    ]


def expect_books_agree(world: World, key: ApiKey) -> None:
    """I1, I2 and I6 for one organization."""
    account = BillingAccount.objects.get(pk=key.organization_id)
    ledger = LedgerEntry.objects.filter(organization=key.organization)
    used = ledger.filter(kind=EntryKind.CONSUMPTION)
    images = used.aggregate(sum=Sum("quantity", default=0))["sum"]
    # I1: never more than there was.
    assert account.balance_micro >= 0
    assert account.held_micro == 0
    # I2: the ledger is what was captured at its price.
    assert account.balance_micro == ledger.aggregate(sum=Sum("amount_micro"))["sum"]
    assert account.spent_micro == images * PRICE
    captured = Hold.objects.filter(organization=key.organization, state=HoldState.CAPTURED)
    assert captured.aggregate(sum=Sum("captured", default=0))["sum"] == images
    # I6: Stripe has counted exactly that.
    accepted = MeterEvent.objects.filter(organization=key.organization, state=MeterState.ACCEPTED)
    assert accepted.aggregate(sum=Sum("quantity", default=0))["sum"] == images
    assert world.metered.total(key) == images


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_each_point_nothing_is_lost_and_nothing_counted_twice(
    world: World, tmp_path: Path
) -> None:
    with Program(world.metered.emulator, tmp_path) as program:
        for number, point in enumerate(POINTS):
            if number % 3 == 0:
                world.found()
            # Enough requests that the dice falls a few times, whatever the point.
            for turn in range(10 * KILLS):
                world.ask(6, f"{point}:{turn}")
                world.live_until_rest(program, [point], f"{point}:{turn}")
                expect_all_is_right(world)
                if world.deaths()[point] >= KILLS:
                    break

    deaths = world.deaths()
    assert {point: min(deaths[point], KILLS) for point in POINTS} == dict.fromkeys(POINTS, KILLS)
    print(f"kill matrix: {sum(deaths.values())} kills at {len(deaths)} points, all books agree")


@pytest.mark.slow
@pytest.mark.prove
@prove
@pytest.mark.timeout(1800)
def test_three_processes_killed_anywhere_before_a_stripe_that_loses_answers(
    world: World, tmp_path: Path
) -> None:
    emulator = world.metered.emulator
    dice = random.Random(11)
    programs = [Program(emulator, tmp_path) for _ in range(3)]
    with programs[0], programs[1], programs[2], ThreadPoolExecutor(3) as pool:
        for turn in range(40):
            if turn % 5 == 0:
                world.found()
            world.ask(12, f"random:{turn}")
            world.metered.mirror()
            for life in range(LIVES):
                emulator.faults.random(1000 * turn + life, 0.4 if life < 8 else 0.0, LOSSY)
                orders = [
                    world.order(list(POINTS), 0.04 if life < 20 else 0.0, f"{turn}:{life}:{n}", 4)
                    for n in range(3)
                ]
                ends = list(pool.map(Program.live, programs, orders))
                allowed = {AT_REST, ON_ITS_WAY, -signal.SIGKILL}
                assert set(ends) <= allowed, (tmp_path / "log").read_text()[-4000:]
                if AT_REST in ends and life >= 8:
                    break
                # Now and then everything is down for longer than Stripe remembers an identifier.
                world.metered.advance(hours=25 if dice.random() < 0.02 else 0, minutes=6)
            else:
                raise AssertionError(f"not at rest: {unsettled()}")
            expect_all_is_right(world)

    deaths = world.deaths()
    assert set(deaths) == set(POINTS)
    print(f"kill soak: {sum(deaths.values())} kills, {deaths}, all books agree")
