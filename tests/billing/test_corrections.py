"""What staff put right: on the ledger once per ticket, and in Stripe where usage is metered."""

from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.utils import timezone

from accounts.models import AuditEvent, Organization, User
from billing.models import (
    BillingAccount,
    EntryKind,
    Invoice,
    LedgerEntry,
    StripeOperation,
    Subscription,
)
from billing.stripe import corrections, invoices, operations
from billing.stripe.client import Stripe
from billing.stripe.corrections import CorrectionRefused
from tests.billing import race
from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.factories import OrganizationFactory, UserFactory

USD = 1_000_000


@pytest.fixture
def staff(db: None) -> User:
    """Somebody of ours."""
    user: User = UserFactory(is_staff=True)
    return user


@pytest.fixture
def acme(db: None) -> Organization:
    """An organization with 10 USD."""
    organization: Organization = OrganizationFactory(name="Acme")
    return organization


@pytest.fixture
def metered(stripe_account: StripeEmulator, acme: Organization) -> Organization:
    """Acme with a customer and a subscription in Stripe, which is told of its usage."""
    shop = Shop(stripe_account)
    customer = shop.customer()
    begun = shop.subscribe(customer, shop.sell("img_cheap_v1", "4"))
    BillingAccount.objects.update(stripe_customer=customer, metered_from=0)
    now = timezone.now()
    Subscription.objects.create(
        stripe_id=begun.id,
        organization=acme,
        status="active",
        items={},
        period_start=now,
        period_end=now,
        fetched_at=now,
    )
    return acme


def balance(organization: Organization) -> int:
    return BillingAccount.objects.get(pk=organization.pk).balance_micro


def test_a_refund_is_a_row_with_its_reason_and_who_gave_it(acme: Organization, staff: User) -> None:
    entry = corrections.refund(acme, 65_000, " drawn upside down ", staff, "T-1")
    again = corrections.refund(acme, 65_000, "drawn upside down", staff, "T-1")

    assert entry == again
    assert (entry.kind, entry.amount_micro, entry.entry_key, entry.note) == (
        *(EntryKind.REFUND, 65_000, "refund:T-1"),
        "drawn upside down",
    )
    assert balance(acme) == 10 * USD + 65_000
    told = AuditEvent.objects.get(action="balance.refund")
    assert (told.organization, told.actor, told.subject) == (acme, staff, "T-1")
    assert told.details["amount_usd"] == "0.065"
    # No usage of it is metered, so there is nothing in Stripe to put right.
    assert not StripeOperation.objects.exists()


def test_an_adjustment_goes_either_way(acme: Organization, staff: User) -> None:
    up = corrections.adjust(acme, 3 * USD, "contract", staff, "T-1")
    down = corrections.adjust(acme, -5 * USD, "booked twice", staff, "T-2")
    assert [up.kind, down.kind] == [EntryKind.ADJUSTMENT] * 2
    assert (up.entry_key, down.entry_key) == ("adj:T-1", "adj:T-2")
    assert balance(acme) == 8 * USD
    assert AuditEvent.objects.filter(action="balance.adjustment", actor=staff).count() == 2


@pytest.mark.parametrize(
    "person", [{}, {"is_superuser": True}, {"is_staff": True, "is_active": False}]
)
def test_only_staff_correct(acme: Organization, person: dict[str, bool]) -> None:
    somebody = UserFactory(**person)
    with pytest.raises(PermissionDenied):
        corrections.refund(acme, USD, "please", somebody, "T-1")
    with pytest.raises(PermissionDenied):
        corrections.adjust(acme, -USD, "please", acme.members.get(), "T-2")
    assert balance(acme) == 10 * USD
    assert not AuditEvent.objects.filter(action__startswith="balance.").exists()


@pytest.mark.parametrize(
    ("micro", "reason", "ticket"),
    [(0, "r", "T"), (-1, "r", "T"), (1, " ", "T"), (1, "r", " "), (1, "r", "T" * 101)],
)
def test_a_refund_that_says_too_little_is_refused(
    acme: Organization, staff: User, micro: int, reason: str, ticket: str
) -> None:
    with pytest.raises(CorrectionRefused):
        corrections.refund(acme, micro, reason, staff, ticket)
    with pytest.raises(CorrectionRefused):
        corrections.adjust(acme, 0, "r", staff, "T")
    assert balance(acme) == 10 * USD


def test_a_ticket_is_for_one_correction(acme: Organization, staff: User) -> None:
    globex = OrganizationFactory(name="Globex")
    corrections.refund(acme, USD, "late", staff, "T-1")
    for organization, micro in ((acme, 2 * USD), (globex, USD)):
        with pytest.raises(CorrectionRefused, match=r"refund:T-1 was used for something else"):
            corrections.refund(organization, micro, "late", staff, "T-1")
    assert (balance(acme), balance(globex)) == (11 * USD, 10 * USD)
    # A refund and an adjustment do not share their tickets.
    corrections.adjust(acme, -USD, "after all not", staff, "T-1")
    assert balance(acme) == 10 * USD


