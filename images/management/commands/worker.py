import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import close_old_connections
from django.utils import timezone

from billing.stripe.catalog import check_mode
from geekhub.lib.liveness import departed
from geekhub.work import billing_jobs
from geekhub.work.image_jobs import current
from images.drawing import abandoned
from images.gallery import deletion, retention
from images.models import Image
from images.policies import fuse
from images.stores import configured, spool
from images.usage import rollups

log = logging.getLogger("geekhub.worker")

PAUSE_SECONDS = 5.0


class Command(BaseCommand):
    help = (
        "Run the background jobs until SIGTERM: settle what dead processes left, upload images "
        "that wait for storage, enforce retention, delete objects of deleted images and "
        "orphans, and billing's: usage, invoices, recharges, alerts, reconciliation. "
        "With --once do all that is due, print what was done, and exit."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        check_mode()
        if options["once"]:
            for name, work in JOBS.items():
                self.stdout.write(f"{name}: {work()}")
            for name, count in billing_jobs.run_due(current(), now=timezone.now()).items():
                self.stdout.write(f"{name}: {count}")
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.is_set():
            for name, job in _all_jobs():
                close_old_connections()
                try:
                    done = job()
                except Exception:
                    # A job that fails is done in the next round; nothing of it is lost.
                    log.exception("the job %r failed", name)
                else:
                    if done:
                        log.info("%s: %s", name, done)
                if stop.is_set():
                    break
            stop.wait(PAUSE_SECONDS)


def _all_jobs() -> Iterator[tuple[str, Callable[[], int | None]]]:
    """Yield every job; those with an interval look whether they are due, and where they run."""
    yield from JOBS.items()
    for job in current():
        yield job.name, partial(_run, job)


def _run(job: billing_jobs.Job) -> int | None:
    return billing_jobs.run_if_due(job, now=timezone.now())


def settle_abandoned() -> int:
    """Settle what processes left that are gone; return how many requests."""
    settled = abandoned.expire_abandoned([])
    for owner in departed(settings.DATA_DIR / "run"):
        settled += abandoned.expire_abandoned([owner])
    return settled


def upload_spooled() -> int:
    """Upload the pictures that wait on this host; return how many."""
    waiting = configured.spool()
    if waiting is None:
        return 0

    async def upload() -> int:
        store = configured.bare_store()
        try:
            return await spool.upload(waiting, store, deletion.is_deleted)
        finally:
            await waiting.files.aclose()
            await store.aclose()

    # So that the database is asked in this thread, on its connection.
    return async_to_sync(upload)()


def purge_deleted() -> int:
    """Delete the objects of deleted pictures, a batch a round; return how many are gone."""
    marked = deletion.to_purge()
    if not marked:
        return 0

    async def purge() -> list[Image]:
        store = configured.image_store()
        try:
            return await deletion.purge(store, marked)
        finally:
            await store.aclose()

    gone = asyncio.run(purge())
    deletion.mark_purged(gone)
    return len(gone)


JOBS: dict[str, Callable[[], int]] = {
    "abandoned requests settled": settle_abandoned,
    "waiting pictures uploaded": upload_spooled,
    "pictures past their retention": retention.enforce_retention,
    "prompts past their retention": retention.forget_prompts,
    "deleted pictures purged": purge_deleted,
    "keys paused by their fuse": fuse.blow_fuses,
    "hours of usage rolled up": lambda: rollups.close_hours(now=timezone.now()),
}
