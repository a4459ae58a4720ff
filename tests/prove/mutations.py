"""Seven mistakes, each of which must turn the tests red.

Usage: `python -m tests.prove.mutations [LETTER …]`. A mistake is made in a copy of the tree, never in
the tree itself; the tests that are named for it run there, and at least one has to fail.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", "var", "node_modules", "__pycache__", ".*_cache", ".hypothesis")
)
METERING, HOLDS = "billing/metering.py", "billing/holds.py"
RESENT = "test_an_unknown_outcome_keeps_its_lane_and_is_resent_as_it_was"
COUNTS = re.compile(r"^(?:sqlite|postgresql) +(?P<counts>.* in \d+ s)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A mistake: texts of a file that are replaced, and the test that has to see it."""

    letter: str
    mistake: str
    path: str
    changes: tuple[tuple[str, str], ...]
    test: str
    database: str = "sqlite"


MUTATIONS = (
    Mutation(
        "a",
        "each attempt has an identifier of its own",
        METERING,
        (
            (
                '"identifier": event.identifier,',
                '"identifier": f"{event.identifier}:{event.attempts}",',
            ),
        ),
        f"tests/billing/test_metering.py::{RESENT}",
    ),
    Mutation(
        "b",
        "an event is accepted before it is sent",
        METERING,
        (
            (
                "        try:\n            self.sink.send(\n",
                "        MeterEvent.objects.filter(pk=event.pk).update(\n"
                "            state=MeterState.ACCEPTED, lease_until=None\n"
                "        )\n"
                "        try:\n            self.sink.send(\n",
            ),
        ),
        f"tests/billing/test_metering.py::{RESENT}",
    ),
    Mutation(
        "c",
        "events and what is in them are written in two transactions",
        METERING,
        (
            ("import itertools\n", "import contextlib\nimport itertools\n"),
            (
                "    with transaction.atomic():\n"
                "        account = BillingAccount.objects.select_for_update()"
                ".get(pk=organization_id)\n",
                "    with contextlib.nullcontext():\n"
                "        account = BillingAccount.objects.get(pk=organization_id)\n",
            ),
        ),
        "tests/billing/test_metering.py::test_events_and_their_entries_are_written_together",
    ),
    Mutation(
        "d",
        "an event is resent however old its identifier is",
        METERING,
        (
            (
                "if event.first_attempt_at is None or event.first_attempt_at <= now - HORIZON:",
                "if event.first_attempt_at is None:",
            ),
        ),
        "tests/billing/test_metering.py::test_what_stripe_has_forgotten_is_asked_of_its_sums",
    ),
    Mutation(
        "e",
        "the balance is read first and held afterwards",
        HOLDS,
        (
            (
                "WHERE organization_id = %s AND balance_micro + credit_limit_micro - held_micro"
                " >= %s\n",
                "WHERE organization_id = %s AND %s IS NOT NULL\n",
            ),
            (
                "        held = db.fetch(\n            HOLD,\n",
                "        account = BillingAccount.objects.get(pk=key.organization_id)\n"
                "        room = account.balance_micro + account.credit_limit_micro\n"
                "        if room - account.held_micro < amount:\n"
                "            raise _refusal(key)\n"
                "        held = db.fetch(\n            HOLD,\n",
            ),
        ),
        "tests/billing/test_races.py::test_an_account_is_never_overspent",
        # On SQLite a transaction has the whole database to itself, and the mistake is none.
        "postgresql",
    ),
    Mutation(
        "f",
        "what Stripe has counted already is a failure",
        METERING,
        (
            (
                "            if ALREADY_COUNTED not in str(refusal):\n                raise\n",
                "            raise refusal\n",
            ),
        ),
        f"tests/billing/test_metering.py::{RESENT}",
    ),
    Mutation(
        "g",
        "a hold that is settled can be settled again",
        HOLDS,
        (
            (
                "WHERE id = %s AND state = 'held' AND captured = %s",
                "WHERE id = %s AND captured = %s",
            ),
        ),
        "tests/billing/test_holds.py::test_a_settled_hold_is_lost_to_everybody_else",
    ),
)


class Survived(Exception):
    """The tests did not see the mistake, or could not be run with it."""


def main(letters: list[str]) -> int:
    """Make the mistakes one after the other; return 1 if a test is green with one of them."""
    survived = 0
    with tempfile.TemporaryDirectory(prefix="geekhub-mutation-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        for mutation in MUTATIONS:
            if letters and mutation.letter not in letters:
                continue
            began = time.monotonic()
            try:
                verdict = f"red: {_run(mutation, tree)}"
            except Survived as reason:
                survived += 1
                verdict = f"NOT SEEN: {reason}"
            seconds = time.monotonic() - began
            print(
                f"  {mutation.letter}  {mutation.mistake}: {verdict} ({seconds:.0f} s)", flush=True
            )
    return 1 if survived else 0


def _run(mutation: Mutation, tree: Path) -> str:
    """Return how the tests ended with the mistake in; raises Survived unless some failed."""
    with _made(mutation, tree):
        command = ["-m", "tests.run", "--only", mutation.database, mutation.test, "-q", "-x"]
        ended = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True)
    found = COUNTS.search(ended.stdout)
    counts = found["counts"] if found else "the tests did not run"
    # A test that could not even begin has seen nothing.
    if ended.returncode == 0 or "failed" not in counts or "error" in counts:
        raise Survived(f"{counts}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return counts


@contextmanager
def _made(mutation: Mutation, tree: Path) -> Iterator[None]:
    path = tree / mutation.path
    right = text = path.read_text()
    for before, after in mutation.changes:
        if text.count(before) != 1:
            raise Survived(f"{mutation.path} has no longer, or not only once: {before}")
        text = text.replace(before, after)
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(right)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
