"""The pages for staff: who gets in, what can be done there, and what cannot."""

import re
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.admin.utils import quote
from django.core.management import call_command
from django.db import IntegrityError, connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts import audit, members
from accounts.access import LOOKING, Permission
from accounts.models import ApiKey, AuditEvent, Organization, Role, User
from accounts.staff import viewing
from accounts.staff.lists import MOST
from billing.models import (
    AccountStatus,
    BillingAccount,
    Comparison,
    Difference,
    DifferenceState,
    EntryKind,
    Invoice,
    JobRun,
    LedgerEntry,
    MeterEvent,
    Period,
    PriceVersion,
    Reconciliation,
    StripeEvent,
    StripeOperation,
    scopes,
)
from billing.models.scopes import Holder
from billing.spending import budgets, ledger
from billing.stripe import standing
from geekhub.staff.site import PAGES, site
from geekhub.work.due import run_due
from geekhub.work.jobs import current
from images.catalog.rows import CATALOG
from images.models import Generation
from images.usage import platform
from tests.factories import KeyFactory
from tests.images.requests import FLUX, IMAGEN, close_all_hours, make_request
from tests.pages import log_in, member_of, owner_of
from tests.pages.staff import staff

CHANGELISTS = [
    reverse(f"admin:{m._meta.app_label}_{m._meta.model_name}_changelist") for m, _ in PAGES
]
NOW = datetime.fromisoformat("2026-11-20T10:00:00+00:00")


