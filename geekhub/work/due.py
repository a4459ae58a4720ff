"""What is done every so often, by one host at a time.

A row per job records when it was last begun; the host that moves it on in one guarded update does
it. This only keeps hosts from doing the same at once: each job is safe to run twice, and at once.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from billing.models import JobRun
from geekhub.lib.moments import LONG_AGO

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

log = logging.getLogger("geekhub.worker")

# A job that failed need not wait for its whole interval.
AGAIN = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every so often.

    `title` is its name on the staff's page; `run` takes the time in UTC and returns how much it
    did. A job `with_stripe` is left out where Stripe is not connected.
    """

    name: str
    title: "StrPromise"
    every: timedelta
    run: Callable[[datetime], int]
    with_stripe: bool = False


def run_due(jobs: Iterable[Job], *, now: datetime) -> dict[str, int]:
    """Do what is due and return how much each job did; one that fails does not stop the others."""
    done = {job.name: run_if_due(job, now=now) for job in jobs}
    return {name: count for name, count in done.items() if count is not None}


def run_if_due(job: Job, *, now: datetime) -> int | None:
    """Do a job if it is due and nobody else begins it; None when it is not, or when it failed.

    A failed one is logged and due again in a minute, or sooner if its interval is shorter.
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
