"""Words, codes and statuses of the public API's errors: one table.

The envelope is OpenAI's, `{"error": {"message", "type", "code", "param"}}`, with our `request_id`.
`x-should-retry: false` stops OpenAI's SDKs from repeating what cannot succeed or may cost twice.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import rest_framework.exceptions as drf
import structlog
from django.conf import settings
from django.core.exceptions import SuspiciousOperation, TooManyFieldsSent
from rest_framework.response import Response

from accounts import keys
from billing.spending.budgets import BudgetExceeded
from billing.spending.holds import AccountSuspended, HoldLost, InsufficientBalance
from billing.spending.prices import UnknownPrice
from geekhub.lib import bodies, db
from geekhub.lib.masks import masked
from images.api.requests import ApiRequest
from images.drawing import repeats, routing
from images.drawing.errors import AllCandidatesFailed, OutcomeUnknown, StoreFailed
from images.drawing.limits import RateLimited
from images.drawing.started import Attempt
from images.gallery.deletion import StillRunning
from images.policies.bad_keys import TooManyBadKeys
from images.policies.guardrails import Blocked
from images.providers.errors import REFUSAL, ProviderError
from images.stores.contract import StorageError

log = structlog.get_logger("geekhub.api")

AN_ID = "An id is req_ and 24 hexadecimal digits."


@dataclass(frozen=True, slots=True)
class Row:
    """One code: its HTTP status, OpenAI's `type`, and whether an SDK may repeat the request."""

    status: int
    type: str
    retry: bool | None = None


TABLE: Mapping[str, Row] = {
    "invalid_request_error": Row(400, "invalid_request_error"),
    REFUSAL: Row(400, "image_generation_user_error"),
    "missing_api_key": Row(401, "authentication_error"),
    "invalid_api_key": Row(401, "authentication_error"),
    "key_revoked": Row(401, "authentication_error"),
    "insufficient_balance": Row(402, "insufficient_quota", retry=False),
    "guardrail_blocked": Row(403, "permission_error"),
    "model_not_found": Row(404, "invalid_request_error"),
    "not_found": Row(404, "invalid_request_error"),
    "method_not_allowed": Row(405, "invalid_request_error"),
    "idempotency_key_in_use": Row(409, "idempotency_error", retry=False),
    "images_deleted": Row(410, "invalid_request_error", retry=False),
    "request_too_large": Row(413, "invalid_request_error"),
    "unsupported_media_type": Row(415, "invalid_request_error"),
    "idempotency_key_reused": Row(422, "idempotency_error"),
    "rate_limit_exceeded": Row(429, "rate_limit_error"),
    "internal_error": Row(500, "server_error"),
    "provider_unavailable": Row(502, "server_error"),
    "service_unavailable": Row(503, "server_error", retry=True),
}


@dataclass(slots=True)
class ApiError(Exception):
    """An answer of the table; `extra` joins the error object."""

    code: str
    message: str
    param: str | None = None
    type: str | None = None
    retry: bool | None = None
    headers: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return TABLE[self.code].status

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the envelope."""
        return {
            "error": {
                # What a client put in the wrong place is in logs and mails soon enough.
                "message": masked(self.message),
                "type": self.type or TABLE[self.code].type,
                "code": self.code,
                "param": masked(self.param) if self.param else None,
                "request_id": request_id,
                **self.extra,
            }
        }

    def all_headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        retry = TABLE[self.code].retry if self.retry is None else self.retry
        hint = {} if retry is None else {"x-should-retry": str(retry).lower()}
        if self.status == 401:
            hint["www-authenticate"] = "Bearer"
        return hint | self.headers


def internal() -> ApiError:
    """Return what a client sees of a fault of ours."""
    return ApiError(
        "internal_error",
        "Something went wrong on our side. Nothing was charged. The request_id helps us find it.",
    )


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response:
    """Return the answer to what a view raised; DRF's setting EXCEPTION_HANDLER."""
    request: ApiRequest = context["request"]._request
    answer = answer_to(error, request)
    return Response(
        answer.body(request.request_id), status=answer.status, headers=answer.all_headers()
    )


