"""Is it alive, and can it work."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from django.core.cache import caches
from django.db import connection
from django.http import HttpRequest, JsonResponse

from geekhub.lib.cache import SteadyRedisCache
from images.drawing.gateway import gateway_of, store_of

log = logging.getLogger(__name__)

SECONDS = 5.0
# A thread each: what hangs neither holds up the other check nor takes a second thread.
_DATABASE = ThreadPoolExecutor(1, "ready database")
_CACHE = ThreadPoolExecutor(1, "ready cache")


def health(request: HttpRequest) -> JsonResponse:
    """Answer 200 as long as the process can answer at all."""
    return JsonResponse({"status": "ok"})


async def ready(request: HttpRequest) -> JsonResponse:
    """Answer 200 only when database, cache and storage answer; `?verbose` adds the circuits."""
    names = ("database", "cache", "storage")
    gateway = gateway_of(request)
    async with store_of(gateway) as store:
        results = await asyncio.gather(
            _check("database", _in(_DATABASE, _database)),
            _check("cache", _in(_CACHE, _cache)),
            _check("storage", store.probe()),
        )
    body: dict[str, object] = {
        "status": "ok" if all(results) else "unavailable",
        "checks": {
            name: "ok" if good else "failed" for name, good in zip(names, results, strict=True)
        },
    }
    if "verbose" in request.GET and gateway is not None:
        body["circuits"] = {name: one.circuit.state for name, one in gateway.providers.items()}
    return JsonResponse(body, status=200 if all(results) else 503)


async def _check(name: str, probe: Awaitable[None]) -> bool:
    try:
        await asyncio.wait_for(probe, SECONDS)
    except Exception as error:
        log.error("%s is not ready: %s", name, str(error) or f"no answer in {SECONDS:g} s")
        return False
    return True


async def _in(executor: ThreadPoolExecutor, probe: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(executor, probe)


def _database() -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()


def _cache() -> None:
    cache = caches["default"]
    if isinstance(cache, SteadyRedisCache):
        cache.ping()
