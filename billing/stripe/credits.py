"""What Stripe knows of a balance beside usage: credit, a debt brought along, credit notes.

The balance of an organization is one number of ours, and Stripe is told only what its next invoices
need to come out alike: a credit grant for what was paid or given in advance, an invoice item for
a debt. While no usage of an organization is metered nothing is told; what stands on the balance
when metering begins is told then, as a whole (`billing.stripe.subscriptions`).

Stripe's amounts are whole cents. Half a cent and more is a cent; what is lost or gained by that is
at most half a cent for each movement, and stays on our balance.
"""

from decimal import ROUND_HALF_UP, Decimal

from accounts.models import Organization
from billing.models import BillingAccount, OperationState, StripeOperation
from billing.stripe import operations
from geekhub.lib.money import MICRO_PER_CENT

# How what Stripe was told is taken back.
ENDS = {"credit_grant": "credit_grant_end", "invoice_item": "invoice_item_end"}


def cents(micro: int) -> int:
    """Return micro-USD in whole cents, half a cent away from zero."""
    return int((Decimal(micro) / MICRO_PER_CENT).quantize(Decimal(1), ROUND_HALF_UP))


def grant(
    organization: Organization, micro: int, *, key: str, name: str, category: str = "paid"
) -> StripeOperation | None:
    """Plan a credit grant of micro-USD, once per `key`, for the organization's metered usage.

    Call it in the transaction that writes the ledger entry. None is planned, and None returned,
    when it is less than half a cent, or while no usage is metered: the opening grant of the next
    subscription has it then. `category` is Stripe's: paid or promotional.
    """
    account = BillingAccount.objects.select_for_update().get(pk=organization.pk)
    if account.metered_from is None or cents(micro) <= 0:
        return None
    return operations.plan(
        "credit_grant",
        key,
        organization=organization,
        customer=account.stripe_customer,
        cents=cents(micro),
        category=category,
        name=name[:100],
    )


def charge(
    organization: Organization, micro: int, *, key: str, description: str, subscription: str
) -> StripeOperation | None:
    """Plan an item of micro-USD on the subscription's next invoice, once per `key`.

    As `grant`: in the ledger's transaction, and only while usage is metered.
    """
    account = BillingAccount.objects.select_for_update().get(pk=organization.pk)
    if account.metered_from is None or cents(micro) <= 0:
        return None
    return operations.plan(
        "invoice_item",
        key,
        organization=organization,
        customer=account.stripe_customer,
        subscription=subscription,
        cents=cents(micro),
        description=description,
    )


def credit_note(
    organization: Organization, invoice: str, micro: int, *, key: str, memo: str
) -> StripeOperation:
    """Plan a credit note of micro-USD on a final invoice (its Stripe id), once per `key`.

    An open invoice asks for that much less. A paid one leaves it on the customer's balance in
    Stripe, which the next invoice uses up.
    """
    return operations.plan(
        "credit_note",
        key,
        organization=organization,
        invoice=invoice,
        cents=cents(micro),
        memo=memo[:500],
    )


def withdraw(organization: Organization) -> None:
    """Plan the end of all credit and items that Stripe was told before and has not used up.

    For a balance that is about to be told as a whole, in that transaction.
    """
    told = StripeOperation.objects.filter(
        organization=organization, kind__in=ENDS, state=OperationState.DONE
    )
    for operation in told.order_by("pk"):
        operations.plan(
            ENDS[operation.kind],
            f"end:{operation.result}",
            organization=organization,
            object=operation.result,
        )
