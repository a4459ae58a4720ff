"""Metering: consumption in the ledger becomes meter events, sent until Stripe has them.

    pending -> sending -> accepted -> confirmed      what goes well; reconciliation confirms
    sending -> pending                               Stripe was busy: it was not counted
    sending -> sending                               nobody knows: the same again after the lease
    sending -> uncertain -> accepted | pending       too old to ask by sending; Stripe's sums decide
    sending -> rejected, pending -> unbilled         a person is needed

A lane is one organization and one price version. At most one event of a lane may have an unknown
outcome, which the database keeps (`one_unknown_per_lane`): two could not be told apart by sums.
"""

import itertools
import logging
import math
import queue
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Exists, F, OuterRef, Q, Sum
from django.db.models.functions import Greatest

from accounts.models import Organization
from billing.models import (
    BillingAccount,
    EntryKind,
    Invoice,
    LedgerEntry,
    MeteredEntry,
    MeterEvent,
    MeterState,
    Subscription,
)
from billing.stripe_client import Stripe, StripeBusy, StripeFailure, StripeRefused, StripeUnknown
from geekhub.lib.moments import from_epoch, hour_of

__all__ = [
    "COUNTED",
    "IN_FLIGHT",
    "MeterSink",
    "StripeSink",
    "counted",
    "freeze",
    "reissue",
    "resolve_uncertain",
    "send_due",
]

log = logging.getLogger("geekhub.billing")

# Captures of the last minutes of an hour are given time to commit.
RIPE_AFTER = timedelta(minutes=2)
# Each batch keeps the organization's captures waiting while it is frozen.
FREEZE_BATCH = 2000
# Longer than a round and its last call take (`stripe_client`), so that two do not send one event at
# once.
LEASE = timedelta(minutes=2)
# Stripe forgets an identifier after "at least 24 hours"; nothing is resent that late unasked.
HORIZON = timedelta(hours=20)
# How long Stripe's sums, "eventually consistent", are given to hold what was sent last.
SETTLED = timedelta(hours=1)
# Stripe takes timestamps of the past 35 days.
OLDEST = timedelta(days=34)
# How long our copies of a new period's subscription and invoice may be under way. A draft invoice
# stays one for an hour at least, so that waiting loses nothing.
COPIES_LATE = timedelta(minutes=30)
PAUSE = timedelta(minutes=5)
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(minutes=5)
# One round of the sender: other jobs wait for its end.
EVENTS, SECONDS, THREADS, BATCH = 1000, 30.0, 4, 20
SANDBOX_RATE, LIVE_RATE = 20.0, 200.0

UNKNOWN = (MeterState.SENDING, MeterState.UNCERTAIN)
IN_FLIGHT = (MeterState.PENDING, *UNKNOWN)
COUNTED = (MeterState.ACCEPTED, MeterState.CONFIRMED)
HOUR = timedelta(hours=1)
ALREADY_COUNTED = "already exists with identifier"
# Refusals that are about our key, not about the event.
OF_THE_KEY = (401, 403)
FOREVER = datetime.max.replace(tzinfo=UTC)


class MeterSink(Protocol):
    """Where usage is counted and billed."""

    def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
        """Count an event once per identifier; returns also when it was counted before.

        Raises StripeUnknown, StripeBusy or StripeRefused.
        """

    def total(self, customer: str, meter: str, start: datetime, end: datetime) -> int:
        """Return what is counted from start up to end, both whole minutes; raises StripeFailure."""


class NotYet(Exception):
    """An event cannot be sent now, and can be later."""


class NoInvoice(Exception):
    """No invoice will ever carry the event."""


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


# --- From the ledger to meter events ----------------------------------------------------------


