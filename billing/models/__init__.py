"""How much: prices, holds and ledger; what Stripe is told and tells; who is to be warned."""

from billing.models.alerts import AlertEndpoint, Notification
from billing.models.money import (
    AccountStatus,
    BillingAccount,
    Budget,
    BudgetPeriod,
    EntryKind,
    Hold,
    HoldState,
    LedgerEntry,
    Period,
    PriceException,
    PriceState,
    PriceVersion,
)
from billing.models.reconciliation import (
    Difference,
    DifferenceState,
    LedgerTotal,
    Reconciliation,
)
from billing.models.stripe import (
    Invoice,
    JobRun,
    MeteredEntry,
    MeterEvent,
    MeterState,
    OperationState,
    StripeEvent,
    StripeOperation,
    Subscription,
)

__all__ = [
    "AccountStatus",
    "AlertEndpoint",
    "BillingAccount",
    "Budget",
    "BudgetPeriod",
    "Difference",
    "DifferenceState",
    "EntryKind",
    "Hold",
    "HoldState",
    "Invoice",
    "JobRun",
    "LedgerEntry",
    "LedgerTotal",
    "MeterEvent",
    "MeterState",
    "MeteredEntry",
    "Notification",
    "OperationState",
    "Period",
    "PriceException",
    "PriceState",
    "PriceVersion",
    "Reconciliation",
    "StripeEvent",
    "StripeOperation",
    "Subscription",
]