def test_where_usage_is_metered_what_is_given_is_credit_and_what_is_taken_an_item(
    stripe: Stripe, stripe_account: StripeEmulator, metered: Organization, staff: User
) -> None:
    for _ in range(2):
        corrections.refund(metered, 3 * USD, "upside down", staff, "T-1")
        corrections.adjust(metered, 2 * USD, "contract", staff, "T-2")
        corrections.adjust(metered, -7 * USD, "booked twice", staff, "T-3")
    operations.run_due(stripe, now=timezone.now())

    grants = stripe_account.objects("billing.credit_grant")
    assert [
        (one["amount"]["monetary"]["value"], one["category"], one["name"]) for one in grants
    ] == [(300, "promotional", "upside down"), (200, "promotional", "contract")]
    (item,) = stripe_account.objects("invoiceitem")
    assert (item["amount"], item["description"]) == (700, "booked twice")
    assert not StripeOperation.objects.exclude(state="done").exists()


def test_the_row_the_mirror_and_the_audit_are_one_transaction(metered: Organization) -> None:
    nobody = User(email="nobody@example.com", is_staff=True)
    with pytest.raises(ValueError, match="unsaved"):
        corrections.refund(metered, USD, "late", nobody, "T-1")
    assert balance(metered) == 10 * USD
    assert not LedgerEntry.objects.filter(kind=EntryKind.REFUND).exists()
    assert not StripeOperation.objects.exists()


def final_invoice(stripe: Stripe, organization: Organization) -> Invoice:
    """Return the copy of an open invoice of 12 USD."""
    customer = BillingAccount.objects.get(pk=organization.pk).stripe_customer
    made = stripe.v1.invoices.create({"customer": customer, "auto_advance": False})
    stripe.v1.invoice_items.create(
        {"customer": customer, "invoice": made.id, "amount": 1200, "currency": "usd"}
    )
    stripe.v1.invoices.finalize_invoice(made.id, {"auto_advance": False})
    copy = invoices.mirror(stripe, made.id, now=timezone.now())
    assert copy is not None
    return copy


def test_a_refund_of_a_final_invoice_is_a_credit_note(
    stripe: Stripe, stripe_account: StripeEmulator, metered: Organization, staff: User
) -> None:
    invoice = final_invoice(stripe, metered)
    for _ in range(2):
        corrections.refund(metered, 3 * USD, "upside down", staff, "T-1", invoice)
    operations.run_due(stripe, now=timezone.now())

    (note,) = stripe_account.objects("credit_note")
    assert (note["invoice"], note["amount"], note["memo"]) == (
        *(invoice.stripe_id, 300),
        "upside down",
    )
    assert stripe_account.objects("billing.credit_grant") == []
    assert balance(metered) == 13 * USD
    told = AuditEvent.objects.get(action="balance.refund")
    assert told.details["invoice"] == invoice.stripe_id


@pytest.mark.parametrize("wrong", ["organization", "draft", "too much", "too little"])
def test_an_invoice_that_can_have_no_credit_note(
    stripe: Stripe, metered: Organization, staff: User, wrong: str
) -> None:
    invoice = final_invoice(stripe, metered)
    organization, micro = metered, 3 * USD
    match wrong:
        case "organization":
            organization = OrganizationFactory(name="Globex")
        case "draft":
            invoice.status = "draft"
        case "too much":
            micro = 12 * USD + 10_000
        case "too little":
            micro = 4_999
    with pytest.raises(CorrectionRefused):
        corrections.refund(organization, micro, "upside down", staff, "T-1", invoice)
    assert balance(organization) == 10 * USD
    assert not StripeOperation.objects.filter(kind="credit_note").exists()


def test_one_ticket_pressed_ten_times_at_once(transactional_db: None) -> None:
    acme, globex = OrganizationFactory(name="Acme"), OrganizationFactory(name="Globex")
    BillingAccount.objects.update(metered_from=0)
    staff = UserFactory(is_staff=True)

    def press(number: int) -> LedgerEntry:
        organization = (acme, globex)[number % 2]
        return corrections.refund(organization, USD, "late", staff, "T-1")

    answers: list[Any] = race(10, press, losing=CorrectionRefused)

    entry = LedgerEntry.objects.get(kind=EntryKind.REFUND)
    assert [answer for answer in answers if isinstance(answer, LedgerEntry)] == [entry] * 5
    assert {balance(acme), balance(globex)} == {10 * USD, 11 * USD}
    assert StripeOperation.objects.count() == 1
    assert AuditEvent.objects.filter(action="balance.refund").count() == 1
