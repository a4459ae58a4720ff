"""Threads for work on pixels, shared fairly: nobody's large pictures make everybody wait.

Decoding and encoding take a core for up to seconds. Organizations are served in turn, and none has
more than half of the threads, so another one finds one at once. What nobody pays for, sandbox
pictures and small views, has one thread for each organization and half of them for all together:
live pictures always find the other half.
"""

import asyncio
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

# Each may have a picture of 40 million pixels in memory, three times while it is turned.
THREADS = 4
# What one organization's sandbox requests may have waiting and being drawn: some ten seconds of a
# core, or two hundred pictures of 1024x1024.
MAX_FREE_PIXELS = 256_000_000


class Crowded(Exception):
    """The organization has too much waiting that nobody pays for."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns that one organization's work takes; `free` is what nobody pays for."""

    pool: "Pixels"
    organization: uuid.UUID
    free: bool

    async def run[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the work returns, done in a thread; its exceptions pass through.

        If the caller is cancelled, work that has not begun never does.
        """
        return await asyncio.wrap_future(self.begin(work, *args, **kwargs))

    def begin[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have the work done in its turn; for a thread, which may wait for it."""
        return self.pool.submit(self, partial(work, *args, **kwargs))

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Count pixels as waiting while the block runs; raises Crowded.

        A request that is alone gets in whatever its size: that has limits of its own.
        """
        self.pool.reserve(self, pixels)
        try:
            yield
        finally:
            self.pool.release(self, pixels)


type _Job = tuple[Future[Any], Callable[[], Any]]


class Pixels:
    """A few threads for all organizations; may be asked from any thread."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = threads
        self._half = max(1, threads // 2)
        self._executor = ThreadPoolExecutor(threads, "pixels")
        self._lock = threading.Lock()
        # The next to be served is first; who was served goes to the end.
        self._waiting: dict[Turns, deque[_Job]] = {}
        self._running: Counter[Turns] = Counter()
        self._reserved: Counter[Turns] = Counter()
        self._busy = 0

    def turns(self, organization: uuid.UUID, *, free: bool) -> Turns:
        """Return what an organization has its work done with."""
        return Turns(self, organization, free)

    def close(self) -> None:
        """Wait for all work that was begun or waits."""
        self._executor.shutdown(wait=True)

    def submit[T](self, turns: Turns, work: Callable[[], T]) -> Future[T]:
        """Have the work done when its turn comes."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(turns, deque()).append((future, work))
            self._call_another()
        return future

    def reserve(self, turns: Turns, pixels: int) -> None:
        """Count pixels as waiting; raises Crowded."""
        with self._lock:
            already = self._reserved[turns]
            if already and already + pixels > MAX_FREE_PIXELS:
                raise Crowded
            self._reserved[turns] += pixels

    def release(self, turns: Turns, pixels: int) -> None:
        """Take back what reserve() counted."""
        with self._lock:
            self._reserved[turns] -= pixels
            self._reserved += Counter()  # forgets those that have none

    def _may(self, turns: Turns) -> bool:
        """Return whether one more of this work may run."""
        own = sum(self._running[one] for one in self._running if _same(one, turns))
        if own >= self._half:
            return False
        free = sum(count for one, count in self._running.items() if one.free)
        return not turns.free or (not self._running[turns] and free < self._half)

    def _call_another(self) -> None:
        """Put an idle thread to work if there is any for it."""
        if self._busy < self._threads and any(map(self._may, self._waiting)):
            self._executor.submit(self._serve)
            self._busy += 1

    def _next(self) -> tuple[Turns, _Job] | None:
        """Return whose turn it is, and the work."""
        turns = next((one for one in self._waiting if self._may(one)), None)
        if turns is None:
            return None
        jobs = self._waiting.pop(turns)
        job = jobs.popleft()
        if jobs:
            self._waiting[turns] = jobs
        return turns, job

    def _serve(self) -> None:
        """Work until nobody waits who may be served."""
        turns: Turns | None = None
        while True:
            with self._lock:
                if turns is not None:
                    self._running[turns] -= 1
                    self._running += Counter()
                chosen = self._next()
                if chosen is None:
                    self._busy -= 1
                    return
                turns, job = chosen
                self._running[turns] += 1
                # The end of one piece of work can let two begin: of its organization, and free.
                self._call_another()
            _do(*job)
            del chosen, job  # a picture, for as long as nothing else is to be done


def _same(one: Turns, other: Turns) -> bool:
    return one.organization == other.organization


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


# For a process without a gateway: a command, a test, a page under WSGI.
_alone = Pixels()
ALONE = _alone.turns(uuid.UUID(int=0), free=False)
