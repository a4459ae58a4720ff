"""Where usage is counted and billed: the promise, and Stripe's billing meters."""

import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from django.conf import settings

from billing.models import MeterEvent
from billing.stripe.client import Stripe, StripeRefused

SANDBOX_RATE, LIVE_RATE = 20.0, 200.0
ALREADY_COUNTED = "already exists with identifier"


class MeterSink(Protocol):
    """Where usage is counted and billed."""

    def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
        """Count an event once per identifier; returns also when it was counted before.

        Raises StripeUnknown, StripeBusy or StripeRefused.
        """

    def total(self, customer: str, meter: str, start: datetime, end: datetime) -> int:
        """Return what is counted from start up to end, both whole minutes; raises StripeFailure."""


class _Bucket:
    """A place in line for each call, `1 / rate` seconds apart, for all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, rate: float) -> None:
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 1 / rate
        time.sleep(max(0.0, turn - time.monotonic()))


_bucket = _Bucket()


@dataclass(frozen=True, slots=True)
class StripeSink:
    """Stripe's billing meters, at no more than `STRIPE_METER_RATE` calls a second."""

    stripe: Stripe

    def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
        """See MeterSink."""
        self._take_turn()
        try:
            self.stripe.call(
                self.stripe.v1.billing.meter_events.create,
                {
                    "event_name": event_name,
                    "identifier": event.identifier,
                    "timestamp": int(event.timestamp.timestamp()),
                    "payload": {"stripe_customer_id": customer, "value": str(event.quantity)},
                },
                # New for each attempt: Stripe would replay the 500 it answered to an old one. That
                # it counts once is the identifier's doing.
                key=f"{event.identifier}:{event.attempts}",
            )
        except StripeRefused as refusal:
            # Stripe has no code for this, only these words.
            if ALREADY_COUNTED not in str(refusal):
                raise

    def total(self, customer: str, meter: str, start: datetime, end: datetime) -> int:
        """See MeterSink."""
        self._take_turn()
        found = self.stripe.call(
            self.stripe.v1.billing.meters.event_summaries.list,
            meter,
            {
                "customer": customer,
                "start_time": int(start.timestamp()),
                "end_time": int(end.timestamp()),
            },
        )
        # Without a grouping window there is one sum. It is a float, and exact up to 2^53.
        return sum(round(row.aggregated_value) for row in found.data)

    def _take_turn(self) -> None:
        usual = LIVE_RATE if self.stripe.livemode else SANDBOX_RATE
        _bucket.wait(settings.STRIPE_METER_RATE or usual)
