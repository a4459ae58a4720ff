"""Money paid in advance: on Stripe's page and by itself, once each, whatever happens on the way."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import AuditEvent, Organization
from billing.models import (
    AccountStatus,
    BillingAccount,
    EntryKind,
    LedgerEntry,
    Notification,
    OperationState,
    StripeOperation,
)
from billing.stripe import operations, recharges
from billing.stripe.client import Stripe
from billing.stripe.recharges import RechargeRefused
from tests.billing import race
from tests.emulators.stripe import Fault, StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.factories import OrganizationFactory

USD = 1_000_000
DAY = timedelta(days=1)
# Noon, so that "later today" is today.
NOON = datetime(2027, 3, 10, 12, tzinfo=UTC)
PAGES = ("https://geekhub.test/paid", "https://geekhub.test/back")
INTENTS = "/v1/payment_intents"


@pytest.fixture
def acme(db: None) -> Organization:
    """An organization with 1 USD, nothing of it in Stripe."""
    organization: Organization = OrganizationFactory(name="Acme", bonus="1")
    return organization


def begin(stripe: Stripe, organization: Organization, micro: int) -> str:
    """Return the id of the session behind the page."""
    url = recharges.checkout(
        stripe, organization, micro, *PAGES, organization.members.get(), now=timezone.now()
    )
    return url.rpartition("/")[2]


def balance(organization: Organization) -> int:
    return BillingAccount.objects.get(pk=organization.pk).balance_micro


def recharged(organization: Organization) -> list[tuple[str, int]]:
    entries = LedgerEntry.objects.filter(organization=organization, kind=EntryKind.RECHARGE)
    return list(entries.order_by("pk").values_list("entry_key", "amount_micro"))


def intents(account: StripeEmulator, status: str = "succeeded") -> list[Any]:
    return [one for one in account.objects("payment_intent") if one["status"] == status]


# On Stripe's page


def test_what_is_paid_on_the_page_is_on_the_balance_once(
    stripe: Stripe, stripe_account: StripeEmulator, acme: Organization
) -> None:
    session, now = begin(stripe, acme, 25 * USD), timezone.now()
    assert recharges.completed(stripe, session, now=now) is None
    assert balance(acme) == USD

    stripe_account.complete_checkout(session)
    entry = recharges.completed(stripe, session, now=now)

    assert entry is not None
    (paid,) = intents(stripe_account)
    assert (paid["amount"], paid["currency"], paid["setup_future_usage"]) == (
        *(2500, "usd"),
        "off_session",
    )
    assert (entry.note, entry.payment_id, entry.invoice) == ("Recharge by card", paid["id"], None)
    assert recharged(acme) == [(f"topup:{paid['id']}", 25 * USD)]
    assert balance(acme) == 26 * USD
    for again in (session, session):
        assert recharges.completed(stripe, again, now=now) is None
    assert recharges.succeeded(stripe, paid["id"], now=now) is None
    assert balance(acme) == 26 * USD
    # Its usage is not metered: the opening grant of a subscription will have it.
    assert not StripeOperation.objects.filter(kind="credit_grant").exists()
    (customer,) = stripe_account.objects("customer")
    assert customer["invoice_settings"]["default_payment_method"] == paid["payment_method"]
    assert AuditEvent.objects.get(action="recharge.begun").details == {"amount_usd": "25.00"}


def test_the_payment_may_be_heard_of_before_its_session(
    stripe: Stripe, stripe_account: StripeEmulator, acme: Organization
) -> None:
    session, now = begin(stripe, acme, 5 * USD), timezone.now()
    stripe_account.complete_checkout(session)
    (paid,) = intents(stripe_account)

    assert recharges.succeeded(stripe, paid["id"], now=now) is not None
    assert recharges.completed(stripe, session, now=now) is None
    assert recharged(acme) == [(f"topup:{paid['id']}", 5 * USD)]


def test_tax_is_no_money_to_spend(
    stripe: Stripe, stripe_account: StripeEmulator, acme: Organization
) -> None:
    session, now = begin(stripe, acme, 10 * USD), timezone.now()
    stripe_account.complete_checkout(session)
    (paid,) = intents(stripe_account)
    told = stripe_account._account.get("checkout.session", session)
    told["amount_total"] += 190
    told["total_details"]["amount_tax"] = 190
    stripe_account._account.get("payment_intent", paid["id"])["amount_received"] += 190

    recharges.succeeded(stripe, paid["id"], now=now)

    assert recharged(acme) == [(f"topup:{paid['id']}", 10 * USD)]


def test_where_usage_is_metered_stripe_gets_a_credit_grant_of_it(
    stripe: Stripe, stripe_account: StripeEmulator, acme: Organization
) -> None:
    session, now = begin(stripe, acme, 25 * USD), timezone.now()
    BillingAccount.objects.update(metered_from=0)
    stripe_account.complete_checkout(session)
    (paid,) = intents(stripe_account)
    for _ in range(2):
        recharges.completed(stripe, session, now=now)

    planned = StripeOperation.objects.get(kind="credit_grant")
    assert planned.key == f"grant:topup:{paid['id']}"
    operations.run_due(stripe, now=timezone.now())
    (grant,) = stripe_account.objects("billing.credit_grant")
    assert (grant["amount"]["monetary"]["value"], grant["category"]) == (2500, "paid")


def test_ten_hosts_that_hear_of_one_payment_credit_it_once(
    stripe: Stripe, stripe_account: StripeEmulator, transactional_db: None
) -> None:
    organization = OrganizationFactory(bonus="1")
    session = begin(stripe, organization, 25 * USD)
    BillingAccount.objects.update(metered_from=0)
    stripe_account.complete_checkout(session)
    (paid,) = intents(stripe_account)

    def hear(number: int) -> LedgerEntry | None:
        if number % 2:
            return recharges.succeeded(stripe, paid["id"], now=timezone.now())
        return recharges.completed(stripe, session, now=timezone.now())

    entries = [entry for entry in race(10, hear) if entry is not None]

    assert len(entries) == 1
    assert recharged(organization) == [(f"topup:{paid['id']}", 25 * USD)]
    assert balance(organization) == 26 * USD
    assert StripeOperation.objects.filter(kind="credit_grant").count() == 1


@pytest.mark.parametrize(
    "micro", [-5 * USD, 0, 5 * USD - 10_000, 5 * USD + 1, 10_000 * USD + 10_000]
)
def test_an_amount_that_cannot_be_paid_is_refused_before_stripe_is_asked(
    stripe: Stripe, stripe_account: StripeEmulator, acme: Organization, micro: int
) -> None:
    with pytest.raises(RechargeRefused):
        begin(stripe, acme, micro)
    assert stripe_account.requests == []


@pytest.mark.parametrize(
    "wrong", ["organization", "nobody", "kind", "currency", "unpaid", "other_customer"]
)
def test_a_session_that_is_not_ours_moves_nothing(
    stripe: Stripe, stripe_account: StripeEmulator, acme: Organization, wrong: str
) -> None:
    stranger = OrganizationFactory(name="Globex", bonus="1")
    session, now = begin(stripe, acme, 25 * USD), timezone.now()
    stripe_account.complete_checkout(session)
    (paid,) = intents(stripe_account)
    told = [
        stripe_account._account.get("checkout.session", session),
        stripe_account._account.get("payment_intent", paid["id"]),
    ]
    for obj in told:
        match wrong:
            case "organization":
                obj["metadata"] = {**obj["metadata"], "organization": str(stranger.pk)}
            case "nobody":
                obj["metadata"] = {"kind": "recharge"}
            case "kind":
                obj["metadata"] = {}
            case "currency":
                obj["currency"] = "eur"
            case "other_customer":
                BillingAccount.objects.filter(pk=acme.pk).update(stripe_customer="cus_other")
    if wrong == "unpaid":
        told[0]["payment_status"] = "unpaid"

    assert recharges.completed(stripe, session, now=now) is None
    assert recharges.succeeded(stripe, paid["id"], now=now) is None
    assert (balance(acme), balance(stranger)) == (USD, USD)


# By itself


@pytest.fixture
def low(stripe: Stripe, stripe_account: StripeEmulator, acme: Organization) -> Organization:
    """Acme with a card on file, recharged by 10 USD below 5, at most 20 a day."""
    prepare(stripe_account, acme)
    return acme


def prepare(stripe_account: StripeEmulator, organization: Organization, cap: int = 20) -> None:
    name = Shop(stripe_account).customer(card=None)
    stripe_account.save_card(name)
    BillingAccount.objects.filter(pk=organization.pk).update(stripe_customer=name)
    recharges.set_automatic(organization, 5 * USD, 10 * USD, cap * USD, organization.members.get())


def test_a_low_balance_is_recharged_once(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization
) -> None:
    assert recharges.automatic(stripe, now=NOON) == 1

    (paid,) = intents(stripe_account)
    assert (paid["amount"], paid["metadata"]["kind"]) == (1000, "automatic_recharge")
    assert recharged(low) == [(f"topup:{paid['id']}", 10 * USD)]
    operation = StripeOperation.objects.get()
    assert operation.key == f"recharge:{low.pk}:2027-03-10:1"
    assert operation.parameters["day"] == "2027-03-10"
    entry = LedgerEntry.objects.get(kind=EntryKind.RECHARGE)
    assert (entry.note, entry.payment_id) == ("Automatic recharge", paid["id"])
    assert recharges.automatic(stripe, now=NOON) == 0
    assert recharges.succeeded(stripe, paid["id"], now=NOON) is None
    assert balance(low) == 11 * USD
    assert not Notification.objects.exists()


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"balance_micro": 5 * USD - 1}, 1),
        ({"balance_micro": 5 * USD}, 0),
        ({"balance_micro": 5 * USD, "held_micro": 1}, 1),
        ({"credit_limit_micro": 4 * USD}, 0),
        ({"status": AccountStatus.SUSPENDED}, 0),
        ({"status": AccountStatus.GRACE, "grace_until": NOON}, 1),
        ({"stripe_customer": ""}, 0),
        (
            {
                "recharge_below_micro": None,
                "recharge_amount_micro": None,
                "recharge_daily_cap_micro": None,
            },
            0,
        ),
    ],
)
def test_who_is_recharged(
    stripe: Stripe,
    stripe_account: StripeEmulator,
    low: Organization,
    changes: dict[str, Any],
    times: int,
) -> None:
    BillingAccount.objects.update(**changes)
    assert recharges.automatic(stripe, now=NOON) == times
    assert len(stripe_account.objects("payment_intent")) == times
    assert StripeOperation.objects.count() == times


def test_without_a_card_nothing_is_tried(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization
) -> None:
    (card,) = stripe_account.objects("payment_method")
    stripe.call(stripe.v1.payment_methods.detach, card["id"])
    assert recharges.automatic(stripe, now=NOON) == 0
    assert stripe_account.objects("payment_intent") == []
    assert not StripeOperation.objects.exists()


def test_a_day_has_a_cap_and_the_next_day_its_own(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization
) -> None:
    recharges.set_automatic(low, 100 * USD, 10 * USD, 20 * USD, None)
    late = NOON.replace(hour=23, minute=59)
    made = [recharges.automatic(stripe, now=at) for at in (NOON, NOON, NOON, late)]
    assert made == [1, 1, 0, 0]
    assert recharges.automatic(stripe, now=late + timedelta(minutes=1)) == 1
    assert [key for key, _ in recharged(low)] == [
        f"topup:{one['id']}" for one in intents(stripe_account)
    ]
    assert sorted(StripeOperation.objects.values_list("key", flat=True)) == [
        f"recharge:{low.pk}:2027-03-10:1",
        f"recharge:{low.pk}:2027-03-10:2",
        f"recharge:{low.pk}:2027-03-11:1",
    ]


@pytest.mark.parametrize(("cap", "times"), [(10, 1), (29, 2), (30, 3), (31, 3)])
def test_a_cap_is_never_passed_also_when_it_is_no_multiple(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization, cap: int, times: int
) -> None:
    recharges.set_automatic(low, 100 * USD, 10 * USD, cap * USD, None)
    assert [recharges.automatic(stripe, now=NOON) for _ in range(4)] == [
        *([1] * times),
        *([0] * (4 - times)),
    ]
    assert balance(low) == USD + times * 10 * USD
    assert len(intents(stripe_account)) == StripeOperation.objects.count() == times


def test_a_declined_card_is_told_of_and_rests_until_tomorrow(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization
) -> None:
    (customer,) = [one["id"] for one in stripe_account.objects("customer")]
    stripe_account.set_cards(customer, "generic_decline")

    assert recharges.automatic(stripe, now=NOON) == 1
    assert [recharges.automatic(stripe, now=NOON) for _ in range(3)] == [0, 0, 0]
    assert len(stripe_account.objects("payment_intent")) == 1
    told = Notification.objects.get()
    assert told.operation == StripeOperation.objects.get()
    assert (told.kind, told.details) == (
        "recharge_failed",
        {"amount_usd": "10.00", "reason": "Your card was declined."},
    )
    assert balance(low) == USD
    # It is for the owner of the card, and nothing for staff to look into.
    assert StripeOperation.objects.get().state == OperationState.DONE
    assert recharges.automatic(stripe, now=NOON + DAY) == 1
    assert (balance(low), Notification.objects.count()) == (USD, 2)

    stripe_account.save_card(customer)
    assert recharges.automatic(stripe, now=NOON + DAY) == 1
    assert balance(low) == 11 * USD
    assert len(intents(stripe_account)) == 1


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_before", "500_after", "429"])
@pytest.mark.parametrize("decline", [None, "insufficient_funds"])
def test_a_charge_whose_answer_is_lost_is_made_once(
    stripe: Stripe,
    stripe_account: StripeEmulator,
    low: Organization,
    kind: Any,
    decline: str | None,
) -> None:
    (customer,) = [one["id"] for one in stripe_account.objects("customer")]
    stripe_account.set_cards(customer, decline)
    stripe_account.faults.add(Fault(kind, INTENTS, "POST"))

    assert recharges.automatic(stripe, now=NOON) == 0
    assert recharges.automatic(stripe, now=NOON) == 0
    assert StripeOperation.objects.get().state == OperationState.PENDING
    assert balance(low) == USD
    # The operations' job makes it, whichever worker that is; the next look settles it.
    assert operations.run_due(stripe, now=NOON + timedelta(minutes=1)) == 1
    assert recharges.automatic(stripe, now=NOON + timedelta(minutes=1)) == 1
    assert recharges.automatic(stripe, now=NOON + timedelta(minutes=2)) == 0

    assert len(stripe_account.objects("payment_intent")) == 1
    assert balance(low) == (USD if decline else 11 * USD)
    assert Notification.objects.count() == (1 if decline else 0)


def test_the_webhook_may_settle_it_first(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization
) -> None:
    stripe_account.faults.add(Fault("drop_before", f"{INTENTS}/*", "GET"))
    assert recharges.automatic(stripe, now=NOON) == 0
    (paid,) = intents(stripe_account)
    assert balance(low) == USD

    assert recharges.succeeded(stripe, paid["id"], now=NOON) is not None
    assert recharges.automatic(stripe, now=NOON) == 0
    assert balance(low) == 11 * USD
    assert len(intents(stripe_account)) == 1


def test_what_was_turned_off_meanwhile_is_not_charged(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization
) -> None:
    stripe_account.faults.add(Fault("drop_before", INTENTS, "POST"))
    recharges.automatic(stripe, now=NOON)
    recharges.stop_automatic(low, None)
    operations.run_due(stripe, now=NOON + timedelta(hours=1))
    recharges.automatic(stripe, now=NOON + timedelta(hours=1))

    assert stripe_account.objects("payment_intent") == []
    assert StripeOperation.objects.get().state == OperationState.DONE
    assert not Notification.objects.exists()
    # Nothing of it is in the way when it is turned on again.
    recharges.set_automatic(low, 5 * USD, 10 * USD, 10 * USD, None)
    assert recharges.automatic(stripe, now=NOON + timedelta(hours=2)) == 1
    assert balance(low) == 11 * USD


def test_a_refusal_that_is_not_the_bank_s_is_for_staff_too(
    stripe: Stripe, stripe_account: StripeEmulator, low: Organization
) -> None:
    stripe_account.faults.add(Fault("drop_before", INTENTS, "POST"))
    recharges.automatic(stripe, now=NOON)
    StripeOperation.objects.update(
        parameters={**StripeOperation.objects.get().parameters, "card": "pm_gone"}
    )
    operations.run_due(stripe, now=NOON + timedelta(hours=1))
    assert recharges.automatic(stripe, now=NOON + timedelta(hours=1)) == 2
    assert Notification.objects.get().kind == "recharge_failed"
    assert StripeOperation.objects.filter(state=OperationState.FAILED).count() == 1
    assert balance(low) == 11 * USD


def test_ten_hosts_recharge_a_balance_once(
    stripe: Stripe, stripe_account: StripeEmulator, transactional_db: None
) -> None:
    organization = OrganizationFactory(bonus="1")
    prepare(stripe_account, organization, cap=1000)

    race(10, lambda _: recharges.automatic(stripe, now=NOON))

    assert recharges.automatic(stripe, now=NOON) == 0
    assert len(stripe_account.objects("payment_intent")) == 1
    assert balance(organization) == 11 * USD


@pytest.mark.parametrize(
    "rule",
    [
        (-1, 10 * USD, 20 * USD),
        (0, 5 * USD - 10_000, 20 * USD),
        (0, 5 * USD + 1, 20 * USD),
        (0, 10 * USD, 10 * USD - 1),
    ],
)
def test_a_rule_that_cannot_be(acme: Organization, rule: tuple[int, int, int]) -> None:
    with pytest.raises(RechargeRefused):
        recharges.set_automatic(acme, *rule, None)
    assert BillingAccount.objects.get().recharge_amount_micro is None
    assert not AuditEvent.objects.filter(action="recharge.automatic").exists()


def test_a_rule_is_set_and_ended_by_somebody(acme: Organization) -> None:
    alice = acme.members.get()
    recharges.set_automatic(acme, 0, 5 * USD, 5 * USD, alice)
    recharges.stop_automatic(acme, alice)
    done = AuditEvent.objects.filter(action="recharge.automatic").order_by("pk")
    assert [(one.actor, one.details["amount_micro"]) for one in done] == [
        (alice, 5 * USD),
        (alice, None),
    ]
    assert BillingAccount.objects.get().recharge_below_micro is None
