"""Holds: money is set aside before a provider is called, and spent only for what is delivered.

    held --capture--> captured      held --release--> released      held --expire--> expired

Every step is one guarded UPDATE per row in one short transaction, always in the order account,
budget, hold: two that meet wait for each other at the account and never in a circle. If the hold is
no longer `held`, or there is less held than it set aside, somebody else has settled it: HoldLost,
all of the transaction is rolled back, and the caller must not deliver.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from accounts.models import ApiKey
from billing.models import AccountStatus, BillingAccount, EntryKind, Hold, HoldState, LedgerEntry
from billing.spending import budgets
from billing.spending.prices import Quote
from geekhub.lib import db

__all__ = [
    "AccountSuspended",
    "HoldLost",
    "InsufficientBalance",
    "authorize",
    "capture",
    "expirable",
    "expire",
    "release",
]


# One statement decides; two requests at once cannot both take the last of a balance.
HOLD = """
    UPDATE billing_billingaccount SET held_micro = held_micro + %s
    WHERE organization_id = %s AND balance_micro + credit_limit_micro - held_micro >= %s
        AND status <> 'suspended'
    RETURNING EXISTS (SELECT 1 FROM billing_budget WHERE {covering})
"""
# `captured` guards against a part that was charged in between.
END = """
    UPDATE billing_hold SET state = %s, captured = %s, settled_at = %s
    WHERE id = %s AND state = 'held' AND captured = %s
"""
MOVE = """
    UPDATE billing_billingaccount
    SET held_micro = held_micro - %s,
        balance_micro = balance_micro - %s,
        spent_micro = spent_micro + %s
    WHERE organization_id = %s AND held_micro >= %s
