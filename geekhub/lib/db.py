"""Database work of the asynchronous request path: few threads, persistent connections.

Django's asynchronous ORM is one thread hop per query. Here a whole unit of work is one hop into
a small executor whose threads keep their connections; nothing is held between two units.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper


class DatabaseThreads:
    """Runs units of database work on `threads` threads, each with its own connection."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="db")
        self._opened: set[BaseDatabaseWrapper] = set()

    async def run[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work(*args, **kwargs)` returns; its exceptions pass through."""

        def unit() -> T:
            self._opened.add(connections["default"])
            # A connection the server closed meanwhile is replaced here, not discovered in `work`.
            connection.close_if_unusable_or_obsolete()
            return work(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._executor, unit)

    def close(self) -> None:
        """Wait for running units, then close every connection the threads had opened."""
        self._executor.shutdown(wait=True)
        for opened in self._opened:
            opened.inc_thread_sharing()
            opened.close()
        self._opened.clear()
