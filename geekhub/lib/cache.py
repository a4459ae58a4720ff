"""Django's cache in Redis, which is never in the way: without Redis each process has its own.

Nothing kept in a cache is worth an error page: limits on logins, codes that were used, small views
of pictures. While Redis is away they are counted and kept per process, as without REDIS_URL.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import redis
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache, RedisCacheClient

from geekhub.lib.outages import Breaker, Seldom

log = logging.getLogger(__name__)

CONNECT_SECONDS, READ_SECONDS = 0.5, 1.0


class _Client:
    """Has the methods of Django's client for Redis; each is called there, or else in memory."""

    def __init__(self, url: str, name: str, max_connections: int) -> None:
        self.shared = RedisCacheClient(
            [url],
            # The default pool raises when it is empty, this one waits.
            pool_class=redis.BlockingConnectionPool,
            max_connections=max_connections,
            timeout=READ_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=READ_SECONDS,
        )
        self._alone = LocMemCache(f"without {name}", {})
        self._breaker = Breaker()
        self._seldom = Seldom()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._breaker.lets_through():
            try:
                answer = getattr(self.shared, method)(*arguments)
            except redis.RedisError as error:
                self._breaker.failed()
                if self._seldom.passes():
                    log.error("Redis does not answer; each process has its own cache: %s", error)
            except ValueError:
                # Its way to say that the key does not exist.
                self._breaker.worked()
                raise
            else:
                self._breaker.worked()
                return answer
        return getattr(self._alone, method)(*arguments)

    def clear(self) -> bool:
        """Forget what is kept in both."""
        self._alone.clear()
        return bool(self._call("clear"))


# Django makes a cache for each request; what is known of Redis, and its connections, last longer.
_client = cache(_Client)


class SteadyRedisCache(RedisCache):
    """RedisCache that falls back to memory; OPTIONS are `max_connections` only."""

    def __init__(self, url: str, params: dict[str, Any]) -> None:
        super().__init__(url, params)
        name, most = f"{self.key_prefix} {url}", params["OPTIONS"]["max_connections"]
        self._made = partial(_client, url, name, most)

    @property
    def _cache(self) -> _Client:  # type: ignore[override] # it has the same methods
        return self._made()

    def ping(self) -> None:
        """Return when Redis answers, raise RedisError when it does not; memory does not count."""
        self._cache.shared.get_client().ping()
