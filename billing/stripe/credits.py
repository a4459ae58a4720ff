"""What Stripe knows of a balance beside usage: credit, a debt brought along, credit notes.

The balance of an organization is one number of ours, and Stripe is told only what its next invoices
need to come out alike: a credit grant for what was paid or given in advance, an invoice item for
a debt. While no usage of an organization is metered nothing is told; what stands on the balance
when metering begins is told then, as a whole (`billing.stripe.subscriptions`).

Stripe's amounts are whole cents. Half a cent and more is a cent; what is lost or gained by that is
at most half a cent for each movement, and stays on our balance.
"""

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from accounts.models import Organization
from billing.models import BillingAccount, OperationState, StripeOperation
from billing.stripe import operations
from billing.stripe.client import Stripe, StripeRefused, plain
from billing.stripe.operations import KINDS, Kind
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


def _metadata(operation: StripeOperation) -> dict[str, str]:
    return {"operation": operation.key, "organization": str(operation.organization_id)}


def _ours(rows: Iterable[Any], operation: StripeOperation) -> str | None:
    for row in rows:
        if plain(row.metadata).get("operation") == operation.key:
            return str(row.id)
    return None


def _find_grant(stripe: Stripe, operation: StripeOperation) -> str | None:
    customer = operation.parameters["customer"]
    rows = stripe.each(stripe.v1.billing.credit_grants.list, customer=customer)
    return _ours(rows, operation)


def _make_grant(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    amount = {"currency": "usd", "value": wanted["cents"]}
    made = stripe.call(
        stripe.v1.billing.credit_grants.create,
        {
            "customer": wanted["customer"],
            "amount": {"type": "monetary", "monetary": amount},
            "applicability_config": {"scope": {"price_type": "metered"}},
            "category": wanted["category"],
            "name": wanted["name"],
            "metadata": _metadata(operation),
        },
        key=key,
    )
    return made.id


def _find_item(stripe: Stripe, operation: StripeOperation) -> str | None:
    customer = operation.parameters["customer"]
    return _ours(stripe.each(stripe.v1.invoice_items.list, customer=customer), operation)


def _make_item(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    made = stripe.call(
        stripe.v1.invoice_items.create,
        {
            "customer": wanted["customer"],
            "subscription": wanted["subscription"],
            "amount": wanted["cents"],
            "currency": "usd",
            "description": wanted["description"],
            "metadata": _metadata(operation),
        },
        key=key,
    )
    return made.id


def _find_note(stripe: Stripe, operation: StripeOperation) -> str | None:
    invoice = operation.parameters["invoice"]
    return _ours(stripe.each(stripe.v1.credit_notes.list, invoice=invoice), operation)


def _make_note(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    wanted = operation.parameters
    # Whether it is paid is asked now, since it may have been paid after the note was planned.
    invoice = plain(stripe.call(stripe.v1.invoices.retrieve, wanted["invoice"]))
    to_customer = {"credit_amount": wanted["cents"]} if invoice["status"] == "paid" else {}
    made = stripe.call(
        stripe.v1.credit_notes.create,
        {
            "invoice": wanted["invoice"],
            "amount": wanted["cents"],
            "memo": wanted["memo"],
            "metadata": _metadata(operation),
            **to_customer,
        },
        key=key,
    )
    return made.id


def _make_grant_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    name = str(operation.parameters["object"])
    credit = stripe.call(stripe.v1.billing.credit_grants.retrieve, name)
    if credit.voided_at is None and credit.expires_at is None:
        stripe.call(stripe.v1.billing.credit_grants.expire, name, key=key)
    return name


def _make_item_end(stripe: Stripe, operation: StripeOperation, key: str) -> str:
    name = str(operation.parameters["object"])
    try:
        item = stripe.call(stripe.v1.invoice_items.retrieve, name)
        if item.invoice is None:
            stripe.call(stripe.v1.invoice_items.delete, name, key=key)
    except StripeRefused as error:
        if not error.missing:
            raise
    return name


def _look_again(stripe: Stripe, operation: StripeOperation) -> str | None:
    return None  # making it looks first whether it is made


KINDS["credit_grant"] = Kind(find=_find_grant, make=_make_grant)
KINDS["invoice_item"] = Kind(find=_find_item, make=_make_item)
KINDS["credit_note"] = Kind(find=_find_note, make=_make_note)
KINDS["credit_grant_end"] = Kind(find=_look_again, make=_make_grant_end)
KINDS["invoice_item_end"] = Kind(find=_look_again, make=_make_item_end)
