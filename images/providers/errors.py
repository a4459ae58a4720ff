"""What went wrong at a provider, in the public API's terms."""

import logging
import re
from typing import Literal

import httpx

from geekhub.lib import foreign

log = logging.getLogger(__name__)
REFUSAL = "content_policy_violation"
MAX_DETAIL = 1000
# How a provider may name a field of ours.
PARAM = re.compile(r"[A-Za-z_][\w.\[\]-]{0,63}", re.ASCII)
type Stage = Literal["prompt", "output", "provider"]


class ProviderError(Exception):
    """A provider did not draw.

    `code` is one of the public API's: `content_policy_violation`, `invalid_request_error`,
    `model_not_found` or `provider_unavailable` (the sandbox simulates others too).
    `message` may be shown to a customer, `detail` (what the upstream said) only to an operator.
    `retryable`: the same call may succeed soon. `charged`: the upstream may bill it anyway, so
    it is never repeated. `account`: the cause is our account there, and every call will fail.
    `retry_after`: seconds the upstream asks us to wait.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        charged: bool = False,
        stage: Stage | None = None,
        param: str | None = None,
        account: bool = False,
        retry_after: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.charged = charged
        self.stage: Stage | None = stage
        self.param = param
        self.account = account
        self.retry_after = retry_after
        self.detail = foreign.text(detail, MAX_DETAIL)

    @property
    def refused(self) -> bool:
        """Return whether a content policy is the reason."""
        return self.code == REFUSAL


def refused(stage: Stage, *, charged: bool = False, detail: str = "") -> ProviderError:
    """Return the error for a refusal: of the prompt, of the picture, or of one or the other."""
    what = {"prompt": "prompt", "output": "image", "provider": "prompt or image"}[stage]
    return ProviderError(
        REFUSAL,
        f"The provider's content policy does not allow this {what}.",
        stage=stage,
        charged=charged,
        detail=detail,
    )


def unavailable(
    *,
    retryable: bool = False,
    charged: bool = False,
    account: bool = False,
    retry_after: float | None = None,
    detail: str = "",
) -> ProviderError:
    """Return the error for a provider that is down, overloaded, too slow or unintelligible."""
    return ProviderError(
        "provider_unavailable",
        "The provider did not deliver. Try again, or name another model as a fallback.",
        retryable=retryable,
        charged=charged,
        account=account,
        retry_after=retry_after,
        detail=detail,
    )


def rejected(param: object = None, *, detail: str = "") -> ProviderError:
    """Return the error for a value that the provider does not accept.

    `param` is the provider's name for the field, shown only if it can be one.
    """
    param = param if isinstance(param, str) and PARAM.fullmatch(param) else None
    what = f"this value of {param!r}" if param else "this request"
    return ProviderError(
        "invalid_request_error",
        f"The provider does not accept {what}.",
        param=param,
        detail=detail,
    )


def gone(*, detail: str = "") -> ProviderError:
    """Return the error for a model that the provider no longer serves."""
    return ProviderError(
        "model_not_found", "The provider no longer serves this model.", detail=detail
    )


def understood(error: Exception) -> ProviderError:
    """Return what ended a call as a ProviderError.

    Whatever else is raised comes from an answer that nobody thought of. The picture may have been
    drawn, and the next candidate can still be asked.
    """
    if isinstance(error, ProviderError):
        return error
    log.error("an answer was not understood", exc_info=error)
    return unavailable(charged=True, detail=f"{type(error).__name__}: {error}")


def lost(error: httpx.HTTPError) -> ProviderError:
    """Return the error for a call without an answer: only if it was never sent is it safe again."""
    unsent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
    return unavailable(
        retryable=unsent, charged=not unsent, detail=f"{type(error).__name__}: {error}"
    )
