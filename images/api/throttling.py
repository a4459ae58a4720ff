"""Requests a minute and requests in flight."""

from django.conf import settings

from accounts.models import ApiKey
from images.drawing.limits import Admission, Caller, Limiter


def enter(limiter: Limiter, key: ApiKey, ticket: str, *, seconds_before: float = 0) -> Admission:
    """Take a place for one request, so many seconds before its deadline begins to count at most.

    Raises RateLimited.
    """
    organization = key.organization
    return limiter.enter(
        Caller(
            key=key.pk,
            organization=organization.pk,
            rpm=organization.rate_limit_rpm or settings.RATE_LIMIT_RPM,
            max_in_flight=organization.max_in_flight or settings.MAX_IN_FLIGHT,
            lease=settings.REQUEST_DEADLINE_SECONDS + seconds_before + 30,
        ),
        ticket,
    )


def headers(admission: Admission) -> dict[str, str]:
    """Return what OpenAI's SDKs and their users expect to see of the limit."""
    return {
        "x-ratelimit-limit-requests": str(admission.caller.rpm),
        "x-ratelimit-remaining-requests": str(admission.remaining),
    }
