"""The background jobs: each as often as it should be, on one host at a time, whatever fails."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import ApiKey
from billing.alerts import raising
from billing.models import BillingAccount, JobRun, Notification, StripeOperation
from billing.stripe import recharges
from billing.stripe.client import Stripe
from geekhub.work import jobs
from geekhub.work.due import AGAIN, Job, run_due, run_if_due
from tests.billing import race
from tests.emulators.stripe import Fault, StripeEmulator
from tests.factories import OrganizationFactory

NOW = datetime(2027, 3, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Counted:
    """Something to do that counts how often it was done."""

    def __init__(self) -> None:
        self.times: list[datetime] = []
        self._lock = threading.Lock()

    def __call__(self, now: datetime) -> int:
        with self._lock:
            self.times.append(now)
        return 7


def test_no_two_jobs_share_a_name() -> None:
    names = [job.name for job in jobs.JOBS]
    assert len(set(names)) == len(names)
    assert len({str(job.title) for job in jobs.JOBS}) == len(names)
    assert jobs.EACH_ROUND.keys().isdisjoint(names)


def test_a_job_is_done_when_it_is_due_and_not_before(db: None) -> None:
    work = Counted()
    job = Job("counting", "counting", 10 * MINUTE, work)
    almost = NOW + 10 * MINUTE - timedelta(microseconds=1)
    done = [run_if_due(job, now=at) for at in (NOW, NOW, almost, NOW + 10 * MINUTE)]
    assert done == [7, None, None, 7]
    assert work.times == [NOW, NOW + 10 * MINUTE]
    assert JobRun.objects.get().started_at == NOW + 10 * MINUTE


def test_of_many_hosts_one_does_it(transactional_db: None) -> None:
    work = Counted()
    job = Job("counting", "counting", MINUTE, work)
    for round_ in range(3):
        at = NOW + round_ * MINUTE
        done = race(12, lambda _, at=at: run_if_due(job, now=at))  # type: ignore[misc]
        assert sorted(map(str, done)) == ["7"] + ["None"] * 11
    assert len(work.times) == 3


@pytest.mark.parametrize(
    ("every", "again"), [(timedelta(hours=24), AGAIN), (timedelta(seconds=5), timedelta(seconds=5))]
)
def test_a_job_that_fails_is_logged_and_soon_due_again(
    db: None, caplog: pytest.LogCaptureFixture, every: timedelta, again: timedelta
) -> None:
    def broken(now: datetime) -> int:
        raise RuntimeError("as planned")

    job = Job("breaking", "breaking", every, broken)
    assert run_if_due(job, now=NOW) is None
    assert "the job 'breaking' failed" in caplog.text
    work = Counted()
    whole = Job("breaking", "breaking", every, work)
    assert run_if_due(whole, now=NOW + again - timedelta(microseconds=1)) is None
    assert run_if_due(whole, now=NOW + again) == 7


def test_a_failing_job_stops_no_other(
    stripe_account: StripeEmulator, key: ApiKey, caplog: pytest.LogCaptureFixture
) -> None:
    stripe_account.faults.add(Fault("500_before", "*", times=1000))
    BillingAccount.objects.update(alert_below_micro=20_000_000, spent_micro=1)
    done = run_due(jobs.current(jobs.BILLING), now=timezone.now())
    assert "the job 'changes swept' failed" in caplog.text
    assert "changes swept" not in done
    assert done["alerts noticed"] == 1
    assert Notification.objects.count() == 1


def test_without_stripe_only_the_local_jobs_are_there(db: None, settings: Settings) -> None:
    assert settings.STRIPE_SECRET_KEY == ""
    local = {job.name for job in jobs.LOCAL}
    assert set(run_due(jobs.current(jobs.BILLING), now=NOW)) == local
    assert run_due(jobs.current(jobs.BILLING), now=NOW) == {}
    assert {row.name for row in JobRun.objects.all()} == local


def test_with_stripe_all_of_them_run_and_find_nothing_to_do(
    stripe_account: StripeEmulator, db: None
) -> None:
    now = timezone.now()
    done = run_due(jobs.current(jobs.BILLING), now=now)
    assert list(done) == [job.name for job in jobs.BILLING]
    assert len(done) == len(jobs.BILLING) == 17
    assert set(done.values()) == {0}
    assert run_due(jobs.current(jobs.BILLING), now=now) == {}


def test_the_jobs_do_their_work(stripe: Stripe, stripe_account: StripeEmulator, db: None) -> None:
    organization = OrganizationFactory(bonus="1")
    customer = stripe.v1.customers.create({"email": "a@example.com"}).id
    stripe_account.save_card(customer)
    BillingAccount.objects.update(stripe_customer=customer, metered_from=0)
    recharges.set_automatic(organization, 5_000_000, 10_000_000, 10_000_000, None)
    raising.raise_alert(organization, "resumed", "r")

    now = timezone.now() + timedelta(seconds=1)
    done = run_due(jobs.current(jobs.BILLING), now=now)

    assert (done["automatic recharges"], done["alerts delivered"]) == (1, 1)
    assert StripeOperation.objects.filter(kind="credit_grant", state="pending").count() == 1
    later = run_due(jobs.current(jobs.BILLING), now=now + timedelta(seconds=5))
    assert later["writes to Stripe"] == 1
    assert "automatic recharges" not in later
    assert BillingAccount.objects.get().balance_micro == 11_000_000


def test_a_sweep_begins_where_the_last_whole_one_did(
    stripe_account: StripeEmulator, db: None
) -> None:
    def since() -> list[int]:
        """Return from when on each sweep asked for sessions."""
        return [
            int(request.params["created"]["gte"])
            for request in stripe_account.requests
            if request.path == "/v1/checkout/sessions"
        ]

    day, now = timedelta(days=1), timezone.now()
    sweep = next(job for job in jobs.BILLING if job.name == "changes swept")
    assert run_if_due(sweep, now=now) == 0
    # Nothing runs for three days; then one sweep breaks off at its end, and the next is whole.
    stripe_account.faults.add(Fault("500_before", "/v1/checkout/sessions"))
    assert run_if_due(sweep, now=now + 3 * day) is None
    assert run_if_due(sweep, now=now + 3 * day + AGAIN) == 0
    assert run_if_due(sweep, now=now + 4 * day + AGAIN) == 0
    first, broken, whole, last = since()
    assert broken == whole == first + 30 * 86_400
    assert last - whole == 3 * 86_400 + 60


def test_the_worker_prints_what_was_due(db: None, settings: Settings, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path
    out = StringIO()
    call_command("worker", "--once", stdout=out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "abandoned requests settled: 0"
    assert {"alerts noticed: 0", "differences in our books: 0"} <= set(lines)
    again = StringIO()
    call_command("worker", "--once", stdout=again)
    assert "alerts noticed: 0" not in again.getvalue().splitlines()


def test_the_worker_goes_on_until_it_is_told_to_stop(tmp_path: Path) -> None:
    environment: dict[str, Any] = {
        "PATH": os.environ["PATH"],
        "DEBUG": "true",
        "ENV_FILE": "",
        "DATA_DIR": str(tmp_path),
    }
    manage = [sys.executable, "manage.py"]
    root = Path(__file__).resolve().parents[2]
    subprocess.run([*manage, "migrate", "-v0"], cwd=root, env=environment, check=True)
    worker = subprocess.Popen(
        [*manage, "worker"], cwd=root, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        begun = threading.Event()

        def look() -> None:
            # A row tells that the first round has come as far as billing's jobs.
            while not begun.wait(0.05):
                opened = sqlite3.connect(tmp_path / "db.sqlite3", timeout=20)
                with contextlib.closing(opened) as database:
                    found = database.execute("SELECT count(*) FROM billing_jobrun").fetchone()
                if found > (0,):
                    begun.set()
                elif worker.poll() is not None:
                    return

        watcher = threading.Thread(target=look)
        watcher.start()
        assert begun.wait(60)
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=30)
        watcher.join()
    finally:
        worker.kill()
        worker.wait()
    assert worker.returncode == 0
    assert "failed" not in errors
