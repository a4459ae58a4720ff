"""The database threads: few connections, kept, replaced when broken, closed at the end."""

import asyncio
import os
import resource
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
from django.db import connection, connections

from accounts.models import User
from geekhub.lib.db import DatabaseThreads
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db(transaction=True)

on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only PostgreSQL has a server that can hang up"
)


@asynccontextmanager
async def database_threads(count: int) -> AsyncIterator[DatabaseThreads]:
    """Yield database threads, and close them as the application does: beside the event loop."""
    database = DatabaseThreads(count)
    try:
        yield database
    finally:
        await asyncio.to_thread(database.close)


def run[T](threads: int, *work: Callable[[], T]) -> list[T]:
    """Run each unit in turn on the same threads."""

    async def main() -> list[T]:
        async with database_threads(threads) as database:
            return [await database.run(unit) for unit in work]

    return asyncio.run(main())


def test_a_unit_runs_on_a_thread_of_ours_with_its_arguments() -> None:
    UserFactory(email="alice@acme.test")

    def work(prefix: str, *, domain: str) -> tuple[User, str]:
        return User.objects.get(email=prefix + domain), threading.current_thread().name

    async def main() -> tuple[User, str]:
        async with database_threads(2) as database:
            return await database.run(work, "alice", domain="@acme.test")

    user, thread = asyncio.run(main())
    assert user.email == "alice@acme.test"
    assert thread.startswith("db")


def test_an_exception_passes_through_and_the_thread_lives_on() -> None:
    async def main() -> int:
        async with database_threads(1) as database:
            with pytest.raises(User.DoesNotExist):
                await database.run(User.objects.get)
            return await database.run(User.objects.count)

    assert asyncio.run(main()) == 0


def test_a_thread_keeps_its_connection() -> None:
    def identity() -> int:
        connection.ensure_connection()
        return id(connections["default"].connection)

    assert len(set(run(1, *[identity] * 5))) == 1


def test_no_more_units_run_at_once_than_there_are_threads() -> None:
    lock, now, peak = threading.Lock(), 0, 0
    both = threading.Barrier(2)

    def work() -> None:
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(peak, now)
        both.wait(10)
        with lock:
            now -= 1

    async def main() -> None:
        async with database_threads(2) as database:
            await asyncio.gather(*(database.run(work) for _ in range(10)))

    asyncio.run(main())
    assert peak == 2


def test_the_event_loop_goes_on_while_the_database_works() -> None:
    async def main() -> None:
        go = threading.Event()
        async with database_threads(1) as database:
            slow = asyncio.create_task(database.run(go.wait, 10))
            await asyncio.sleep(0)
            go.set()
            assert await slow

    asyncio.run(main())


def test_closing_waits_for_a_running_unit_and_closes_every_connection() -> None:
    opened = []
    finished = threading.Event()

    def work() -> None:
        connection.ensure_connection()
        opened.append(connections["default"])
        finished.set()

    async def main() -> None:
        database = DatabaseThreads(2)
        await asyncio.gather(*(database.run(work) for _ in range(4)))
        assert all(one.connection is not None for one in opened)
        finished.clear()
        last = asyncio.create_task(database.run(work))
        await asyncio.sleep(0)
        await asyncio.to_thread(database.close)
        assert finished.is_set()
        await last

    asyncio.run(main())
    assert len(opened) == 5
    assert all(one.connection is None for one in opened)


@pytest.mark.postgresql
@on_postgresql
def test_a_connection_that_the_server_closed_is_replaced_before_it_is_used() -> None:
    def backend() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pid: int = cursor.fetchone()[0]
            return pid

    def hang_up(pid: int) -> None:
        with connection.cursor() as cursor:
            # Waits until the backend is gone.
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    async def main() -> tuple[int, int]:
        async with database_threads(1) as one, database_threads(1) as other:
            first = await one.run(backend)
            await other.run(hang_up, first)
            return first, await one.run(backend)

    first, second = asyncio.run(main())
    assert first != second


@pytest.mark.postgresql
@on_postgresql
def test_a_connection_may_have_any_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this machine allows fewer than 2,048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))

    def ask() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert connection.connection is not None
        return int(connection.connection.fileno())

    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        null = os.open(os.devnull, os.O_RDONLY)
        opened.callback(os.close, null)
        while (descriptor := os.dup(null)) < 1024:
            opened.callback(os.close, descriptor)
        opened.callback(os.close, descriptor)
        # The second time the connection is there already, and is looked at.
        assert all(number > 1023 for number in run(1, ask, ask))
