"""The background jobs of billing: what is done how often, by one host at a time.

A row per job tells when it was last begun; whoever moves it on in one guarded update does it. It
only keeps hosts from doing the same at once: each job is safe to be run twice, and at once.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing import reconciliation
from billing.alerts import delivery, raising
from billing.metering import doubt, freeze, send
from billing.metering.sink import StripeSink
from billing.models import JobRun
from billing.stripe import catalog, inbox, operations, recharges, standing, subscriptions, sweep
from billing.stripe.client import Stripe, connect, is_connected
from geekhub.lib.moments import LONG_AGO

log = logging.getLogger("geekhub.billing")

# A job that failed need not wait for its whole interval.
AGAIN = timedelta(minutes=1)
# The first sweep looks back as far as Stripe keeps events.
FIRST_SWEEP = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every so often; `run` takes the time in UTC and returns how much it did."""

    name: str
    every: timedelta
    run: Callable[[datetime], int]


def run_due(jobs: Iterable[Job], *, now: datetime) -> dict[str, int]:
    """Do what is due and return how much each job did; one that fails does not stop the others."""
    done = {job.name: run_if_due(job, now=now) for job in jobs}
    return {name: count for name, count in done.items() if count is not None}


def current() -> tuple[Job, ...]:
    """Return the jobs there are; without Stripe only those that need none."""
    return JOBS if is_connected() else LOCAL


def run_if_due(job: Job, *, now: datetime) -> int | None:
    """Do a job if it is due and nobody else begins it; None when it is not, or when it failed.

    A failed one is logged and due again in a minute, or as soon as it would be anyhow.
    """
    if not _claim(job, now):
        return None
    try:
        return job.run(now)
    except Exception:
        log.exception("the job %r failed", job.name)
        again = now - job.every + min(job.every, AGAIN)
        JobRun.objects.filter(name=job.name, started_at=now).update(started_at=again)
        return None


def _claim(job: Job, now: datetime) -> bool:
    JobRun.objects.bulk_create([JobRun(name=job.name, started_at=LONG_AGO)], ignore_conflicts=True)
    due = JobRun.objects.filter(name=job.name, started_at__lte=now - job.every)
    return bool(due.update(started_at=now))


def _with_stripe(work: Callable[[Stripe, datetime], int]) -> Callable[[datetime], int]:
    return lambda now: work(connect(), now)


def _sweep(stripe: Stripe, now: datetime) -> int:
    """Look at all since the last sweep that came to its end, however long ago that was."""
    swept, _ = JobRun.objects.get_or_create(
        name="stripe swept through", defaults={"started_at": now - FIRST_SWEEP}
    )
    seen = sweep.sweep(stripe, since=swept.started_at, now=now)
    JobRun.objects.filter(pk=swept.pk, started_at__lt=now).update(started_at=now)
    return seen


SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
DAY = timedelta(days=1)
# The longest budget period, and what is left of the one before.
WHOLE_MONTH = timedelta(days=40)

LOCAL = (
    Job("alerts noticed", MINUTE, lambda now: raising.scan(now=now)),
    Job("alerts delivered", 10 * SECOND, lambda now: delivery.deliver_due(now=now)),
    Job("accounts moved", 10 * MINUTE, lambda now: standing.sweep(now=now)),
    Job(
        "differences in older books",
        DAY,
        lambda now: reconciliation.internal(now=now, since=now - WHOLE_MONTH).differences,
    ),
    Job(
        "differences in our books",
        10 * MINUTE,
        lambda now: reconciliation.internal(now=now).differences,
    ),
)
WITH_STRIPE = tuple(
    Job(name, every, _with_stripe(work))
    for name, every, work in (
        ("events from Stripe", 5 * SECOND, lambda s, now: inbox.process_due(s, now=now)),
        ("writes to Stripe", 5 * SECOND, lambda s, now: operations.run_due(s, now=now)),
        ("prices brought to Stripe", MINUTE, lambda s, now: len(catalog.resume(s, now))),
        ("subscriptions repaired", MINUTE, lambda s, now: subscriptions.repair(s, now)),
        ("usage frozen", MINUTE, lambda s, now: freeze.freeze(now=now)),
        (
            "usage sent",
            5 * SECOND,
            lambda s, now: send.send_due(StripeSink(s), now=now),
        ),
        (
            "uncertain usage decided",
            MINUTE,
            lambda s, now: doubt.resolve_uncertain(StripeSink(s), now=now),
        ),
        ("automatic recharges", MINUTE, lambda s, now: recharges.automatic(s, now=now)),
        (
            "invoices compared",
            10 * MINUTE,
            lambda s, now: reconciliation.invoices_due(s, now=now),
        ),
        (
            "differences in usage",
            HOUR,
            lambda s, now: reconciliation.usage(s, now=now).differences,
        ),
        ("changes swept", DAY, _sweep),
        ("prices retired", DAY, lambda s, now: len(catalog.retire(s, now))),
    )
)
# What Stripe told comes before what it is told, and the alerts of both at the end.
JOBS = WITH_STRIPE + LOCAL
