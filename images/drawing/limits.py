"""How many requests a key may send a minute, and how many an organization may have in flight."""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import redis

from geekhub.lib.outages import Breaker, Seldom

log = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0
KEYS_REMEMBERED = 10_000
CONNECT_SECONDS, READ_SECONDS = 0.5, 1.0


class RateLimited(Exception):
    """A limit is reached; `retry_after` is seconds."""

    def __init__(self, which: Literal["requests", "in_flight"], limit: int, retry_after: float):
        super().__init__(
            f"This API key is limited to {limit} requests per minute."
            if which == "requests"
            else f"The organization already has {limit} requests in flight, which is its limit."
        )
        self.which: Literal["requests", "in_flight"] = which
        self.limit = limit
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is counted, and up to where. `lease` is the seconds after which a place is free again."""

    key: uuid.UUID
    organization: uuid.UUID
    rpm: int
    max_in_flight: int
    lease: float


@dataclass(frozen=True, slots=True)
class Admission:
    """A place that was taken; `remaining` requests are left in this minute."""

    caller: Caller
    ticket: str
    remaining: int


class Limiter(Protocol):
    """Counts requests; `enter` and `leave` may block for a network's round trip."""

    def enter(self, caller: Caller, ticket: str) -> Admission:
        """Take a place; raises RateLimited."""

    def leave(self, admission: Admission) -> None:
        """Give the place in flight back; the request of the minute stays counted."""


class MemoryLimiter:
    """Counts in this process only; `clock` tells seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: dict[uuid.UUID, deque[float]] = {}
        self._in_flight: dict[uuid.UUID, dict[str, float]] = {}

    def enter(self, caller: Caller, ticket: str) -> Admission:
        now = self._clock()
        with self._lock:
            recent = self._recent.get(caller.key, deque())
            while recent and recent[0] <= now - WINDOW_SECONDS:
                recent.popleft()
            if len(recent) >= caller.rpm:
                wait = recent[0] + WINDOW_SECONDS - now if recent else WINDOW_SECONDS
                raise RateLimited("requests", caller.rpm, wait)
            places = {
                other: until
                for other, until in self._in_flight.get(caller.organization, {}).items()
                if until > now
            }
            if len(places) >= caller.max_in_flight:
                raise RateLimited("in_flight", caller.max_in_flight, 1.0)
            recent.append(now)
            places[ticket] = now + caller.lease
            self._recent[caller.key] = recent
            self._in_flight[caller.organization] = places
            self._forget_idle_keys(now)
            return Admission(caller, ticket, caller.rpm - len(recent))

    def _forget_idle_keys(self, now: float) -> None:
        if len(self._recent) > KEYS_REMEMBERED:
            # A key has none when its last request was refused for what runs of its organization.
            idle = [
                key
                for key, times in self._recent.items()
                if not times or times[-1] <= now - WINDOW_SECONDS
            ]
            for key in idle:
                del self._recent[key]

    def leave(self, admission: Admission) -> None:
        with self._lock:
            organization = admission.caller.organization
            places = self._in_flight.get(organization, {})
            places.pop(admission.ticket, None)
            if not places:
                self._in_flight.pop(organization, None)


# The time is Redis's own, so that all hosts agree on it. Answers {verdict, number}:
# 0 and the requests left; 1 and the milliseconds until the window has room; 2, too many in flight.
ENTER = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local rpm, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, window = tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local used = redis.call('ZCARD', KEYS[1])
if used >= rpm then
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  return {1, first[2] and (first[2] + window - now) or window}
end
if redis.call('ZCARD', KEYS[2]) >= most then return {2, 0} end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], window)
redis.call('ZADD', KEYS[2], now + lease, ARGV[1])
redis.call('PEXPIRE', KEYS[2], lease)
return {0, rpm - used - 1}
"""


class RedisLimiter:
    """Counts for all hosts together; falls back to this process's own count without Redis."""

    def __init__(self, url: str) -> None:
        # The default pool raises above its size; this one waits.
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=16,
            timeout=READ_SECONDS,
            socket_timeout=READ_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
        )
        self._redis = redis.Redis(connection_pool=pool)
        self._enter = self._redis.register_script(ENTER)
        self._alone = MemoryLimiter()
        self._breaker = Breaker()
        self._seldom = Seldom()

    def enter(self, caller: Caller, ticket: str) -> Admission:
        keys = [f"rpm:{caller.key}", f"in_flight:{caller.organization}"]
        milliseconds = [int(caller.lease * 1000), int(WINDOW_SECONDS * 1000)]
        if not self._breaker.lets_through():
            return self._alone.enter(caller, ticket)
        try:
            verdict, number = self._enter(
                keys=keys, args=[ticket, caller.rpm, caller.max_in_flight, *milliseconds]
            )
        except redis.RedisError as error:
            self._away(error)
            return self._alone.enter(caller, ticket)
        self._breaker.worked()
        if verdict == 1:
            raise RateLimited("requests", caller.rpm, int(number) / 1000)
        if verdict == 2:
            raise RateLimited("in_flight", caller.max_in_flight, 1.0)
        return Admission(caller, ticket, int(number))

    def leave(self, admission: Admission) -> None:
        self._alone.leave(admission)
        # A place that is not given back frees itself by its lease.
        if self._breaker.lets_through():
            try:
                self._redis.zrem(f"in_flight:{admission.caller.organization}", admission.ticket)
            except redis.RedisError as error:
                self._away(error)
            else:
                self._breaker.worked()

    def _away(self, error: redis.RedisError) -> None:
        self._breaker.failed()
        if self._seldom.passes():
            log.error("Redis does not answer; requests are limited per process: %s", error)
