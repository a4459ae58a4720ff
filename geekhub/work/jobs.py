"""Every background job: one table of those done at an interval by one host, one of each round.

To add one, write a function that takes the time and returns how much it did, and add its row here.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from asgiref.sync import async_to_sync
from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing import reconciliation
from billing.alerts import delivery, raising
from billing.metering import doubt, freeze, send
from billing.metering.sink import StripeSink
from billing.models import JobRun
from billing.stripe import catalog, inbox, operations, recharges, standing, subscriptions, sweep
from billing.stripe.client import Stripe, connect, is_connected
from geekhub.lib.liveness import departed
from geekhub.work.due import Job
from images.drawing import abandoned
from images.gallery import deletion, orphans, retention
from images.models import Image
from images.policies import fuse
from images.stores import configured, spool
from images.usage import reconciliation as requests
from images.usage import rollups

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
DAY = timedelta(days=1)
# The longest budget period, and what is left of the one before.
WHOLE_MONTH = timedelta(days=40)
# The first sweep looks back as far as Stripe keeps events.
FIRST_SWEEP = timedelta(days=30)


def _with_stripe(work: Callable[[Stripe, datetime], int]) -> Callable[[datetime], int]:
    return lambda now: work(connect(), now)


def _sweep(stripe: Stripe, now: datetime) -> int:
    """Look at all since the last sweep that came to its end, however long ago that was."""
    swept, _created = JobRun.objects.get_or_create(
        name="stripe swept through", defaults={"started_at": now - FIRST_SWEEP}
    )
    seen = sweep.sweep(stripe, since=swept.started_at, now=now)
    JobRun.objects.filter(pk=swept.pk, started_at__lt=now).update(started_at=now)
    return seen


# What Stripe reports comes before what it is sent, and the alerts of both at the end.
WITH_STRIPE = tuple(
    Job(name, title, every, _with_stripe(work), with_stripe=True)
    for name, title, every, work in (
        (
            "events from Stripe",
            _("Stripe events processed"),
            5 * SECOND,
            lambda s, now: inbox.process_due(s, now=now),
        ),
        (
            "writes to Stripe",
            _("writes sent to Stripe"),
            5 * SECOND,
            lambda s, now: operations.run_due(s, now=now),
        ),
        (
            "prices brought to Stripe",
            _("prices published to Stripe"),
            MINUTE,
            lambda s, now: len(catalog.resume(s, now)),
        ),
        ("subscriptions repaired", _("subscriptions repaired"), MINUTE, subscriptions.repair),
        (
            "usage frozen",
            _("usage closed for billing"),
            MINUTE,
            lambda s, now: freeze.freeze(now=now),
        ),
        (
            "usage sent",
            _("usage sent to Stripe"),
            5 * SECOND,
            lambda s, now: send.send_due(StripeSink(s), now=now),
        ),
        (
            "uncertain usage decided",
            _("uncertain usage resolved"),
            MINUTE,
            lambda s, now: doubt.resolve_uncertain(StripeSink(s), now=now),
        ),
        (
            "automatic recharges",
            _("automatic recharges"),
            MINUTE,
            lambda s, now: recharges.automatic(s, now=now),
        ),
        (
            "invoices compared",
            _("invoices compared"),
            10 * MINUTE,
            lambda s, now: reconciliation.invoices_due(s, now=now),
        ),
        (
            "differences in usage",
            _("usage compared with Stripe"),
            HOUR,
            lambda s, now: reconciliation.usage(s, now=now).differences,
        ),
        ("changes swept", _("Stripe swept for changes"), DAY, _sweep),
        (
            "prices retired",
            _("old prices removed from Stripe"),
            DAY,
            lambda s, now: len(catalog.retire(s, now)),
        ),
    )
)
LOCAL = (
    Job("alerts noticed", _("alerts raised"), MINUTE, lambda now: raising.scan(now=now)),
    Job(
        "alerts delivered",
        _("alerts delivered"),
        10 * SECOND,
        lambda now: delivery.deliver_due(now=now),
    ),
    Job(
        "accounts moved",
        _("accounts suspended and resumed"),
        10 * MINUTE,
        lambda now: standing.sweep(now=now),
    ),
    Job(
        "differences in older books",
        _("older books checked"),
        DAY,
        lambda now: reconciliation.internal(now=now, since=now - WHOLE_MONTH).differences,
    ),
    Job(
        "differences in our books",
        _("our books checked"),
        10 * MINUTE,
        lambda now: reconciliation.internal(now=now).differences,
    ),
)
IMAGES = (
    Job(
        "differences in requests",
        _("requests compared with the books"),
        10 * MINUTE,
        lambda now: requests.requests(now=now).differences,
    ),
    Job(
        "differences in older requests",
        _("older requests compared with the books"),
        DAY,
        lambda now: requests.requests(now=now, since=now - WHOLE_MONTH).differences,
    ),
    Job("orphans removed", _("files that belong to no image removed"), 10 * MINUTE, orphans.sweep),
)
BILLING = WITH_STRIPE + LOCAL
JOBS = BILLING + IMAGES


def current(jobs: tuple[Job, ...] = JOBS) -> tuple[Job, ...]:
    """Return those of the jobs that can run; without Stripe only those that need none."""
    return jobs if is_connected() else tuple(job for job in jobs if not job.with_stripe)


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


# Done in every round of every worker: what waits on this host, and small steps of what never ends.
EACH_ROUND: Mapping[str, Callable[[], int]] = {
    "abandoned requests settled": settle_abandoned,
    "waiting pictures uploaded": upload_spooled,
    "pictures past their retention": retention.enforce_retention,
    "prompts past their retention": retention.forget_prompts,
    "deleted pictures purged": purge_deleted,
    "keys paused by their fuse": fuse.blow_fuses,
    "hours of usage rolled up": lambda: rollups.close_hours(now=timezone.now()),
}
