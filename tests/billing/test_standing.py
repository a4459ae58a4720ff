"""Whether an organization may spend: grace, suspension, and the way back."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from accounts.models import ApiKey, AuditEvent, Organization
from billing.models import AccountStatus, BillingAccount, Invoice, Notification, Subscription
from billing.spending.holds import AccountSuspended
from billing.stripe import standing
from tests.api.checks import expect_error
from tests.billing import authorize, capture, money_of, race, release
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory, UserFactory
from tests.server import Api

NOW = datetime.fromisoformat("2026-11-22T12:00:00+00:00")
DAYS = 14
OK, GRACE, SUSPENDED = AccountStatus.OK, AccountStatus.GRACE, AccountStatus.SUSPENDED


def invoice(organization: Organization, name: str = "in_1", **fields: Any) -> Invoice:
    """A copy of an invoice that could not be collected."""
    values: dict[str, Any] = {
        "stripe_id": name,
        "organization": organization,
        "number": name.upper(),
        "status": "open",
        "currency": "usd",
        "subtotal_cents": 500,
        "tax_cents": 0,
        "total_cents": 500,
        "amount_due_cents": 500,
        "amount_paid_cents": 0,
        "payment_failed": True,
        "lines": [],
        "period_start": NOW,
        "period_end": NOW,
        "created": NOW,
        "fetched_at": NOW,
    }
    return Invoice.objects.create(**(values | fields))


def subscription(organization: Organization, status: str, **fields: Any) -> Subscription:
    values = {"items": {}, "period_start": NOW, "period_end": NOW, "fetched_at": NOW}
    return Subscription.objects.create(
        stripe_id="sub_1", organization=organization, status=status, **(values | fields)
    )


def settle(*rows: Invoice) -> None:
    """These are paid; our copies know it, and nobody was told yet."""
    Invoice.objects.filter(pk__in=[row.pk for row in rows]).update(
        status="paid", payment_failed=False
    )


def state(organization: Organization) -> tuple[str, str, datetime | None, bool]:
    row = BillingAccount.objects.get(organization=organization)
    return row.status, row.status_reason, row.grace_until, row.suspended_by_staff


def told(organization: Organization) -> list[tuple[str, str]]:
    rows = Notification.objects.filter(organization=organization)
    return sorted((row.kind, row.key.partition(":")[2]) for row in rows)


def written(organization: Organization) -> list[str]:
    rows = AuditEvent.objects.filter(organization=organization, action__startswith="account.")
    return list(rows.order_by("pk").values_list("action", flat=True))


@pytest.fixture
def organization(key: ApiKey) -> Organization:
    return key.organization


# By invoices


def test_from_a_failed_payment_to_suspension_and_back(organization: Organization) -> None:
    first = invoice(organization)
    until = NOW + timedelta(days=DAYS)
    reason = "invoice IN_1 could not be collected"

    standing.payment_failed(organization, now=NOW)
    assert state(organization) == (GRACE, reason, until, False)
    # Told again, each time Stripe tries: the grace is not longer for it.
    standing.payment_failed(organization, now=NOW + timedelta(days=3))
    assert state(organization) == (GRACE, reason, until, False)
    assert standing.sweep(now=until - timedelta(seconds=1)) == 0
    assert state(organization)[0] == GRACE
    assert standing.sweep(now=until) == 1
    assert state(organization) == (SUSPENDED, reason, None, False)
    assert standing.sweep(now=until + timedelta(days=1)) == 0
    # A further attempt that fails changes nothing; the payment does.
    standing.payment_failed(organization, now=until + timedelta(days=1))
    assert state(organization) == (SUSPENDED, reason, None, False)
    settle(first)
    standing.paid(organization)
    standing.paid(organization)
    assert state(organization) == (OK, "", None, False)
    assert written(organization) == ["account.grace", "account.suspended", "account.ok"]
    assert [kind for kind, _ in told(organization)] == ["payment_failed", "resumed", "suspended"]
    alert = Notification.objects.get(kind="payment_failed")
    assert alert.key == "payment_failed:in_1"
    assert alert.details == {"invoice": "IN_1", "amount_due_cents": 500}
    grace = AuditEvent.objects.get(action="account.grace")
    assert grace.details == {"reason": reason, "grace_until": until.isoformat()}
    assert grace.actor is None


def test_without_an_unpaid_invoice_nothing_happens(organization: Organization) -> None:
    invoice(organization, payment_failed=False)
    standing.payment_failed(organization, now=NOW)
    standing.collection_ended(organization)
    standing.paid(organization)
    assert standing.sweep(now=NOW + timedelta(days=99)) == 0
    assert state(organization) == (OK, "", None, False)
    assert (told(organization), written(organization)) == ([], [])


def test_all_invoices_must_be_paid(organization: Organization) -> None:
    first, second = invoice(organization), invoice(organization, "in_2")
    standing.payment_failed(organization, now=NOW)
    assert state(organization)[1] == "invoice IN_1 and 1 more could not be collected"
    assert told(organization) == [("payment_failed", "in_1"), ("payment_failed", "in_2")]
    settle(first)
    standing.paid(organization)
    assert state(organization)[0] == GRACE
    settle(second)
    standing.paid(organization)
    assert state(organization)[0] == OK


def test_a_second_invoice_in_the_grace_of_the_first_is_told_too(
    organization: Organization,
) -> None:
    invoice(organization)
    standing.payment_failed(organization, now=NOW)
    invoice(organization, "in_2")
    standing.payment_failed(organization, now=NOW + timedelta(days=5))
    assert told(organization) == [("payment_failed", "in_1"), ("payment_failed", "in_2")]
    assert state(organization)[2] == NOW + timedelta(days=DAYS)
    assert written(organization) == ["account.grace"]


def test_when_stripe_gives_up_the_grace_ends(organization: Organization) -> None:
    invoice(organization)
    standing.payment_failed(organization, now=NOW)
    standing.collection_ended(organization)
    standing.collection_ended(organization)
    assert state(organization)[0] == SUSPENDED
    assert written(organization) == ["account.grace", "account.suspended"]


def test_an_unpaid_subscription_leaves_no_grace(organization: Organization) -> None:
    invoice(organization)
    subscription(organization, "unpaid")
    standing.payment_failed(organization, now=NOW)
    assert state(organization)[0] == SUSPENDED
    assert written(organization) == ["account.suspended"]


@pytest.mark.parametrize("status", ["active", "past_due", "canceled"])
def test_with_another_subscription_there_is_grace(organization: Organization, status: str) -> None:
    invoice(organization)
    subscription(organization, status, ended_at=NOW if status == "canceled" else None)
    standing.payment_failed(organization, now=NOW)
    assert state(organization)[0] == GRACE


def test_others_are_left_alone(organization: Organization) -> None:
    stranger = KeyFactory().row.organization
    invoice(organization)
    subscription(organization, "unpaid")
    standing.payment_failed(organization, now=NOW)
    standing.payment_failed(stranger, now=NOW)
    standing.collection_ended(stranger)
    assert state(stranger) == (OK, "", None, False)
    assert (told(stranger), written(stranger)) == ([], [])


def test_the_sweep_sees_what_nobody_told(organization: Organization) -> None:
    row = invoice(organization)
    standing.payment_failed(organization, now=NOW)
    settle(row)
    # Paid in time, though only the sweep finds out, later than the grace.
    assert standing.sweep(now=NOW + timedelta(days=99)) == 1
    assert state(organization) == (OK, "", None, False)
    assert written(organization) == ["account.grace", "account.ok"]


def test_the_length_of_the_grace_is_a_setting(
    organization: Organization, settings: Settings
) -> None:
    settings.PAYMENT_GRACE_DAYS = 0
    invoice(organization)
    standing.payment_failed(organization, now=NOW)
    assert state(organization)[2] == NOW
    assert standing.sweep(now=NOW) == 1
    assert state(organization)[0] == SUSPENDED


def test_each_suspension_is_told_also_for_the_same_invoice(organization: Organization) -> None:
    invoice(organization)
    for _ in range(2):
        standing.payment_failed(organization, now=NOW)
        standing.collection_ended(organization)
        Invoice.objects.update(payment_failed=False)
        standing.paid(organization)
        Invoice.objects.update(payment_failed=True)
    assert [kind for kind, _ in told(organization)] == [
        "payment_failed",
        *["resumed"] * 2,
        *["suspended"] * 2,
    ]


# By staff


def test_staff_suspend_and_resume(organization: Organization) -> None:
    staff = UserFactory(is_staff=True)
    assert standing.suspend(organization, "abuse of the service", staff)
    assert not standing.suspend(organization, "again", staff)
    assert state(organization) == (SUSPENDED, "abuse of the service", None, True)
    assert standing.resume(organization, staff)
    assert not standing.resume(organization, staff)
    assert state(organization) == (OK, "", None, False)
    assert written(organization) == ["account.suspended", "account.ok"]
    assert {event.actor for event in AuditEvent.objects.filter(action__startswith="account.")} == {
        staff
    }
    assert [kind for kind, _ in told(organization)] == ["resumed", "suspended"]


def test_a_payment_does_not_lift_what_staff_suspended(organization: Organization) -> None:
    row = invoice(organization)
    standing.payment_failed(organization, now=NOW)
    assert standing.suspend(organization, "abuse", None)
    settle(row)
    standing.paid(organization)
    assert standing.sweep(now=NOW + timedelta(days=99)) == 0
    standing.payment_failed(organization, now=NOW)
    standing.collection_ended(organization)
    assert state(organization) == (SUSPENDED, "abuse", None, True)
    assert written(organization) == ["account.grace", "account.suspended"]


def test_staff_make_a_suspension_theirs(organization: Organization) -> None:
    row = invoice(organization)
    standing.payment_failed(organization, now=NOW)
    standing.collection_ended(organization)
    assert standing.suspend(organization, "fraud", None)
    settle(row)
    standing.paid(organization)
    assert state(organization) == (SUSPENDED, "fraud", None, True)


def test_resumed_with_unpaid_invoices_it_is_for_a_new_grace(organization: Organization) -> None:
    row = invoice(organization)
    standing.payment_failed(organization, now=NOW)
    standing.collection_ended(organization)
    before = timezone.now()
    assert standing.resume(organization, None)
    status, reason, until, by_staff = state(organization)
    assert (status, reason, by_staff) == (GRACE, "invoice IN_1 could not be collected", False)
    assert until is not None
    assert before <= until - timedelta(days=DAYS) <= timezone.now()
    settle(row)
    standing.paid(organization)
    assert state(organization) == (OK, "", None, False)


def test_only_a_suspension_is_by_staff(organization: Organization) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        BillingAccount.objects.filter(pk=organization.pk).update(suspended_by_staff=True)


# At once


def test_the_news_of_failure_and_payment_at_once(committed_key: ApiKey) -> None:
    """Whichever comes last, the copies say that nothing is owed."""
    organization = committed_key.organization
    row = invoice(organization)

    def tell(number: int) -> None:
        if number == 3:
            settle(row)
            standing.paid(organization)
        else:
            standing.payment_failed(organization, now=NOW)

    race(8, tell)
    assert state(organization) == (OK, "", None, False)
    assert written(organization) in ([], ["account.grace", "account.ok"])


def test_many_sweeps_at_once_write_it_down_once(committed_key: ApiKey) -> None:
    organization = committed_key.organization
    invoice(organization)
    standing.payment_failed(organization, now=NOW)
    changed = race(8, lambda _: standing.sweep(now=NOW + timedelta(days=DAYS)))
    assert sorted(map(str, changed)) == ["0"] * 7 + ["1"]
    assert written(organization) == ["account.grace", "account.suspended"]
    assert Notification.objects.filter(kind="suspended").count() == 1


def test_a_failure_is_read_after_the_account_is_locked(committed_key: ApiKey) -> None:
    """The failure waits for the account while the payment, which has it, is written."""
    organization = committed_key.organization
    row = invoice(organization)

    def tell(number: int) -> None:
        if number == 0:
            with transaction.atomic():
                standing._locked(organization)
                settle(row)
                standing.paid(organization)
        else:
            standing.payment_failed(organization, now=NOW)

    race(6, tell)
    assert state(organization) == (OK, "", None, False)


# What it means


def test_a_suspended_account_finishes_and_begins_nothing(key: ApiKey) -> None:
    running, other = authorize(key, quantity=2), authorize(key)
    standing.suspend(key.organization, "invoice 7 is unpaid", None)
    with pytest.raises(AccountSuspended, match=r"^$"):
        authorize(key)
    assert money_of(key) == (10_000_000, 120_000, 0)
    capture(running, delivered=2)
    release(other)
    assert money_of(key) == (9_920_000, 0, 80_000)
    standing.resume(key.organization, None)
    authorize(key)


def test_in_grace_all_works(key: ApiKey) -> None:
    invoice(key.organization)
    standing.payment_failed(key.organization, now=NOW)
    capture(authorize(key))
    assert money_of(key) == (9_960_000, 0, 40_000)


def test_the_api_says_402_and_where_to_go(
    connect: Callable[[str | None], Api],
    live_key: NewKey,
    openai: OpenAIEmulator,
    settings: Settings,
) -> None:
    client, organization = connect(live_key.secret), live_key.row.organization
    row = invoice(organization)
    standing.payment_failed(organization, now=NOW)
    assert client.draw().status_code == 200
    standing.sweep(now=NOW + timedelta(days=DAYS))

    answer = client.draw()
    expect_error(
        answer,
        "insufficient_balance",
        says=(
            "suspended: invoice IN_1 could not be collected",
            f"{settings.PUBLIC_URL}/dashboard/billing",
        ),
    )
    assert answer.status_code == 402
    assert answer.headers["x-should-retry"] == "false"
    assert len(openai.calls) == 1
    settle(row)
    standing.paid(organization)
    assert client.draw().status_code == 200

    # What staff wrote is for its owners: a key may be with anyone.
    standing.suspend(organization, "stolen cards", None)
    answer = client.draw()
    expect_error(
        answer,
        "insufficient_balance",
        says=("suspended. See its billing page", f"{settings.PUBLIC_URL}/dashboard/billing"),
    )
    assert "stolen" not in answer.text
    assert len(openai.calls) == 2
