"""Keys that open nothing: which they were, and from where too many of them come.

Counted in this process and without the database, so that guessing costs us next to nothing. An
address may be a whole office's: a key that is good opens from there as from anywhere. Only one that
nobody has seen yet has to queue there, one at a time, for its look into the database.
"""

import asyncio
import hashlib
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# From one address; what is sent without any key is not counted.
PER_MINUTE = 60
WINDOW_SECONDS = 60.0
REMEMBERED = 10_000
QUEUE = 100


class TooManyBadKeys(Exception):
    """Too many keys that open nothing came from an address; `retry_after` is seconds."""

    def __init__(self, address: str, retry_after: float) -> None:
        super().__init__(address)
        self.address = address
        self.retry_after = retry_after


class BadKeys:
    """What one process remembers of keys, which it knows by their digests.

    `clock` returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._good: OrderedDict[bytes, float] = OrderedDict()
        # When a network's minute began, and how many came in it.
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._queue = asyncio.Lock()
        self._queued = 0

    def is_unknown(self, digest: bytes) -> bool:
        """Return whether the database had no such key a moment ago."""
        with self._lock:
            seen = self._unknown.get(digest)
        return seen is not None and seen > self._clock() - WINDOW_SECONDS

    def note_unknown(self, digest: bytes) -> None:
        """Remember a key that the database does not have."""
        self._keep(self._unknown, digest)

    def note_good(self, digest: bytes) -> None:
        """Remember a key that opened, from wherever."""
        self._keep(self._good, digest)

    def count(self, address: str) -> None:
        """Count a key that opened nothing; raises TooManyBadKeys above the limit."""
        now = self._clock()
        with self._lock:
            network = _network(address)
            began, count = self._counts.pop(network, (now, 0))
            if began <= now - WINDOW_SECONDS:
                began, count = now, 0
            self._counts[network] = began, count + 1
            _shorten(self._counts)
        if count >= PER_MINUTE:
            raise TooManyBadKeys(address, began + WINDOW_SECONDS - now)

    @asynccontextmanager
    async def turn(self, digest: bytes, address: str) -> AsyncIterator[bool]:
        """Wait until the key may be looked up; yields whether it had to queue.

        Raises TooManyBadKeys when too many queue already.
        """
        with self._lock:
            began, count = self._counts.get(_network(address), (0.0, 0))
            known = digest in self._good
        if known or count < PER_MINUTE or began <= self._clock() - WINDOW_SECONDS:
            yield False
            return
        if self._queued >= QUEUE:
            raise TooManyBadKeys(address, 1.0)
        self._queued += 1
        try:
            async with self._queue:
                yield True
        finally:
            self._queued -= 1

    def _keep(self, where: OrderedDict[bytes, float], digest: bytes) -> None:
        with self._lock:
            where[digest] = self._clock()
            where.move_to_end(digest)
            _shorten(where)


def _shorten[K, V](remembered: OrderedDict[K, V]) -> None:
    if len(remembered) > REMEMBERED:
        remembered.popitem(last=False)


def digest_of(secret: str) -> bytes:
    """Return what a key is remembered by."""
    return hashlib.sha256(secret.encode()).digest()


def _network(address: str) -> str:
    """Return what one client has: an IPv4 address, or the /64 that an IPv6 host chooses from."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False))
