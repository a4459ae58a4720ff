"""The audit log."""

from typing import Any

from accounts.models import AuditEvent, Organization, User


def record(
    action: str,
    *,
    organization: Organization | None,
    actor: User | None = None,
    subject: str = "",
    **details: Any,
) -> AuditEvent:
    """Write down that `actor` (None: an operator's command) did `action` to `subject`."""
    return AuditEvent.objects.create(
        action=action, organization=organization, actor=actor, subject=subject, details=details
    )
