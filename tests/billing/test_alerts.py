"""Alerts: each threshold once, to the right people, and signed to their own software."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import ApiKey, AuditEvent, Membership, Organization, Role, User
from billing.alerts import delivery, endpoints, raising
from billing.alerts.delivery import OUTBOX
from billing.alerts.endpoints import EndpointRefused
from billing.models import (
    AlertEndpoint,
    BillingAccount,
    BudgetPeriod,
    EntryKind,
    Notification,
    Period,
    scopes,
)
from billing.models.scopes import Holder
from billing.pages.words import ALERTS
from billing.spending import budgets, ledger
from tests.billing import authorize, capture, race
from tests.factories import KeyFactory, OrganizationFactory, UserFactory

ROOT = Path(__file__).resolve().parents[2]
USD = 1_000_000
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def draw(key: ApiKey, images: int = 1) -> None:
    """Spend 0.04 USD an image."""
    capture(authorize(key, quantity=images), delivered=images)


def told(*, sent: bool = True) -> list[tuple[str, Any]]:
    """Return what was written down, in order: (kind, percent)."""
    rows = Notification.objects.filter(settled_at__isnull=not sent).order_by("created_at", "key")
    return [(row.kind, row.details.get("percent")) for row in rows]


# What is noticed


def test_each_threshold_of_a_budget_is_told_once(key: ApiKey) -> None:
    budgets.set_budget(key, None, Period.DAY, limit_images=10)
    seen = []
    for _ in range(10):
        draw(key)
        seen += [raising.scan(now=timezone.now()), raising.scan(now=timezone.now())]
    assert [n for n, new in enumerate(seen[::2], 1) if new] == [5, 8, 10]
    assert sum(seen) == 3
    assert not any(seen[1::2])
    rows = Notification.objects.filter(settled_at=None)
    assert sorted(row.details["percent"] for row in rows) == [50, 80, 100]
    period = BudgetPeriod.objects.get()
    assert Notification.objects.get(key=f"budget:{period.pk}:images:80").details == {
        "percent": 80,
        "unit": "images",
        "limit_images": 10,
        "spent_images": 8,
        "period": "day",
        "since": period.starts_at.isoformat(),
        "scope": "key",
        "budget": period.budget_id,
        "member": None,
    }


def test_of_two_thresholds_at_once_the_higher_is_sent_and_both_are_done(key: ApiKey) -> None:
    budgets.set_budget(key, 400_000, Period.MONTH)
    draw(key, 8)
    assert raising.scan(now=timezone.now()) == 2
    waiting = Notification.objects.get(settled_at=None)
    assert (waiting.details["percent"], waiting.details["spent_usd"]) == (80, "0.32")
    assert Notification.objects.get(settled_at__isnull=False).details["percent"] == 50
    assert delivery.deliver_due(now=timezone.now() + MINUTE) == 1
    assert len(mail.outbox) == 1


@pytest.mark.parametrize(
    ("limit", "images", "percents"),
    [
        (80_001, 1, []),
        (80_000, 1, [50]),
        # Another image of $0.04 does not fit, though not every cent is spent.
        (100_000, 2, [50, 80, 100]),
        (120_000, 2, [50]),
        (0, 0, []),
    ],
)
def test_dollars_are_used_up_when_no_image_fits(
    key: ApiKey, limit: int, images: int, percents: list[int]
) -> None:
    budgets.set_budget(key, 1_000_000, Period.WEEK)
    if images:
        draw(key, images)
    budgets.set_budget(key, limit, Period.WEEK)
    raising.scan(now=timezone.now())
    assert sorted(row.details["percent"] for row in Notification.objects.all()) == percents


def test_only_the_running_period_counts_and_each_period_by_itself(key: ApiKey) -> None:
    budgets.set_budget(key, None, Period.DAY, limit_images=1)
    draw(key)
    now = timezone.now()
    assert raising.scan(now=now + DAY) == 0
    assert raising.scan(now=now) == 3
    period = BudgetPeriod.objects.get()
    BudgetPeriod.objects.create(
        budget=period.budget, starts_at=period.starts_at + DAY, spent_images=1
    )
    assert raising.scan(now=now + DAY) == 3
    assert raising.scan(now=now) == 0


def test_what_is_only_held_is_not_used_yet(key: ApiKey) -> None:
    budgets.set_budget(key, None, Period.DAY, limit_images=2)
    authorize(key, quantity=2)
    assert raising.scan(now=timezone.now()) == 0


def test_a_low_balance_is_told_once_until_the_next_recharge(key: ApiKey) -> None:
    now = timezone.now()
    BillingAccount.objects.update(alert_below_micro=9_900_000)
    draw(key, 2)
    assert raising.scan(now=now) == 0
    hold = authorize(key)
    assert raising.scan(now=now) == 1
    capture(hold)
    assert raising.scan(now=now) == 0
    row = Notification.objects.get()
    assert (row.key, row.kind) == (f"low:{key.organization_id}:0", "low_balance")
    assert row.details == {"available_usd": "9.88", "below_usd": "9.90"}

    entry = ledger.record(key.organization, EntryKind.RECHARGE, USD, entry_key="topup:1", note="")
    assert entry is not None
    assert raising.scan(now=now) == 0
    draw(key, 25)
    assert raising.scan(now=now) == 1
    assert Notification.objects.filter(key=f"low:{key.organization_id}:{entry.pk}").exists()


def test_a_new_organization_is_not_low_and_a_credit_limit_counts(key: ApiKey) -> None:
    OrganizationFactory(bonus="0")
    BillingAccount.objects.filter(pk=key.organization_id).update(
        alert_below_micro=9_990_000, credit_limit_micro=30_000
    )
    draw(key)
    assert raising.scan(now=timezone.now()) == 0
    BillingAccount.objects.filter(pk=key.organization_id).update(credit_limit_micro=29_999)
    assert raising.scan(now=timezone.now()) == 1


def test_many_hosts_notice_a_threshold_once(committed_key: ApiKey) -> None:
    budgets.set_budget(committed_key, None, Period.DAY, limit_images=4)
    draw(committed_key, 3)
    counts = race(8, lambda _: raising.scan(now=timezone.now()))
    assert (sum(counts), Notification.objects.count()) == (1, 1)  # type: ignore[arg-type]


# Who reads it


@pytest.fixture
def acme(db: None) -> Organization:
    """An organization with one member of every role, and one who has left the building."""
    organization: Organization = OrganizationFactory(name="Ada & Co", owner__email="owner@a.test")
    for role in ("admin", "billing", "developer", "viewer"):
        Membership.objects.create(
            organization=organization, user=UserFactory(email=f"{role}@a.test"), role=Role(role)
        )
    gone = UserFactory(email="gone@a.test", is_active=False)
    Membership.objects.create(organization=organization, user=gone, role=Role.OWNER)
    OrganizationFactory(name="Globex", owner__email="stranger@b.test")
    return organization


def send(organization: Organization, kind: str = "resumed", **details: Any) -> None:
    assert raising.raise_alert(organization, kind, f"{kind}:{organization.pk}", **details)
    assert delivery.deliver_due(now=timezone.now() + MINUTE) == 1


def test_every_kind_that_is_raised_has_its_words_and_no_other() -> None:
    code = "".join(path.read_text() for path in (ROOT / "billing").rglob("*.py"))
    raised = re.findall(r"(?:raise_alert|_Alert)\(\s*[\w.]+,\s*\"([a-z_]+)\"", code)
    assert sorted(set(raised)) == sorted(ALERTS)
    # The mail of each; the others are of keys and invitations.
    mails = {path.stem for path in (ROOT / "templates" / "emails").glob("*.txt")}
    assert set(ALERTS) == mails - {"footer", "invitation", "key_paused"}


def test_those_who_look_after_the_money_are_mailed_once(acme: Organization) -> None:
    send(acme)
    assert not raising.raise_alert(acme, "resumed", f"resumed:{acme.pk}")
    assert delivery.deliver_due(now=timezone.now() + DAY) == 0
    (sent,) = mail.outbox
    assert sent.to == ["admin@a.test", "billing@a.test", "owner@a.test"]
    assert sent.subject == "Ada & Co is active again"
    assert sent.body.startswith("The suspension")
    assert "http://127.0.0.1:8000" in sent.body
    assert "&amp;" not in sent.body
    row = Notification.objects.get()
    assert row.emailed_at is not None
    assert row.settled_at is not None
    assert (row.posted_at, row.email_error, row.post_error) == (None, "", "")


def test_a_member_hears_of_the_own_budget(acme: Organization, key: ApiKey) -> None:
    member = User.objects.get(email="developer@a.test")
    mine = KeyFactory(organization=acme, actor=member).row
    budgets.set_for(acme.pk, Holder(scopes.MEMBER, member.pk), None, Period.DAY, limit_images=2)
    draw(mine, 2)
    raising.scan(now=timezone.now())
    delivery.deliver_due(now=timezone.now() + MINUTE)
    (sent,) = mail.outbox
    assert sent.to == ["admin@a.test", "billing@a.test", "developer@a.test", "owner@a.test"]
    assert sent.subject == "Ada & Co: 100% of a budget is used"
    assert "Generated in this period: 2 of 2 images." in sent.body
    # Who is no member any more hears no more.
    Membership.objects.filter(user=member).delete()
    assert raising.raise_alert(acme, "resumed", "again", member=member.email)
    delivery.deliver_due(now=timezone.now() + MINUTE)
    assert mail.outbox[1].to == ["admin@a.test", "billing@a.test", "owner@a.test"]


@pytest.mark.parametrize(
    ("holder", "words", "more"),
    [
        (
            Holder(scopes.ORGANIZATION),
            "The whole organization has a budget per week.",
            {"scope": "organization"},
        ),
        (
            Holder(scopes.TAG, "a 100 %(x)s"),
            "Requests with the tag a 100 %(x)s have a budget per week.",
            {"scope": "tag", "tag": "a 100 %(x)s"},
        ),
    ],
    ids=["organization", "tag"],
)
def test_the_budget_of_an_organization_or_a_tag_is_told_at_each_threshold(
    acme: Organization, key: ApiKey, holder: Holder, words: str, more: dict[str, str]
) -> None:
    mine = KeyFactory(organization=acme, tags=["a 100 %(x)s"]).row
    budgets.set_for(acme.pk, holder, 400_000, Period.WEEK)
    draw(key, 9)  # another organization's
    seen = []
    for _ in range(10):
        draw(mine)
        seen.append(raising.scan(now=timezone.now()))
    assert [number for number, new in enumerate(seen, 1) if new] == [5, 8, 10]
    period = BudgetPeriod.objects.get(budget__organization=acme)
    assert Notification.objects.get(key=f"budget:{period.pk}:usd:80").details == {
        "percent": 80,
        "unit": "usd",
        "limit_usd": "0.40",
        "spent_usd": "0.32",
        "period": "week",
        "since": period.starts_at.isoformat(),
        "budget": period.budget_id,
        "member": None,
        **more,
    }
    assert delivery.deliver_due(now=timezone.now() + MINUTE) == 3
    for sent in mail.outbox:
        assert sent.to == ["admin@a.test", "billing@a.test", "owner@a.test"]
        assert words in sent.body
    assert sorted(sent.subject for sent in mail.outbox) == [
        f"{acme.name}: {percent}% of a budget is used" for percent in (100, 50, 80)
    ]


DETAILS = {
    "budget": {
        "percent": 80,
        "unit": "usd",
        "limit_usd": "5.00",
        "spent_usd": "4.00",
        "period": "day",
        "scope": "key",
    },
    "low_balance": {"available_usd": "0.90", "below_usd": "1.00"},
    "recharge_failed": {"amount_usd": "10.00", "reason": "Your card was declined."},
    "payment_failed": {"invoice": "A-0001"},
    "suspended": {"reason": "invoice A-0001 could not be collected"},
    "resumed": {},
    "test": {"by": "ana@acme.test"},
}


def test_every_kind_has_its_words(acme: Organization, subtests: pytest.Subtests) -> None:
    source = "".join(path.read_text() for path in (ROOT / "billing").rglob("*.py"))
    raised = set(re.findall(r'(?:raise_alert\(|_Alert\()[^)]*?"([a-z_]+)"', source, re.DOTALL))
    assert raised | {"budget", "low_balance"} == set(DETAILS)
    for kind, details in DETAILS.items():
        with subtests.test(kind):
            send(acme, kind, **details)
            sent = mail.outbox[-1]
            assert "\n" not in sent.subject
            for value in details.values():
                shown = f"{sent.subject}\n{sent.body}"
                assert str(value) in shown or value in ("usd", "key")
            assert "None" not in sent.body


# The organization's own software


@dataclass
class Receiver:
    """A web server that keeps what it is sent and answers as it is told."""

    url: str = ""
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.got.append((self.path, self.headers["GeekHub-Signature"], body))
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    settings.ALERT_LOCAL_ORIGINS = [told.url]
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def verifier() -> Any:
    """Return the function that docs/money.md gives to customers."""
    docs = (ROOT / "docs" / "money.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?def is_ours.*?)```", docs, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    return names["is_ours"]


def test_an_alert_is_posted_once_and_its_signature_holds(
    acme: Organization, receiver: Receiver
) -> None:
    secret = endpoints.set_endpoint(acme, f"{receiver.url}/hook?a=1", None)
    send(acme, "suspended", reason="unpaid")
    assert delivery.deliver_due(now=timezone.now() + DAY) == 0

    ((path, signature, body),) = receiver.got
    row = Notification.objects.get()
    assert path == "/hook?a=1"
    assert json.loads(body) == {
        "id": str(row.pk),
        "type": "suspended",
        "created": int(row.created_at.timestamp()),
        "organization": str(acme.pk),
        "data": {"reason": "unpaid"},
    }
    assert row.posted_at is not None
    is_ours = verifier()
    assert is_ours(body, signature, secret)
    assert not is_ours(body + b" ", signature, secret)
    assert not is_ours(body, signature, secret + "x")
    old = endpoints.sign(body, secret, at=datetime(2026, 1, 1, tzinfo=UTC))
    assert not is_ours(body, old, secret)


@pytest.mark.parametrize("status", [500, 302, 404])
def test_an_endpoint_that_refuses_is_tried_again_and_the_mail_is_not(
    acme: Organization, receiver: Receiver, status: int
) -> None:
    endpoints.set_endpoint(acme, receiver.url, None)
    receiver.status, receiver.headers = status, {"Location": f"{receiver.url}/elsewhere"}
    raising.raise_alert(acme, "resumed", "r")
    now = timezone.now() + MINUTE

    assert delivery.deliver_due(now=now) == 0
    row = Notification.objects.get()
    assert (row.email_error, row.post_error, row.settled_at) == ("", f"HTTP {status}", None)
    assert delivery.deliver_due(now=now + MINUTE - timedelta(seconds=1)) == 0
    assert len(receiver.got) == 1
    receiver.status = 200
    assert delivery.deliver_due(now=now + MINUTE) == 1
    assert [path for path, _, _ in receiver.got] == ["/", "/"]
    assert len(mail.outbox) == 1
    assert Notification.objects.get().post_error == ""


def test_after_a_day_it_is_given_up(acme: Organization, receiver: Receiver) -> None:
    endpoints.set_endpoint(acme, receiver.url, None)
    receiver.status = 500
    raising.raise_alert(acme, "resumed", "r")
    begun = now = timezone.now() + MINUTE
    while not delivery.deliver_due(now=now):
        now = Notification.objects.get().next_at
    assert DAY < now - begun < DAY + 4 * HOUR
    assert len(receiver.got) == 14
    row = Notification.objects.get()
    assert (row.settled_at, row.posted_at) == (now, None)
    assert (row.email_error, row.post_error) == ("", "HTTP 500")
    assert delivery.deliver_due(now=now + DAY) == 0


def test_mail_that_cannot_be_sent_is_sent_later_and_the_post_is_not_repeated(
    acme: Organization, receiver: Receiver, settings: Settings
) -> None:
    endpoints.set_endpoint(acme, receiver.url, None)
    raising.raise_alert(acme, "resumed", "r")
    works = settings.MAILERS
    # Nobody listens there.
    settings.MAILERS = {
        "default": {
            "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
            "OPTIONS": {"host": "127.0.0.1", "port": 1},
        }
    }
    now = timezone.now() + MINUTE
    assert delivery.deliver_due(now=now) == 0
    row = Notification.objects.get()
    assert row.email_error.startswith("ConnectionRefusedError")
    assert row.post_error == ""
    settings.MAILERS = works
    assert delivery.deliver_due(now=now + MINUTE) == 1
    assert (len(mail.outbox), len(receiver.got)) == (1, 1)


def test_one_that_cannot_be_worded_does_not_stop_the_others(acme: Organization) -> None:
    raising.raise_alert(acme, "no_such_words", "a")
    raising.raise_alert(acme, "resumed", "b")
    assert delivery.deliver_due(now=timezone.now() + MINUTE) == 1
    assert len(mail.outbox) == 1
    assert Notification.objects.get(key="a").email_error.startswith("TemplateDoesNotExist")


def test_what_a_dead_worker_had_claimed_is_done_by_another(
    acme: Organization, receiver: Receiver
) -> None:
    endpoints.set_endpoint(acme, receiver.url, None)
    raising.raise_alert(acme, "resumed", "r")
    now = timezone.now() + MINUTE
    # It was killed after the e-mail's mark and before the POST.
    Notification.objects.update(attempts=1, next_at=now + OUTBOX.lease, emailed_at=now)
    assert delivery.deliver_due(now=now + OUTBOX.lease - timedelta(seconds=1)) == 0
    assert delivery.deliver_due(now=now + OUTBOX.lease) == 1
    assert (len(mail.outbox), len(receiver.got)) == (0, 1)


def test_many_workers_deliver_each_once(transactional_db: None, receiver: Receiver) -> None:
    organization = OrganizationFactory()
    endpoints.set_endpoint(organization, receiver.url, None)
    for number in range(6):
        raising.raise_alert(organization, "resumed", f"r:{number}")
    now = timezone.now() + MINUTE
    assert sum(race(6, lambda _: delivery.deliver_due(now=now))) == 6  # type: ignore[arg-type]
    assert (len(mail.outbox), len(receiver.got)) == (6, 6)
    assert len({json.loads(body)["id"] for _, _, body in receiver.got}) == 6


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://hooks.example.com:8443/",
        "https://ada:secret@hooks.example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://10.0.0.7/",
        "https://8.8.8.8/",
        "http://127.0.0.1:9/",
        "ftp://hooks.example.com/",
        "https://",
        "hooks",
        "https://hooks.example.com/\n",
        f"https://hooks.example.com/{'x' * 500}",
    ],
)
def test_an_address_that_alerts_cannot_go_to(acme: Organization, url: str) -> None:
    with pytest.raises(EndpointRefused):
        endpoints.set_endpoint(acme, url, None)
    assert not AlertEndpoint.objects.exists()


def test_a_name_that_leads_into_our_own_network_is_not_posted_to(
    acme: Organization,
) -> None:
    endpoints.set_endpoint(acme, "https://localhost/", None)
    raising.raise_alert(acme, "resumed", "r")
    assert delivery.deliver_due(now=timezone.now() + MINUTE) == 0
    # Without the resolver's guard the connection would be tried, and refused by nobody's port.
    assert "ClientConnectorDNSError" in Notification.objects.get().post_error


def test_an_endpoint_is_changed_and_removed_by_somebody(acme: Organization) -> None:
    owner = User.objects.get(email="owner@a.test")
    first = endpoints.set_endpoint(acme, "https://hooks.example.com/a", owner)
    second = endpoints.set_endpoint(acme, "https://hooks.example.com/b", owner)
    assert first != second
    assert first.startswith("ghub_whsec_")
    assert AlertEndpoint.objects.get().secret == second
    for _ in range(2):
        endpoints.remove_endpoint(acme, owner)
    done = AuditEvent.objects.filter(action__startswith="alerts.").order_by("pk")
    assert [event.action for event in done] == [
        "alerts.endpoint_set",
        "alerts.endpoint_set",
        "alerts.endpoint_removed",
    ]
    assert {event.actor for event in done} == {owner}
    assert second not in json.dumps([event.details for event in done])
