"""Writes to Stripe: whoever is late does not undo what another process made."""

from datetime import UTC, datetime

import pytest

from billing.models import OperationState, StripeOperation
from billing.stripe import operations
from billing.stripe.client import Stripe, StripeBusy
from billing.stripe.operations import Kind

NOW = datetime(2027, 3, 10, 12, tzinfo=UTC)


def test_what_was_made_by_another_process_stays_made(
    db: None, stripe: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_elsewhere(stripe: Stripe, operation: StripeOperation, key: str) -> str:
        StripeOperation.objects.filter(pk=operation.pk).update(
            state=OperationState.DONE, result="cus_1", done_at=NOW
        )
        raise StripeBusy("the other process is at it")

    monkeypatch.setitem(operations.KINDS, "lost race", Kind(lambda *_: None, made_elsewhere))
    operation = operations.plan("lost race", "lost:1")

    with pytest.raises(StripeBusy):
        operations.run(stripe, operation, now=NOW)

    row = StripeOperation.objects.get()
    assert (row.state, row.result, row.last_error) == (OperationState.DONE, "cus_1", "")
    assert operations.run(stripe, operation, now=NOW) == "cus_1"
    assert operations.run_due(stripe, now=NOW) == 0
