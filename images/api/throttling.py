"""The limits of a key and its organization, as DRF sees them and as answers report them."""

from typing import cast

from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from images.api import uploads
from images.api.endpoints import Call
from images.drawing.clock import lease
from images.drawing.limits import Admission


class PlaceForUpload(BaseThrottle):
    """Takes a place before the body is read; raises RateLimited.

    A request whose body is there already takes it in admit(), once the body is found to be right.
    """

    def allow_request(self, request: Request, view: APIView) -> bool:
        call = cast(Call, request)
        longest = lease(seconds_before=uploads.BODY_SECONDS, deadlines=call.sent.deadlines)
        call.place.take(call.key, longest)
        return True


def headers(admission: Admission) -> dict[str, str]:
    """Return what OpenAI's SDKs and their users expect to see of the limit."""
    return {
        "x-ratelimit-limit-requests": str(admission.caller.rpm),
        "x-ratelimit-remaining-requests": str(admission.remaining),
    }
