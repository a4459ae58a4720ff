"""Stripe away: the billing pages say that it did not answer, and nothing is begun twice."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import Organization
from billing.models import BillingAccount, Invoice, LedgerEntry
from tests.away import PROVING, Wire, ask, urls
from tests.away.conftest import People
from tests.billing.buyer import sell
from tests.emulators.stripe import StripeEmulator
from tests.emulators.stripe.shop import Shop
from tests.images.requests import FLUX
from tests.lib import dead_port
from tests.pages import owner_of
from tests.pages.visitor import Visitor
from tests.server import AppServer

PATH = "/dashboard/billing"
# Each needs an answer of Stripe, with what is sent; what comes is said on a page.
ASKING: dict[str, dict[str, str] | None] = {
    f"{PATH}/card": {},
    f"{PATH}/portal": {},
    f"{PATH}/recharge": {"amount": "25"},
    f"{PATH}/return?session=cs_test_1": None,
    f"{PATH}/return?left=portal": None,
    f"{PATH}/invoices/in_1/pdf": None,
    f"{PATH}/invoices/in_1/stripe": None,
}
SAID = re.compile(r'<p class="message (?:error|info)">[^<]*Stripe')


@pytest.fixture
def billed(acme: Organization, stripe_account: StripeEmulator) -> Organization:
    """Acme with a customer in Stripe, a card, and an invoice."""
    sell(Shop(stripe_account), [FLUX])
    BillingAccount.objects.filter(pk=acme.pk).update(
        stripe_customer="cus_1", card_brand="visa", card_last4="4242"
    )
    now = timezone.now()
    Invoice.objects.create(
        stripe_id="in_1", organization=acme, number="ACME-1", status="open", currency="usd",
        period_start=now, period_end=now, subtotal_cents=500, tax_cents=0, total_cents=500,
        amount_due_cents=500, amount_paid_cents=0, lines=[], created=now, fetched_at=now,
    )  # fmt: skip
    return acme


def test_every_page_of_billing_says_that_stripe_is_away(
    billed: Organization, people: People, settings: Settings
) -> None:
    settings.STRIPE_API_BASE = f"http://127.0.0.1:{dead_port()}"
    before = LedgerEntry.objects.count()
    for path, form in ASKING.items():
        if form is None:
            answer: Any = people.owner.get(path, follow=True)
        else:
            answer = people.owner.post(path, form, follow=True)
        assert answer.status_code == 200, path
        assert SAID.search(answer.content.decode()), path
    assert LedgerEntry.objects.count() == before

    wrong = {}
    for path in urls(billed):
        if path.startswith(PATH) or (PROVING and path.startswith(("/dashboard", "/staff"))):
            for method in ("GET", "POST"):
                status = ask(people.for_whom(path), method, path).status_code
                if status >= 500:
                    wrong[method, path] = status
    assert wrong == {}


@pytest.mark.prove
@pytest.mark.skipif(not PROVING, reason="takes long; PROVE=1 runs it")
def test_a_stripe_that_hangs_is_waited_for_ten_seconds(
    billed: Organization, settings: Settings, serve: Callable[[], AppServer]
) -> None:
    with Wire("127.0.0.1", dead_port()) as wire:
        wire.hang()
        settings.STRIPE_API_BASE = f"http://127.0.0.1:{wire.port}"
        owner = Visitor(serve(), owner_of(billed))

        def send(path: str) -> Any:
            form = ASKING[path]
            return owner.get(path) if form is None else owner.post(path, **form)

        with ThreadPoolExecutor(len(ASKING)) as pool:
            answers = list(pool.map(send, ASKING))
        assert {answer.status_code for answer in answers} == {302}
        owner.http.close()
