"""Meter events are sent, lane by lane, until Stripe has them."""

import itertools
import logging
import math
import queue
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import Exists, OuterRef

from billing.metering.carry import NoInvoice, NotYet, carried_timestamp
from billing.metering.doubt import put_in_doubt
from billing.metering.events import PAUSE, UNKNOWN, change, lane_of
from billing.metering.sink import MeterSink
from billing.models import MeterEvent, MeterState
from billing.stripe.client import StripeBusy, StripeFailure, StripeRefused, StripeUnknown

log = logging.getLogger("geekhub.billing")
# Longer than a round and its last call take (`billing.stripe.client`), so that two do not send one
# event at once.
LEASE = timedelta(minutes=2)
# Stripe forgets an identifier after "at least 24 hours"; nothing is resent that late unasked.
HORIZON = timedelta(hours=20)
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(minutes=5)
# One round of the sender: other jobs wait for its end.
EVENTS, SECONDS, THREADS, BATCH = 1000, 30.0, 4, 20
# Refusals that are about our key, not about the event.
OF_THE_KEY = (401, 403)


def send_due(
    sink: MeterSink, *, now: datetime, threads: int = THREADS, seconds: float = SECONDS
) -> int:
    """Send what is due, lane by lane; return how many were accepted.

    No call begins after `seconds`. The caller waits so long, and for the last calls.

    Events are claimed and that is committed before they are sent, so a crash at any point leaves
    rows that say they may have been. Any number of senders may run. The threads have connections
    of their own, which see what is committed.
    """
    lanes = _due(now)
    size = max(1, min(BATCH, math.ceil(len(lanes) / threads)))
    batches: queue.SimpleQueue[list[list[MeterEvent]]] = queue.SimpleQueue()
    for batch in itertools.batched(lanes, size):
        batches.put(list(batch))
    round_ = _Round(sink, now, batches, time.monotonic(), seconds)
    with ThreadPoolExecutor(threads, thread_name_prefix="metering") as pool:
        workers = [pool.submit(round_.work) for _ in range(min(threads, batches.qsize()))]
    return sum(worker.result() for worker in workers)


def _due(now: datetime) -> list[list[MeterEvent]]:
    """Return what can be sent now by lane: what was sent and not answered first."""
    events = MeterEvent.objects.select_related("organization__billing_account", "price_version")
    again = events.filter(state=MeterState.SENDING, lease_until__lte=now).order_by("lease_until")
    taken = MeterEvent.objects.filter(
        organization=OuterRef("organization"),
        price_version=OuterRef("price_version"),
        state__in=UNKNOWN,
    )
    # Those frozen at one moment are sent in the order they were written, not as the disk has them.
    new = events.filter(~Exists(taken), state=MeterState.PENDING, next_at__lte=now).order_by(
        "next_at", "timestamp", "created_at"
    )
    lanes: dict[tuple[uuid.UUID, int], list[MeterEvent]] = {}
    for event in itertools.islice(itertools.chain(again[:EVENTS], new[:EVENTS]), EVENTS):
        lanes.setdefault(lane_of(event), []).append(event)
    # Always in the same order: two senders that claim many lanes at once wait for each other and
    # never in a circle.
    return [lanes[key] for key in sorted(lanes)]


