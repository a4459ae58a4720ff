"""Money put on a balance in advance: once by its owner, or by itself whenever little is left.

Stripe takes the money, the ledger tells of it: one entry per PaymentIntent, whoever hears of it
first and however often it is told. Where usage is metered the entry is mirrored as a credit grant,
planned in its transaction; where it is not yet, the opening grant of the subscription has it.
"""

from datetime import UTC, datetime
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from accounts import audit
from accounts.models import Organization, User
from billing.alerts import raising
from billing.models import (
    AccountStatus,
    BillingAccount,
    EntryKind,
    LedgerEntry,
    Notification,
    OperationState,
    StripeOperation,
)
from billing.spending import ledger
from billing.stripe import cards, credits, customers, operations
from billing.stripe.client import Stripe, StripeFailure, plain
from billing.stripe.writes import AUTOMATIC, BY_OWNER, Recharge
from geekhub.lib import money
from geekhub.lib.money import MICRO_PER_CENT

MINIMUM_MICRO = 5_000_000
MAXIMUM_MICRO = 10_000_000_000

# A payment that will come to nothing any more without a person.
ENDED = frozenset({"requires_payment_method", "requires_action", "canceled"})


# What became of an operation: money on the balance, or a word to its owner.
CREDITED = Exists(LedgerEntry.objects.filter(~Q(payment_id=""), payment_id=OuterRef("result")))
TOLD = Exists(Notification.objects.filter(operation=OuterRef("pk")))
UNDER_WAY = ~CREDITED & ~TOLD & ~Q(state=OperationState.DONE, result="")


class RechargeRefused(ValueError):
    """An amount or a rule that is not possible; the message is safe to show."""


def checkout(
    stripe: Stripe,
    organization: Organization,
    micro: int,
    success_url: str,
    cancel_url: str,
    actor: User | None,
    *,
    now: datetime,
) -> str:
    """Return the URL of Stripe's page on which so many micro-USD are paid.

    The card is kept for automatic recharges. Nothing is on the balance before it is paid. Raises
    RechargeRefused for an amount that cannot be paid, or StripeFailure.
    """
    _check_amount(micro)
    customer = customers.ensure(stripe, organization, now=now)
    metadata = {
        "organization": str(organization.pk),
        "micro": str(micro),
        "kind": BY_OWNER,
    }
    session = stripe.call(
        stripe.v1.checkout.sessions.create,
        {
            "mode": "payment",
            "customer": customer,
            "client_reference_id": str(organization.pk),
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": "usd",
                        "unit_amount": micro // MICRO_PER_CENT,
                        "product_data": {"name": "Geek Hub balance"},
                    },
                }
            ],
            "success_url": success_url,
            "cancel_url": cancel_url,
            "metadata": metadata,
            "payment_intent_data": {"setup_future_usage": "off_session", "metadata": metadata},
        },
    )
    audit.record(
        "recharge.begun",
        organization=organization,
        actor=actor,
        subject=session.id,
        amount_usd=money.to_usd(micro),
    )
    return str(session.url)


def completed(stripe: Stripe, session_id: str, *, now: datetime) -> LedgerEntry | None:
    """Put what a Checkout session brought, without tax, on the balance; None if it already was.

    None also for a session that is not paid, or is none of ours. Raises StripeFailure.
    """
    expand = {"expand": ["payment_intent"]}
    session = plain(stripe.call(stripe.v1.checkout.sessions.retrieve, session_id, expand))
    organization = _owner(session)
    if organization is None or session["mode"] != "payment" or session["payment_status"] != "paid":
        return None
    taxes = (session["total_details"] or {}).get("amount_tax") or 0
    intent = session["payment_intent"]
    entry = _credit(
        organization,
        (session["amount_total"] - taxes) * MICRO_PER_CENT,
        intent["id"] if intent else session["id"],
        "Recharge by card",
    )
    if entry is not None and intent and intent["payment_method"]:
        _keep_card(stripe, intent["customer"], intent["payment_method"], now)
    return entry


