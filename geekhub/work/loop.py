"""The worker: all jobs, round after round, until it is stopped."""

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial

from django.db import close_old_connections
from django.utils import timezone

from geekhub.work.due import Job, run_due, run_if_due
from geekhub.work.jobs import EACH_ROUND, current

log = logging.getLogger("geekhub.worker")

PAUSE_SECONDS = 5.0


def run_once() -> Iterator[tuple[str, int]]:
    """Do all that is due; yield each job's name and how much it did."""
    for name, work in EACH_ROUND.items():
        yield name, work()
    yield from run_due(current(), now=timezone.now()).items()


def run_until(stop: threading.Event) -> None:
    """Do what is due, round after round, until `stop` is set; a job that has begun is finished."""
    while not stop.is_set():
        for name, work in _round():
            close_old_connections()
            try:
                done = work()
            except Exception:
                # A job that fails is done in the next round; nothing of it is lost.
                log.exception("the job %r failed", name)
            else:
                if done:
                    log.info("%s: %s", name, done)
            if stop.is_set():
                break
        stop.wait(PAUSE_SECONDS)


def _round() -> Iterator[tuple[str, Callable[[], int | None]]]:
    yield from EACH_ROUND.items()
    for job in current():
        yield job.name, partial(_run, job)


def _run(job: Job) -> int | None:
    return run_if_due(job, now=timezone.now())
