"""Threads for pixels: everybody has a turn, whatever anybody else asks for."""

import ast
import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from pathlib import Path

import pytest

from images.pixels.turns import MAX_FREE_PIXELS, THREADS, Crowded, Pixels, Turns

# Long: a test that passes does not wait.
WAIT_SECONDS = 60
HALF = THREADS // 2


class Gate:
    """Work that blocks until the gate is opened; counts what has begun."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._changed = threading.Condition()
        self.begun: list[str] = []

    def work(self, name: str) -> Callable[[], str]:
        def run() -> str:
            with self._changed:
                self.begun.append(name)
                self._changed.notify_all()
            assert self._open.wait(WAIT_SECONDS)
            return name

        return run

    def wait_for(self, count: int) -> None:
        """Wait until so much has begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, WAIT_SECONDS)

    def open(self) -> None:
        self._open.set()


@contextmanager
def threads(count: int = THREADS) -> Iterator[tuple[Pixels, Gate]]:
    """Lend a pool and a gate, which is open when the block ends."""
    pool, gate = Pixels(count), Gate()
    try:
        yield pool, gate
    finally:
        gate.open()
        pool.close()


def somebody(pool: Pixels, *, free: bool = False) -> Turns:
    return pool.turns(uuid.uuid4(), free=free)


def test_one_organization_s_work_never_takes_the_last_threads() -> None:
    with threads() as (pool, gate):
        alice, bob = somebody(pool), somebody(pool)
        hers = [alice.begin(gate.work("alice")) for _ in range(40)]
        gate.wait_for(HALF)
        # Hers blocks; what he asks for is done at once all the same, again and again.
        for number in range(20):
            assert bob.begin(lambda n: n, number).result(WAIT_SECONDS) == number
        assert gate.begun == ["alice"] * HALF
        gate.open()
        assert [one.result(WAIT_SECONDS) for one in hers] == ["alice"] * 40


def test_what_nobody_pays_for_leaves_half_of_the_threads_and_has_one_each() -> None:
    with threads() as (pool, gate):
        alice = somebody(pool, free=True)
        for _ in range(10):
            alice.begin(gate.work("alice"))
        gate.wait_for(1)
        others = [somebody(pool, free=True) for _ in range(10)]
        for one in others:
            one.begin(gate.work("other"))
        gate.wait_for(HALF)
        paid = [somebody(pool) for _ in range(4)]
        for one in paid * 5:
            assert one.begin(lambda: "done").result(WAIT_SECONDS) == "done"
        assert sorted(gate.begun) == ["alice", "other"]


def test_an_organization_s_sandbox_and_live_work_share_its_half() -> None:
    with threads() as (pool, gate):
        organization = uuid.uuid4()
        pool.turns(organization, free=True).begin(gate.work("free"))
        for _ in range(9):
            pool.turns(organization, free=False).begin(gate.work("paid"))
        gate.wait_for(HALF)
        assert somebody(pool).begin(lambda: 1).result(WAIT_SECONDS) == 1
        assert sorted(gate.begun) == ["free", *["paid"] * (HALF - 1)]


def test_organizations_are_served_in_turn() -> None:
    order: list[str] = []
    with threads(1) as (pool, gate):
        somebody(pool).begin(gate.work("first"))
        gate.wait_for(1)
        alice, bob, carol = (somebody(pool) for _ in range(3))
        work: list[Future[None]] = []
        for turns, name, count in ((alice, "a", 5), (bob, "b", 2), (carol, "c", 1)):
            work += [turns.begin(order.append, name) for _ in range(count)]
        gate.open()
        wait(work, WAIT_SECONDS)
    assert "".join(order) == "abcabaaa"


def test_work_that_nobody_waits_for_any_more_is_not_begun() -> None:
    with threads(1) as (pool, gate):
        turns = somebody(pool)
        turns.begin(gate.work("first"))
        gate.wait_for(1)

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await turns.run(gate.work("cancelled"))

        asyncio.run(give_up())
        last = turns.begin(gate.work("last"))
        gate.open()
        assert last.result(WAIT_SECONDS) == "last"
        assert gate.begun == ["first", "last"]


def test_an_exception_reaches_who_waits_and_the_thread_goes_on() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with threads(1) as (pool, _):
        turns = somebody(pool)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                asyncio.run(turns.run(fail))
        assert asyncio.run(turns.run(lambda: 3)) == 3


def test_closing_does_what_waits_first() -> None:
    with threads() as (pool, gate):
        work = [somebody(pool).begin(gate.work("x")) for _ in range(20)]
        gate.wait_for(THREADS)
        gate.open()
    assert all(one.done() for one in work)
    assert len(gate.begun) == 20


def test_a_crowd_of_all_kinds_is_served_to_the_end() -> None:
    """Whatever comes when, from many threads: all is done, and no bound is ever passed."""
    running: dict[tuple[uuid.UUID, bool], int] = {}
    lock, worst = threading.Lock(), {"own": 0, "free": 0, "free of one": 0}

    def work(turns: Turns) -> None:
        key = (turns.organization, turns.free)
        with lock:
            running[key] = running.get(key, 0) + 1
            own = sum(n for (who, _), n in running.items() if who == turns.organization)
            free = sum(n for (_, is_free), n in running.items() if is_free)
            worst["own"] = max(worst["own"], own)
            worst["free"] = max(worst["free"], free)
            worst["free of one"] = max(worst["free of one"], turns.free and running[key])
        with lock:
            running[key] -= 1

    with threads() as (pool, _):
        organizations = [uuid.uuid4() for _ in range(5)]
        everybody = [pool.turns(one, free=free) for one in organizations for free in (True, False)]
        done: list[Future[None]] = []

        def ask() -> None:
            for turns in everybody * 30:
                future = turns.begin(work, turns)
                if len(done) % 7 == 0:
                    future.cancel()
                done.append(future)

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for one in askers:
            one.start()
        for one in askers:
            one.join(WAIT_SECONDS)
        finished, late = wait(done, WAIT_SECONDS)
        assert not late
        for future in finished:
            try:
                future.result()
            except CancelledError:
                pass
    assert worst["own"] <= HALF
    assert worst["free"] <= HALF
    assert worst["free of one"] <= 1


def test_reserved_pixels_have_a_bound_for_each_organization() -> None:
    with threads() as (pool, _):
        alice, bob = somebody(pool, free=True), somebody(pool, free=True)
        with alice.reserved(MAX_FREE_PIXELS - 1), bob.reserved(MAX_FREE_PIXELS):
            with alice.reserved(1):
                pass
            for turns, pixels in ((alice, 2), (bob, 1)):
                with pytest.raises(Crowded), turns.reserved(pixels):
                    pass
        # A request that is alone is bounded by what may be asked for.
        with alice.reserved(2 * MAX_FREE_PIXELS):
            pass
        with alice.reserved(1):
            pass


def test_nothing_on_the_way_of_a_request_uses_the_shared_threads() -> None:
    """Those of the event loop are for everybody, and anybody can keep all of them busy."""
    used = []
    for app in ("accounts", "billing", "geekhub", "images"):
        for path in Path(app).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "to_thread" in text else ():
                if isinstance(node, ast.Attribute) and node.attr == "to_thread":
                    used.append(path.as_posix())
    # When the process ends.
    assert used == ["images/drawing/gateway.py"] * 2
