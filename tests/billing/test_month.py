"""A quarter in virtual time: every line of every invoice is the ledger, to the cent.

And each ledger row that Stripe was to bill is on exactly one of them.

Three organizations use the whole catalogue. A price changes in the middle, one organization is
cancelled in the middle of an hour, Stripe is away over the end of two periods (once within the
grace of its invoice, once beyond), a card fails and then works, and credit pays an invoice whole.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import call_command
from django.db.models import Sum
from pytest_django.fixtures import Settings

from accounts.models import ApiKey, Organization
from billing import reconciliation
from billing.metering.events import COUNTED
from billing.models import (
    BillingAccount,
    Difference,
    DifferenceState,
    EntryKind,
    Hold,
    Invoice,
    LedgerEntry,
    MeterEvent,
    MeterState,
    PriceVersion,
    StripeEvent,
    StripeOperation,
    Subscription,
)
from billing.spending import ledger
from billing.stripe import catalog, credits, customers, invoices
from billing.stripe.client import connect
from geekhub.work import due, jobs
from images.catalog.rows import CATALOG
from tests.billing import authorize, capture, timetravel
from tests.billing.buyer import deliver
from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.factories import KeyFactory
from tests.images.requests import give_requests

DAY, HOUR = 86_400, 3600
# Later than any real time, since our rows have defaults in the database's own.
START = datetime(2099, 1, 1, tzinfo=UTC)
JANUARY, FEBRUARY = (START + timedelta(days=n) for n in (31, 59))  # when they end
GRACE = 24 * HOUR
CENT = 10_000
# The seeds, and a price far below a cent.
TINY, TINY_MICRO = "acme/tiny", 1234
RAISED, BEFORE, AFTER = "fal/sd-3.5-large", 65_000, 71_500
UNUSED = "openai/dall-e-3"
PRICES = {model.id: model.price_micro for model in CATALOG.values()} | {TINY: TINY_MICRO}
NAMES = {model.id: model.name for model in CATALOG.values()} | {TINY: "Tiny"}


def at(month: int, day: int, hour: int, minute: int = 0) -> datetime:
    """Return a time of the quarter."""
    return datetime(2099, month, day, hour, minute, tzinfo=UTC)


class World:
    """Stripe's account, our product, and the one clock of both."""

    def __init__(self, emulator: StripeEmulator) -> None:
        self.emulator, self.stripe = emulator, connect()
        self.shop = Shop(emulator)
        self._delivered = 0

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.emulator.clock.now, UTC)

    def subscribe(self, key: ApiKey) -> None:
        """Let the owner put a card on file."""
        page = "https://geekhub.test/billing"
        customers.card_checkout(self.stripe, key.organization, page, page, self.now)
        session = self.emulator.objects("checkout.session")[-1]
        self.emulator.complete_checkout(session["id"])
        self.work()

    def use(self, key: ApiKey, when: datetime, images: dict[str, int]) -> list[LedgerEntry]:
        """Have images drawn and delivered at that time."""
        keys = [
            capture(authorize(key, model, quantity=number), model=model, delivered=number).entry_key
            for model, number in images.items()
        ]
        entries = list(LedgerEntry.objects.filter(entry_key__in=keys))
        timetravel.move(*entries, to=when)
        return entries

    def until(self, *moments: datetime) -> None:
        """Let time pass, and the worker do its work at each of these moments."""
        for moment in moments:
            self.emulator.clock.advance_to(moment)
            self.work()

    def work(self) -> None:
        """Let the worker do all that is due, and a minute later what that brought about."""
        for wait in (61, 0):
            self._deliver()
            due.run_due(jobs.current(jobs.BILLING), now=self.now)
            self.emulator.clock.advance(wait)

    def _deliver(self) -> None:
        events = self.emulator.events[self._delivered :]
        self._delivered += len(events)
        statuses = deliver(self.emulator, *events)
        assert statuses == [200] * len(events)

    def outage(self) -> None:
        """From now on, Stripe answers nobody."""
        self.emulator.faults.add(Fault("drop_before", "/v1/*", times=10**9))


@pytest.fixture
def world(transactional_db: None, settings: Settings) -> Iterator[World]:
    """An account at the beginning of the quarter, with the grace an operator sets."""
    settings.STRIPE_METER_RATE = 10_000
    with StripeEmulator(now=START) as emulator:
        emulator.configure(grace=GRACE)
        settings.STRIPE_SECRET_KEY = emulator.key
        settings.STRIPE_API_BASE = settings.STRIPE_METER_EVENTS_BASE = emulator.url
        settings.STRIPE_WEBHOOK_SECRETS = [emulator.webhook_secret]
        settings.STRIPE_LIVEMODE = False
        yield World(emulator)