@dataclass(frozen=True, slots=True)
class _Round:
    """One round of the sender, shared by its threads. A batch is some lanes, each a list."""

    sink: MeterSink
    began_at: datetime
    batches: queue.SimpleQueue[list[list[MeterEvent]]]
    began: float
    seconds: float

    def work(self) -> int:
        """Send batch after batch; return how many events were accepted."""
        accepted = 0
        try:
            while True:
                batch = self.batches.get_nowait()
                try:
                    accepted += self._send_batch(batch)
                except Exception:
                    log.exception("a batch of meter events failed")
                    connection.close()
        except queue.Empty:
            return accepted
        finally:
            connection.close()

    def _send_batch(self, lanes: list[list[MeterEvent]]) -> int:
        """Send the lanes event by event, the first of all, then the second, and so on.

        One commit claims the events of many lanes and one acknowledges them: a commit waits for
        the disk, which costs more than all else.
        """
        accepted = 0
        while lanes and not self._is_over():
            claimed = self._claim([lane[0] for lane in lanes])
            done = [event for event, again in claimed if self._send(event, again=again)]
            # Whichever attempt says so, it is counted; that is never taken back.
            MeterEvent.objects.filter(
                pk__in=[event.pk for event in done], state__in=UNKNOWN
            ).update(
                state=MeterState.ACCEPTED, accepted_at=self._now(), lease_until=None, last_error=""
            )
            accepted += len(done)
            free = {lane_of(event) for event in done}
            lanes = [lane[1:] for lane in lanes if lane[1:] and lane_of(lane[0]) in free]
        return accepted

    def _is_over(self) -> bool:
        return time.monotonic() - self.began > self.seconds

    def _now(self) -> datetime:
        return self.began_at + timedelta(seconds=time.monotonic() - self.began)

    def _claim(self, events: list[MeterEvent]) -> list[tuple[MeterEvent, bool]]:
        """Claim events of different lanes; return those that are ours to send now.

        Each with whether it may have been counted before.
        """
        plans = [(event, changes) for event in events if (changes := self._claiming(event))]
        claimed = []
        with transaction.atomic():
            for event, changes in plans:
                again = event.state == MeterState.SENDING
                try:
                    with transaction.atomic():
                        if change(event, **changes):
                            claimed.append((event, again))
                except IntegrityError:
                    continue  # the lane was taken meanwhile
        return claimed

    def _claiming(self, event: MeterEvent) -> dict[str, Any]:
        """Return what a claim of the event writes; nothing if it cannot be sent now."""
        now = self._now()
        claim = {"attempts": event.attempts + 1, "lease_until": now + LEASE}
        if event.state == MeterState.SENDING:
            if event.first_attempt_at is None or event.first_attempt_at <= now - HORIZON:
                put_in_doubt(event, now, event.last_error)
                return {}
            return claim
        try:
            timestamp = carried_timestamp(event, self.began_at)
        except NotYet as reason:
            change(event, next_at=now + PAUSE, last_error=str(reason))
            return {}
        except NoInvoice as reason:
            log.error("no invoice will carry %s: %s", event.identifier, reason)
            change(event, state=MeterState.UNBILLED, last_error=str(reason))
            return {}
        except Exception:
            log.exception("metering of %s failed", event.organization_id)
            return {}
        moved: dict[str, Any] = {}
        if timestamp != event.timestamp:
            moved = {"timestamp": timestamp, "restamped_from": event.timestamp}
        if timestamp > now:
            # An item that is newer than our clock says; Stripe would call that its future.
            change(event, **moved, next_at=timestamp)
            return {}
        return {**claim, **moved, "state": MeterState.SENDING, "first_attempt_at": now}

    def _send(self, event: MeterEvent, *, again: bool) -> bool:
        """Send a claimed event; return whether it is counted, and write down what else became."""
        if self._is_over():
            return False  # it is sent when its lease is over
        try:
            self.sink.send(
                event,
                customer=event.organization.billing_account.stripe_customer,
                event_name=event.price_version.event_name,
            )
        except StripeUnknown as error:
            change(event, last_error=str(error)[:500])
        except StripeBusy as error:
            self._wait(event, error, again=again)
        except StripeRefused as refusal:
            if refusal.status in OF_THE_KEY:
                log.error("Stripe refuses our key: %s", refusal)
                self._wait(event, refusal, again=again)
            elif again:
                # It may have been counted by an earlier attempt, which this answer does not tell.
                put_in_doubt(event, self._now(), str(refusal))
            else:
                log.error("Stripe rejects %s: %s", event.identifier, refusal)
                change(event, state=MeterState.REJECTED, last_error=str(refusal)[:500])
        except Exception:
            log.exception("metering of %s failed", event.organization_id)
        else:
            return True
        return False

    def _wait(self, event: MeterEvent, error: StripeFailure, *, again: bool) -> None:
        """Try an event later that this attempt did not count; an earlier attempt may have."""
        longest = min(FIRST_BACKOFF * 2 ** min(event.attempts, 20), LONGEST_BACKOFF)
        later = self._now() + longest * random.uniform(0.5, 1)
        if again:
            change(event, lease_until=later, last_error=str(error)[:500])
            return
        change(
            event,
            state=MeterState.PENDING,
            first_attempt_at=None,
            lease_until=None,
            next_at=later,
            last_error=str(error)[:500],
        )
