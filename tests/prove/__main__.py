"""Run every proof, of money and of outages, the long ones too, on both databases; a line for each.

Usage: `python -m tests.prove [NAME …]`
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.prove import mutations
from tests.prove.mutations import COUNTS, ROOT

BILLING = "tests/billing"
# What a proof says of itself, such as how many kills there were.
SAID = re.compile(r"^\.*(?P<said>(?:kill matrix|kill soak|lossy soak|month)\b.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Proof:
    """Some of pytest's arguments, and what they prove."""

    name: str
    arguments: tuple[str, ...]


PROOFS = (
    Proof("kill-matrix", (f"{BILLING}/kill",)),
    Proof("lossy-soak", (f"{BILLING}/test_metering_soak.py",)),
    Proof("races", (f"{BILLING}/test_races.py",)),
    Proof("broken-database", ("tests/api/test_broken_database.py",)),
    Proof("month", (f"{BILLING}/test_month.py",)),
    Proof("stateful-model", (f"{BILLING}/test_model.py",)),
    Proof("webhooks", (f"{BILLING}/test_webhooks.py",)),
    Proof("reconciliation", (f"{BILLING}/test_reconciliation.py",)),
    Proof("clients", ("tests/test_clients",)),
    Proof("outages", ("tests/away",)),
    Proof("tenancy", ("tests/pages/test_walk.py", "tests/pages/test_billing.py")),
    Proof("content-types", ("tests/api/test_bodies.py",)),
)


def main(names: list[str]) -> int:
    """Return 1 if a proof failed."""
    unknown = set(names) - {proof.name for proof in PROOFS} - {"mutations"}
    if unknown:
        print(f"no such proof: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    failed = sum(not _prove(proof) for proof in PROOFS if not names or proof.name in names)
    if not names or "mutations" in names:
        print("mutations:", flush=True)
        failed += mutations.main([])
    return 1 if failed else 0


def _prove(proof: Proof) -> bool:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "tests.run", *proof.arguments, "-q", "-s", "-x"],
        cwd=ROOT,
        env=os.environ | {"PROVE": "1"},
        capture_output=True,
        text=True,
    )
    both = COUNTS.findall(ended.stdout)
    good = ended.returncode == 0 and len(both) == 2
    if not good:
        print(ended.stdout, ended.stderr, sep="\n", file=sys.stderr)
    said = [one["said"] for one in SAID.finditer(ended.stdout)]
    counts = (
        f"SQLite {both[0]}, PostgreSQL {both[1]}" if len(both) == 2 else "not on both databases"
    )
    verdict = "proven" if good else "FAILED"
    seconds = time.monotonic() - began
    print("; ".join([f"{proof.name}: {verdict} ({seconds:.0f} s): {counts}", *said]), flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
