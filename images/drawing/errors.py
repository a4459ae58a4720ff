"""What can end a request without pictures, beside a provider's own errors."""

from images.drawing import routing
from images.drawing.started import Attempt
from images.providers.errors import REFUSAL

# The codes of the public API that the row of a failed request may have.
ENDINGS = (
    REFUSAL,
    "guardrail_blocked",
    "insufficient_balance",
    "internal_error",
    "invalid_request_error",
    "model_not_found",
    "provider_unavailable",
    "rate_limit_exceeded",
    "service_unavailable",
)


class AllCandidatesFailed(Exception):
    """Every model of a list was tried or left out."""

    def __init__(
        self, attempts: list[Attempt], skipped: list[routing.Skipped], *, charged: bool
    ) -> None:
        super().__init__("; ".join(f"{one.model}: {one.error}" for one in attempts))
        self.attempts = attempts
        self.skipped = skipped
        self.charged = charged


class StoreFailed(Exception):
    """The pictures came but could not be kept, or not be charged; nothing is charged."""


class OutcomeUnknown(Exception):
    """The database broke while a result was written, and cannot say yet which.

    The request is settled when its lease is over, as one of a dead process is.
    """