def answer_to(error: Exception, request: ApiRequest) -> ApiError:
    """Return the API's answer to whatever went wrong with a request; logs a fault of ours."""
    answer = translate(error)
    if answer is None:
        log.error("unhandled", request_id=request.request_id, exc_info=error)
        answer = internal()
    request.log["error"] = answer.code
    return answer


def wrong_method(method: str, allowed: Iterable[str]) -> ApiError:
    """Return the 405 that names the right ones."""
    names = ", ".join(allowed).upper()
    return ApiError(
        "method_not_allowed",
        f"{method} is not allowed here. Allowed: {names}.",
        headers={"allow": names},
    )


def translate(error: Exception) -> ApiError | None:
    """Return the API's answer to an exception; None when it is a fault of ours."""
    match error:
        case ApiError():
            return error
        case keys.InvalidKey():
            return ApiError("invalid_api_key", str(error))
        case keys.RevokedKey():
            return ApiError("key_revoked", str(error))
        case AccountSuspended():
            return ApiError(
                "insufficient_balance",
                f"The organization is suspended{f': {error}' if str(error) else ''}. See its "
                f"billing page: {settings.PUBLIC_URL}/dashboard/billing",
            )
        case InsufficientBalance():
            return ApiError(
                "insufficient_balance",
                "The organization's balance does not cover this request. Recharge it on its "
                f"billing page: {settings.PUBLIC_URL}/dashboard/billing",
            )
        case Blocked():
            return ApiError("guardrail_blocked", str(error), retry=False)
        case BudgetExceeded():
            page = f"{settings.PUBLIC_URL}/dashboard/billing/budgets"
            left = f"{'GET /v1/credits' if error.by_key else page} shows what is left."
            return ApiError("guardrail_blocked", f"{error} {left}", retry=False)
        case routing.ModelBlocked():
            instead = ", ".join(error.allowed) or "no model"
            return ApiError("guardrail_blocked", f"{error} It can use {instead}.", "model")
        case StillRunning():
            return ApiError(
                "invalid_request_error",
                "The request is still running; its images can be deleted once it has finished.",
                "id",
            )
        case routing.ModelNotFound():
            return ApiError("model_not_found", str(error), "model")
        case routing.ModelUnfit():
            return ApiError("invalid_request_error", str(error), error.param)
        case routing.ModelOff():
            # A moment later it is the same: an SDK need not try.
            return ApiError("provider_unavailable", str(error), "model", retry=False)
        case routing.NoCandidate() if error.off:
            return _all_failed([], error.skipped)
        case routing.NoCandidate():
            return ApiError("invalid_request_error", f"No model fits. {error}", error.param)
        case UnknownPrice():
            return ApiError("model_not_found", f"The model {error} has no price yet.", "model")
        case repeats.IdempotencyKeyInUse():
            return ApiError(
                "idempotency_key_in_use",
                "The request this one repeats is still running. Try again later.",
                headers={"retry-after": "2"},
            )
        case repeats.IdempotencyKeyReused():
            return ApiError(
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request body. Use a new one.",
            )
        case repeats.ImagesDeleted():
            return ApiError(
                "images_deleted",
                "This repeats a request whose images have since been deleted. Nothing was "
                "generated or charged. To generate new images, send the request with another "
                "Idempotency-Key or without one.",
            )
        case repeats.NotStoredYet():
            return _away(
                "An image of the request this one repeats is still being stored. Nothing was "
                "charged. Try again in a few seconds."
            )
        case AllCandidatesFailed():
            # Another try would cost us again, or be refused again.
            hopeless = error.charged or all(one.error == REFUSAL for one in error.attempts)
            retry = False if hopeless else None
            return _all_failed(error.attempts, error.skipped, retry=retry)
        # In the next three the provider has been paid: a blind repeat would pay it again.
        case StoreFailed():
            return _away(
                "The images were generated but could not be stored. Nothing was charged. "
                "Try again in a few seconds.",
                retry=False,
            )
        case OutcomeUnknown():
            return _away(
                "Our database did not respond while the request was running. "
                f"GET /v1/generation?id={error} shows the outcome within a few minutes.",
                retry=False,
            )
        case HoldLost():
            return ApiError(
                "internal_error",
                "The images arrived too late to be delivered. Nothing was charged.",
                retry=False,
            )
        case StorageError():
            return _away(
                "Image storage is unavailable at the moment. Nothing was charged. "
                "Try again in a few seconds."
            )
        case RateLimited():
            return _rate_limited(error)
        case TooManyBadKeys():
            whole = math.ceil(error.retry_after)
            return ApiError(
                "rate_limit_exceeded",
                f"Too many invalid API keys came from {error.address or 'your address'}. Send a "
                f"valid key, or wait {whole} s.",
                # The same key will not be a good one then.
                retry=False,
                headers={"retry-after": str(whole), "retry-after-ms": str(whole * 1000)},
            )
        case ProviderError():
            return _provider(error)
        case bodies.BodyTooLarge():
            return ApiError("request_too_large", str(error))
        case bodies.UnknownEncoding():
            taken = {"accept-encoding": "gzip, identity"}
            return ApiError("unsupported_media_type", str(error), headers=taken)
        case bodies.BodyRefused():
            return ApiError("invalid_request_error", str(error))
        case _ if db.is_away(error):
            return _away(
                "Our database is unavailable at the moment. Nothing was charged. "
                "Try again in a few seconds."
            )
        case _:
            return _from_framework(error)


