"""Stripe's billing, on a real socket, with a virtual clock: the emulator for our tests.

It is reached by the unmodified SDK through its base address and plays what Stripe's documentation
says about meters, prices, subscriptions, invoices, credit, Checkout, the portal and webhooks. Not
settled facts take the cautious reading: the one under which a careless client loses money.
"""

import functools
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Self

from tests.emulators.stripe import contract
from tests.emulators.stripe.billing import Billing
from tests.emulators.stripe.catalog import Catalog
from tests.emulators.stripe.checkout import Checkout, Page
from tests.emulators.stripe.clock import Clock, Moment
from tests.emulators.stripe.contract import ContractViolation
from tests.emulators.stripe.core import NUMBERS, Account, Obj, Part, Settings
from tests.emulators.stripe.credits import CreditGrants, CreditNotes
from tests.emulators.stripe.customers import Customers
from tests.emulators.stripe.faults import Fault, Faults
from tests.emulators.stripe.invoices import Invoices
from tests.emulators.stripe.meters import MeterEvent, Meters
from tests.emulators.stripe.payments import Payments
from tests.emulators.stripe.server import Answer, Api, Request, Server
from tests.emulators.stripe.webhooks import Delivery, Webhooks

__all__ = [
    "ContractViolation",
    "Delivery",
    "Fault",
    "MeterEvent",
    "Request",
    "Settings",
    "StripeEmulator",
    "UsageLine",
]


@dataclass(frozen=True, slots=True)
class UsageLine:
    """A quantity Stripe has billed (`invoice` is set, and final or not) or is about to bill."""

    customer: str
    subscription: str
    price: str
    event_name: str
    start: int
    end: int
    quantity: Decimal
    amount: int
    invoice: str | None
    final: bool


