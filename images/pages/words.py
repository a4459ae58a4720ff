"""What went wrong, in plain words: the codes of docs/errors.md for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

ERRORS: Mapping[str, "StrPromise"] = {
    "invalid_request_error": _("The model cannot generate this request."),
    "content_policy_violation": _("The provider refused the prompt or the image."),
    "insufficient_balance": _("Not enough balance."),
    "guardrail_blocked": _("The limits of this key do not allow it."),
    "model_not_found": _("The model is not available."),
    "rate_limit_exceeded": _("Too many requests at once. Wait a moment and try again."),
    "service_unavailable": _("Part of our service is unavailable. Try again shortly."),
    "provider_unavailable": _("The provider is down, too slow or not set up. Try another model."),
    "idempotency_key_reused": _("This form was already sent. Reload the page."),
}
OURS = _("Something went wrong on our side. Try again.")


def explain(code: str) -> "StrPromise":
    """Return what an error's code means, for a person."""
    return ERRORS.get(code, OURS)
