"""A process that earns money until somebody kills it, which it does itself, at named points.

It reads orders, one JSON line each, and for each forks a child that lives one life: answer the
requests that are not answered, freeze, send. A child that comes to a point of its order throws a
dice and may end by SIGKILL, as in a power cut: nothing is cleaned up. The answer to an order is the
child's wait status. Forking saves each life the start of Python and Django.

The product knows nothing of this. Seams between its functions are here; inside its transactions
they are found by the statements that pass, and inside the HTTP call in the standard library.
"""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.backends.signals import connection_created
from django.db.models import Exists, OuterRef

from accounts.models import ApiKey
from billing.metering import doubt, freeze
from billing.metering.send import send_due
from billing.metering.sink import StripeSink
from billing.models import (
    EntryKind,
    Hold,
    HoldState,
    LedgerEntry,
    MeteredEntry,
    MeterEvent,
    MeterState,
)
from billing.spending import holds, prices
from billing.spending.holds import HoldLost, InsufficientBalance
from billing.stripe.client import connect

AT_REST, ON_ITS_WAY, BROKEN = 0, 3, 1

# Points before or after a statement that looks so.
STATEMENTS = (
    ("settle, in the middle", "before", re.compile('INSERT INTO "billing_ledgerentry"')),
    ("freeze, in the middle", "before", re.compile('INSERT INTO "billing_meteredentry"')),
    (
        "freeze, before the commit",
        "after",
        re.compile('UPDATE "billing_billingaccount" SET "frozen_through"'),
    ),
    (
        "claim, before the commit",
        "after",
        re.compile('UPDATE "billing_meterevent" SET .*"first_attempt_at" = %s'),
    ),
    (
        "acknowledged",
        "after",
        re.compile('UPDATE "billing_meterevent" SET .*"accepted_at" = %s'),
    ),
)
POINTS = (
    *("authorize, before the commit", "authorize, after the commit", "generated"),
    *("settle, before the commit", "settle, after the commit"),
    *("freeze, after the commit", "claim, after the commit"),
    *("send, before the response", "send, after the response"),
    *(name for name, *_ in STATEMENTS),
)


@dataclass(frozen=True, slots=True)
class Order:
    """What a life is for. A request is its id, the key, images asked for and delivered."""

    requests: list[tuple[str, str, int, int]]
    points: list[str]
    probability: float
    seed: str
    now: float
    threads: int
    folder: str