class StripeEmulator:
    """One Stripe account. Use it as a context manager, or call `start` and `stop`."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        now: Moment | None = None,
        ticking: bool = False,
        livemode: bool = False,
        check_contract: bool = False,
    ) -> None:
        self.livemode = livemode
        self.key = f"sk_{'live' if livemode else 'test'}_emulated0123456789"
        self.webhook_secret = "whsec_emulated0123456789"
        self.violations: list[str] = []
        self.crashes: list[BaseException] = []
        self._settings, self._now, self._ticking = settings or Settings(), now, ticking
        self._check = check_contract
        if check_contract:
            contract.load()
        self._server: Server | None = None
        self._running = threading.Event()
        self._lock = threading.RLock()
        self._origin = ""
        self._build()

    def _build(self) -> None:
        self.clock = Clock(self._now, self._lock, ticking=self._ticking)
        self._account = account = Account(
            self.clock, self._settings, self.livemode, self._origin, self._lock, NUMBERS
        )
        self.faults = Faults()
        self.webhooks = Webhooks(account, self.webhook_secret)
        self._meters, self._catalog = Meters(account), Catalog(account)
        self._customers, self._payments = Customers(account), Payments(account)
        self._grants, self._notes = CreditGrants(account), CreditNotes(account)
        self._invoices, self._billing = Invoices(account), Billing(account)
        self.checkout = Checkout(account)
        parts: list[Part] = [
            *(self.webhooks, self._meters, self._catalog, self._customers, self._payments),
            *(self._grants, self._notes, self._invoices, self._billing, self.checkout),
        ]
        self._payments.customers = self._grants.customers = self._customers
        self._invoices.catalog, self._invoices.customers = self._catalog, self._customers
        self._invoices.grants, self._invoices.meters = self._grants, self._meters
        self._invoices.payments = self._payments
        self._billing.catalog, self._billing.customers = self._catalog, self._customers
        self._billing.invoices = self._invoices
        self.checkout.billing, self.checkout.catalog = self._billing, self._catalog
        self.checkout.customers, self.checkout.invoices = self._customers, self._invoices
        self.checkout.payments = self._payments
        self._invoices.paid = self._billing.payment_made
        self._invoices.failed = self._billing.payment_failed
        self._invoices.acknowledged = self.webhooks.acknowledged
        self._notes.settle = self._invoices.settle
        self._meters.thin = self.webhooks.emit_thin
        self._api = Api(account, parts, self._meters, self.faults, self.key)

    # Life

    @property
    def url(self) -> str:
        """The address for `base_addresses={"api": url, "meter_events": url}`."""
        return self._origin

    def start(self) -> Self:
        """Bind a port and serve until `stop`."""
        server = self._server = Server(self)
        self._origin = self._account.origin = f"http://127.0.0.1:{server.server_address[1]}"
        self._running.set()
        for work in (functools.partial(server.serve_forever, 0.05), self._deliver):
            threading.Thread(target=work, name="stripe-emulator", daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port and every connection; raises what the contract check found."""
        self._running.clear()
        self.webhooks.woken.set()
        if self._server is not None:
            self._server.close_all()
        self.raise_violations()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reset(self) -> None:
        """A new, empty account with the settings and the time of the beginning."""
        self.raise_violations()
        with self._lock:
            self._build()

    def configure(self, **changes: Any) -> None:
        """Change settings until the next reset."""
        with self._lock:
            self._account.settings = replace(self._account.settings, **changes)

    # The record

    @property
    def settings(self) -> Settings:
        """How the account behaves now."""
        return self._account.settings

    @property
    def requests(self) -> list[Request]:
        """Every call to the API, in order of arrival."""
        with self._lock:
            return list(self._api.requests)

    @property
    def events(self) -> list[Obj]:
        """Every event, snapshot and thin, in the order in which they happened."""
        with self._lock:
            return list(self.webhooks.events)

    @property
    def meter_events(self) -> list[MeterEvent]:
        """Every meter event that was answered with 2xx."""
        with self._lock:
            return list(self._meters.events)

    def objects(self, kind: str) -> list[Obj]:
        """All objects of a kind (`"subscription"`, `"billing.meter"`), as they are answered."""
        with self._lock:
            if kind == "invoice":
                for invoice in self._account.all(kind):
                    self._invoices.refresh(invoice)
            return [self._account.show(obj) for obj in self._account.all(kind)]

    def meter_total(self, customer: str, event_name: str) -> Decimal:
        """All usage of the customer that counts on the meter, without lag and whenever used."""
        with self._lock:
            return self._meters.total(customer, event_name)

    def usage(self, customer: str | None = None, event_name: str | None = None) -> list[UsageLine]:
        """What Stripe has billed and would bill: final invoices, drafts, and the running period."""
        with self._lock:
            lines = [
                self._line(invoice, line)
                for invoice in self.objects("invoice")
                for line in invoice["lines"]["data"]
                if line["subscription"] is not None and line["pricing"] is not None
            ]
            for sub in self._account.all("subscription"):
                if sub["status"] != "canceled":
                    lines += self._running_lines(sub)
        return [
            line
            for line in lines
            if customer in (None, line.customer) and event_name in (None, line.event_name)
        ]

    def _event_name(self, price: str) -> str:
        meter = self._account.get("price", price)["recurring"]["meter"]
        return str(self._account.get("billing.meter", meter)["event_name"])

    def _line(self, invoice: Obj, line: Obj) -> UsageLine:
        price = line["pricing"]["price_details"]["price"]
        return UsageLine(
            invoice["customer"],
            line["subscription"],
            price,
            self._event_name(price),
            line["period"]["start"],
            line["period"]["end"],
            Decimal(line["quantity_decimal"]),
            line["amount"],
            invoice["id"],
            invoice["status"] != "draft",
        )

    def _running_lines(self, sub: Obj) -> list[UsageLine]:
        made = []
        for part in self._invoices.open_parts(sub):
            quantity = self._invoices.usage_of(sub["customer"], part)
            amount = quantity * Decimal(part.price["unit_amount_decimal"])
            made.append(
                UsageLine(
                    sub["customer"],
                    sub["id"],
                    part.price["id"],
                    self._event_name(part.price["id"]),
                    part.start,
                    part.end,
                    quantity,
                    self._invoices.rounded(amount),
                    None,
                    False,
                )
            )
        return made

    # What a test does in the place of people, banks and time

    def set_cards(self, customer: str, decline: str | None) -> None:
        """From now on the customer's cards are declined with that code, or work (None)."""
        with self._lock:
            self._customers.set_outcome(customer, decline)

    def save_card(self, customer: str, number: str = "4242424242424242") -> str:
        """A new default card, as the customer would give it on the portal's page."""
        with self._lock:
            found = self._account.get("customer", customer)
            return str(self.checkout.save_card(found, number)["id"])

    def complete_checkout(self, session: str, number: str = "4242424242424242") -> None:
        """Finish a Checkout session without its page."""
        with self._lock:
            found = self._account.get("checkout.session", session)
            self.checkout.complete(found, number)

    def report_meter_errors(self) -> None:
        """Send the thin events about dropped usage now and not when they are due."""
        with self._lock:
            self._meters.report_errors()

    # The contract

    def raise_violations(self) -> None:
        """Raise what the contract check or the server's thread has found since the last time."""
        crashes, self.crashes = self.crashes, []
        if crashes:
            raise RuntimeError("the Stripe emulator itself failed") from crashes[0]
        found, self.violations = self.violations, []
        if self._check:
            kinds = {event["type"] for event in self.events if event["object"] == "event"}
            found += [text for kind in sorted(kinds) for text in contract.check_event(kind)]
        if found:
            raise ContractViolation("\n".join(dict.fromkeys(found)))

    def note_crash(self) -> None:
        """The server's thread had an exception nobody planned."""
        problem = sys.exception()
        if problem is not None and not isinstance(problem, OSError) and self._running.is_set():
            self.crashes.append(problem)

    # For the server

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer a call to the API."""
        api = self._api
        answer = api.handle(method, target, headers, body)
        if self._check:
            name = answer.headers["Request-Id"]
            row = next(r for r in reversed(api.requests) if r.request_id == name)
            found = contract.check_answer(method, target, answer.status, answer.body)
            if answer.status < 400:
                found += contract.check_request(method, target, row.params)
            self.violations += found
        return answer

    def page(self, method: str, path: str, form: dict[str, str]) -> Page:
        """Answer a browser."""
        with self._lock:
            self.clock.catch_up()
            return self.checkout.page(method, path, form)

    def deliver(self, *args: Any, **kwargs: Any) -> Sequence[Delivery]:
        """Short for `webhooks.deliver`."""
        return self.webhooks.deliver(*args, **kwargs)

    def _deliver(self) -> None:
        while self._running.is_set():
            webhooks = self.webhooks
            webhooks.woken.wait(0.5)
            webhooks.woken.clear()
            if self._running.is_set() and webhooks.automatic and webhooks is self.webhooks:
                webhooks.deliver()
