"""What one server process holds for drawing: clients, threads, limits.

Opened when the server starts, closed when it stops; nothing of it is global.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.http import HttpRequest

from accounts.models import ApiKey
from billing.spending.prices import PriceBook
from geekhub.lib.db import DatabaseThreads
from geekhub.lib.liveness import Presence
from geekhub.lib.threads import OwnThreads
from images.catalog.model import ImageModel
from images.drawing.latencies import Latencies
from images.drawing.limits import Admission, Limiter, MemoryLimiter, RedisLimiter
from images.pixels.turns import ALONE, Pixels, Turns
from images.policies.bad_keys import BadKeys
from images.providers.base import Provider
from images.providers.downloads import Downloads
from images.providers.registry import PROVIDERS
from images.providers.sandbox import Sandbox
from images.stores.configured import image_store
from images.stores.contract import ImageStore

# An answer waits so long for Redis to take a place back; the place frees itself by its lease.
LEAVE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of a running process; `providers` holds those that are configured."""

    db: DatabaseThreads
    presence: Presence
    limiter: Limiter
    providers: Mapping[str, Provider]
    sandbox: Provider
    store: ImageStore
    prices: PriceBook
    latencies: Latencies
    bad_keys: BadKeys = field(default_factory=BadKeys)
    pixels: Pixels = field(default_factory=Pixels)
    # Where an upload is written, and where places are given back: short, unless a disk or Redis
    # hangs, and then nothing else shall.
    writing: OwnThreads = field(default_factory=lambda: OwnThreads(2, "uploads"))
    leaving: OwnThreads = field(default_factory=lambda: OwnThreads(2, "leaving"))
    running: set[asyncio.Task[None]] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keep a task until it is done, whoever else forgets it."""
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let the process do work to its end; for the thread of a page, which does not wait."""
        self.loop.call_soon_threadsafe(lambda: self.keep(self.loop.create_task(work)))

    async def drain(self, seconds: float) -> None:
        """Wait until no task is running, at most so long."""
        if self.running:
            await asyncio.wait(self.running, timeout=seconds)

    async def leave(self, admission: Admission) -> None:
        """Give a place in flight back."""
        if isinstance(self.limiter, MemoryLimiter):
            self.limiter.leave(admission)
            return
        task = asyncio.create_task(self.leaving.run(self.limiter.leave, admission))
        self.keep(task)
        await asyncio.wait({task}, timeout=LEAVE_SECONDS)

    def turns(self, key: ApiKey) -> Turns:
        """Return what work on the pixels of a key's requests is done with."""
        return self.pixels.turns(key.organization_id, free=key.sandbox)

    def provider_for(self, model: ImageModel, *, sandbox: bool) -> Provider | None:
        """Return who draws the model, or None when its provider is not configured."""
        return self.sandbox if sandbox else self.providers.get(model.provider)

    def why_off(self, model: ImageModel, *, sandbox: bool, caller: str) -> str | None:
        """Return why the model's provider cannot be called for a caller now; None: it can."""
        provider = self.provider_for(model, sandbox=sandbox)
        if provider is None:
            return "its provider is not configured"
        if provider.circuit.is_open_for(caller):
            return "its provider is failing and is paused for a moment"
        return None


@asynccontextmanager
async def open_gateway() -> AsyncIterator[Gateway]:
    """Yield the gateway of this process, made from the settings."""
    async with AsyncExitStack() as stack:
        db = DatabaseThreads(settings.DATABASE_THREADS)
        stack.push_async_callback(asyncio.to_thread, db.close)
        presence = Presence(settings.DATA_DIR / "run")
        stack.callback(presence.close)
        downloads = Downloads(settings.PROVIDER_DOWNLOAD_HOSTS)
        stack.push_async_callback(downloads.aclose)
        providers: dict[str, Provider] = {}
        for name, registered in PROVIDERS.items():
            config = settings.PROVIDERS[name]
            if config["key"]:
                providers[name] = registered.make(config, downloads)
        for provider in providers.values():
            stack.push_async_callback(provider.aclose)
        store = image_store()
        stack.push_async_callback(store.aclose)
        gateway = Gateway(
            db=db,
            presence=presence,
            limiter=RedisLimiter(settings.REDIS_URL) if settings.REDIS_URL else MemoryLimiter(),
            providers=providers,
            sandbox=Sandbox(),
            store=store,
            prices=PriceBook(),
            latencies=Latencies(),
        )
        stack.callback(gateway.writing.close)
        stack.callback(gateway.leaving.close)
        # In a thread: what runs there may wait for this event loop.
        stack.push_async_callback(asyncio.to_thread, gateway.pixels.close)
        yield gateway


@asynccontextmanager
async def store_of(gateway: Gateway | None) -> AsyncIterator[ImageStore]:
    """Lend the process's store, or one of its own to an event loop that ends with the work."""
    if gateway is not None:
        yield gateway.store
        return
    store = image_store()
    try:
        yield store
    finally:
        await store.aclose()


def gateway_of(request: HttpRequest) -> Gateway | None:
    """Return the gateway of the process that answers; None where no ASGI server runs it."""
    found: Gateway | None = getattr(request, "scope", {}).get("gateway")
    return found


def turns_of(gateway: Gateway | None, organization: uuid.UUID) -> Turns:
    """Return what a page's work on an organization's pixels is done with; nobody pays for it."""
    return ALONE if gateway is None else gateway.pixels.turns(organization, free=True)