def freeze(
    *, now: datetime, organization: Organization | None = None, running_hour: bool = False
) -> int:
    """Put consumption of hours that are over into new meter events; return how many were made.

    Of one organization if it is named, and with `running_hour` all there is, as before a
    cancellation. Entries that come late to an hour make another event of it. Safe to run at once.
    """
    ripe = FOREVER if running_hour else hour_of(now - RIPE_AFTER)
    waiting = LedgerEntry.objects.filter(
        organization=OuterRef("organization"),
        kind=EntryKind.CONSUMPTION,
        pk__gt=Greatest(OuterRef("frozen_through"), OuterRef("metered_from")),
        created_at__lt=ripe,
    )
    accounts = BillingAccount.objects.filter(Exists(waiting), metered_from__isnull=False)
    if organization is not None:
        accounts = accounts.filter(organization=organization)
    made = 0
    for account in accounts.order_by("pk"):
        try:
            while batch := _freeze_batch(account.pk, ripe, now):
                made += batch
        except Exception:
            # It is tried again in the next round; the others do not wait for it.
            log.exception("the consumption of %s was not frozen", account.pk)
    return made


def _freeze_batch(organization_id: uuid.UUID, ripe: datetime, now: datetime) -> int:
    """Freeze the next entries of one organization in one transaction; return how many events.

    Every capture locks the account's row before it writes its entry. So, with the row locked, the
    organization's entries are all there, their ids are in the order of their commits, and none can
    appear below the mark afterwards: a prefix of them is safe to leave behind. If that were ever
    wrong, the primary key of MeteredEntry refuses to put an entry into a second event.
    """
    with transaction.atomic():
        account = BillingAccount.objects.select_for_update().get(pk=organization_id)
        if account.metered_from is None:
            return 0
        entries = LedgerEntry.objects.filter(
            organization=organization_id,
            kind=EntryKind.CONSUMPTION,
            pk__gt=max(account.metered_from, account.frozen_through),
        ).order_by("pk")
        # Up to the first that must wait, and nothing behind it, whatever clocks did in between.
        prefix = list(
            itertools.takewhile(lambda entry: entry.created_at < ripe, entries[:FREEZE_BATCH])
        )
        if not prefix:
            return 0
        groups: dict[tuple[Any, datetime], list[LedgerEntry]] = {}
        for entry in prefix:
            groups.setdefault((entry.price_version_id, hour_of(entry.created_at)), []).append(entry)
        events = [
            MeterEvent(
                identifier=(
                    f"gh1:{organization_id.hex}:{version}:{hour:%y%m%d%H}:{uuid.uuid4().hex[:12]}"
                ),
                organization_id=organization_id,
                price_version_id=version,
                hour=hour,
                quantity=sum(entry.quantity for entry in group),
                # The database's clock may be ahead of ours; Stripe refuses what is in its future.
                timestamp=min(now, max(entry.created_at for entry in group)),
                next_at=now,
            )
            for (version, hour), group in groups.items()
        ]
        MeterEvent.objects.bulk_create(events)
        MeteredEntry.objects.bulk_create(
            MeteredEntry(ledger_entry=entry, meter_event=event)
            for event, group in zip(events, groups.values(), strict=True)
            for entry in group
        )
        account.frozen_through = prefix[-1].pk
        account.save(update_fields=["frozen_through"])
    return len(events)


def reissue(event: MeterEvent, quantity: int, *, now: datetime) -> MeterEvent:
    """Return a new event for what Stripe lost of one, or (negative) counted too often.

    For reconciliation, and for a rejected event whose cause is gone. While one for the same event
    is still on its way it is returned instead: the same shortfall seen twice is one shortfall.
    """
    root = event.reissue_of or event
    with transaction.atomic():
        BillingAccount.objects.select_for_update().get(pk=root.organization_id)
        earlier = MeterEvent.objects.filter(reissue_of=root)
        waiting = earlier.filter(state__in=IN_FLIGHT).first()
        if waiting is not None:
            return waiting
        return MeterEvent.objects.create(
            identifier=f"{root.identifier}:r{earlier.count() + 1}",
            organization_id=root.organization_id,
            price_version_id=root.price_version_id,
            hour=root.hour,
            quantity=quantity,
            timestamp=root.timestamp,
            reissue_of=root,
            next_at=now,
        )


