"""An organization with something of everything, and with the values that pages tend to leak."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone

from accounts import audit, keys, members
from accounts.models import Organization, Role
from billing.alerts import raising
from billing.models import (
    AlertEndpoint,
    BillingAccount,
    Budget,
    Difference,
    EntryKind,
    Invoice,
    MeterEvent,
    Period,
    PriceVersion,
    Reconciliation,
    StripeEvent,
    StripeOperation,
    scopes,
)
from billing.models.scopes import Holder
from billing.spending import ledger, limits
from images.models import Image
from tests.factories import KeyFactory
from tests.images.requests import FLUX, make_request
from tests.pages import member_of, owner_of
from tests.pages.test_audit import SAMPLES

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
# What a request can ask for, as `GenerationRequest.parameters` writes it down.
PARAMETERS = {
    "listed": True, "n": 2, "size": "1024x1024", "quality": "high", "output_format": "webp",
    "output_compression": 80, "background": "transparent", "seed": 7, "stream": True,
    "partial_images": 2, "strategy": "fastest", "auto_candidates": [FLUX, "openai/gpt-image-2"],
    "on_refusal": "stop", "strict": False, "max_cost_micro": 250_000, "edit": True, "images": 2,
    "mask": True,
}  # fmt: skip
ADJUSTED = [
    {"param": "size", "asked": "1x1", "used": None, "why": "not offered"},
    {"param": "stream", "asked": True, "used": False, "why": "not offered"},
    {"param": "background", "asked": ["a", "b"], "used": "opaque", "why": "not offered"},
]


@dataclass
class Rich:
    """The organization; `places` has the arguments of pages by the names of their URLs."""

    organization: Organization
    places: dict[str, list[Any]] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)


def fill(acme: Organization) -> Rich:
    """Give Acme requests, keys, people, bills, alerts and events of every kind."""
    owner, viewer = owner_of(acme), member_of(acme, Role.VIEWER)
    key = keys.create(
        acme,
        "prod-web",
        tags=["web", "café"],
        allowed_models=[FLUX],
        allowed_ips=["203.0.113.0/24"],
        expires_at=timezone.now() + timedelta(days=3),
        actor=owner,
    ).row
    keys.playground(acme, owner, sandbox=False)
    sandbox = KeyFactory(organization=acme, name="ci", sandbox=True).row
    keys.pause(KeyFactory(organization=acme, name="fast").row, "It spent 2.00 USD in an hour.")
    keys.revoke(KeyFactory(organization=acme, name="old").row, actor=owner)
    now = timezone.now()
    drawn = make_request(
        *(key, now),
        delivered=2,
        pictures=True,
        parameters=PARAMETERS,
        adjusted=ADJUSTED,
        tags=["web", "café"],
        filtered=1,
        skipped=[{"model": "xai/grok-imagine-image", "reason": "max_cost"}],
    )
    Image.objects.filter(generation=drawn).update(revised_prompt="a kite, revised")
    make_request(key, now, error="provider_unavailable", error_message="All are down.")
    make_request(sandbox, now, pictures=True)
    make_request(key, now, running=True)
    for kind in (EntryKind.REFUND, EntryKind.ADJUSTMENT, EntryKind.RECHARGE):
        ledger.record(
            acme, kind, 1_000, entry_key=kind, payment_id=f"pi_{kind}", note="Recharge by card"
        )
    for holder in (
        Holder(scopes.KEY, key.family),
        Holder(scopes.MEMBER, viewer.pk),
        Holder(scopes.TAG, "web"),
        Holder(scopes.ORGANIZATION),
    ):
        limits.set_budget(
            acme, holder, Period.DAY, limit_micro=50_000_000, limit_images=100, actor=owner
        )
    invited = members.invite(acme, "nina@new.test", Role.DEVELOPER, actor=owner)
    _money(acme)
    details = {name: value for name, (value, _) in SAMPLES.items()}
    for action in audit.LABELS:
        audit.record(action, organization=acme, actor=owner, subject="x", **details)
    reference = f"{drawn.request_id}-0"
    return Rich(
        acme,
        {
            "usage_detail": [drawn.request_id],
            "gallery_picture": [reference],
            "picture_thumbnail": [reference],
            "key_rotate": [key.pk],
            "billing_budget": [Budget.objects.filter(organization=acme).earliest("pk").pk],
            "billing_invoice": ["in_1"],
            "billing_invoice_csv": ["in_1"],
            "billing_line": ["in_1", "il_1"],
            "billing_line_csv": ["in_1", "il_1"],
            "invitation": [invited.token],
        },
        {"gallery_delete": f"?picture={reference}"},
    )


def _money(acme: Organization) -> None:
    version = PriceVersion.objects.get(sku=FLUX)
    PriceVersion.objects.filter(pk=version.pk).update(stripe_price="price_1", livemode=False)
    line = {
        "id": "il_1", "price": "price_1", "description": "", "quantity": 2, "unit_cents": "4",
        "amount_cents": 8, "start": 1_795_000_000, "end": 1_797_000_000,
    }  # fmt: skip
    for number, status in enumerate(("open", "draft"), start=1):
        Invoice.objects.create(
            stripe_id=f"in_{number}", organization=acme, number="A-1" if number == 1 else "",
            status=status, currency="usd", period_start=NOW, period_end=NOW, subtotal_cents=8,
            tax_cents=1, total_cents=9, amount_due_cents=9, amount_paid_cents=0, lines=[line],
            payment_failed=status == "open", created=NOW, fetched_at=NOW, finalized_at=NOW,
        )  # fmt: skip
    BillingAccount.objects.filter(pk=acme.pk).update(
        status="grace", status_reason="invoice A-1 could not be collected",
        card_brand="visa", card_last4="4242",
        grace_until=timezone.now() + timedelta(days=3), stripe_customer="cus_1",
    )  # fmt: skip
    AlertEndpoint.objects.create(organization=acme, url="https://hooks.test/x", secret="s")
    budget = Budget.objects.filter(organization=acme).earliest("pk").pk
    for kind, told in {
        "budget": {"percent": 80, "period": "day", "budget": budget},
        "low_balance": {"available_usd": "1.00", "below_usd": "5.00"},
        "recharge_failed": {"amount_usd": "25.00", "reason": "Your card was declined."},
        "payment_failed": {"invoice": "A-1", "amount_due_cents": 9},
        "suspended": {"reason": "x"},
        "resumed": {},
        "test": {"by": "alice@acme.test"},
    }.items():
        raising.raise_alert(acme, kind, f"{kind}:1", **told)
    MeterEvent.objects.create(
        identifier="mev_1", organization=acme, price_version=version, hour=NOW, quantity=1,
        timestamp=NOW, next_at=NOW,
    )  # fmt: skip
    StripeOperation.objects.create(key="customer:1", kind="customer")
    StripeEvent.objects.create(
        id="evt_1", type="invoice.paid", livemode=False, created=NOW, payload={"paid": True}
    )
    Difference.objects.create(
        key=f"balance:{acme.pk}", kind="balance", organization=acme, expected=10, found=7,
        last_seen_at=NOW,
    )  # fmt: skip
    Reconciliation.objects.create(
        kind="internal", started_at=NOW, finished_at=NOW, checked=4, differences=1
    )
