"""What went wrong, in plain words: the codes of docs/errors.md for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

from accounts.keys import KeyRefused
from billing.spending.budgets import BudgetExceeded
from billing.spending.holds import AccountSuspended, InsufficientBalance
from billing.spending.prices import UnknownPrice
from geekhub.lib import db
from images.drawing.limits import RateLimited
from images.drawing.repeats import IdempotencyKeyReused
from images.drawing.routing import ModelBlocked, ModelNotFound, ModelOff, ModelUnfit
from images.policies.guardrails import Blocked

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

ERRORS: Mapping[str, "StrPromise"] = {
    "invalid_request_error": _("The model cannot generate this request."),
    "content_policy_violation": _("The provider refused the prompt or the image."),
    "insufficient_balance": _("Not enough balance."),
    "guardrail_blocked": _("A limit does not allow it."),
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


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a model was not let in: for a person, more in English, and whether it is about money."""

    words: "StrPromise"
    detail: str = ""
    is_money: bool = False


def refusal(error: Exception) -> Refused | None:
    """Return why a request was not let in; None when it is a fault of ours."""
    match error:
        # Its text holds the words of our staff.
        case AccountSuspended():
            return Refused(
                _("Your organization is suspended, so no images can be generated."), is_money=True
            )
        case InsufficientBalance():
            return Refused(explain("insufficient_balance"), is_money=True)
        case KeyRefused() | Blocked() | BudgetExceeded() | ModelBlocked():
            return Refused(explain("guardrail_blocked"), str(error))
        case ModelUnfit():
            return Refused(explain("invalid_request_error"), str(error))
        case ModelNotFound():
            return Refused(explain("model_not_found"), str(error))
        case UnknownPrice():
            return Refused(explain("model_not_found"))
        case ModelOff():
            return Refused(explain("provider_unavailable"), str(error))
        case RateLimited():
            return Refused(explain("rate_limit_exceeded"), str(error))
        case IdempotencyKeyReused():
            return Refused(explain("idempotency_key_reused"))
        case _ if db.is_away(error):
            return Refused(explain("service_unavailable"))
        case _:
            return None
