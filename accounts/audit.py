"""The audit log."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _

from accounts.models import AuditEvent, Organization, User

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

LABELS: Mapping[str, "StrPromise"] = {
    "organization.created": _("Created the organization"),
    "organization.changed": _("Changed the organization's settings"),
    "organization.handed_over": _("Transferred ownership"),
    "member.invited": _("Invited a member"),
    "member.uninvited": _("Withdrew an invitation"),
    "member.joined": _("Joined"),
    "member.role_changed": _("Changed a role"),
    "member.removed": _("Removed a member"),
    "member.left": _("Left"),
    "key.created": _("Created a key"),
    "key.rotated": _("Rotated a key"),
    "key.revoked": _("Revoked a key"),
    "key.paused": _("Paused a key"),
    "key.resumed": _("Resumed a key"),
    "pictures.deleted": _("Deleted images"),
    "retention.changed": _("Changed how long images are kept"),
    "budget.set": _("Saved a budget"),
    "budget.removed": _("Removed a budget"),
    "recharge.begun": _("Started a recharge"),
    "recharge.automatic": _("Changed automatic recharge"),
    "billing.card_begun": _("Started adding a card"),
    "billing.portal_opened": _("Opened the Stripe portal"),
    "alerts.warning_set": _("Changed the low-balance warning"),
    "alerts.endpoint_set": _("Set the alert webhook"),
    "alerts.endpoint_removed": _("Removed the alert webhook"),
    "balance.refund": _("Refunded"),
    "balance.adjustment": _("Adjusted the balance"),
    "account.ok": _("Resumed the organization"),
    "account.grace": _("Started a grace period"),
    "account.suspended": _("Suspended the organization"),
    "billing.difference_accepted": _("Accepted a difference"),
    "account.rate_limits_changed": _("Changed the rate limits"),
    "account.credit_limit_changed": _("Changed the credit limit"),
    "staff.view_started": _("Staff opened the customer view (read-only)"),
    "staff.view_stopped": _("Staff closed the customer view"),
}

_address: ContextVar[str] = ContextVar("audit_address", default="")


@contextmanager
def coming_from(address: str) -> Iterator[None]:
    """Let what is recorded inside say that it was done from this IP address; empty: not known."""
    token = _address.set(address)
    try:
        yield
    finally:
        _address.reset(token)


def record(
    action: str,
    *,
    organization: Organization | None,
    actor: User | None = None,
    subject: str = "",
    **details: Any,
) -> AuditEvent:
    """Write down that `actor` (None: a command or a job of ours) did `action` to `subject`."""
    return AuditEvent.objects.create(
        action=action,
        organization=organization,
        actor=actor,
        subject=subject[:200],
        details=details,
        ip=_address.get() or None,
    )
