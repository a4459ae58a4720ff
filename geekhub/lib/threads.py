"""Threads for calls that block, apart from the event loop's shared ones, which may all be busy."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from weakref import WeakKeyDictionary


class OwnThreads:
    """A few threads for each event loop that asks; made on the first call."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads, self._name = threads, name
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = (
            WeakKeyDictionary()
        )

    async def run[**P, T](self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the call returns; its exceptions pass through."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            self._pools[loop] = ThreadPoolExecutor(self._threads, self._name)
        return await loop.run_in_executor(self._pools[loop], partial(call, *args, **kwargs))

    def close(self) -> None:
        """Give the threads of this event loop back; the next call makes new ones."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            pool.shutdown(wait=False)
