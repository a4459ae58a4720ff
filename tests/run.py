"""Run the whole suite, on SQLite and on a real PostgreSQL and Redis, and sum up plainly.

Usage:

- `python -m tests.run [--only sqlite|postgresql] [pytest's arguments]`
- `python -m tests.run --services -- COMMAND` starts fresh servers and runs the command with their
  addresses in DATABASE_URL and REDIS_URL
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tests import services

ROOT = Path(__file__).resolve().parent.parent
REPORT = "GEEKHUB_TEST_REPORT"
# Set where two runs share what is the same on either database: the database of the other one.
ELSEWHERE = "GEEKHUB_TEST_ELSEWHERE"
# How the reason begins for which a test is left to the other run.
SHARED = "runs beside"
STOP_SECONDS = 30
# pytest's exit code. A failure here: a suite that vanished is not a suite that passed.
NO_TESTS_RAN = 5

# What would make a result depend on the shell it was started from, or draw with a developer's own
# keys, which costs money. A .env file is not read either.
REMOVED = (
    *("OPENAI_API_KEY", "GOOGLE_API_KEY", "XAI_API_KEY", "FAL_KEY"),
    *("OPENAI_BASE_URL", "GOOGLE_BASE_URL", "XAI_BASE_URL", "FAL_QUEUE_BASE_URL"),
    *("SUPABASE_S3_KEY_ID", "SUPABASE_S3_SECRET", "SUPABASE_S3_REGION", "SIGNED_URL_SECONDS"),
    *(
        "SUPABASE_PRIVATE_BUCKET",
        "SUPABASE_URL",
        "SUPABASE_KEY",
        "SUPABASE_PUBLIC_URL",
        "SUPABASE_BUCKET",
    ),
    *("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_API_BASE", "STRIPE_METER_EVENTS_BASE"),
    *("SENTRY_DSN", "OTEL_EXPORTER_OTLP_ENDPOINT", "METRICS_TOKEN", "PROMETHEUS_MULTIPROC_DIR"),
    *("ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS", "PUBLIC_URL", "PORT", "BIND", "WEB_WORKERS"),
    *(
        "DATABASE_URL",
        "DATABASE_THREADS",
        "DATABASE_TIMEOUT_SECONDS",
        "REDIS_URL",
        "DATA_DIR",
        "SECRET_KEY",
        "DEBUG",
        "DEMO",
    ),
    *("PROVIDER_DOWNLOAD_HOSTS", "MODEL_ALIASES", "RETIRE_SWITCHED_OFF", "STORAGE_OUTAGE"),
    *("SPOOL_MAX_BYTES", "SIGNUP_BONUS_USD", "DEFAULT_CREDIT_LIMIT_USD", "ONCE"),
    *("ORGANIZATIONS_PER_PERSON", "ORGANIZATIONS_PER_DAY"),
    *("REQUEST_DEADLINE_SECONDS", "RATE_LIMIT_RPM", "MAX_IN_FLIGHT", "LOG_FORMAT", "LOG_PROMPTS"),
    *("STRIPE_METER_RATE", "STRIPE_SUBSCRIPTION_ITEMS", "PAYMENT_GRACE_DAYS"),
    *("ALERT_LOCAL_ORIGINS", "TRUSTED_PROXIES"),
    *("EMAIL_URL", "DEFAULT_FROM_EMAIL", "OPEN_FOR_SIGNUP"),
    *("GITHUB_LOGIN_CLIENT_ID", "GITHUB_LOGIN_CLIENT_SECRET"),
    *("GOOGLE_LOGIN_CLIENT_ID", "GOOGLE_LOGIN_CLIENT_SECRET"),
    *("LOG_LEVEL", "DJANGO_SETTINGS_MODULE"),
    # make's own, which would change a make that a test starts
    *("MAKEFLAGS", "MAKELEVEL", "MFLAGS"),
)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP, raised so that every `with` block is left and its servers are stopped."""


@dataclass
class Outcome:
    database: str
    exit_code: int = 1
    closing_line: str = "did not run"
    skipped: dict[str, str] = field(default_factory=dict)  # test -> reason


