"""Mistakes, each of which must turn the tests red.

Usage: `python -m tests.prove.mutations [LETTER …]`. A mistake is made in a copy of the tree, never
in the tree itself; the tests that are named for it run there, and at least one has to fail.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", "var", "node_modules", "__pycache__", ".*_cache", ".hypothesis")
)
FREEZE, SEND, SINK = (f"billing/metering/{name}.py" for name in ("freeze", "send", "sink"))
CHARGE, STORY = "images/drawing/charge.py", "images/drawing/story.py"
HOLDS, BROKEN = "billing/spending/holds.py", "tests/api/test_broken_database.py"
SHARING = "tests/billing/test_sharing.py"
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
        SINK,
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
        SEND,
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
        FREEZE,
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
        SEND,
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
                "        held = db.fetch(HOLD",
                "        account = BillingAccount.objects.get(pk=key.organization_id)\n"
                "        room = account.balance_micro + account.credit_limit_micro\n"
                "        if room - account.held_micro < amount:\n"
                "            raise _refusal(key)\n"
                "        held = db.fetch(HOLD",
            ),
        ),
        "tests/billing/test_races.py::test_an_account_is_never_overspent",
        # On SQLite a transaction has the whole database to itself, and the mistake is none.
        "postgresql",
    ),
    Mutation(
        "f",
        "what Stripe has counted already is a failure",
        SINK,
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
    Mutation(
        "h",
        "a member's budget counts the member's keys in other organizations",
        "billing/spending/budgets.py",
        (("filter(arms, organization_id=key.organization_id)", "filter(arms)"),),
        "tests/billing/test_holds.py"
        "::test_a_members_budget_counts_the_keys_of_its_organization_only",
    ),
    Mutation(
        "h",
        "a tag that only the request has is in no budget",
        "billing/models/scopes.py",
        (("for tag in (*key.tags, *tags)", "for tag in key.tags"),),
        "tests/billing/test_budget_scopes.py::test_what_each_scope_covers",
    ),
    Mutation(
        "h",
        "the whole organization's budget covers nothing",
        "billing/models/scopes.py",
        (("covers=lambda key, tags: [None],", "covers=lambda key, tags: [],"),),
        "tests/billing/test_budget_scopes.py"
        "::test_of_two_keys_that_ask_for_the_last_cent_one_gets_it",
    ),
    Mutation(
        "i",
        "a recharge may pass the day's cap",
        "billing/stripe/recharges.py",
        (("if spent + amount <= cap else", "if spent < cap else"),),
        "tests/billing/test_recharges.py::test_a_cap_is_never_passed_also_when_it_is_no_multiple",
    ),
    Mutation(
        "j",
        "a result is not written a second time when the connection broke",
        CHARGE,
        (
            (
                '    except BROKEN:\n        log.warning("a result',
                '    except ZeroDivisionError:\n        log.warning("a result',
            ),
        ),
        f"{BROKEN}::test_a_commit_whose_answer_is_lost_is_found_and_counts_once",
    ),
    Mutation(
        "k",
        "a request that broke is ended as memory has it, not the database",
        CHARGE,
        (
            (
                'row = Generation.objects.select_related("hold").get(pk=started.generation.pk)',
                "row = started.generation",
            ),
        ),
        f"{BROKEN}::test_what_was_committed_is_told_whatever_error_it_ended_with",
    ),
    Mutation(
        "l",
        "nobody knows whether it was charged, and the client hears that it was not",
        STORY,
        (("raise OutcomeUnknown(request_id) from error", "raise StoreFailed from error"),),
        f"{BROKEN}::test_nobody_is_told_that_nothing_was_charged_when_nobody_knows",
    ),
    Mutation(
        "m",
        "a charged picture whose charge broke is not told",
        STORY,
        (("        if stream is not None:\n            await stream.tell(row)\n", ""),),
        f"{BROKEN}::test_what_was_committed_is_told_whatever_error_it_ended_with",
    ),
    Mutation(
        "n",
        "a failure is written down in one try",
        STORY,
        (("await committed(gateway, fail,", "await gateway.db.run(fail,"),),
        f"{BROKEN}::test_a_failure_that_cannot_be_written_down_at_once_is_written_a_second_time",
    ),
    Mutation(
        "o",
        "a hold is ended before its account is asked for",
        HOLDS,
        (
            (
                "    with transaction.atomic(savepoint=False):\n        _move(\n            hold,\n"
                "            held_micro=_still_held(hold),\n            spent_micro=delivered",
                "    with transaction.atomic(savepoint=False):\n"
                "        _end(hold, HoldState.CAPTURED, captured=hold.captured + delivered)\n"
                "        _move(\n            hold,\n"
                "            held_micro=_still_held(hold),\n            spent_micro=delivered",
            ),
            (
                "        _end(hold, HoldState.CAPTURED, captured=hold.captured + delivered)\n"
                "        return _charge",
                "        return _charge",
            ),
        ),
        "tests/billing/test_races.py"
        "::test_a_request_that_comes_again_while_its_hold_is_settled_waits_in_no_circle",
        "postgresql",
    ),
    Mutation(
        "p",
        "the shared item counts units of what is sold, and not their money",
        FREEZE,
        (("-entry.amount_micro // SHARED_UNIT_MICRO\n", "entry.quantity\n"),),
        f"{SHARING}::test_one_event_has_the_money_of_all_that_share",
    ),
    Mutation(
        "q",
        "no place is kept for the shared item",
        "billing/stripe/sharing.py",
        (("settings.STRIPE_SUBSCRIPTION_ITEMS - 1:", "settings.STRIPE_SUBSCRIPTION_ITEMS:"),),
        f"{SHARING}::test_a_price_has_an_item_of_its_own_while_there_is_room",
    ),
    Mutation(
        "r",
        "a price is quoted before the shared item that counts it is on the subscriptions",
        "billing/stripe/catalog.py",
        (("if counter != version and counter.state == PriceState.DRAFT:", "if False:"),),
        f"{SHARING}::test_a_lost_call_for_the_shared_item_is_made_up_for",
    ),
)


def main(letters: list[str]) -> int:
    """Make the mistakes one after the other; return 1 if a test is green with one of them."""
    chosen = [one for one in MUTATIONS if not letters or one.letter in letters]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="geekhub-mutation-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        # Tests that are red without a mistake would show nothing.
        for database in sorted({one.database for one in chosen}):
            tests = sorted({one.test for one in chosen if one.database == database})
            green, counts, output = _run(tree, database, *tests)
            print(
                f"  -  no mistake, {database}: {'green' if green else 'RED'}: {counts}", flush=True
            )
            if not green:
                print(output, file=sys.stderr)
                return 1
        for mutation in chosen:
            with _made(mutation, tree):
                green, counts, output = _run(tree, mutation.database, mutation.test)
            # A test that could not even begin has seen nothing.
            seen = not green and "failed" in counts and "error" not in counts
            survived += not seen
            verdict = "red" if seen else "NOT SEEN"
            print(f"  {mutation.letter}  {mutation.mistake}: {verdict}: {counts}", flush=True)
            if not seen:
                print(output, file=sys.stderr)
    return 1 if survived else 0


def _run(tree: Path, database: str, *tests: str) -> tuple[bool, str, str]:
    """Return whether the tests passed, how many did, and what they printed."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.run", "--only", database, *tests, "-q", "-x"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    found = COUNTS.search(ended.stdout)
    counts = found["counts"] if found else "the tests did not run"
    return ended.returncode == 0, counts, ended.stdout + ended.stderr


@contextmanager
def _made(mutation: Mutation, tree: Path) -> Iterator[None]:
    path = tree / mutation.path
    right = text = path.read_text()
    for before, after in mutation.changes:
        if text.count(before) != 1:
            raise ValueError(f"{mutation.path} does not have, or not once: {before}")
        text = text.replace(before, after)
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(right)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
