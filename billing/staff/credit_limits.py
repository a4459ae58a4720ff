"""What staff decide about an account beside its standing and its corrections."""

from django.db import transaction

from accounts import audit
from accounts.models import Organization, User
from billing.models import BillingAccount
from geekhub.lib import money


def change_credit_limit(organization: Organization, micro: int, reason: str, actor: User) -> bool:
    """Let the balance go so many micro-USD below zero; tell whether that is another limit.

    Raises ValueError for a limit below nothing.
    """
    if micro < 0:
        raise ValueError("A credit limit is nothing or more.")
    with transaction.atomic():
        account = BillingAccount.objects.select_for_update().get(organization=organization)
        if account.credit_limit_micro == micro:
            return False
        BillingAccount.objects.filter(pk=account.pk).update(credit_limit_micro=micro)
        audit.record(
            "account.credit_limit_changed",
            organization=organization,
            actor=actor,
            subject=organization.slug,
            before_usd=money.to_usd(account.credit_limit_micro),
            after_usd=money.to_usd(micro),
            reason=reason,
        )
    return True