def walk(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for one in patterns:
        route = prefix + str(one.pattern)
        if isinstance(one, URLResolver):
            yield from walk(one.url_patterns, route)
        else:
            yield route, one


EVERYTHING = list(walk(get_resolver().url_patterns))
# All but those of the API, which have no sessions and another handler.
OURS = [
    route
    for route, _ in EVERYTHING
    if not (route.startswith(("v1/", "^v1/")) or route.endswith("$") or "webhooks" in route)
]
STAFF_ROUTES = [route for route, _ in EVERYTHING if route.startswith("staff/")]


def address(route: str) -> str:
    """Return a URL of the route, of something that is not there."""
    if route.endswith("$"):
        return "/staff/accounts/"
    route = route.replace("<uuid:key_id>", str(uuid.uuid4()))
    return "/" + re.sub(r"<[^>]+>", "1", route)


@pytest.fixture
def key(acme: Organization) -> ApiKey:
    return KeyFactory(organization=acme).row


@pytest.fixture
def difference(acme: Organization) -> Difference:
    return Difference.objects.create(
        key=f"balance:{acme.pk}", kind="balance", organization=acme, expected=10, found=7,
        last_seen_at=NOW,
    )  # fmt: skip


@pytest.fixture
def rows(acme: Organization, key: ApiKey, difference: Difference) -> dict[str, Any]:
    """One of everything that has a page, by the name of its model."""
    request = make_request(key, timezone.now(), prompt="a secret recipe", pictures=True)
    version = PriceVersion.objects.filter(sku=FLUX).get()
    invoice = Invoice.objects.create(
        stripe_id="in_1", organization=acme, number="ACME-1", status="open", currency="usd",
        period_start=NOW, period_end=NOW, subtotal_cents=500, tax_cents=0, total_cents=500,
        amount_due_cents=500, amount_paid_cents=0, lines=[], created=NOW, fetched_at=NOW,
    )  # fmt: skip
    return {
        "user": owner_of(acme),
        "apikey": key,
        "auditevent": audit.record("key.created", organization=acme, subject="x"),
        "organization": acme,
        "generation": request,
        "ledgerentry": LedgerEntry.objects.latest("pk"),
        "hold": request.hold,
        "priceversion": version,
        "invoice": invoice,
        "meterevent": MeterEvent.objects.create(
            identifier="mev_1", organization=acme, price_version=version, hour=NOW, quantity=1,
            timestamp=NOW, next_at=NOW,
        ),
        "stripeoperation": StripeOperation.objects.create(key="customer:1", kind="customer"),
        "stripeevent": StripeEvent.objects.create(
            id="evt_1", type="invoice.paid", livemode=False, created=NOW,
            payload={"email": "private@acme.test"},
        ),
        "difference": difference,
        "reconciliation": Reconciliation.objects.create(
            kind="internal", started_at=NOW, finished_at=NOW, checked=4, differences=1
        ),
    }  # fmt: skip


def page_of(rows: dict[str, Any], name: str) -> str:
    row = rows[name]
    shown = row.request_id if name == "generation" else row.pk
    return reverse(f"admin:{row._meta.app_label}_{name}_change", args=[quote(shown)])


def organization_page(acme: Organization, action: str = "") -> str:
    page = reverse("admin:accounts_organization_change", args=[acme.pk])
    return page.replace("/change/", f"/{action}/") if action else page


def send(client: Client, path: str, **data: Any) -> HttpResponse:
    """Send a form, confirmed and with a reason unless given otherwise."""
    return client.post(path, {"reason": "asked by phone", "confirmed": "on"} | data)


# --- Who gets in ------------------------------------------------------------------------------


def test_the_routes_are_found() -> None:
    assert len(STAFF_ROUTES) > 14 * 4
    assert "staff/stop-viewing" in STAFF_ROUTES


def test_who_is_let_in(acme: Organization, client: Client) -> None:
    # These belong to everybody who is logged in.
    paths = [
        address(route)
        for route in STAFF_ROUTES
        if route not in ("staff/logout/", "staff/password_change/")
    ]
    for path in paths:
        sent_from = {"referer": "http://testserver/staff/"}
        for answer in (client.get(path), client.post(path, headers=sent_from)):
            assert answer.status_code in (302, 405), path
            if answer.status_code == 302:
                assert answer["location"].startswith("/login?next=/staff/")
    log_in(client, owner_of(acme))
    for path in paths:
        for answer in (client.get(path), client.post(path)):
            assert answer.status_code in (404, 405), path
            assert b"nfold" not in answer.content
    log_in(client, staff(factor=False))
    for path in paths:
        for answer in (client.get(path), client.post(path)):
            assert answer.status_code in (302, 405), path
            if answer.status_code == 302:
                assert answer["location"] == "/accounts/2fa/"


def test_staff_without_a_second_factor_are_told_so(client: Client, db: None) -> None:
    log_in(client, staff(factor=False))
    assert "Set it up here" in client.get("/staff/", follow=True).text


def test_recovery_codes_alone_are_no_second_factor(client: Client, db: None) -> None:
    user = staff(factor=False)
    Authenticator.objects.create(user=user, type=Authenticator.Type.RECOVERY_CODES, data={})
    log_in(client, user)
    assert client.get("/staff/").status_code == 302


@pytest.mark.parametrize("change", [{"is_staff": False}, {"is_active": False}])
def test_who_is_no_longer_staff_is_out_at_once(change: Any, client: Client, db: None) -> None:
    user = staff()
    log_in(client, user)
    assert client.get("/staff/").status_code == 200
    User.objects.filter(pk=user.pk).update(**change)
    assert client.get("/staff/").status_code in (302, 404)


def test_a_superuser_needs_the_second_factor_too(client: Client, db: None) -> None:
    log_in(client, staff(factor=False, superuser=True))
    assert client.get("/staff/").status_code == 302


def test_django_s_own_login_is_not_there(client: Client, db: None) -> None:
    user = staff()
    wrong = {"username": user.email, "password": "correct horse battery"}
    answer = client.post("/staff/login/", wrong)
    assert answer["location"].startswith("/login?")
    assert "_auth_user_id" not in client.session
    assert client.get("/staff")["location"] == "/staff/"


def test_staff_log_out_as_everybody_does(client: Client, db: None) -> None:
    log_in(client, staff())
    assert client.post("/staff/logout/")["location"] == "/login"
    assert "_auth_user_id" not in client.session
    log_in(client, staff())
    assert client.get("/staff/password_change/")["location"] == "/accounts/password/change/"


def test_the_first_member_of_staff_is_made_by_a_command(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "a long enough one")
    call_command("createsuperuser", email="Root@geekhub.test", interactive=False, verbosity=0)
    user = User.objects.get()
    assert (user.email, user.is_staff, user.is_superuser) == ("root@geekhub.test", True, True)
    assert user.check_password("a long enough one")
    login = {"login": "root@geekhub.test", "password": "a long enough one"}
    assert client.post("/login?next=/staff/", login)["location"] == "/staff/"
    assert client.get("/staff/")["location"] == "/accounts/2fa/"


# --- The policy of content ----------------------------------------------------------------------


def test_the_policy_is_relaxed_for_staff_pages_alone(
    rows: dict[str, Any], acme: Organization, client: Client, settings: Settings
) -> None:
    boss = staff()
    members.invite(acme, boss.email, Role.ADMIN, actor=owner_of(acme))
    members.Membership.objects.create(organization=acme, user=boss, role=Role.OWNER)
    log_in(client, boss)
    relaxed, strict = [], []
    for route in OURS:
        path = address(route)
        if "logout" in route:
            continue
        for answer in (client.get(path), client.post(path)):
            policy = answer.headers.get("Content-Security-Policy", "")
            (relaxed if "unsafe" in policy else strict).append(path)
    assert "/staff/" in relaxed
    assert [path for path in relaxed if not path.startswith("/staff/")] == []
    assert {"/dashboard", "/login", "/accounts/2fa/", "/dashboard/keys"} <= set(strict)
    log_in(client, staff(factor=False))
    assert "unsafe" not in client.get("/staff/").headers["Content-Security-Policy"]
    log_in(client, owner_of(acme))
    assert "unsafe" not in client.get("/staff/").headers["Content-Security-Policy"]


# --- What is shown -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHANGELISTS)
def test_a_list_is_shown_and_searched(
    path: str, rows: dict[str, Any], acme: Organization, client: Client
) -> None:
    log_in(client, staff())
    for query in ("", "?q=acme", f"?q={acme.pk}", "?q=nothing-like-it", "?q=alice@acme.test"):
        answer = client.get(path + query)
        assert answer.status_code == 200, query
        assert "/add/" not in answer.text
        assert "/delete/" not in answer.text


@pytest.mark.parametrize("path", CHANGELISTS)
def test_nothing_is_counted_further_than_it_is_leafed_through(
    path: str, rows: dict[str, Any], client: Client
) -> None:
    log_in(client, staff())
    with CaptureQueriesContext(
        connection,
    ) as queries:
        client.get(path)
    counts = [
        one["sql"] for one in queries if "COUNT(*)" in one["sql"] and "LIMIT" not in one["sql"]
    ]
    # Open differences and members of organizations: few, by an index each.
    table = site.get_model_admin(next(m for m, _ in PAGES if m._meta.model_name in path)).model
    counted = [one for one in counts if f'FROM "{table._meta.db_table}"' in one]
    if table is Difference:
        counted = [one for one in counted if "'open'" not in one]
    assert counted == []


def test_an_organization_is_shown_with_its_budgets(
    acme: Organization, globex: Organization, client: Client
) -> None:
    log_in(client, staff())
    path = reverse("admin:accounts_organization_change", args=[acme.pk])
    assert "Whole organization" not in client.get(path).text
    budgets.set_for(acme.pk, Holder(scopes.ORGANIZATION), 9_500_000, Period.WEEK)
    budgets.set_for(acme.pk, Holder(scopes.TAG, "a<b"), None, Period.DAY, limit_images=7)
    budgets.set_for(globex.pk, Holder(scopes.TAG, "theirs"), 1, Period.DAY)
    text = " ".join(re.sub(r"<[^>]*>", " ", client.get(path).text).split())
    assert "Tag a&lt;b all requests with the tag day 0 of 7 images" in text
    assert "Whole organization all keys, playgrounds too week $0.00 of $9.50" in text
    assert "theirs" not in text


def test_a_list_ends_where_one_should_search(acme: Organization, client: Client) -> None:
    AuditEvent.objects.bulk_create(
        [AuditEvent(organization=acme, action="key.created") for _ in range(MOST + 5)]
    )
    log_in(client, staff())
    answer = client.get(reverse("admin:accounts_auditevent_changelist"))
    assert f"{MOST} " in answer.text
    assert answer.context["cl"].paginator.count == MOST


@pytest.mark.parametrize("name", sorted(model._meta.model_name or "" for model, _ in PAGES))
def test_a_row_is_shown_and_cannot_be_changed(
    name: str, rows: dict[str, Any], client: Client
) -> None:
    log_in(client, staff(superuser=True))
    path = page_of(rows, name)
    model = type(rows[name])
    before = list(model._default_manager.order_by("pk").values())
    answer = client.get(path)
    assert answer.status_code == 200
    assert 'name="_save"' not in answer.text
    assert client.post(path, {"name": "Changed", "amount_micro": "1"}).status_code == 403
    assert client.get(path.replace("/change/", "/delete/")).status_code == 403
    assert client.post(path.replace("/change/", "/delete/"), {"post": "yes"}).status_code == 403
    listed = reverse(f"admin:{model._meta.app_label}_{name}_changelist")
    assert client.post(f"{listed}add/", {}).status_code == 403
    data = {"action": "delete_selected", "_selected_action": [str(rows[name].pk)], "post": "yes"}
    client.post(listed, data)
    assert list(model._default_manager.order_by("pk").values()) == before


def test_what_is_private_is_on_no_page(rows: dict[str, Any], client: Client) -> None:
    request, key = rows["generation"], rows["apikey"]
    request.idempotency_key = "their-own-name"
    request.save(update_fields=["idempotency_key"])
    log_in(client, staff(superuser=True))
    paths = [page_of(rows, name) for name in rows] + CHANGELISTS + ["/staff/"]
    paths += [f"{CHANGELISTS[4]}?q=secret", f"{CHANGELISTS[4]}?q=recipe"]
    for path in paths:
        text = client.get(path).text
        for private in (
            "a secret recipe", key.digest, request.fingerprint, "their-own-name",
            str(request.pk), "private@acme.test", owner_of(rows["organization"]).password,
        ):  # fmt: skip
            assert private not in text, (path, private)
    assert "Prompts are private" in client.get(page_of(rows, "generation")).text


def test_a_request_is_found_by_its_id_or_its_organization(
    rows: dict[str, Any], globex: Organization, client: Client
) -> None:
    theirs = make_request(KeyFactory(organization=globex).row, timezone.now(), error="rate_limited")
    mine = rows["generation"]
    log_in(client, staff())
    listed = reverse("admin:images_generation_changelist")

    def found(query: str) -> set[str]:
        return set(re.findall(r"req_[0-9a-f]{24}", client.get(listed + query).text))

    both = {mine.request_id, theirs.request_id}
    assert found("") == both
    assert found(f"?q={mine.request_id}") == {mine.request_id}
    assert found("?q=globex") == {theirs.request_id}
    assert found("?q=bob@globex.test") == {theirs.request_id}
    assert found("?status=failed") == {theirs.request_id}
    assert found(f"?model={FLUX}") == {mine.request_id}
    assert found("?provider=fal") == {mine.request_id}
    assert found("?error_code=rate_limited") <= {theirs.request_id}
    assert found("?q=a+secret") == set()
    Generation.objects.filter(pk=mine.pk).update(created_at=timezone.now() - timedelta(days=3))
    assert found("") == {theirs.request_id}
    assert found("?when=week") == both
    assert found("?q=acme") == {mine.request_id}


def test_keys_are_found_by_their_prefix(rows: dict[str, Any], client: Client) -> None:
    new = KeyFactory(organization=rows["organization"], name="other")
    log_in(client, staff())
    listed = reverse("admin:accounts_apikey_changelist")
    text = client.get(f"{listed}?q={new.secret}").text
    assert new.row.prefix in text
    assert rows["apikey"].prefix not in text


def test_an_organization_is_shown_with_its_money(
    rows: dict[str, Any], acme: Organization, client: Client
) -> None:
    BillingAccount.objects.filter(organization=acme).update(credit_limit_micro=7_500_000)
    log_in(client, staff())
    # 10 USD of bonus, one picture at 0.04.
    for path in (reverse("admin:accounts_organization_changelist"), organization_page(acme)):
        text = client.get(path).text
        for told in ("$9.96", "$0.04", "$7.50", "Acme"):
            assert told in text, (path, told)
    text = client.get(organization_page(acme)).text
    assert "alice@acme.test" in text
    assert rows["apikey"].prefix in text


# --- What staff do -------------------------------------------------------------------------------

FORMS: dict[str, dict[str, str]] = {
    "credit-limit": {"limit": "25"},
    "rates": {"rate_limit_rpm": "1200", "max_in_flight": ""},
    "suspend": {},
    "resume": {},
    "refund": {"amount": "0.19", "ticket": "T-1"},
    "adjust": {"amount": "-5", "ticket": "T-2"},
    "view-as": {},
}


def state(acme: Organization) -> tuple[Any, ...]:
    account = BillingAccount.objects.filter(organization=acme).values().get()
    organization = Organization.objects.filter(pk=acme.pk).values().get()
    return account, organization, LedgerEntry.objects.count(), AuditEvent.objects.count()


@pytest.mark.parametrize("action", FORMS)
def test_a_form_changes_nothing_before_it_is_sent_whole(
    action: str, acme: Organization, client: Client
) -> None:
    log_in(client, staff())
    path = organization_page(acme, action)
    before = state(acme)
    assert client.get(path).status_code == 200
    for data in ({"reason": ""}, {"reason": "   "}, {"confirmed": ""}):
        assert send(client, path, **(FORMS[action] | data)).status_code == 400
    assert state(acme) == before
    assert viewing.SESSION not in client.session
    outsider = Client()
    log_in(outsider, owner_of(acme))
    assert send(outsider, path, **FORMS[action]).status_code == 404
    assert state(acme) == before


def last_event(acme: Organization, action: str) -> AuditEvent:
    return AuditEvent.objects.filter(organization=acme, action=action).latest("pk")


def test_the_credit_limit_is_changed_and_both_are_written_down(
    acme: Organization, client: Client
) -> None:
    boss = staff()
    log_in(client, boss)
    assert send(client, organization_page(acme, "credit-limit"), limit="25.5").status_code == 302
    assert ledger.balance(acme).credit_limit_micro == 25_500_000
    event = last_event(acme, "account.credit_limit_changed")
    assert event.actor == boss
    assert event.details == {
        "before_usd": "0.00", "after_usd": "25.50", "reason": "asked by phone",
    }  # fmt: skip
    for bad in ("-1", "1.0000001", "a lot", "1e99", "NaN", ""):
        answer = send(client, organization_page(acme, "credit-limit"), limit=bad)
        assert answer.status_code == 400, bad
    assert ledger.balance(acme).credit_limit_micro == 25_500_000
    assert AuditEvent.objects.filter(action="account.credit_limit_changed").count() == 1


def test_rate_limits_are_changed(acme: Organization, client: Client) -> None:
    log_in(client, staff())
    path = organization_page(acme, "rates")
    send(client, path, rate_limit_rpm="1200", max_in_flight="")
    send(client, path, rate_limit_rpm="1200", max_in_flight="")
    acme.refresh_from_db()
    assert (acme.rate_limit_rpm, acme.max_in_flight) == (1200, None)
    event = AuditEvent.objects.get(action="account.rate_limits_changed")
    assert event.details["before"] == {"rate_limit_rpm": None, "max_in_flight": None}
    assert event.details["after"] == {"rate_limit_rpm": 1200, "max_in_flight": None}
    assert event.details["reason"] == "asked by phone"
    assert send(client, path, rate_limit_rpm="0", max_in_flight="").status_code == 400


def test_an_organization_is_suspended_and_resumed(acme: Organization, client: Client) -> None:
    boss = staff()
    log_in(client, boss)
    send(client, organization_page(acme, "suspend"), reason="stolen cards")
    account = ledger.balance(acme)
    assert (account.status, account.status_reason) == (AccountStatus.SUSPENDED, "stolen cards")
    assert account.suspended_by_staff
    event = last_event(acme, "account.suspended")
    assert (event.actor, event.details["reason"]) == (boss, "stolen cards")
    send(client, organization_page(acme, "resume"), reason="all paid")
    assert ledger.balance(acme).status == AccountStatus.OK
    assert last_event(acme, "account.ok").actor == boss
    assert last_event(acme, "account.ok").details == {"note": "all paid"}
    send(client, organization_page(acme, "resume"))
    assert AuditEvent.objects.filter(action="account.ok").count() == 1


def test_a_refund_is_a_ledger_row_once_per_ticket(acme: Organization, client: Client) -> None:
    boss = staff()
    log_in(client, boss)
    path = organization_page(acme, "refund")
    for _ in range(2):
        assert send(client, path, amount="0.19", ticket="T-1").status_code == 302
    entry = LedgerEntry.objects.get(kind=EntryKind.REFUND)
    assert (entry.amount_micro, entry.note, entry.entry_key) == (
        190_000, "asked by phone", "refund:T-1",
    )  # fmt: skip
    assert ledger.balance(acme).balance_micro == 10_190_000
    event = last_event(acme, "balance.refund")
    assert (event.actor, event.details["amount_usd"]) == (boss, "0.19")
    for data in ({"amount": "0.2"}, {"amount": "-1", "ticket": "T-9"}, {"ticket": ""}):
        assert send(client, path, **({"amount": "0.19", "ticket": "T-1"} | data)).status_code == 400
    assert LedgerEntry.objects.filter(kind=EntryKind.REFUND).count() == 1


def test_a_refund_names_no_invoice_of_another(
    acme: Organization, rows: dict[str, Any], globex: Organization, client: Client
) -> None:
    log_in(client, staff())
    data = {"amount": "1", "ticket": "T-1", "invoice": rows["invoice"].pk}
    assert "ACME-1" in client.get(organization_page(acme, "refund")).text
    assert "ACME-1" not in client.get(organization_page(globex, "refund")).text
    assert send(client, organization_page(globex, "refund"), **data).status_code == 400
    assert LedgerEntry.objects.filter(kind=EntryKind.REFUND).count() == 0


def test_an_adjustment_goes_down_too(acme: Organization, client: Client) -> None:
    log_in(client, staff())
    path = organization_page(acme, "adjust")
    assert send(client, path, amount="-5", ticket="T-2").status_code == 302
    assert ledger.balance(acme).balance_micro == 5_000_000
    assert last_event(acme, "balance.adjustment").subject == "T-2"
    assert send(client, path, amount="0", ticket="T-3").status_code == 400


def test_a_key_is_revoked_with_a_reason(rows: dict[str, Any], client: Client) -> None:
    key, boss = rows["apikey"], staff()
    log_in(client, boss)
    path = page_of(rows, "apikey").replace("/change/", "/revoke/")
    assert client.get(path).status_code == 200
    key.refresh_from_db()
    assert key.revoked_at is None
    assert send(client, path, reason="leaked on GitHub").status_code == 302
    key.refresh_from_db()
    assert key.revoked_at is not None
    event = last_event(key.organization, "key.revoked")
    assert (event.actor, event.details) == (boss, {"reason": "leaked on GitHub"})
    assert send(client, path).status_code == 400


def test_a_difference_is_accepted_with_a_reason(
    rows: dict[str, Any], difference: Difference, client: Client
) -> None:
    boss = staff()
    log_in(client, boss)
    listed = client.get(CHANGELISTS[12]).text
    assert "1 difference is open" in listed
    assert "internal" in listed
    path = page_of(rows, "difference").replace("/change/", "/accept/")
    assert send(client, path, reason="").status_code == 400
    assert send(client, path, reason="known since May").status_code == 302
    difference.refresh_from_db()
    assert (difference.state, difference.note) == (DifferenceState.ACCEPTED, "known since May")
    assert last_event(rows["organization"], "billing.difference_accepted").actor == boss
    assert send(client, path).status_code == 400
    text = client.get(CHANGELISTS[12]).text
    assert "No open differences" in text
    assert "known since May" not in text
    assert "known since May" in client.get(f"{CHANGELISTS[12]}?state=accepted").text


def test_a_row_that_is_not_there_is_404(acme: Organization, client: Client) -> None:
    log_in(client, staff())
    for action in FORMS:
        path = organization_page(acme, action).replace(str(acme.pk), str(uuid.uuid4()))
        assert client.get(path).status_code == 404
    assert client.get("/staff/nothing").status_code == 404


# --- The figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [False, True])
def test_the_figures_are_exact(
    closed: bool, acme: Organization, globex: Organization, key: ApiKey, client: Client
) -> None:
    other = KeyFactory(organization=globex).row
    sandbox = KeyFactory(organization=acme, sandbox=True).row
    today = timezone.now()
    make_request(key, today - timedelta(days=2), delivered=3)
    make_request(other, today - timedelta(days=2), model="google/gemini-nano-banana-2.1")
    make_request(other, today - timedelta(days=1), model=IMAGEN, error="provider_unavailable")
    make_request(key, today - timedelta(days=40), delivered=8)
    make_request(sandbox, today - timedelta(days=2), delivered=4)
    if closed:
        close_all_hours()
    month = platform.month()
    total = month.total
    # 3 at 0.04 that cost as much, one at 0.05 that costs 0.0336.
    assert (total.requests, total.failed, total.images) == (3, 1, 4)
    assert (total.revenue_micro, total.cost_micro, total.margin_micro) == (170_000, 153_600, 16_400)
    assert total.margin_tenths == 96
    assert total.unknown == 0
    assert month.errors == {("google", "provider_unavailable"): 1}
    assert {name: one.revenue_micro for name, one in month.providers.items()} == {
        "fal": 120_000, "google": 50_000,
    }  # fmt: skip
    day = (today - timedelta(days=2)).date()
    assert {d: one.revenue_micro for d, one in month.days.items() if one.revenue_micro} == {
        day: 170_000
    }
    assert platform.spent_by([acme, globex]) == {acme.pk: 120_000, globex.pk: 50_000}
    log_in(client, staff())
    text = client.get("/staff/").text
    for told in ("$0.17", "$0.1536", "$0.0164", "9.6 %", "provider_unavailable"):
        assert told in text, told


def test_a_model_whose_cost_nobody_knows_is_in_no_margin(
    acme: Organization, key: ApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_request(key, timezone.now(), delivered=2)
    Generation.objects.update(model="fal/gone", cost_micro=500_000)
    total = platform.month().total
    assert (total.unknown, total.unknown_micro, total.revenue_micro) == (2, 500_000, 500_000)
    assert (total.cost_micro, total.margin_micro, total.margin_tenths) == (0, 0, None)
    assert not total.is_known


def test_a_cost_is_internal(client: Client, acme: Organization, key: ApiKey) -> None:
    assert all(row.cost_micro is None or row.cost_micro > 0 for row in CATALOG.values())
    log_in(client, owner_of(acme))
    assert "cost_micro" not in client.get("/dashboard").text


@pytest.mark.parametrize("kind", Comparison)
def test_the_last_comparison_of_each_kind_is_shown(
    client: Client, acme: Organization, kind: Comparison
) -> None:
    """Whatever is compared, an invoice too: the page and the code that writes share one list."""
    for checked in (3, 4):
        Reconciliation.objects.create(
            kind=kind, subject="in_7", started_at=NOW, finished_at=NOW, checked=checked
        )
    log_in(client, staff())
    page = client.get(reverse("admin:billing_difference_changelist")).text
    runs = re.findall(r"\?kind=(\w+)\">([\w ]+)</a> in_7</th>.*?number\">(\d+)<", page)
    assert runs == [(kind, kind.label, "4")]
    listed = client.get(reverse("admin:billing_reconciliation_changelist") + f"?kind={kind}")
    assert listed.text.count(">in_7<") == 2


def test_a_kind_of_comparison_that_no_page_knows_cannot_be_written(db: None) -> None:
    with pytest.raises(IntegrityError, match="comparison_is_known"):
        Reconciliation.objects.create(kind="draft", started_at=NOW)


def test_the_worker_s_health_is_told(client: Client, acme: Organization) -> None:
    log_in(client, staff())
    assert "late" in client.get("/staff/").text
    run_due(current(), now=timezone.now())
    assert ">late<" not in client.get("/staff/").text
    JobRun.objects.filter(name="accounts moved").update(
        started_at=timezone.now() - timedelta(minutes=13)
    )
    assert client.get("/staff/").text.count(">late<") == 1


# --- View as customer ----------------------------------------------------------------------------


@pytest.fixture
def boss(acme: Organization, client: Client) -> User:
    """A member of staff who looks at Acme's pages."""
    user = staff()
    log_in(client, user)
    assert send(client, organization_page(acme, "view-as"))["location"] == "/dashboard"
    return user


def test_staff_see_what_a_customer_sees_and_it_is_written_down(
    rows: dict[str, Any], boss: User, acme: Organization, client: Client
) -> None:
    text = client.get("/dashboard").text
    assert "Staff view: you see Acme" in text
    event = last_event(acme, "staff.view_started")
    assert event.actor == boss
    assert event.details["reason"] == "asked by phone"
    customer = Client()
    log_in(customer, owner_of(acme))
    log = customer.get("/dashboard/settings/audit").text
    assert boss.email in log
    assert "asked by phone" in log
    assert "Staff view" not in customer.get("/dashboard").text


def test_staff_see_no_prompt_when_they_look(
    rows: dict[str, Any], boss: User, acme: Organization, client: Client
) -> None:
    request = rows["generation"]
    request.images.update(revised_prompt="a secret recipe, in oil")
    paths = [
        "/dashboard",
        "/dashboard/gallery",
        "/dashboard/gallery?q=secret",
        f"/dashboard/gallery/{request.request_id}-0",
        "/dashboard/usage",
        f"/dashboard/usage/{request.request_id}",
        "/dashboard/usage.csv",
    ]
    owner = Client()
    log_in(owner, owner_of(acme))
    seen = [b"secret recipe" in content(owner.get(path)) for path in paths]
    assert sum(seen) >= 4
    for path in paths:
        assert b"secret recipe" not in content(client.get(path)), path
    page = client.get(f"/dashboard/usage/{request.request_id}").text
    assert "hidden from staff" in page
    assert "not kept" not in page.replace("THE PROMPT WAS NOT KEPT", "")
    picture = client.get(f"/dashboard/gallery/{request.request_id}-0").text
    assert "The prompt is hidden from staff." in picture
    # Nor does a search reveal what the prompts say.
    assert content(client.get("/dashboard/gallery?q=recipe")).count(b"<img") == content(
        client.get("/dashboard/gallery?q=potato")
    ).count(b"<img")


def content(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


def test_what_staff_may_who_look(rows: dict[str, Any], boss: User, client: Client) -> None:
    assert frozenset({Permission.VIEW, Permission.VIEW_BILLING, Permission.VIEW_AUDIT}) == LOOKING
    for route, one in EVERYTHING:
        permission = getattr(one.callback, "permission", None)
        if permission is None or "<" in route:
            continue
        answer = client.get(f"/{route}")
        if permission in LOOKING:
            assert answer.status_code in (200, 302, 405), route
        else:
            assert answer.status_code in (403, 405), route


def test_nothing_is_changed_while_staff_look(
    rows: dict[str, Any], boss: User, acme: Organization, client: Client
) -> None:
    before = state(acme)
    refused = 0
    for route in OURS:
        path = address(route)
        if route in STILL:
            continue
        for method in (client.post, client.put, client.patch, client.delete):
            answer = method(path, {"organization": acme.slug, "reason": "x", "confirmed": "on"})
            assert answer.status_code in (403, 405), (path, answer.status_code)
            refused += b"Nothing was changed" in answer.content
    for action, data in FORMS.items():
        answer = send(client, organization_page(acme, action), **data)
        assert "Nothing was changed" in answer.text
    assert refused > 4 * 80
    assert state(acme) == before


# What works all the same: to stop, to leave, and the language. The webhook has no session.
STILL = {
    "staff/stop-viewing", "staff/logout/", "logout", "accounts/logout/", "language",
}  # fmt: skip


def test_the_switch_and_other_organizations_are_closed(
    boss: User, acme: Organization, globex: Organization, client: Client
) -> None:
    members.Membership.objects.create(organization=globex, user=boss, role=Role.OWNER)
    assert client.get("/dashboard?organization=globex").status_code == 404
    assert client.get(f"/dashboard?organization={acme.slug}").status_code == 200
    assert "Globex" not in client.get("/dashboard").text


def test_it_ends_with_a_button(boss: User, acme: Organization, client: Client) -> None:
    assert client.get("/staff/stop-viewing").status_code == 405
    assert client.post("/staff/stop-viewing")["location"] == organization_page(acme)
    assert last_event(acme, "staff.view_stopped").actor == boss
    assert client.get("/dashboard")["location"] == "/staff/"
    assert client.post("/staff/stop-viewing")["location"] == "/staff/"
    assert AuditEvent.objects.filter(action="staff.view_stopped").count() == 1


@pytest.mark.parametrize("path", ["/logout", "/accounts/logout/", "/staff/logout/"])
def test_it_ends_with_the_logout(path: str, boss: User, acme: Organization, client: Client) -> None:
    client.post(path)
    assert "_auth_user_id" not in client.session
    assert last_event(acme, "staff.view_stopped").actor == boss


def test_it_ends_after_an_hour(boss: User, acme: Organization, client: Client) -> None:
    session = client.session
    until = session[viewing.SESSION]["until"]
    assert 59 * 60 < until - timezone.now().timestamp() <= 60 * 60
    session[viewing.SESSION] = {"organization": str(acme.pk), "until": timezone.now().timestamp()}
    session.save()
    assert client.get("/dashboard").status_code == 302
    event = last_event(acme, "staff.view_stopped")
    assert event.details == {"why": "the hour was over"}
    client.get("/dashboard")
    assert AuditEvent.objects.filter(action="staff.view_stopped").count() == 1


@pytest.mark.parametrize(
    "undo",
    [
        lambda user: User.objects.filter(pk=user.pk).update(is_staff=False),
        lambda user: Authenticator.objects.filter(user=user).delete(),
    ],
)
def test_it_ends_with_being_staff(
    undo: Callable[[User], object], boss: User, acme: Organization, client: Client
) -> None:
    acme.name = "Acme Pictures"  # with a space, which no random token on a page can hold
    acme.save()
    assert "Acme Pictures" in client.get("/dashboard").text
    undo(boss)
    assert "Acme Pictures" not in client.get("/dashboard", follow=True).text
    assert viewing.SESSION not in client.session


def test_a_customer_cannot_look_at_another(
    acme: Organization, globex: Organization, client: Client
) -> None:
    acme.name = "Acme Pictures"
    acme.save()
    log_in(client, owner_of(globex))
    session = client.session
    session[viewing.SESSION] = {"organization": str(acme.pk), "until": 9e9}
    session.save()
    assert "Acme Pictures" not in client.get("/dashboard").text


def test_a_suspended_account_is_told_by_whom(acme: Organization, client: Client) -> None:
    standing.suspend(acme, "fraud", None)
    log_in(client, staff())
    assert "(by staff)" in client.get(organization_page(acme)).text


def test_members_of_staff_are_people_like_others(acme: Organization, client: Client) -> None:
    log_in(client, staff())
    boss = User.objects.get(is_staff=True)
    text = client.get(reverse("admin:accounts_user_changelist") + "?is_staff__exact=1").text
    assert boss.email in text
    assert "alice@acme.test" not in text
    assert member_of(acme, Role.VIEWER).email in client.get(CHANGELISTS[0]).text