def account(key: ApiKey) -> BillingAccount:
    """Return the account as it is now."""
    return BillingAccount.objects.get(pk=key.organization_id)


def consumed(organization: Organization) -> int:
    """Return micro-USD of everything the organization ever used."""
    entries = LedgerEntry.objects.filter(organization=organization, kind=EntryKind.CONSUMPTION)
    return -(entries.aggregate(sum=Sum("amount_micro"))["sum"] or 0)


@pytest.mark.timeout(600)
def test_every_line_is_the_ledger_to_the_cent(world: World) -> None:
    done = catalog.sync(world.stripe, PRICES, now=world.now, names=NAMES)
    assert sum("active" in line for line in done) == len(PRICES)
    alpha = KeyFactory(organization__name="Alpha", organization__bonus="500").row
    beta = KeyFactory(organization__name="Beta", organization__credit_limit="1000").row
    gamma = KeyFactory(
        organization__name="Gamma", organization__bonus="0", organization__credit_limit="1000"
    ).row
    every = {model: 1 + number for number, model in enumerate(PRICES) if model != UNUSED}

    # What was used before there is a card is paid by the balance, and on no invoice.
    early = world.use(alpha, START, {RAISED: 2})
    for key in (alpha, beta, gamma):
        world.subscribe(key)
    world.until(at(1, 1, 0, 10))
    assert StripeOperation.objects.filter(state="done", kind="credit_grant").count() == 2

    world.use(alpha, at(1, 2, 3, 15), every)
    world.use(gamma, at(1, 2, 3, 20), every)
    world.use(gamma, at(1, 2, 3, 59), {TINY: 777, RAISED: 3})
    world.use(beta, at(1, 2, 5, 1), every)
    world.until(at(1, 2, 4, 5), at(1, 2, 6, 5), at(1, 2, 9))

    # A request that was let in at the old price is billed it, though it ends at the new one.
    begun = authorize(gamma, RAISED, quantity=4)
    world.until(at(1, 10, 12, 30))
    catalog.sync(world.stripe, PRICES | {RAISED: AFTER}, now=world.now, names=NAMES)
    assert list(
        PriceVersion.objects.filter(sku=RAISED, state="active")
        .order_by("version")
        .values_list("unit_micro", flat=True)
    ) == [BEFORE, AFTER]
    old = capture(begun, model=RAISED, delivered=4)
    timetravel.move(LedgerEntry.objects.get(entry_key=old.entry_key), to=at(1, 10, 12, 31))
    for key in (alpha, beta, gamma):
        world.use(key, at(1, 10, 12, 40), {RAISED: 7})
    world.until(at(1, 10, 13, 5), at(1, 10, 16))

    # Cancelled in the middle of an hour: what that hour had is on no invoice, and on the balance.
    world.use(beta, at(1, 15, 13, 10), every)
    world.until(at(1, 15, 14, 5))
    tail = world.use(beta, at(1, 15, 14, 10), {TINY: 5, UNUSED: 1})
    world.emulator.clock.advance_to(at(1, 15, 14, 25))
    live = Subscription.objects.get(organization=beta.organization)
    world.shop.api.subscriptions.cancel(live.stripe_id, {"invoice_now": True})
    world.until(at(1, 15, 14, 30))
    assert account(beta).metered_from is None
    tail += world.use(beta, at(1, 15, 16, 1), {RAISED: 1})
    world.until(at(1, 15, 17, 5), at(1, 16, 15), at(1, 16, 18))

    # Stripe is away from the 31st, 20:00, to the 1st, 06:00: within the grace.
    world.until(at(1, 31, 20))
    world.outage()
    for hour in (20, 21, 23):
        for key in (alpha, gamma):
            world.use(key, at(1, 31, hour, 58), every)
        world.until(at(1, 31, hour) + timedelta(minutes=65))
    world.emulator.set_cards(account(gamma).stripe_customer, "insufficient_funds")
    world.until(at(2, 1, 1, 5))
    assert MeterEvent.objects.filter(timestamp__gte=at(1, 31, 20)).count() > 80
    assert not MeterEvent.objects.filter(timestamp__gte=at(1, 31, 20), state__in=COUNTED).exists()
    world.emulator.clock.advance_to(at(2, 1, 6))
    world.emulator.faults.clear()
    world.until(at(2, 1, 6), at(2, 1, 6, 15), at(2, 1, 7), at(2, 1, 9))

    # The card fails when the grace is over, and works when it is tried again.
    world.until(at(2, 2, 0, 5))
    assert account(gamma).status == "grace"
    assert account(alpha).status == "ok"
    world.emulator.set_cards(account(gamma).stripe_customer, None)
    world.until(at(2, 4, 0, 5))
    assert account(gamma).status == "ok"

    # The old price is over, and its item makes room.
    world.use(gamma, at(2, 10, 8), every)
    world.use(alpha, at(2, 10, 8), {UNUSED: 1})
    world.until(at(2, 10, 9, 5), at(2, 10, 12))
    assert PriceVersion.objects.get(sku=RAISED, version=1).state == "retired"

    # Away again, from the 28th, 20:00, for 40 hours: beyond the grace, and beyond any identifier.
    world.until(at(2, 28, 20))
    world.outage()
    for hour in (20, 22):
        for key in (alpha, gamma):
            world.use(key, at(2, 28, hour, 30), every)
        world.until(at(2, 28, hour) + timedelta(minutes=65))
    world.use(gamma, at(3, 1, 5, 30), every)
    world.until(at(3, 1, 6, 5), at(3, 2, 11))
    world.emulator.clock.advance_to(at(3, 2, 12))
    world.emulator.faults.clear()
    world.until(at(3, 2, 12), at(3, 2, 12, 30), at(3, 2, 13, 30), at(3, 2, 14), at(3, 2, 17))
    assert MeterEvent.objects.exclude(restamped_from=None).count() > 40
    world.use(gamma, at(3, 20, 5, 30), {TINY: 13})
    world.until(at(3, 20, 6, 5), at(3, 20, 9), at(4, 1, 0, 10), at(4, 2, 0, 5), at(4, 2, 1))

    _nothing_is_on_its_way()
    _invoices_are_the_ledger(world, on_none=[*early, *tail])
    _balances_are_what_stripe_knows(world, alpha, beta, gamma)
    reconciliation.recount()
    reconciliation.internal(now=world.now, since=START)
    reconciliation.usage(world.stripe, now=world.now, since=START)
    reconciliation.invoices_since(world.stripe, now=world.now, since=START)
    assert list(reconciliation.open_differences()) == []
    assert not Difference.objects.filter(state=DifferenceState.FIXED).exists()
    assert set(MeterEvent.objects.values_list("state", flat=True)) == {MeterState.CONFIRMED}
    give_requests()
    call_command("reconcile")  # exits 1 if there were any
    lines = sum(len(invoice.lines) for invoice in Invoice.objects.all())
    print(
        f"month: {LedgerEntry.objects.count()} ledger rows, {MeterEvent.objects.count()} events,"
        f" {lines} lines on {Invoice.objects.count()} invoices, no difference"
    )


