"""Writes to Stripe: whoever is late does not undo what another process made."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from billing.models import OperationState, StripeOperation
from billing.stripe import operations
from billing.stripe.client import Stripe, StripeBusy
from billing.stripe.writes import KINDS, Kind

NOW = datetime(2027, 3, 10, 12, tzinfo=UTC)


def test_what_was_made_by_another_process_stays_made(
    db: None, stripe: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_elsewhere(stripe: Stripe, operation: StripeOperation, key: str) -> str:
        StripeOperation.objects.filter(pk=operation.pk).update(
            state=OperationState.DONE, result="cus_1", done_at=NOW
        )
        raise StripeBusy("the other process is at it")

    monkeypatch.setitem(KINDS, "lost race", Kind(lambda *_: None, made_elsewhere))
    operation = operations.plan("lost race", "lost:1")

    with pytest.raises(StripeBusy):
        operations.run(stripe, operation, now=NOW)

    row = StripeOperation.objects.get()
    assert (row.state, row.result, row.last_error) == (OperationState.DONE, "cus_1", "")
    assert operations.run(stripe, operation, now=NOW) == "cus_1"
    assert operations.run_due(stripe, now=NOW) == 0


def test_every_kind_that_is_planned_is_in_the_table_and_no_other() -> None:
    folder = Path(operations.__file__).parent
    code = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "writes.py")
    assert set(re.findall(r"plan\(\s*\"([a-z_]+)\"", code)) <= KINDS.keys()
    assert [kind for kind in KINDS if f'"{kind}"' not in code] == []
