"""How much: prices, holds and ledger; what Stripe is told and tells; who is to be warned."""

from billing.models.account import AccountStatus, BillingAccount, BonusClaim
from billing.models.alerts import AlertEndpoint, Notification
from billing.models.budgets import Budget, BudgetPeriod, Period
from billing.models.holds import Hold, HoldState
from billing.models.ledger import EntryKind, LedgerEntry
from billing.models.prices import PriceException, PriceState, PriceVersion
from billing.models.reconciliation import (
    Comparison,
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
    "BonusClaim",
    "Budget",
    "BudgetPeriod",
    "Comparison",
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
