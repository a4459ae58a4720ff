"""Whether an organization may spend, by what became of its invoices.

    ok --payment failed--> grace --grace over, or Stripe gave up--> suspended --all paid--> ok

What decides is our copies of its invoices, read after its account's row is locked: whatever order
the news came in, the last one to look has seen them all. Staff can suspend and resume by hand, and
what they suspended no payment resumes. Work that runs already is finished and charged.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from accounts import audit
from accounts.models import Organization, User
from billing.alerts import raising
from billing.models import AccountStatus, BillingAccount, Invoice, Subscription

OK, GRACE, SUSPENDED = AccountStatus.OK, AccountStatus.GRACE, AccountStatus.SUSPENDED


def payment_failed(organization: Organization, *, now: datetime) -> None:
    """Tell of each invoice that is owed, once, and begin the grace period if there is none."""
    with transaction.atomic():
        owed = _locked(organization)
        for invoice in owed:
            raising.raise_alert(
                organization,
                "payment_failed",
                f"payment_failed:{invoice.stripe_id}",
                invoice=invoice.number or invoice.stripe_id,
                amount_due_cents=invoice.amount_due_cents,
            )
        if not owed:
            return
        if _given_up(organization):
            _move(organization, {OK, GRACE}, SUSPENDED, reason=_unpaid(owed))
            return
        until = now + timedelta(days=settings.PAYMENT_GRACE_DAYS)
        _move(organization, {OK}, GRACE, reason=_unpaid(owed), grace_until=until)


def collection_ended(organization: Organization) -> None:
    """Stripe tries no more to collect what is owed: suspend, whatever is left of the grace."""
    with transaction.atomic():
        if owed := _locked(organization):
            _move(organization, {OK, GRACE}, SUSPENDED, reason=_unpaid(owed))


def paid(organization: Organization) -> None:
    """Resume once nothing is owed any more, unless it was staff who suspended."""
    with transaction.atomic():
        if not _locked(organization):
            _move(organization, {GRACE, SUSPENDED}, OK)


def suspend(organization: Organization, reason: str, actor: User | None) -> bool:
    """Refuse new requests until staff resume; tell whether staff had not done so already."""
    with transaction.atomic():
        _locked(organization)
        return _move(
            organization,
            list(AccountStatus),
            SUSPENDED,
            actor=actor,
            reason=reason,
            suspended_by_staff=True,
        )


def resume(organization: Organization, actor: User | None, note: str = "") -> bool:
    """End a suspension of any origin and return whether there was one; `note` says why.

    If invoices are still owed, it is for a new grace period.
    """
    with transaction.atomic():
        owed = _locked(organization)
        BillingAccount.objects.filter(pk=organization.pk).update(suspended_by_staff=False)
        if not owed:
            return _move(organization, {SUSPENDED}, OK, actor=actor, note=note)
        until = timezone.now() + timedelta(days=settings.PAYMENT_GRACE_DAYS)
        return _move(
            organization,
            {SUSPENDED},
            GRACE,
            actor=actor,
            reason=_unpaid(owed),
            note=note,
            grace_until=until,
        )


def sweep(*, now: datetime) -> int:
    """Suspend where the grace is over, resume where nothing is owed; return how many changed."""
    changed = 0
    in_trouble = BillingAccount.objects.exclude(status=OK).filter(suspended_by_staff=False)
    for account in in_trouble.select_related("organization"):
        with transaction.atomic():
            if not (owed := _locked(account.organization)):
                changed += _move(account.organization, {GRACE, SUSPENDED}, OK)
            elif account.grace_until is not None and account.grace_until <= now:
                changed += _move(account.organization, {GRACE}, SUSPENDED, reason=_unpaid(owed))
    return changed


def _locked(organization: Organization) -> list[Invoice]:
    """Lock the account and return what is owed; in this order, so that nothing is missed."""
    BillingAccount.objects.select_for_update().get(organization=organization)
    owed = Invoice.objects.filter(organization=organization, payment_failed=True)
    return list(owed.order_by("created", "pk"))


def _given_up(organization: Organization) -> bool:
    return Subscription.objects.filter(
        organization=organization, ended_at=None, status="unpaid"
    ).exists()


def _unpaid(owed: list[Invoice]) -> str:
    first, more = owed[0], len(owed) - 1
    also = f" and {more} more" if more else ""
    return f"invoice {first.number or first.stripe_id}{also} could not be collected"


def _move(
    organization: Organization,
    before: Collection[AccountStatus],
    after: AccountStatus,
    *,
    actor: User | None = None,
    reason: str = "",
    note: str = "",
    grace_until: datetime | None = None,
    suspended_by_staff: bool = False,
) -> bool:
    """Make the step, write it down and tell of it; False when the account stood elsewhere."""
    account = BillingAccount.objects.filter(
        organization=organization, status__in=list(before), suspended_by_staff=False
    )
    if not account.update(
        status=after,
        status_reason=reason[:200],
        grace_until=grace_until,
        suspended_by_staff=suspended_by_staff,
    ):
        return False
    details: dict[str, Any] = {"reason": reason} if reason else {}
    if grace_until is not None:
        details["grace_until"] = grace_until.isoformat()
    why = {"note": note} if note else {}
    event = audit.record(
        f"account.{after}", organization=organization, actor=actor, **details, **why
    )
    # An account may be suspended again, also for the same invoice: each time is told.
    if after == SUSPENDED:
        raising.raise_alert(organization, "suspended", f"suspended:{event.pk}", **details)
    elif after == OK:
        raising.raise_alert(organization, "resumed", f"resumed:{event.pk}", **details)
    return True