def _away(message: str, *, retry: bool | None = None) -> ApiError:
    headers = {"retry-after": "2", "retry-after-ms": "2000"}
    return ApiError("service_unavailable", message, retry=retry, headers=headers)


def _all_failed(
    attempts: list[Attempt],
    skipped: list[routing.Skipped],
    *,
    retry: bool | None = None,
) -> ApiError:
    failed = "; ".join(f"{one.model}: {one.error}" for one in attempts)
    begin = (
        f"None of the models delivered: {failed}."
        if failed
        else "None of the models is available now."
    )
    tried = [{"model": one.model, "error": one.error} for one in attempts]
    left_out = [{"model": one.model, "reason": one.reason} for one in skipped]
    return ApiError(
        "provider_unavailable",
        f"{begin} {routing.told(skipped)}".strip(),
        type="all_candidates_failed",
        retry=retry,
        extra={"attempts": tried, "skipped": left_out},
    )


def _rate_limited(error: RateLimited) -> ApiError:
    whole = max(1, min(60, round(error.retry_after + 0.5)))
    headers = {"retry-after": str(whole), "retry-after-ms": str(whole * 1000)}
    if error.which == "requests":
        message = f"{error} Wait {whole} s."
        headers |= {
            "x-ratelimit-limit-requests": str(error.limit),
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": f"{whole}s",
        }
    else:
        message = f"{error} Wait until one of them has finished."
    return ApiError("rate_limit_exceeded", message, headers=headers)


def _provider(error: ProviderError) -> ApiError:
    code = error.code if error.code in TABLE else "internal_error"
    answer = ApiError(code, error.message, error.param)
    if error.stage is not None:
        answer.extra["stage"] = error.stage
    if (error.charged or error.account) and code == "provider_unavailable":
        # The picture may have been drawn and billed to us; a blind repeat would draw another.
        answer.retry = False
    if code == "model_not_found":
        answer.param = "model"
    if code == "rate_limit_exceeded":
        wait = max(1, round(error.retry_after or 1))
        answer.headers |= {"retry-after": str(wait), "retry-after-ms": str(wait * 1000)}
    return answer


def _from_framework(error: Exception) -> ApiError | None:
    match error:
        case drf.UnsupportedMediaType():
            # It keeps the type in its text only, between quotes.
            sent = str(error.detail).partition('"')[2].rpartition('"')[0]
            return ApiError(
                "unsupported_media_type",
                f"Unsupported media type {sent[:100]!r}. Send the body as JSON: "
                "Content-Type: application/json.",
            )
        case drf.ParseError():
            return ApiError("invalid_request_error", str(error.detail))
        case TooManyFieldsSent():
            most = settings.DATA_UPLOAD_MAX_NUMBER_FIELDS
            return ApiError(
                "invalid_request_error", f"A request can have at most {most} parameters or parts."
            )
        case SuspiciousOperation():
            return ApiError("invalid_request_error", f"The request could not be read: {error}")
        case _:
            return None
