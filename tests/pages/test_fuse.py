"""The fuse: ten times the usual hour, and only that, pauses a key."""

from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.core.cache import cache
from django.db.models.functions import Now
from django.utils import timezone

from accounts import keys
from accounts.models import ApiKey, AuditEvent, Organization, Role
from billing.models import EntryKind, Hold, LedgerEntry, PriceVersion
from images.policies.fuse import blow_fuses
from tests.billing import authorize
from tests.factories import KeyFactory
from tests.pages import member_of

USD = 1_000_000


@pytest.fixture
def key(acme: Organization) -> ApiKey:
    cache.clear()
    return used(KeyFactory(organization=acme).row)


def used(key: ApiKey) -> ApiKey:
    ApiKey.objects.filter(pk=key.pk).update(last_used_at=Now())
    return key


def spend(key: ApiKey, micro: int, *, hours_ago: float) -> None:
    """Write what the key spent then; rows of the ledger cannot be changed afterwards."""
    hold = Hold.objects.filter(api_key=key).first() or authorize(key, "fal/flux-1.1-pro")
    LedgerEntry.objects.create(
        organization=key.organization,
        kind=EntryKind.CONSUMPTION,
        amount_micro=-micro,
        entry_key=f"test:{LedgerEntry.objects.count()}",
        price_version=PriceVersion.objects.first(),
        sku="fal/flux-1.1-pro",
        quantity=1,
        hold=hold,
        api_key=key,
        created_at=timezone.now() - timedelta(hours=hours_ago),
    )
    cache.clear()


def usual(key: ApiKey, micro: int = USD // 5) -> None:
    """Let the key have spent so much in each of three hours, the first 30 hours ago."""
    for hours_ago in (5.0, 20.0, 30.0):
        spend(key, micro, hours_ago=hours_ago)


def test_ten_times_the_usual_hour_pauses_tells_and_is_audited(
    key: ApiKey, acme: Organization
) -> None:
    member_of(acme, Role.ADMIN)
    second = member_of(acme, Role.OWNER)
    usual(key)
    spend(key, 2 * USD - 1, hours_ago=0.5)
    assert blow_fuses() == 0
    spend(key, 1, hours_ago=0.1)
    assert blow_fuses() == 1
    key.refresh_from_db()
    assert key.paused_at is not None
    assert key.paused_reason == (
        "It spent 2.00 USD within an hour, at least ten times its usual 0.20 USD."
    )
    event = AuditEvent.objects.get(action="key.paused")
    assert (event.organization, event.actor, event.subject) == (acme, None, key.prefix)
    (message,) = mail.outbox
    assert set(message.to) == {"alice@acme.test", second.email}
    assert message.subject == "The key prod-web is paused"
    assert "/dashboard/keys?organization=acme" in str(message.body)
    assert key.paused_reason in str(message.body)
    # Once: the next round finds it paused.
    assert blow_fuses() == 0
    assert len(mail.outbox) == 1


def test_other_keys_are_left_alone(key: ApiKey, acme: Organization, globex: Organization) -> None:
    sibling, stranger = (used(KeyFactory(organization=one).row) for one in (acme, globex))
    usual(key)
    usual(sibling)
    usual(stranger)
    spend(key, 5 * USD, hours_ago=0.5)
    assert blow_fuses() == 1
    assert set(ApiKey.objects.exclude(paused_at=None)) == {key}


@pytest.mark.parametrize(
    ("why", "before", "now"),
    [
        ("below a dollar nothing is worth a pause", [(30.0, 1000)], USD - 1),
        ("nothing is usual yet", [], 50 * USD),
        ("less than a day of history", [(23.0, 1000), (5.0, 1000)], 50 * USD),
        ("too long ago", [(24.0 * 8, 1000)], 50 * USD),
        ("a busy key", [(30.0, 5 * USD), (5.0, 5 * USD)], 49 * USD),
    ],
)
def test_what_does_not_blow_it(
    key: ApiKey, why: str, before: list[tuple[float, int]], now: int
) -> None:
    for hours_ago, micro in before:
        spend(key, micro, hours_ago=hours_ago)
    spend(key, now, hours_ago=0.5)
    assert blow_fuses() == 0
    assert mail.outbox == []


def test_only_hours_in_which_something_was_spent_count(key: ApiKey) -> None:
    # Two entries in one hour are one hour: usual is 0.40 USD, not 0.20.
    start = timezone.now().replace(minute=30) - timedelta(hours=30)
    ago = (timezone.now() - start) / timedelta(hours=1)
    spend(key, USD // 5, hours_ago=ago)
    spend(key, USD // 5, hours_ago=ago - 0.1)
    spend(key, 3_999_999, hours_ago=0.5)
    assert blow_fuses() == 0
    spend(key, 1, hours_ago=0.5)
    assert blow_fuses() == 1


def test_what_was_spent_before_it_was_resumed_does_not_count_again(key: ApiKey) -> None:
    usual(key)
    spend(key, 5 * USD, hours_ago=0.5)
    assert blow_fuses() == 1
    keys.resume(key)
    assert blow_fuses() == 0
    ApiKey.objects.update(resumed_at=timezone.now() - timedelta(minutes=20))
    spend(key, 2 * USD, hours_ago=0.1)
    assert blow_fuses() == 1


def test_a_successor_inherits_what_is_usual(key: ApiKey, acme: Organization) -> None:
    usual(key, 3 * USD)
    new = used(keys.rotate(key, overlap=timedelta(hours=1)).row)
    spend(new, 29 * USD, hours_ago=0.5)
    assert blow_fuses() == 0
    spend(new, USD, hours_ago=0.4)
    assert blow_fuses() == 1
    assert set(ApiKey.objects.exclude(paused_at=None)) == {new}


def test_sandbox_and_ended_keys_have_no_fuse(key: ApiKey, acme: Organization) -> None:
    usual(key)
    spend(key, 5 * USD, hours_ago=0.5)
    keys.revoke(key)
    assert blow_fuses() == 0
    assert mail.outbox == []


def test_a_pause_stays_when_no_mail_goes_out(key: ApiKey, settings: Any) -> None:
    settings.MAILERS = {
        "default": {
            "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
            "OPTIONS": {"host": "127.0.0.1", "port": 1, "timeout": 1},
        }
    }
    usual(key)
    spend(key, 5 * USD, hours_ago=0.5)
    assert blow_fuses() == 1
    key.refresh_from_db()
    assert key.paused_at is not None