def succeeded(stripe: Stripe, intent_id: str, *, now: datetime) -> LedgerEntry | None:
    """Put what a PaymentIntent brought on the balance; None as for `completed`.

    What was paid on a page is left to its session, which alone tells the tax.
    """
    intent = plain(stripe.call(stripe.v1.payment_intents.retrieve, intent_id))
    organization = _owner(intent)
    if organization is None or intent["status"] != "succeeded":
        return None
    if intent["metadata"]["kind"] == AUTOMATIC:
        micro = intent["amount_received"] * MICRO_PER_CENT
        return _credit(organization, micro, intent["id"], "Automatic recharge")
    sessions = stripe.call(stripe.v1.checkout.sessions.list, {"payment_intent": intent_id})
    entries = [completed(stripe, session.id, now=now) for session in sessions.data]
    return next((entry for entry in entries if entry), None)


def _owner(paid: dict[str, Any]) -> Organization | None:
    """Return whose money it is: of the organization it names, if its customer is that one's."""
    told = paid["metadata"] or {}
    if told.get("kind") not in (BY_OWNER, AUTOMATIC) or paid["currency"] != "usd":
        return None
    account = BillingAccount.objects.filter(stripe_customer=paid["customer"] or None)
    found = account.select_related("organization").first()
    if found is None or str(found.pk) != told.get("organization"):
        return None
    return found.organization


def _credit(
    organization: Organization, micro: int, stripe_id: str, note: str
) -> LedgerEntry | None:
    key = f"topup:{stripe_id}"
    with transaction.atomic():
        entry = ledger.record(
            organization,
            EntryKind.RECHARGE,
            micro,
            entry_key=key,
            payment_id=stripe_id,
            note=note,
        )
        if entry is not None:
            credits.grant(organization, micro, key=f"grant:{key}", name=note)
    return entry


def _keep_card(stripe: Stripe, customer: str, card: str, now: datetime) -> None:
    """Recharge from this card in future if there is none yet."""
    try:
        cards.mirror(stripe, customer, now=now, offered=card)
    except StripeFailure:
        pass  # the money is there; a card can be given any time


# By itself


def set_automatic(
    organization: Organization,
    below_micro: int,
    amount_micro: int,
    daily_cap_micro: int,
    actor: User | None,
) -> None:
    """Recharge by an amount whenever less than `below_micro` may be spent, so much a UTC day.

    Raises RechargeRefused.
    """
    _check_amount(amount_micro)
    if below_micro < 0:
        raise RechargeRefused("The threshold cannot be negative.")
    if daily_cap_micro < amount_micro:
        raise RechargeRefused("The most of a day cannot be less than one recharge.")
    _set(organization, actor, below_micro, amount_micro, daily_cap_micro)


def stop_automatic(organization: Organization, actor: User | None) -> None:
    """Recharge no more by itself; what Stripe is being asked for already may still come."""
    _set(organization, actor, None, None, None)


def _set(
    organization: Organization,
    actor: User | None,
    below: int | None,
    amount: int | None,
    cap: int | None,
) -> None:
    with transaction.atomic():
        BillingAccount.objects.filter(pk=organization.pk).update(
            recharge_below_micro=below, recharge_amount_micro=amount, recharge_daily_cap_micro=cap
        )
        audit.record(
            "recharge.automatic",
            organization=organization,
            actor=actor,
            below_micro=below,
            amount_micro=amount,
            daily_cap_micro=cap,
        )


def automatic(stripe: Stripe, *, now: datetime) -> int:
    """Recharge the accounts that ask for it; return how many payments came to an end.

    At most one is under way for an organization. Of a declined one it is told, and this card is
    not tried again that day.
    """
    ended = sum(_ended(stripe, operation, now) for operation in _open_operations())
    for account in _low_accounts().select_related("organization").order_by("pk"):
        try:
            operation = _next(stripe, account, now)
            if operation is not None:
                operations.run(stripe, operation, now=now)
                ended += _settle(stripe, operation, now)
        except StripeFailure:
            continue  # its row is tried again, and nobody else waits for it
    return ended


def _ended(stripe: Stripe, operation: StripeOperation, now: datetime) -> bool:
    try:
        return _settle(stripe, operation, now)
    except StripeFailure:
        return False


def _low_accounts() -> QuerySet[BillingAccount]:
    return BillingAccount.objects.filter(
        ~Q(status=AccountStatus.SUSPENDED),
        ~Q(stripe_customer=""),
        balance_micro__lt=F("recharge_below_micro") - F("credit_limit_micro") + F("held_micro"),
    )