# --- More skus than a subscription has items ------------------------------------------------------

SIXTY = {
    f"lab/model-{model}:{quality}:{size}": 1_300 + 700 * (6 * model + 2 * tier + large)
    for model in range(10)
    for tier, quality in enumerate(("low", "medium", "high"))
    for large, size in enumerate(("1K", "2K"))
}
OWN, SHARED = list(SIXTY)[3], list(SIXTY)[40]


def change(world: World, *changes: dict[str, int]) -> None:
    """Publish the sixty with these changes."""
    wanted = dict(SIXTY)
    for one in changes:
        wanted |= one
    catalog.sync(world.stripe, wanted, now=world.now, names={})


@pytest.mark.timeout(600)
def test_sixty_skus_and_three_price_changes_are_billed_exactly(world: World) -> None:
    assert len(SIXTY) == 60
    change(world)
    items = PriceVersion.objects.filter(counted_in=None)
    assert items.count() == 20  # nineteen, and the one that forty-one share
    assert PriceVersion.objects.exclude(counted_in=None).count() == 41
    alpha = KeyFactory(organization__name="Alpha", organization__bonus="500").row
    beta = KeyFactory(organization__name="Beta", organization__credit_limit="1000").row
    for key in (alpha, beta):
        world.subscribe(key)
    assert [len(copy.items) for copy in Subscription.objects.all()] == [20, 20]
    every = {sku: 1 + number % 7 for number, sku in enumerate(SIXTY)}

    for key in (alpha, beta):
        world.use(key, at(1, 3, 9, 10), every)
    # Whether one event of the shared item was counted is not known; the others of it wait.
    world.emulator.faults.add(Fault("drop_after", "/v1/billing/meter_events", "POST", nth=7))
    world.until(at(1, 3, 10, 5), at(1, 3, 12), at(1, 3, 15))

    # A price that has an item gets a new one without room for another; two that share do so again.
    begun = authorize(beta, OWN, SHARED, quantity=3)
    first, second, third = {OWN: 5_000}, {SHARED: 77_700}, {OWN: 5_100}
    world.until(at(1, 9, 12))
    change(world, first)
    world.use(beta, at(1, 9, 12, 30), every)
    world.until(at(1, 16, 12))
    change(world, first, second)
    capture(begun, model=SHARED, delivered=3)
    old = LedgerEntry.objects.latest("pk")
    timetravel.move(old, to=at(1, 16, 12, 10))
    assert -old.amount_micro == 3 * SIXTY[SHARED]
    for key in (alpha, beta):
        world.use(key, at(1, 16, 12, 30), every)
    world.until(at(1, 23, 12))
    change(world, first, second, third)
    assert list(
        PriceVersion.objects.filter(sku__in=[OWN, SHARED])
        .order_by("sku", "version")
        .values_list("sku", "unit_micro", "counted_in__sku")
    ) == [
        (OWN, SIXTY[OWN], None),
        (OWN, 5_000, "shared"),
        (OWN, 5_100, "shared"),
        (SHARED, SIXTY[SHARED], "shared"),
        (SHARED, 77_700, "shared"),
    ]
    assert items.count() == 20
    # Away over the end of the month, within the grace.
    world.until(at(1, 31, 22))
    world.outage()
    for key in (alpha, beta):
        world.use(key, at(1, 31, 23, 30), every)
    world.until(at(2, 1, 0, 30))
    world.emulator.clock.advance_to(at(2, 1, 4))
    world.emulator.faults.clear()
    world.until(at(2, 1, 4), at(2, 1, 5), at(2, 1, 7), at(2, 2, 0, 5), at(2, 2, 4))

    # Replaced, and on no invoice any more: its item makes room for another price.
    world.until(at(2, 4, 0, 5))
    assert PriceVersion.objects.get(sku=OWN, version=1).state == "retired"
    fourth = {list(SIXTY)[59]: 60_000}
    change(world, first, second, third, fourth)
    assert PriceVersion.objects.get(sku=list(SIXTY)[59], version=2).counted_in is None
    world.use(beta, at(2, 10, 9, 30), every)
    world.until(at(2, 10, 10, 5), at(2, 10, 13), at(3, 1, 0, 10), at(3, 2, 0, 5), at(3, 2, 3))

    _nothing_is_on_its_way()
    assert [len(copy.items) for copy in Subscription.objects.all()] == [20, 20]
    lines = _lines_are_the_ledger_by_sku(world)
    reconciliation.recount()
    reconciliation.internal(now=world.now, since=START)
    reconciliation.usage(world.stripe, now=world.now, since=START)
    reconciliation.invoices_since(world.stripe, now=world.now, since=START)
    assert list(reconciliation.open_differences()) == []
    assert not Difference.objects.filter(state=DifferenceState.FIXED).exists()
    assert set(MeterEvent.objects.values_list("state", flat=True)) == {MeterState.CONFIRMED}
    give_requests()
    call_command("reconcile")  # exits 1 if there were any
    assert lines["shared v1"] == 3
    print(f"sixty skus: {LedgerEntry.objects.count()} ledger rows, {lines.total()} lines")


