"""Work in a thread is waited for, even if nobody waits for its caller."""

import asyncio
import threading

import pytest

from geekhub.lib.tasks import to_its_end


def test_what_work_returns_or_raises_comes_through() -> None:
    async def fine() -> int:
        return 7

    async def broken() -> int:
        raise KeyError("as planned")

    assert asyncio.run(to_its_end(fine())) == 7
    with pytest.raises(KeyError, match="as planned"):
        asyncio.run(to_its_end(broken()))


def test_a_cancelled_caller_waits_for_the_end_and_is_cancelled_then() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), []

    def in_a_thread() -> None:
        begun.set()
        assert go_on.wait(30)

    async def work() -> None:
        await asyncio.to_thread(in_a_thread)
        done.append("after the thread")

    async def caller() -> None:
        task = asyncio.create_task(to_its_end(work()))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()
        assert done == []
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["after the thread"]

    asyncio.run(caller())