class Life:
    """One child's life."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.now = datetime.fromtimestamp(order.now, UTC)
        self._dice, self._lock = random.Random(order.seed), threading.Lock()
        folder = Path(order.folder)
        self._deaths, self._answers = folder / "deaths", folder / "answers"

    def at(self, point: str) -> None:
        """Die here, perhaps."""
        with self._lock:
            if point not in self.order.points or self._dice.random() >= self.order.probability:
                return
            _append(self._deaths, point)
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self) -> int:
        """Do all there is to do; return whether money is at rest."""
        self._watch()
        sink = Sink(self, StripeSink(connect()))
        answered = self._answers.read_text() if self._answers.exists() else ""
        self._expire({line.split()[0] for line in answered.splitlines()})
        for request in self.order.requests:
            if f"{request[0]} " not in answered:
                try:
                    self._answer(*request)
                except OperationalError as error:
                    # Two that do one request at once can meet in PostgreSQL with the locks of hold
                    # and account; it ends one of them, and nothing of it is there.
                    if "deadlock" not in str(error):
                        raise
                self._meter(sink)
        self._meter(sink)
        doubt.resolve_uncertain(sink, now=self.now)
        return AT_REST if _at_rest() else ON_ITS_WAY

    def _expire(self, answered: set[str]) -> None:
        """Give back what was held for a request that was answered, as the worker does.

        One process is told 402 since another one, which then dies, holds the balance for the very
        same request. Or that one lives, and finds its hold gone.
        """
        for hold in Hold.objects.filter(state=HoldState.HELD, request_id__in=answered):
            with contextlib.suppress(HoldLost), transaction.atomic():
                holds.expire(hold)

    def _meter(self, sink: "Sink") -> None:
        if freeze.freeze(now=self.now, running_hour=True):
            self.at("freeze, after the commit")
        send_due(sink, now=self.now, threads=self.order.threads)

    def _answer(self, request_id: str, key_id: str, quantity: int, delivered: int) -> None:
        """Do one request as generation does it: hold, draw, capture, and only then answer."""
        key = ApiKey.objects.get(pk=key_id)
        hold = Hold.objects.filter(organization=key.organization, request_id=request_id).first()
        if hold is None:
            quotes = list(prices.current(["a/cheap"]).values())
            try:
                with transaction.atomic():
                    hold = holds.authorize(
                        key=key,
                        request_id=request_id,
                        quotes=quotes,
                        quantity=quantity,
                        tags=(),
                        owner=uuid.uuid4(),
                        lease=timedelta(minutes=1),
                    )
                    self.at("authorize, before the commit")
            except InsufficientBalance:
                _append(self._answers, f"{request_id} 402")
                return
            except IntegrityError:  # another process has it as well
                hold = Hold.objects.get(organization=key.organization, request_id=request_id)
            self.at("authorize, after the commit")
        if hold.state == HoldState.HELD:
            self.at("generated")
            try:
                with transaction.atomic():
                    if delivered:
                        holds.capture(hold, sku="a/cheap", delivered=delivered)
                    elif quantity % 2:
                        holds.release(hold)
                    else:
                        holds.expire(hold)
                    self.at("settle, before the commit")
            except HoldLost:
                pass
            self.at("settle, after the commit")
        hold.refresh_from_db()
        _append(self._answers, f"{request_id} {hold.captured}")

    def _watch(self) -> None:
        """Listen to every statement of every connection, and to the wait for Stripe's answers."""

        def listen(
            execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any
        ) -> Any:
            passing = [(name, when) for name, when, pattern in STATEMENTS if pattern.match(sql)]
            for name, when in passing:
                if when == "before":
                    self.at(name)
            result = execute(sql, parameters, many, context)
            for name, when in passing:
                if when == "after":
                    self.at(name)
            return result

        # Kept by a name, since signals do not keep what listens to them.
        self._opened = lambda connection, **_: connection.execute_wrappers.append(listen)
        connection_created.connect(self._opened)
        wait = http.client.HTTPConnection.getresponse

        def getresponse(channel: http.client.HTTPConnection) -> http.client.HTTPResponse:
            self.at("send, before the response")
            return wait(channel)

        http.client.HTTPConnection.getresponse = getresponse  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Sink:
    """Stripe, with a seam on both sides of the call."""

    life: Life
    stripe: StripeSink

    def send(self, event: MeterEvent, *, customer: str, event_name: str) -> None:
        """Send between two points."""
        self.life.at("claim, after the commit")
        self.stripe.send(event, customer=customer, event_name=event_name)
        self.life.at("send, after the response")

    def total(self, customer: str, meter: str, start: datetime, end: datetime) -> int:
        """Ask Stripe."""
        return self.stripe.total(customer, meter, start, end)


def _at_rest() -> bool:
    frozen = MeteredEntry.objects.filter(ledger_entry=OuterRef("pk"))
    waiting = LedgerEntry.objects.filter(~Exists(frozen), kind=EntryKind.CONSUMPTION)
    moving = [MeterState.PENDING, MeterState.SENDING, MeterState.UNCERTAIN]
    return not (
        waiting.exists()
        or MeterEvent.objects.filter(state__in=moving).exists()
        or Hold.objects.filter(state=HoldState.HELD).exists()
    )


def _append(path: Path, line: str) -> None:
    # One write to a file that is opened to append: whole, whoever else writes and dies.
    target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(target, f"{line}\n".encode())
    os.close(target)


def _live(line: str) -> int:
    try:
        return Life(Order(**json.loads(line))).run()
    except BaseException:
        traceback.print_exc()
        return BROKEN


def main() -> None:
    """Serve orders until nobody gives any."""
    for line in sys.stdin:
        connection.close()
        child = os.fork()
        if child == 0:
            os._exit(_live(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