"""


class InsufficientBalance(Exception):
    """The organization cannot pay for the request."""


class AccountSuspended(InsufficientBalance):
    """The organization may not spend until it has paid, or staff let it."""


class HoldLost(Exception):
    """The hold was settled by somebody else; the result must be discarded."""


def authorize(
    *,
    key: ApiKey,
    request_id: str,
    quotes: Sequence[Quote],
    quantity: int,
    tags: Sequence[str],
    owner: uuid.UUID,
    lease: timedelta,
) -> Hold:
    """Set aside the price of `quantity` units of the dearest quoted sku.

    `tags` are the request's, beside the key's own; they decide which budgets cover it.
    Raises InsufficientBalance, AccountSuspended or BudgetExceeded, and then nothing is held. A
    second hold for the same request violates its constraint. Runs in the caller's transaction if
    there is one.
    """
    amount = quantity * max(quote.unit_micro for quote in quotes)
    with transaction.atomic(savepoint=False):
        covering, whose = budgets.covering_sql(key, tags)
        held = db.fetch(HOLD.format(covering=covering), amount, key.organization_id, amount, *whose)
        if held is None:
            raise _refusal(key)
        (has_budget,) = held
        hold = Hold(
            organization_id=key.organization_id,
            api_key=key,
            request_id=request_id,
            quantity=quantity,
            amount_micro=amount,
            quotes={quote.sku: [quote.price_version_id, quote.unit_micro] for quote in quotes},
            budget_periods=(
                budgets.hold(key, tags, amount_micro=amount, images=quantity) if has_budget else []
            ),
            owner=owner,
            lease_until=timezone.now() + lease,
        )
        db.insert(hold)
    return hold


def capture(hold: Hold, *, sku: str, delivered: int) -> LedgerEntry:
    """Spend the price of what was delivered, give the rest back, and write the ledger.

    The price is the one quoted at authorization. Raises HoldLost when the hold is no longer held:
    the caller's transaction must not deliver then.
    """
    if hold.state != HoldState.HELD:
        raise HoldLost(hold.request_id)
    if not 0 < delivered <= hold.quantity - hold.captured:
        raise ValueError(f"cannot capture {delivered} of {hold.quantity}")
    _, unit_micro = hold.quotes[sku]
    with transaction.atomic(savepoint=False):
        _move(
            hold,
            held_micro=_still_held(hold),
            spent_micro=delivered * unit_micro,
            held_images=hold.quantity - hold.captured,
            spent_images=delivered,
        )
        _end(hold, HoldState.CAPTURED, captured=hold.captured + delivered)
        return _charge(hold, sku, delivered)


def capture_one(hold: Hold, *, sku: str) -> LedgerEntry:
    """Spend the price of one unit and keep the rest held, for units delivered one by one.

    Raises HoldLost as capture() does. Afterwards, once it is committed, `hold.captured` must be
    counted up by the caller, who alone knows; release() then gives back what is left.
    """
    _, unit_micro = hold.quotes[sku]
    with transaction.atomic(savepoint=False):
        _move(
            hold,
            held_micro=_unit_held(hold),
            spent_micro=unit_micro,
            held_images=1,
            spent_images=1,
        )
        held = Hold.objects.filter(pk=hold.pk, state=HoldState.HELD, captured=hold.captured)
        if hold.captured >= hold.quantity or not held.update(captured=F("captured") + 1):
            raise HoldLost(hold.request_id)
        return _charge(hold, sku, 1)


def release(hold: Hold) -> None:
    """Give back all that was not captured; raises HoldLost when it is no longer held."""
    _give_back(hold, HoldState.RELEASED)


def expire(hold: Hold) -> None:
    """Give back what a dead process held; raises HoldLost when it was settled after all."""
    _give_back(hold, HoldState.EXPIRED)


def expirable(owners: Iterable[uuid.UUID]) -> Iterable[Hold]:
    """Return the open holds whose lease is over or that belong to one of the dead `owners`."""
    return Hold.objects.filter(
        Q(lease_until__lt=timezone.now()) | Q(owner__in=list(owners)), state=HoldState.HELD
    ).order_by("lease_until")


def _unit_held(hold: Hold) -> int:
    return hold.amount_micro // hold.quantity


def _still_held(hold: Hold) -> int:
    return hold.amount_micro - hold.captured * _unit_held(hold)


def _give_back(hold: Hold, state: HoldState) -> None:
    with transaction.atomic(savepoint=False):
        _move(
            hold,
            held_micro=_still_held(hold),
            spent_micro=0,
            held_images=hold.quantity - hold.captured,
            spent_images=0,
        )
        _end(hold, HoldState.CAPTURED if hold.captured else state, captured=hold.captured)


def _end(hold: Hold, state: HoldState, *, captured: int) -> None:
    """Make the one guarded step out of `held`; `captured` guards against a part in between."""
    if not db.execute(END, state.value, captured, timezone.now(), hold.pk, hold.captured):
        raise HoldLost(hold.request_id)


def _charge(hold: Hold, sku: str, delivered: int) -> LedgerEntry:
    """Write the ledger's entry for units that were moved from held to spent."""
    price_version_id, unit_micro = hold.quotes[sku]
    entry = LedgerEntry(
        organization_id=hold.organization_id,
        entry_key=f"use:{hold.pk}:{hold.captured}",
        kind=EntryKind.CONSUMPTION,
        amount_micro=-delivered * unit_micro,
        price_version_id=price_version_id,
        sku=sku,
        quantity=delivered,
        first_unit=hold.captured,
        hold=hold,
        api_key_id=hold.api_key_id,
        request_id=hold.request_id,
    )
    db.insert(entry)
    return entry


def _move(
    hold: Hold, *, held_micro: int, spent_micro: int, held_images: int, spent_images: int
) -> None:
    """Turn what was held into what was spent; raises HoldLost when less is held."""
    # The account is always first: whoever holds its row sees every entry that is in its balance.
    moved = db.execute(
        MOVE, held_micro, spent_micro, spent_micro, hold.organization_id, held_micro
    ) and budgets.settle(
        hold.budget_periods,
        held_micro=held_micro,
        spent_micro=spent_micro,
        held_images=held_images,
        spent_images=spent_images,
    )
    if not moved:
        raise HoldLost(hold.request_id)


def _refusal(key: ApiKey) -> InsufficientBalance:
    """Return why the account refused; asked only then."""
    suspended = BillingAccount.objects.filter(
        organization_id=key.organization_id, status=AccountStatus.SUSPENDED
    ).first()
    if suspended is None:
        return InsufficientBalance()
    # What staff wrote is for the organization's owners, and a key may be with anyone.
    return AccountSuspended("" if suspended.suspended_by_staff else suspended.status_reason)