def _lines_are_the_ledger_by_sku(world: World) -> Counter[str]:
    """Compare every line with its entries; return how many bill what, by version."""
    seen: Counter[int] = Counter()
    lines: Counter[str] = Counter()
    billed: Counter[str] = Counter()
    for invoice in Invoice.objects.all():
        theirs = world.stripe.v1.invoices.retrieve(invoice.stripe_id)
        assert (invoice.status, invoice.subtotal_cents) == ("paid", theirs.subtotal)
        cents = 0
        for line in invoice.lines:
            if not line["price"]:
                cents += line["amount_cents"]
                continue
            version = PriceVersion.objects.get(stripe_price=line["price"])
            entries = list(invoices.entries_of_line(invoice, line))
            seen.update(entry.pk for entry in entries)
            micro = -sum(entry.amount_micro for entry in entries)
            assert {entry.price_version.counter for entry in entries if entry.price_version} <= {
                version
            }
            assert Decimal(line["quantity"]) * version.unit_micro == micro
            assert line["amount_cents"] == credits.cents(micro)
            assert invoices.line_total(invoice, line).agrees(line)
            by_sku = invoices.line_spend(invoice, line)
            assert sum(one.cost_micro for one in by_sku) == micro
            billed.update({one.sku: one.cost_micro for one in by_sku})
            cents += line["amount_cents"]
            lines[str(version)] += bool(entries)
        assert cents == invoice.subtotal_cents
    used = LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION)
    # None is lost, and none is there twice.
    assert set(seen) == set(used.values_list("pk", flat=True))
    assert set(seen.values()) == {1}
    assert len(seen) == 8 * 60 + 1
    spent = {row.sku: row.cost_micro for row in ledger.by_sku(used)}
    assert billed == spent
    assert len(spent) == 60
    return lines


