"""What a page knows about its viewer: the client's address and the time zone."""

import zoneinfo
from collections.abc import Callable
from datetime import UTC, tzinfo

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from accounts import audit
from geekhub.lib import addresses

COOKIE = "timezone"


def viewer(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[..., HttpResponse]:
    """Let the audit log know the client's address, and templates show the viewer's own time."""

    def respond(request: HttpRequest) -> HttpResponse:
        address = addresses.of(request, settings.TRUSTED_PROXIES)
        zone = _zone(request.COOKIES.get(COOKIE, ""))
        with audit.coming_from(address), timezone.override(zone):
            return get_response(request)

    return respond


def _zone(name: str) -> tzinfo:
    # The browser's own name for it, set by static/page.js; anybody can write anything there.
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return UTC
