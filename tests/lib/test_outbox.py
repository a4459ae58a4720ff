"""The outbox: claimed by one, kept for a lease, put off further and further, at last given up."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db.models import Q

from billing.models import OperationState, StripeOperation
from geekhub.lib.outbox import Outbox
from tests.billing import race

NOW = datetime(2027, 3, 10, 12, tzinfo=UTC)
LEASE, SECOND = timedelta(minutes=5), timedelta(seconds=1)
OUTBOX = Outbox(
    StripeOperation,
    waiting=Q(state=OperationState.PENDING),
    lease=LEASE,
    first_pause=timedelta(minutes=1),
    longest_pause=timedelta(minutes=10),
    tries=3,
)


def add(key: str, *, due: datetime = NOW) -> StripeOperation:
    return StripeOperation.objects.create(key=key, kind="x", next_at=due)


def due(now: datetime) -> list[str]:
    return [row.key for row in OUTBOX.due(now)]


def stored(row: StripeOperation) -> tuple[int, datetime, str]:
    again = StripeOperation.objects.get(pk=row.pk)
    return again.attempts, again.next_at, again.last_error


def test_what_is_due_comes_in_the_order_in_which_it_became_due(db: None) -> None:
    add("late", due=NOW)
    add("same", due=NOW)
    add("early", due=NOW - SECOND)
    add("not yet", due=NOW + SECOND)
    StripeOperation.objects.create(key="over", kind="x", next_at=NOW, state=OperationState.DONE)
    assert due(NOW) == ["early", "late", "same"]
    assert due(NOW - 2 * SECOND) == []


def test_a_claim_counts_and_keeps_others_away_until_the_lease_is_over(db: None) -> None:
    row, read_before = add("a"), StripeOperation.objects.get()
    assert OUTBOX.claim(row, NOW)
    assert (row.attempts, row.next_at) == (1, NOW + LEASE)
    assert stored(row) == (1, NOW + LEASE, "")
    # Somebody who had read it before comes too late, and his row stays as he read it.
    assert not OUTBOX.claim(read_before, NOW)
    assert (read_before.attempts, read_before.next_at) == (0, NOW)
    assert stored(row) == (1, NOW + LEASE, "")
    assert due(NOW + LEASE - SECOND) == []
    # Its process is dead: the next one takes it.
    (again,) = OUTBOX.due(NOW + LEASE)
    assert OUTBOX.claim(again, NOW + LEASE)
    assert stored(row) == (2, NOW + 2 * LEASE, "")


def test_what_is_over_cannot_be_claimed_or_put_off(db: None) -> None:
    row = add("a")
    StripeOperation.objects.update(state=OperationState.DONE)
    assert not OUTBOX.claim(row, NOW)
    assert not OUTBOX.put_off(row, NOW, last_error="x")
    assert not OUTBOX.mine(row).exists()
    assert stored(row) == (0, NOW, "")


@pytest.mark.parametrize(
    ("attempts", "minutes"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10), (2_000, 10)]
)
def test_pauses_double_up_to_the_longest(db: None, attempts: int, minutes: int) -> None:
    row = add("a")
    StripeOperation.objects.update(attempts=attempts - 1)
    row.refresh_from_db()
    assert OUTBOX.claim(row, NOW)
    assert OUTBOX.put_off(row, NOW + SECOND, last_error="HTTP 500")
    assert stored(row) == (attempts, NOW + SECOND + timedelta(minutes=minutes), "HTTP 500")


def test_a_pause_is_counted_from_the_first_one_also_without_a_bound(db: None) -> None:
    patient = Outbox(
        *(StripeOperation, Q(), LEASE), first_pause=SECOND, longest_pause=timedelta(days=99)
    )
    row = add("a")
    StripeOperation.objects.update(attempts=1_000_000)
    row.refresh_from_db()
    assert patient.claim(row, NOW)
    assert patient.put_off(row, NOW)
    assert stored(row)[1] == NOW + 1024 * SECOND
    assert not patient.is_last(row)


def test_who_lost_the_row_writes_nothing(db: None) -> None:
    slow = add("a")
    assert OUTBOX.claim(slow, NOW)
    (quick,) = OUTBOX.due(NOW + LEASE)
    assert OUTBOX.claim(quick, NOW + LEASE)
    assert not OUTBOX.put_off(slow, NOW + LEASE, last_error="too late")
    assert not OUTBOX.mine(slow).exists()
    assert stored(slow) == (2, NOW + 2 * LEASE, "")
    assert OUTBOX.put_off(quick, NOW + LEASE, last_error="in time")
    assert stored(slow) == (2, NOW + LEASE + timedelta(minutes=2), "in time")


def test_the_last_attempt_is_known_as_such(db: None) -> None:
    row = add("a")
    last = []
    for _ in range(4):
        assert OUTBOX.claim(row, NOW)
        last.append(OUTBOX.is_last(row))
    assert last == [False, False, True, True]


def test_of_workers_that_race_for_a_row_one_has_it(transactional_db: None) -> None:
    for number in range(5):
        add(f"{number}")
    rows = [list(OUTBOX.due(NOW)) for _ in range(2)]

    def work(worker: int) -> list[str]:
        return [row.key for row in rows[worker] if OUTBOX.claim(row, NOW)]

    first, second = race(2, work)
    assert sorted(first + second) == ["0", "1", "2", "3", "4"]
    assert set(StripeOperation.objects.values_list("attempts", "next_at")) == {(1, NOW + LEASE)}
    assert due(NOW) == []
