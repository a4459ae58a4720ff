"""A request's place among those that its key and its organization may send."""

from datetime import timedelta

from django.conf import settings

from accounts.models import ApiKey
from images.drawing.gateway import Gateway
from images.drawing.limits import Admission, Caller


class Place:
    """Not taken until `take`. The face that made it gives it back when the work is over."""

    def __init__(self, gateway: Gateway, ticket: str) -> None:
        self._gateway = gateway
        self._ticket = ticket
        self._admission: Admission | None = None

    @property
    def admission(self) -> Admission:
        """Return what the limiter said; only of a place that was taken."""
        assert self._admission is not None
        return self._admission

    def take(self, key: ApiKey, lease: timedelta) -> None:
        """Take the place, unless it was taken before; raises RateLimited."""
        if self._admission is not None:
            return
        organization = key.organization
        caller = Caller(
            key=key.pk,
            organization=organization.pk,
            rpm=organization.rate_limit_rpm or settings.RATE_LIMIT_RPM,
            max_in_flight=organization.max_in_flight or settings.MAX_IN_FLIGHT,
            lease=lease.total_seconds(),
        )
        self._admission = self._gateway.limiter.enter(caller, self._ticket)

    def leave(self) -> None:
        """Give it back, from a thread; it may not have been taken."""
        if self._admission is not None:
            self._gateway.limiter.leave(self._admission)

    async def aleave(self) -> None:
        """Give it back, from the event loop; it may not have been taken."""
        if self._admission is not None:
            await self._gateway.leave(self._admission)