def _open_operations() -> QuerySet[StripeOperation]:
    """Return those that Stripe has answered, or refused, and of which nothing became yet."""
    answered = Q(state=OperationState.DONE) & ~Q(result="") | Q(state=OperationState.FAILED)
    rows = StripeOperation.objects.filter(answered, ~CREDITED, ~TOLD, kind="recharge")
    return rows.select_related("organization").order_by("pk")


def _settle(stripe: Stripe, operation: StripeOperation, now: datetime) -> bool:
    """Credit what was paid, or tell what was not; False while Stripe does not know yet."""
    reason = operation.last_error
    if operation.state == OperationState.DONE and operation.result:
        intent = plain(stripe.call(stripe.v1.payment_intents.retrieve, operation.result))
        if intent["status"] not in ENDED:
            return succeeded(stripe, operation.result, now=now) is not None
        reason = (intent["last_payment_error"] or {}).get("message") or intent["status"]
    elif operation.state != OperationState.FAILED:
        return False
    organization = operation.organization
    assert organization is not None
    return raising.raise_alert(
        organization,
        "recharge_failed",
        f"recharge_failed:{operation.key}",
        operation=operation,
        amount_usd=money.to_usd(operation.parameters["micro"]),
        reason=reason,
    )


def _next(stripe: Stripe, low: BillingAccount, now: datetime) -> StripeOperation | None:
    """Plan a recharge unless one is under way, the day's share is used up or the card declined."""
    organization = low.organization
    if not _number(organization, now):
        return None  # asked first, so that Stripe need not be
    card = _default_card(stripe, low.stripe_customer)
    if card is None:
        return None
    with transaction.atomic():
        # Whoever holds the account's row alone plans: the numbers of the day have no gaps.
        BillingAccount.objects.select_for_update().get(pk=organization.pk)
        account = _low_accounts().filter(pk=organization.pk).first()
        number = _number(organization, now)
        if account is None or not number or _declined(organization, card, now):
            return None
        assert account.recharge_amount_micro is not None
        day = _day(now)
        wanted = Recharge(
            customer=account.stripe_customer,
            card=card,
            micro=account.recharge_amount_micro,
            day=day,
        )
        key = f"recharge:{organization.pk}:{day}:{number}"
        return operations.plan("recharge", key, organization=organization, **wanted)


def _planned(organization: Organization) -> QuerySet[StripeOperation]:
    return StripeOperation.objects.filter(organization=organization, kind="recharge")


def _of_today(organization: Organization, now: datetime) -> QuerySet[StripeOperation]:
    return _planned(organization).filter(parameters__day=_day(now))


def _day(now: datetime) -> str:
    return now.astimezone(UTC).date().isoformat()


def _number(organization: Organization, now: datetime) -> int:
    """Return the number of the day's next recharge, from 1; 0 when there is to be none."""
    account = BillingAccount.objects.get(pk=organization.pk)
    amount, cap = account.recharge_amount_micro, account.recharge_daily_cap_micro
    if amount is None or cap is None or _planned(organization).filter(UNDER_WAY).exists():
        return 0
    today = _of_today(organization, now)
    spent = sum(row.parameters["micro"] for row in today.filter(CREDITED))
    return today.count() + 1 if spent + amount <= cap else 0


def _declined(organization: Organization, card: str, now: datetime) -> bool:
    """Return whether this card refused today; another one may be tried at once."""
    return any(row.parameters["card"] == card for row in _of_today(organization, now).filter(TOLD))


def _default_card(stripe: Stripe, customer: str) -> str | None:
    found = plain(stripe.call(stripe.v1.customers.retrieve, customer))
    if found.get("deleted"):
        return None
    card: str | None = found["invoice_settings"]["default_payment_method"]
    return card


def _check_amount(micro: int) -> None:
    if not MINIMUM_MICRO <= micro <= MAXIMUM_MICRO:
        least, most = money.to_usd(MINIMUM_MICRO), money.to_usd(MAXIMUM_MICRO)
        raise RechargeRefused(f"A recharge is between ${least} and ${most}.")
    if micro % MICRO_PER_CENT:
        raise RechargeRefused("A recharge is a whole number of cents.")
