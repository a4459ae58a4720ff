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
    "organization.handed_over": _("Handed the organization over"),
    "member.invited": _("Invited somebody"),
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
    "pictures.deleted": _("Deleted pictures"),
    "retention.changed": _("Changed how long pictures are kept"),
    "budget.set": _("Set a budget"),
    "budget.removed": _("Removed a budget"),
    "recharge.begun": _("Began a recharge"),
    "recharge.automatic": _("Changed the automatic recharge"),
    "billing.card_begun": _("Went to give a card"),
    "billing.portal_opened": _("Opened Stripe's portal"),
    "alerts.warning_set": _("Changed the warning of a low balance"),
    "alerts.endpoint_set": _("Set where alerts are sent"),
    "alerts.endpoint_removed": _("Removed where alerts were sent"),
    "balance.refund": _("Gave money back"),
    "balance.adjustment": _("Corrected the balance"),
    "account.ok": _("Resumed the organization"),
    "account.grace": _("Began a grace period"),
    "account.suspended": _("Suspended the organization"),
    "billing.difference_accepted": _("Accepted a difference"),
    "account.rate_limits_changed": _("Changed the rate limits"),
    "account.credit_limit_changed": _("Changed the credit limit"),
    "staff.view_started": _("Staff began to look at the pages, read-only"),
    "staff.view_stopped": _("Staff stopped looking at the pages"),
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