# --- From meter events to Stripe ----------------------------------------------------------------


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
    new = events.filter(~Exists(taken), state=MeterState.PENDING, next_at__lte=now).order_by(
        "next_at", "timestamp"
    )
    lanes: dict[tuple[uuid.UUID, int], list[MeterEvent]] = {}
    for event in itertools.islice(itertools.chain(again[:EVENTS], new[:EVENTS]), EVENTS):
        lanes.setdefault(_lane(event), []).append(event)
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
            free = {_lane(event) for event in done}
            lanes = [lane[1:] for lane in lanes if lane[1:] and _lane(lane[0]) in free]
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
                        if _change(event, **changes):
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
                _doubt(event, now, event.last_error)
                return {}
            return claim
        try:
            timestamp = _carried_timestamp(event, self.began_at)
        except NotYet as reason:
            _change(event, next_at=now + PAUSE, last_error=str(reason))
            return {}
        except NoInvoice as reason:
            log.error("no invoice will carry %s: %s", event.identifier, reason)
            _change(event, state=MeterState.UNBILLED, last_error=str(reason))
            return {}
        except Exception:
            log.exception("metering of %s failed", event.organization_id)
            return {}
        moved: dict[str, Any] = {}
        if timestamp != event.timestamp:
            moved = {"timestamp": timestamp, "restamped_from": event.timestamp}
        if timestamp > now:
            # An item that is newer than our clock says; Stripe would call that its future.
            _change(event, **moved, next_at=timestamp)
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
            _change(event, last_error=str(error)[:500])
        except StripeBusy as error:
            self._wait(event, error, again=again)
        except StripeRefused as refusal:
            if refusal.status in OF_THE_KEY:
                log.error("Stripe refuses our key: %s", refusal)
                self._wait(event, refusal, again=again)
            elif again:
                # It may have been counted by an earlier attempt, which this answer does not tell.
                _doubt(event, self._now(), str(refusal))
            else:
                log.error("Stripe rejects %s: %s", event.identifier, refusal)
                _change(event, state=MeterState.REJECTED, last_error=str(refusal)[:500])
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
            _change(event, lease_until=later, last_error=str(error)[:500])
            return
        _change(
            event,
            state=MeterState.PENDING,
            first_attempt_at=None,
            lease_until=None,
            next_at=later,
            last_error=str(error)[:500],
        )


def _carried_timestamp(event: MeterEvent, now: datetime) -> datetime:
    """Return the timestamp with which an invoice carries the event: its own, or one of now.

    Stripe bills what lies in a period whose invoice is not final and comes after the item was
    added; what does not is moved into the running period, once. Raises NotYet or NoInvoice.
    """
    subscription = (
        Subscription.objects.filter(organization=event.organization_id)
        .order_by(F("ended_at").desc(nulls_first=True))
        .first()
    )
    if subscription is None or not event.organization.billing_account.stripe_customer:
        raise NotYet("there is no subscription")
    running = subscription.ended_at is None
    item = subscription.items.get(event.price_version.stripe_price)
    if item is None:
        if running:
            raise NotYet("the subscription has no item for this price")
        raise NoInvoice("the subscription ended without an item for this price")
    added = from_epoch(item[1])
    sent = event.timestamp.replace(microsecond=0)  # Stripe knows whole seconds
    start, end = subscription.period_start, subscription.period_end
    in_period = running and start <= now < end
    if sent >= added and sent > now - OLDEST:
        if in_period and start <= sent:
            return event.timestamp
        invoices = Invoice.objects.filter(
            organization=event.organization_id,
            billing_reason="subscription_cycle",  # no other takes usage that comes later
            period_start__lte=sent,
            period_end__gt=sent,
        )
        statuses = set(invoices.values_list("status", flat=True))
        if "draft" in statuses:
            return event.timestamp
        turned = start if in_period else (subscription.ended_at or end)
        if not statuses and now < turned + COPIES_LATE:
            raise NotYet("the invoice of its period is not known yet")
    if not running:
        raise NoInvoice("the subscription has ended")
    if not in_period:
        raise NotYet("the running period is not known yet")
    if event.restamped_from is not None:
        raise NoInvoice("it was moved into a later period once before")
    return max(now, added)


