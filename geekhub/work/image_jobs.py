"""Every job that is done at its interval, by one host at a time: billing's, and the product's."""

from geekhub.work import billing_jobs
from geekhub.work.billing_jobs import DAY, MINUTE, WHOLE_MONTH, Job
from images.gallery import orphans
from images.usage import reconciliation

OURS = (
    Job(
        "differences in requests",
        10 * MINUTE,
        lambda now: reconciliation.requests(now=now).differences,
    ),
    Job(
        "differences in older requests",
        DAY,
        lambda now: reconciliation.requests(now=now, since=now - WHOLE_MONTH).differences,
    ),
    Job("orphans removed", 10 * MINUTE, orphans.sweep),
)


def current() -> tuple[Job, ...]:
    """Return the jobs there are; without Stripe only those that need none."""
    return (*billing_jobs.current(), *OURS)
