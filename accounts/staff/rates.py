"""Rate limits, as staff change them."""

from django.db import transaction

from accounts import audit
from accounts.models import Organization, User


def change_rate_limits(
    organization: Organization,
    rate_limit_rpm: int | None,
    max_in_flight: int | None,
    reason: str,
    actor: User,
) -> bool:
    """Set an organization's own limits (None: the default); return whether they changed."""
    after = {"rate_limit_rpm": rate_limit_rpm, "max_in_flight": max_in_flight}
    with transaction.atomic():
        row = Organization.objects.select_for_update().get(pk=organization.pk)
        before = {name: getattr(row, name) for name in after}
        if before == after:
            return False
        Organization.objects.filter(pk=row.pk).update(**after)
        audit.record(
            "account.rate_limits_changed",
            organization=row,
            actor=actor,
            subject=row.slug,
            before=before,
            after=after,
            reason=reason,
        )
    return True
