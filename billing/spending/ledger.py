"""The ledger: every movement of a balance, and the questions asked of it."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import F, QuerySet, Sum, Window

from accounts.models import Organization
from billing.models import BillingAccount, EntryKind, Invoice, LedgerEntry


@dataclass(frozen=True, slots=True)
class SkuSpend:
    """Delivered units of a sku and what they cost, in micro-USD."""

    sku: str
    units: int
    cost_micro: int


def open_account(
    organization: Organization, *, bonus_micro: int, credit_limit_micro: int
) -> BillingAccount:
    """Return the organization's new account, its sign-up bonus on it."""
    with transaction.atomic():
        account = BillingAccount.objects.create(
            organization=organization, credit_limit_micro=credit_limit_micro
        )
        if bonus_micro:
            record(
                organization,
                EntryKind.BONUS,
                bonus_micro,
                entry_key=f"bonus:{organization.pk}",
                note="Sign-up bonus",
            )
    return account


def record(
    organization: Organization,
    kind: EntryKind,
    amount_micro: int,
    *,
    entry_key: str,
    note: str,
    payment_id: str = "",
    invoice: Invoice | None = None,
) -> LedgerEntry | None:
    """Move a balance once per `entry_key`; return the entry, or None if it was there already.

    A recharge names the payment that brought it, or the invoice that was paid. Consumption is not
    for here: it follows from a hold (`billing.spending.holds.capture`).
    """
    with transaction.atomic():
        # The account's row is locked first, so that a key sent twice at once is seen.
        account = BillingAccount.objects.select_for_update().get(organization=organization)
        if LedgerEntry.objects.filter(entry_key=entry_key).exists():
            return None
        entry = LedgerEntry.objects.create(
            organization=organization,
            kind=kind,
            amount_micro=amount_micro,
            entry_key=entry_key,
            payment_id=payment_id,
            invoice=invoice,
            note=note,
        )
        BillingAccount.objects.filter(pk=account.pk).update(
            balance_micro=F("balance_micro") + amount_micro
        )
    return entry


def balance(organization: Organization) -> BillingAccount:
    """Return the account as it stands now."""
    return BillingAccount.objects.get(organization=organization)


def spent_since(
    organization: Organization, *, since: datetime, key_family: uuid.UUID | None = None
) -> int:
    """Return micro-USD spent since then, by one family of keys if it is named."""
    entries = LedgerEntry.objects.filter(
        organization=organization, kind=EntryKind.CONSUMPTION, created_at__gte=since
    )
    if key_family is not None:
        entries = entries.filter(api_key__family=key_family)
    return -(entries.aggregate(total=Sum("amount_micro"))["total"] or 0)


def spend_by_sku(organization: Organization, *, since: datetime | None = None) -> list[SkuSpend]:
    """Return what was delivered of each sku and what it cost, by sku."""
    entries = LedgerEntry.objects.filter(organization=organization, kind=EntryKind.CONSUMPTION)
    if since is not None:
        entries = entries.filter(created_at__gte=since)
    return by_sku(entries)


def by_sku(entries: QuerySet[LedgerEntry]) -> list[SkuSpend]:
    """Return what consumption comes to, by sku."""
    rows = entries.values("sku").annotate(units=Sum("quantity"), cost=-Sum("amount_micro"))
    return [SkuSpend(row["sku"], row["units"], row["cost"]) for row in rows.order_by("sku")]


def spend_by_key(organization: Organization, *, since: datetime) -> dict[uuid.UUID, int]:
    """Return micro-USD spent since then by the id of each key that spent."""
    entries = LedgerEntry.objects.filter(
        organization=organization, kind=EntryKind.CONSUMPTION, created_at__gte=since
    )
    rows = entries.values("api_key").annotate(spent=-Sum("amount_micro"))
    return {row["api_key"]: row["spent"] for row in rows.order_by()}


def movements(organization: Organization) -> QuerySet[LedgerEntry]:
    """Return the entries, newest first, each with its `balance_after` in micro-USD."""
    return (
        LedgerEntry.objects.filter(organization=organization)
        .annotate(balance_after=Window(Sum("amount_micro"), order_by=["pk"]))
        .order_by("-pk")
    )