def _nothing_is_on_its_way() -> None:
    assert not StripeEvent.objects.filter(processed_at=None).exists()
    assert not StripeOperation.objects.exclude(state="done").exists()
    assert not MeterEvent.objects.exclude(state__in=COUNTED).exists()
    assert not Hold.objects.filter(state="held").exists()


def _invoices_are_the_ledger(world: World, *, on_none: list[LedgerEntry]) -> None:
    lines_of_entry: Counter[int] = Counter()
    shown: Counter[str] = Counter()
    for theirs in world.emulator.objects("invoice"):
        ours = Invoice.objects.get(stripe_id=theirs["id"])
        assert ours.status == theirs["status"] == "paid"
        by_id = {line["id"]: line for line in theirs["lines"]["data"]}
        assert by_id.keys() == {line["id"] for line in ours.lines}
        for line in ours.lines:
            if not line["price"]:
                continue
            version = PriceVersion.objects.get(stripe_price=line["price"])
            entries = list(invoices.entries_of_line(ours, line))
            lines_of_entry.update(entry.pk for entry in entries)
            quantity = sum(entry.quantity for entry in entries)
            assert Decimal(by_id[line["id"]]["quantity_decimal"]) == quantity
            micro = -sum(entry.amount_micro for entry in entries)
            assert micro == quantity * version.unit_micro
            off = by_id[line["id"]]["amount"] * CENT - micro
            # To the cent; and exact where the price times the quantity is whole cents.
            assert abs(off) <= CENT // 2
            assert off == 0 or micro % CENT
            shown[f"{version} {'used' if quantity else 'unused'}"] += 1
    metered_rows = LedgerEntry.objects.filter(kind=EntryKind.CONSUMPTION).exclude(
        pk__in=[entry.pk for entry in on_none]
    )
    # None is lost, and none is there twice.
    assert set(lines_of_entry) == set(metered_rows.values_list("pk", flat=True))
    assert set(lines_of_entry.values()) == {1}
    assert len(lines_of_entry) == 248
    assert shown[f"{RAISED} v1 used"] >= 3
    assert shown[f"{RAISED} v2 used"] >= 3
    assert shown[f"{UNUSED} v1 unused"] >= 3
    assert shown[f"{TINY} v1 used"] >= 3


def _balances_are_what_stripe_knows(
    world: World, alpha: ApiKey, beta: ApiKey, gamma: ApiKey
) -> None:
    for key, bonus in ((alpha, 500_000_000), (beta, 10_000_000), (gamma, 0)):
        organization = key.organization
        final = Invoice.objects.filter(organization=organization)
        paid = sum(invoice.amount_paid_cents for invoice in final) * CENT
        recharged = LedgerEntry.objects.filter(
            organization=organization, kind=EntryKind.RECHARGE
        ).aggregate(sum=Sum("amount_micro"))["sum"]
        assert (recharged or 0) == paid
        assert account(key).balance_micro == bonus + paid - consumed(organization)
        assert account(key).held_micro == 0
    # Alpha's credit paid its invoices whole, and what is left of it is its balance.
    alphas = Invoice.objects.filter(organization=alpha.organization)
    assert {invoice.amount_due_cents for invoice in alphas} == {0}
    assert sum(invoice.subtotal_cents for invoice in alphas) > 6_000
    summary = world.stripe.v1.billing.credit_balance_summary.retrieve(
        {"customer": account(alpha).stripe_customer, "filter": _metered()}
    )
    left = summary.balances[0].available_balance.monetary.value * CENT
    lines = sum(len(invoice.lines) for invoice in alphas)
    assert abs(left - account(alpha).balance_micro) <= lines * CENT // 2 + CENT
    # Gamma has paid all it used, but for fractions of a cent.
    gammas = Invoice.objects.filter(organization=gamma.organization)
    assert abs(account(gamma).balance_micro) <= sum(len(one.lines) for one in gammas) * CENT // 2
    # Beta owes what it used after its last whole hour.
    unmetered = 5 * TINY_MICRO + 40_000 + AFTER
    lines = sum(len(one.lines) for one in Invoice.objects.filter(organization=beta.organization))
    assert abs(account(beta).balance_micro + unmetered) <= lines * CENT // 2


def _metered() -> Any:
    return {"type": "applicability_scope", "applicability_scope": {"price_type": "metered"}}
