"""Meters, meter events, adjustments and summaries, after Stripe's documentation.

Not settled facts take the cautious reading: an identifier is taken by any event that was received,
also one that is reported as an error later, and is free again when the window is over, so that a
resend after it counts twice. A 2xx says "received" and no more.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.emulators.stripe.core import (
    DAY,
    HOUR,
    Account,
    Call,
    Obj,
    Params,
    Part,
    StripeError,
    missing,
    route,
)

PAST, FUTURE = 35 * DAY, 300
MAX_DIGITS = 15
SAMPLES = 5
WINDOWS = {"hour": HOUR, "day": DAY}
REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"

ERRORS = {
    "archived_meter": "The meter with event name {name} is inactive.",
    "meter_event_customer_not_found": "No customer found with the ID in the payload.",
    "meter_event_invalid_value": "The value in the payload is not a number.",
    "meter_event_no_customer_defined": "The payload has no customer.",
    "meter_event_value_too_many_digits": "The value has more than 15 significant digits.",
    "no_meter": "No meter found with the event name {name}.",
    "timestamp_in_future": "Timestamp must be no more than 5 minutes in the future.",
    "timestamp_too_far_in_past": "Timestamp must be within the past 35 calendar days.",
}


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """One event as it was received; `error` is the code under which it was dropped later."""

    identifier: str
    event_name: str
    customer: str
    value: Decimal
    timestamp: int
    received: float
    error: str | None = None


def iso(moment: float) -> str:
    """RFC 3339, as the v2 half of the API writes times."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Meters(Part):
    """The meters of the account and everything that was sent to them."""

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self.events: list[MeterEvent] = []
        self.thin: Callable[[str, Obj | None, Obj], None] = lambda *_: None
        self._lanes: set[tuple[str, str]] = set()
        self._taken: dict[str, float] = {}
        self._counting: dict[tuple[str, str], list[MeterEvent]] = defaultdict(list)
        self._cancelled: dict[int, float] = {}
        self._failed: dict[str, list[MeterEvent]] = defaultdict(list)

    @route(
        "POST",
        "/v1/billing/meters",
        "customer_mapping default_aggregation display_name event_name event_time_window"
        " value_settings",
    )
    def create(self, call: Call) -> Obj:
        params = call.params
        event_name = params.need("event_name", 100)
        display_name = params.need("display_name", 250)
        formula = params.nested("default_aggregation")
        if formula is None:
            raise params.absent("default_aggregation")
        formula.need("formula")
        if any(m["event_name"] == event_name for m in self.account.all("billing.meter")):
            text = f"A meter with the event name {event_name} already exists."
            raise params.bad("event_name", text, "resource_already_exists")
        mapping = params.nested("customer_mapping") or Params({})
        values = params.nested("value_settings") or Params({})
        return self.account.add(
            "billing.meter",
            "mtr_test",
            customer_mapping={
                "event_payload_key": mapping.text("event_payload_key") or "stripe_customer_id",
                "type": "by_id",
            },
            default_aggregation={"formula": formula.choice("formula", "sum", "count", "last")},
            display_name=display_name,
            event_name=event_name,
            event_time_window=params.choice("event_time_window", "hour", "day"),
            status="active",
            status_transitions={"deactivated_at": None},
            updated=self.now,
            value_settings={"event_payload_key": values.text("event_payload_key") or "value"},
        )

    @route("GET", "/v1/billing/meters", "status", paged=True)
    def index(self, call: Call) -> Obj:
        status = call.params.choice("status", "active", "inactive")
        rows = [m for m in self.account.all("billing.meter") if status in (None, m["status"])]
        return self.account.page(call, rows)

    @route("GET", "/v1/billing/meters/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("billing.meter", call.id)

    @route("POST", "/v1/billing/meters/{id}", "display_name")
    def update(self, call: Call) -> Obj:
        meter = self.account.get("billing.meter", call.id)
        name = call.params.text("display_name", 250) or meter["display_name"]
        meter.update(display_name=name, updated=self.now)
        return meter

    @route("POST", "/v1/billing/meters/{id}/deactivate")
    def deactivate(self, call: Call) -> Obj:
        return self._switch(call.id, "inactive", self.now)

    @route("POST", "/v1/billing/meters/{id}/reactivate")
    def reactivate(self, call: Call) -> Obj:
        return self._switch(call.id, "active", None)

    def _switch(self, name: str, status: str, since: int | None) -> Obj:
        meter = self.account.get("billing.meter", name)
        if meter["status"] == status:
            raise StripeError(f"This meter is already {status}.")
        meter.update(status=status, updated=self.now)
        meter["status_transitions"] = {"deactivated_at": since}
        return meter

    @contextmanager
    def lane(self, params: Params) -> Iterator[None]:
        """The one call that Stripe lets through per customer and meter at a time."""
        payload, name = params.data.get("payload"), params.data.get("event_name")
        meter = self._meter(str(name))
        key = meter["customer_mapping"]["event_payload_key"] if meter else "stripe_customer_id"
        mine = (str(name), str(payload.get(key)) if isinstance(payload, dict) else "")
        with self.account.lock:
            if mine in self._lanes:
                raise lock_error()
            self._lanes.add(mine)
        try:
            yield
        finally:
            with self.account.lock:
                self._lanes.discard(mine)

    def _meter(self, event_name: str) -> Obj | None:
        meters = self.account.all("billing.meter")
        return next((m for m in meters if m["event_name"] == event_name), None)

    @route("POST", "/v1/billing/meter_events", "event_name identifier payload timestamp")
    def record(self, call: Call) -> Obj:
        params, now = call.params, self.account.clock.time
        event_name = params.need("event_name", 100)
        payload = params.nested("payload")
        if payload is None:
            raise params.absent("payload")
        identifier = params.text("identifier", 100) or self.account.new_id("evt_meter")
        stamp = params.integer("timestamp")
        stamp = self.now if stamp is None else stamp
        meter = self._meter(event_name)
        customer, value, error = self._judge(meter, payload, stamp)
        if error is not None and error in self.account.settings.immediate:
            param = "timestamp" if error.startswith("timestamp") else "payload"
            raise params.bad(param, ERRORS[error].format(name=event_name), error)
        self._claim(identifier, now)
        event = MeterEvent(identifier, event_name, customer, value, stamp, now, error)
        self.events.append(event)
        if error is None:
            self._counting[event_name, customer].append(event)
        else:
            waiting = self._failed[meter["id"] if meter else ""]
            waiting.append(event)
            if len(waiting) == 1:
                self.account.clock.at(now + self.account.settings.report_delay, self.report_errors)
        return {
            "object": "billing.meter_event",
            "created": self.now,
            "event_name": event_name,
            "identifier": identifier,
            "livemode": self.account.livemode,
            "payload": payload.data,
            "timestamp": stamp,
        }

    def _claim(self, identifier: str, now: float) -> None:
        last = self._taken.get(identifier)
        if last is not None and now - last < self.account.settings.identifier_window:
            # As it was observed: no `code`, only these words.
            raise StripeError(
                f"An event already exists with identifier {identifier}.",
                headers={"stripe-should-retry": "false"},
            )
        self._taken[identifier] = now

    def _judge(
        self, meter: Obj | None, payload: Params, stamp: int
    ) -> tuple[str, Decimal, str | None]:
        """Who it is for, how much, and the code of what is wrong with it."""
        who, amount = "stripe_customer_id", "value"
        if meter is not None:
            who = meter["customer_mapping"]["event_payload_key"]
            amount = meter["value_settings"]["event_payload_key"]
        customer, raw = str(payload.data.get(who, "")), str(payload.data.get(amount))
        counted = meter is not None and meter["default_aggregation"]["formula"] == "count"
        good = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", raw)
        value = Decimal(raw) if good else Decimal(0)
        known = self.account.objects.get("customer", {}).get(customer)
        digits = len("".join(map(str, value.normalize().as_tuple().digits)))
        wrong = {
            "timestamp_too_far_in_past": stamp < self.now - PAST,
            "timestamp_in_future": stamp > self.now + FUTURE,
            "meter_event_value_too_many_digits": digits > MAX_DIGITS,
            "no_meter": meter is None,
            "archived_meter": meter is not None and meter["status"] != "active",
            "meter_event_no_customer_defined": not customer,
            "meter_event_customer_not_found": known is None or known.get("deleted", False),
            "meter_event_invalid_value": good is None and not counted,
        }
        return customer, value, next((code for code, so in wrong.items() if so), None)

    def report_errors(self) -> None:
        """Send the thin events about what was received and dropped; the clock does it as well."""
        failed, self._failed = self._failed, defaultdict(list)
        for meter_id, events in failed.items():
            by_code: dict[str, list[MeterEvent]] = defaultdict(list)
            for event in events:
                by_code[str(event.error)].append(event)
            kinds = [
                {
                    "code": code,
                    "error_count": len(group),
                    "sample_errors": [
                        {
                            "error_message": ERRORS[code].format(name=event.event_name),
                            "request": {"identifier": event.identifier},
                        }
                        for event in group[:SAMPLES]
                    ],
                }
                for code, group in by_code.items()
            ]
            count = len(events)
            data = {
                "developer_message_summary": f"There is {count} invalid event"
                if count == 1
                else f"There are {count} invalid events",
                "reason": {"error_count": count, "error_types": kinds},
                "validation_start": iso(events[0].received),
                "validation_end": iso(self.account.clock.time),
            }
            related = {
                "id": meter_id,
                "type": "billing.meter",
                "url": f"/v1/billing/meters/{meter_id}",
            }
            if meter_id:
                self.thin(REPORT, related, data)
            else:
                self.thin(NO_METER, None, data)

    @route("POST", "/v1/billing/meter_event_adjustments", "cancel event_name type")
    def adjust(self, call: Call) -> Obj:
        params, now = call.params, self.account.clock.time
        event_name = params.need("event_name", 100)
        params.need("type")
        params.choice("type", "cancel")
        cancel = params.nested("cancel")
        if cancel is None:
            raise params.absent("cancel")
        identifier = cancel.need("identifier", 100)
        named = [e for e in self.events if (e.event_name, e.identifier) == (event_name, identifier)]
        if not named:
            raise missing("meter_event", identifier, param="cancel[identifier]", status=400)
        if now - named[-1].received > DAY:
            text = "An event can only be cancelled within 24 hours of Stripe receiving it."
            raise cancel.bad("identifier", text)
        self._cancelled.setdefault(id(named[-1]), now)
        return {
            "object": "billing.meter_event_adjustment",
            "cancel": {"identifier": identifier},
            "event_name": event_name,
            "livemode": self.account.livemode,
            "status": "pending",
            "type": "cancel",
        }

    def counted(
        self,
        meter: Obj,
        customer: str,
        start: float,
        end: float,
        *,
        before: float | None = None,
    ) -> list[MeterEvent]:
        """What counts in [start, end), of all that was received and cancelled by `before`."""
        limit = float("inf") if before is None else before
        return [
            event
            for event in self._counting.get((meter["event_name"], customer), ())
            if start <= event.timestamp < end
            and event.received <= limit
            and not self._cancelled.get(id(event), float("inf")) <= limit < float("inf")
        ]

    def aggregate(self, meter: Obj, events: list[MeterEvent]) -> Decimal:
        """The meter's formula over those events."""
        if width := WINDOWS.get(meter["event_time_window"] or ""):
            latest = {event.timestamp // width: event for event in events}
            events = [*latest.values()]
        if meter["default_aggregation"]["formula"] == "count":
            return Decimal(len(events))
        if meter["default_aggregation"]["formula"] == "last":
            return (
                max(events, key=lambda e: (e.timestamp, e.received)).value if events else Decimal(0)
            )
        return sum((event.value for event in events), Decimal(0))

    def total(self, customer: str, event_name: str) -> Decimal:
        """All that counts for the customer now, whenever it was used."""
        meter = self._meter(event_name)
        if meter is None:
            return Decimal(0)
        now = self.account.clock.time
        return self.aggregate(meter, self.counted(meter, customer, 0, 1 << 40, before=now))

    @route(
        "GET",
        "/v1/billing/meters/{id}/event_summaries",
        "customer start_time end_time value_grouping_window",
        paged=True,
    )
    def summaries(self, call: Call) -> Obj:
        params = call.params
        meter = self.account.get("billing.meter", call.id)
        customer = self.account.get("customer", params.need("customer"), "customer")["id"]
        span = {name: params.integer(name) for name in ("start_time", "end_time")}
        window = params.choice("value_grouping_window", "hour", "day")
        step = WINDOWS.get(window or "", 60)
        for name, value in span.items():
            if value is None:
                raise params.absent(name)
            if value % step:
                unit = {60: "minute", HOUR: "hour", DAY: "UTC day"}[step]
                raise params.bad(name, f"{name} must be aligned with {unit} boundaries.")
        start, end = span["start_time"] or 0, span["end_time"] or 0
        if start >= end:
            raise params.bad("end_time", "end_time must be after start_time.")
        seen = self.account.clock.time - self.account.settings.summary_lag
        events = self.counted(meter, customer, start, end, before=seen)
        width = step if window else end - start
        groups: dict[int, list[MeterEvent]] = {} if window else {start: []}
        for event in events:
            first = start + (event.timestamp - start) // width * width
            groups.setdefault(first, []).append(event)
        rows = [
            self._summary(meter, customer, first, width, groups[first]) for first in sorted(groups)
        ]
        return self.account.page(call, rows)

    def _summary(
        self, meter: Obj, customer: str, first: int, width: int, events: list[MeterEvent]
    ) -> Obj:
        return {
            "id": f"mtrusg_test_{meter['id'][-6:]}_{customer[-6:]}_{first}_{width}",
            "object": "billing.meter_event_summary",
            "aggregated_value": float(self.aggregate(meter, events)),
            "end_time": first + width,
            "livemode": self.account.livemode,
            "meter": meter["id"],
            "start_time": first,
        }


def lock_error(**extra: Any) -> StripeError:
    """The limiter that lets one call through per customer and meter."""
    return StripeError(
        "This object cannot be accessed right now because another API request or Stripe process is"
        " currently accessing it.",
        status=429,
        code="lock_timeout",
        headers={"Stripe-Rate-Limited-Reason": "resource-specific"},
        **extra,
    )