# --- What sending again cannot tell --------------------------------------------------------------


def resolve_uncertain(sink: MeterSink, *, now: datetime) -> int:
    """Let Stripe's sums decide about uncertain events; return how many were decided.

    The hour holds what was accepted, with the event or without it; anything else needs a person,
    and the lane waits. One that was not counted is sent again under the same identifier: while
    Stripe remembers it, it cannot be counted twice even if the sums lagged behind; afterwards it is
    as good as a new one. If Stripe remembers it and does not count it, reconciliation finds the
    shortfall.
    """
    uncertain = MeterEvent.objects.filter(state=MeterState.UNCERTAIN, next_at__lte=now)
    decided = 0
    for event in uncertain.select_related("organization__billing_account", "price_version"):
        try:
            decided += _resolve(sink, event, now)
        except StripeFailure as error:
            _change(event, next_at=now + PAUSE, last_error=str(error)[:500])
        except Exception:
            log.exception("whether %s was counted is still unknown", event.identifier)
    return decided


def counted(
    organization_id: uuid.UUID, price_version_id: int, start: datetime, end: datetime
) -> int:
    """Return what Stripe should count in a lane from start up to end, by what it has accepted.

    An event that makes up for an error of Stripe's is no usage of its own, unless it lies in
    another period than what it makes up for.
    """
    lane = MeterEvent.objects.filter(
        organization=organization_id, price_version=price_version_id, state__in=COUNTED
    )
    here = lane.filter(_own_usage(), timestamp__gte=start, timestamp__lt=end)
    elsewhere = lane.filter(
        restamped_from__isnull=False,
        reissue_of__state__in=COUNTED,
        reissue_of__timestamp__gte=start,
        reissue_of__timestamp__lt=end,
    )
    total = Sum("quantity", default=0)
    return int(here.aggregate(sum=total)["sum"] - elsewhere.aggregate(sum=total)["sum"])


def _own_usage() -> Q:
    return Q(reissue_of=None) | ~Q(reissue_of__state__in=COUNTED) | Q(restamped_from__isnull=False)


def _resolve(sink: MeterSink, event: MeterEvent, now: datetime) -> bool:
    start = hour_of(event.timestamp)
    found = sink.total(
        event.organization.billing_account.stripe_customer,
        event.price_version.stripe_meter,
        start,
        start + HOUR,
    )
    counts = MeterEvent.objects.filter(_own_usage(), pk=event.pk).exists()
    expected = counted(event.organization_id, event.price_version_id, start, start + HOUR)
    with_it = expected + (event.quantity if counts else 0)
    if found == with_it:
        return _change(event, state=MeterState.ACCEPTED, accepted_at=now, last_error="")
    if found == with_it - event.quantity:
        return _change(event, state=MeterState.PENDING, first_attempt_at=None, next_at=now)
    log.error(
        "%s may be counted or not: Stripe has %s in its hour, with it there would be %s",
        *(event.identifier, found, with_it),
    )
    _change(
        event,
        next_at=now + SETTLED,
        last_error=f"Stripe counts {found} in its hour, expected {with_it} or "
        f"{with_it - event.quantity}",
    )
    return False


def _doubt(event: MeterEvent, now: datetime, error: str) -> None:
    """Nothing is sent for this event until Stripe's sums have told whether it was counted."""
    _change(
        event,
        state=MeterState.UNCERTAIN,
        lease_until=None,
        next_at=now + SETTLED,
        last_error=error[:500],
    )


def _change(event: MeterEvent, **changes: Any) -> bool:
    """Change a row that is still as we know it, and say whether it was."""
    mine = MeterEvent.objects.filter(pk=event.pk, state=event.state, attempts=event.attempts)
    if not mine.update(**changes):
        return False
    for name, value in changes.items():
        setattr(event, name, value)
    return True


def _lane(event: MeterEvent) -> tuple[uuid.UUID, int]:
    return event.organization_id, event.price_version_id