def main(arguments: list[str]) -> int:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _terminate)
    try:
        if "--services" in arguments:
            return run_with_services(arguments)
        return run_suite(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Terminated as reason:
        print("\nterminated", file=sys.stderr)
        return int(str(reason))


def run_with_services(arguments: list[str]) -> int:
    command = arguments[arguments.index("--services") + 1 :]
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        print("usage: python -m tests.run --services -- COMMAND", file=sys.stderr)
        return 2
    try:
        with services.postgresql() as database_url, services.redis() as redis_url:
            urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
            return _run(command, os.environ | urls)
    except services.Unavailable as reason:
        print(f"tests.run: {reason}", file=sys.stderr)
        return 1


def run_suite(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.run",
        usage="%(prog)s [--only {sqlite,postgresql}] [pytest's arguments]\n"
        "       %(prog)s --services -- COMMAND",
        allow_abbrev=False,  # -k and the like are pytest's
    )
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    options, pytest_arguments = parser.parse_known_args(arguments)

    missing: list[str] = []
    with ExitStack() as stack:
        ready: dict[str, tuple[Path, dict[str, str]]] = {}
        for database, servers in (("sqlite", _sqlite), ("postgresql", _postgresql)):
            if options.only not in (None, database):
                missing.append(f"the tests on {database}: left out by --only {options.only}")
                continue
            try:
                folder = Path(stack.enter_context(_temporary_folder()))
                ready[database] = folder, stack.enter_context(servers(folder))
            except services.Unavailable as reason:
                missing.append(f"the tests on {database}: {reason}")
        for database, (_, environment) in ready.items():
            if others := ready.keys() - {database}:
                environment[ELSEWHERE] = others.pop()
        runs = [
            _start_pytest(database, folder, environment, pytest_arguments)
            for database, (folder, environment) in ready.items()
        ]
        _wait([run.process for run in runs], lambda number: _print_output(runs[number]))
        outcomes = [_outcome(run) for run in runs]
    print(_summary(outcomes, missing), flush=True)
    ran = bool(outcomes) and all(outcome.exit_code == 0 for outcome in outcomes)
    if os.environ.get("CI") and options.only is None and len(outcomes) < 2:
        # Our machines have all that the suite needs; running half of it proves nothing there.
        ran = False
    return 0 if ran else 1


@contextmanager
def _sqlite(folder: Path) -> Iterator[dict[str, str]]:
    yield {"DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}"}


@contextmanager
def _postgresql(folder: Path) -> Iterator[dict[str, str]]:
    with services.postgresql() as database_url, services.redis() as redis_url:
        yield {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


@dataclass(frozen=True)
class _Run:
    database: str
    process: subprocess.Popen[bytes]
    folder: Path
    began: float


def _start_pytest(
    database: str, folder: Path, settings: dict[str, str], pytest_arguments: list[str]
) -> _Run:
    """Start the suite on one database; both run side by side, each with a core of its own."""
    # Where collected static files would be; the server warns of a missing folder.
    (folder / "data" / "static").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED}
    environment["ENV_FILE"] = ""
    environment |= {
        "DATA_DIR": str(folder / "data"),
        "SECRET_KEY": "only-for-tests-" + "x" * 40,
        "DEBUG": "false",
        REPORT: str(folder / "report.json"),
    }
    environment |= settings
    # This module is pytest's plugin as well, which is how the summary learns what was skipped.
    command = [sys.executable, "-m", "pytest", "-p", "tests.run", *pytest_arguments]
    print(f"running the suite on {database} …", flush=True)
    with (folder / "output").open("wb") as output:
        process = _start(command, environment, output)
    return _Run(database, process, folder, time.monotonic())


def _print_output(run: _Run) -> None:
    """Print what one run of pytest printed, whole, so that two never mix."""
    print(f"\n=== {run.database} ===", flush=True)
    with (run.folder / "output").open("rb") as output:
        shutil.copyfileobj(output, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _outcome(run: _Run) -> Outcome:
    outcome = Outcome(run.database, run.process.returncode)
    report = run.folder / "report.json"
    if report.exists():
        saved = json.loads(report.read_text())
        outcome.closing_line = f"{saved['counts']} in {time.monotonic() - run.began:.0f} s"
        outcome.skipped = saved["skipped"]
    else:
        outcome.closing_line = f"pytest ended early, exit code {outcome.exit_code}"
    if outcome.exit_code == NO_TESTS_RAN:
        outcome.closing_line = "no test ran"
    return outcome


def _summary(outcomes: list[Outcome], missing: list[str]) -> str:
    lines = ["", "=== summary ==="]
    lines += [f"{outcome.database:<10}  {outcome.closing_line}" for outcome in outcomes]
    # A test that only one of the databases can run did run. What was skipped everywhere could not
    # run here.
    reasons: Counter[str] = Counter()
    for test in outcomes[0].skipped if outcomes else {}:
        told = [outcome.skipped.get(test, "") for outcome in outcomes]
        reason = next((one for one in told if not one.startswith(SHARED)), told[0])
        reasons[reason] += all(told)
    missing = missing + [
        f"{reason} ({count} skipped)" for reason, count in sorted(reasons.items()) if count
    ]
    if not missing:
        return "\n".join([*lines, "everything ran"])
    return "\n".join([*lines, "could not run here:", *(f"  - {reason}" for reason in missing)])


def _run(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a command in the foreground and return its exit code; stop it with us."""
    process = _start(command, environment, None)
    _wait([process], lambda number: None)
    return process.returncode


def _start(
    command: list[str], environment: Mapping[str, str], output: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        preexec_fn=services.die_with_parent(signal.SIGTERM),
    )


def _wait(processes: list[subprocess.Popen[bytes]], done: Callable[[int], None]) -> None:
    """Wait for all, calling `done` with the number of each in turn; stop them with us."""
    try:
        for number, process in enumerate(processes):
            process.wait()
            done(number)
    except Terminated:
        for process in processes:
            process.terminate()
        raise
    finally:
        # After Ctrl-C, which the terminal sent to them too, they only need time: a second signal
        # would break off their cleaning up.
        for process in processes:
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _temporary_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="geekhub-test-", ignore_cleanup_errors=True) as name:
        yield name


def _terminate(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # once is enough, and cleaning up must not be interrupted
    raise Terminated(128 + signum)


# --- The same module as pytest's plugin, in the process that runs the tests -------------------


def pytest_configure() -> None:
    """Let SIGTERM end the tests as Ctrl-C does, with their cleaning up, which it would skip."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # It can come twice, from a signal to the whole group and from the process that started
        # us.
        signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Save what the summary needs."""
    if REPORT not in os.environ:
        return
    parts = [text for text, _ in terminalreporter.build_summary_stats_line()[0]]
    skipped = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[report.nodeid] = reason.removeprefix("Skipped: ")
    saved = {"counts": ", ".join(parts), "skipped": skipped}
    Path(os.environ[REPORT]).write_text(json.dumps(saved))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
