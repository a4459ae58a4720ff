"""Is it alive, and can it work."""

import asyncio
import logging
from collections.abc import Awaitable

from asgiref.sync import sync_to_async
from django.core.cache import cache
from django.db import connection
from django.http import HttpRequest, JsonResponse

from images.gateway import gateway_of, store_of

log = logging.getLogger(__name__)

SECONDS = 5.0


def health(request: HttpRequest) -> JsonResponse:
    """Answer 200 as long as the process can answer at all."""
    return JsonResponse({"status": "ok"})


async def ready(request: HttpRequest) -> JsonResponse:
    """Answer 200 only when database, cache and storage answer; `?verbose` adds the circuits."""
    names = ("database", "cache", "storage")
    gateway = gateway_of(request)
    async with store_of(gateway) as store:
        results = await asyncio.gather(
            _check("database", sync_to_async(_database)()),
            _check("cache", sync_to_async(_cache)()),
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
    except Exception:
        log.exception("%s is not ready", name)
        return False
    return True


def _database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _cache() -> None:
    cache.set("ready", "yes", 10)
    if cache.get("ready") != "yes":
        raise RuntimeError("the cache forgets")
