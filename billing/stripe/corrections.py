"""What staff put right on a balance: refunds and adjustments, each with a ticket and a reason.

Where usage is metered Stripe is told in the same transaction, so that the next invoice comes out
alike: credit for what is given, an item for what is taken. What is given for an invoice that is
final already is a credit note of that invoice instead.
"""

from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction

from accounts import audit
from accounts.models import Organization, User
from billing.models import EntryKind, Invoice, LedgerEntry
from billing.spending import ledger
from billing.stripe import credits, subscriptions
from geekhub.lib import money

TICKET_LENGTH = 100
FINAL = frozenset({"open", "paid"})


class CorrectionRefused(ValueError):
    """A correction that cannot be made as it is; the message is safe to show."""


def refund(
    organization: Organization,
    micro: int,
    reason: str,
    actor: User,
    ticket: str,
    invoice: Invoice | None = None,
) -> LedgerEntry:
    """Give micro-USD back, once per `ticket`, and return the entry; again, the one there is.

    With an `invoice` of the organization that is final it becomes a credit note of it. Raises
    PermissionDenied for whoever is not staff, or CorrectionRefused.
    """
    if micro <= 0:
        raise CorrectionRefused("A refund is more than nothing.")
    if invoice is not None:
        _check_invoice(organization, invoice, micro)
    return _correct(organization, EntryKind.REFUND, micro, reason, actor, ticket, invoice)


def adjust(
    organization: Organization, micro: int, reason: str, actor: User, ticket: str
) -> LedgerEntry:
    """Move a balance by micro-USD, up or down; otherwise as `refund`."""
    if micro == 0:
        raise CorrectionRefused("An adjustment by nothing changes nothing.")
    return _correct(organization, EntryKind.ADJUSTMENT, micro, reason, actor, ticket, None)


def _correct(
    organization: Organization,
    kind: EntryKind,
    micro: int,
    reason: str,
    actor: User,
    ticket: str,
    invoice: Invoice | None,
) -> LedgerEntry:
    if not (actor.is_active and actor.is_staff):
        raise PermissionDenied("Only staff correct a balance.")
    reason, ticket = reason.strip(), ticket.strip()
    if not reason or not 0 < len(ticket) <= TICKET_LENGTH:
        raise CorrectionRefused("A correction has a reason and a ticket.")
    key = f"{'refund' if kind == EntryKind.REFUND else 'adj'}:{ticket}"
    try:
        with transaction.atomic():
            entry = ledger.record(organization, kind, micro, entry_key=key, note=reason[:200])
            if entry is None:
                return _same(organization, micro, key)
            _mirror(organization, micro, key, reason, invoice)
            audit.record(
                f"balance.{kind}",
                organization=organization,
                actor=actor,
                subject=ticket[:200],
                amount_usd=money.to_usd(micro),
                reason=reason,
                invoice=invoice.stripe_id if invoice else None,
            )
    except IntegrityError:
        # Of two organizations at once one gets the ticket; in one, its account's row decides.
        if not LedgerEntry.objects.filter(entry_key=key).exists():
            raise
        return _same(organization, micro, key)
    return entry


def _same(organization: Organization, micro: int, key: str) -> LedgerEntry:
    entry = LedgerEntry.objects.get(entry_key=key)
    if (entry.organization_id, entry.amount_micro) != (organization.pk, micro):
        raise CorrectionRefused(f"The ticket of {key} was used for something else.")
    return entry


def _mirror(
    organization: Organization, micro: int, key: str, reason: str, invoice: Invoice | None
) -> None:
    if invoice is not None:
        credits.credit_note(
            organization, invoice.stripe_id, micro, key=f"credit_note:{key}", memo=reason
        )
    elif micro > 0:
        credits.grant(organization, micro, key=f"grant:{key}", name=reason, category="promotional")
    elif subscription := subscriptions.live(organization):
        credits.charge(
            organization,
            -micro,
            key=f"invoice_item:{key}",
            description=reason,
            subscription=subscription.stripe_id,
        )


def _check_invoice(organization: Organization, invoice: Invoice, micro: int) -> None:
    if invoice.organization_id != organization.pk:
        raise CorrectionRefused("The invoice is another organization's.")
    if invoice.status not in FINAL:
        raise CorrectionRefused("There is no credit note for an invoice that is not final.")
    if not 0 < credits.cents(micro) <= invoice.total_cents:
        raise CorrectionRefused("A credit note is between a cent and what the invoice asks for.")
