"""What answers say of the limits."""

from images.drawing.limits import Admission


def headers(admission: Admission) -> dict[str, str]:
    """Return what OpenAI's SDKs and their users expect to see of the limit."""
    return {
        "x-ratelimit-limit-requests": str(admission.caller.rpm),
        "x-ratelimit-remaining-requests": str(admission.remaining),
    }
