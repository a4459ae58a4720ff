"""The key pages: made once, shown once, narrowed, rotated, revoked; and what /v1 makes of it."""

import re
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts import keys
from accounts.keys import RevokedKey
from accounts.models import ApiKey, AuditEvent, Organization, Role
from billing.models import Budget, Period
from billing.spending import ledger
from billing.spending.onboarding import found_organization
from tests.factories import KeyFactory
from tests.pages import log_in, member_of, owner_of
from tests.server import Api, AppServer

SECRET = re.compile(r"ghub_sk_(?:live|test)_[A-Za-z0-9]{32}")


def form(**changes: object) -> dict[str, object]:
    """Return what the form for a new key sends."""
    fields = {"once": uuid.uuid4(), "name": "prod-web", "kind": "live", "budget_period": "month"}
    return {**fields, **changes}


@pytest.fixture
def alice(client: Client, acme: Organization) -> Client:
    return log_in(client, owner_of(acme))


def test_a_key_is_shown_once_with_code_that_runs(alice: Client, acme: Organization) -> None:
    answer = alice.post(
        "/dashboard/keys/new",
        form(
            budget_usd="7.50",
            budget_period="week",
            allowed_models=["fal/flux-1.1-pro", "openai/gpt-image-1"],
            allowed_ips="203.0.113.9\n2001:db8::/32, 203.0.113.9",
            tags="web, prod ,web",
            private="on",
        ),
    )
    assert answer.status_code == 200
    assert "no-store" in answer["cache-control"]
    text = answer.content.decode()
    (secret,) = set(SECRET.findall(text))
    assert secret.startswith("ghub_sk_live_")
    # Once to copy, and in curl, Python and Node.
    assert text.count(secret) == 4
    assert "model=&quot;fal/flux-1.1-pro&quot;" in text
    key = keys.authenticate(secret)
    assert (key.organization, key.name, key.created_by) == (acme, "prod-web", owner_of(acme))
    assert key.allowed_models == ["fal/flux-1.1-pro", "openai/gpt-image-1"]
    assert key.allowed_ips == ["203.0.113.9/32", "2001:db8::/32"]
    assert (key.tags, key.private, key.expires_at) == (["web", "prod"], True, None)
    budget = Budget.objects.get()
    assert (budget.key_family, budget.limit_micro, budget.period) == (
        key.family,
        7_500_000,
        Period.WEEK,
    )
    listed = alice.get("/dashboard/keys").content.decode()
    assert key.prefix in listed
    assert secret not in listed
    assert "$7.50" in listed


def test_the_same_form_makes_one_key(alice: Client, acme: Organization) -> None:
    sent = form()
    assert alice.post("/dashboard/keys/new", sent).status_code == 200
    again = alice.post("/dashboard/keys/new", sent, follow=True)
    assert again.redirect_chain == [("/dashboard/keys", 302)]
    assert not SECRET.search(again.content.decode())
    assert acme.api_keys.count() == 1
    assert AuditEvent.objects.filter(action="key.created").count() == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "", "required"),
        ("name", "x" * 101, "at most 100"),
        ("kind", "gold", "valid choice"),
        ("budget_usd", "a lot", "an amount such as"),
        ("budget_usd", "-1", "cannot be negative"),
        ("budget_usd", "0.0000001", "an amount such as"),
        ("allowed_ips", "acme.test", "acme.test is not an IP address"),
        ("allowed_ips", "10.0.0.0/99", "is not an IP address"),
        ("allowed_models", ["no/model"], "valid choice"),
        ("expires_on", "2020-01-01", "Choose today or a later day"),
        ("tags", ",".join(map(str, range(9))), "Up to 8 tags"),
        ("tags", "x" * 41, "Up to 8 tags of up to 40 characters each."),
        ("once", "x", "valid UUID"),
    ],
)
def test_what_is_wrong_is_said_and_makes_nothing(
    alice: Client, acme: Organization, field: str, value: object, words: str
) -> None:
    answer = alice.post("/dashboard/keys/new", form(**{field: value}))
    assert answer.status_code == 200
    assert any(words in error for error in answer.context["form"].errors[field])
    assert not acme.api_keys.exists()
    assert not Budget.objects.exists()


def test_a_key_lasts_to_the_end_of_its_last_day_where_the_viewer_is(
    alice: Client, acme: Organization
) -> None:
    alice.cookies["timezone"] = "America/Mexico_City"
    year = timezone.now().year + 1
    alice.post("/dashboard/keys/new", form(expires_on=f"{year}-03-31"))
    expires_at = acme.api_keys.get().expires_at
    assert expires_at is not None
    assert expires_at.isoformat() == f"{year}-04-01T06:00:00+00:00"


def test_rotating_overlaps_as_long_as_its_owner_says(alice: Client, acme: Organization) -> None:
    old = KeyFactory(organization=acme, allowed_ips=["203.0.113.0/24"], tags=["web"])
    path = f"/dashboard/keys/{old.row.pk}/rotate"
    assert alice.post(path, {"overlap": "5"}).status_code == 200
    assert acme.api_keys.count() == 1
    answer = alice.post(path, {"overlap": "24"})
    (secret,) = set(SECRET.findall(answer.content.decode()))
    new = keys.authenticate(secret)
    assert (new.allowed_ips, new.tags, new.family) == (["203.0.113.0/24"], ["web"], old.row.family)
    old.row.refresh_from_db()
    assert old.row.expires_at is not None
    day = timezone.now() + timedelta(days=1)
    assert abs(old.row.expires_at - day) < timedelta(minutes=1)
    keys.authenticate(old.secret)
    twice = alice.post(path, {"overlap": "24"})
    assert (twice.status_code, twice["location"]) == (302, "/dashboard/keys")
    assert acme.api_keys.count() == 2
    alice.post(f"/dashboard/keys/{new.pk}/rotate", {"overlap": "0"})
    with pytest.raises(RevokedKey):
        keys.authenticate(secret)


def test_the_list_marks_what_is_unused_and_hides_what_ended(
    alice: Client, acme: Organization
) -> None:
    month = timezone.now() - timedelta(days=31)
    for name, changes in {
        "fresh": {},
        "sleeper": {"created_at": month},
        "dozer": {"created_at": month, "last_used_at": month},
        "worker": {"created_at": month, "last_used_at": timezone.now()},
        "gone": {"revoked_at": timezone.now()},
        "late": {"expires_at": timezone.now()},
    }.items():
        row = KeyFactory(organization=acme, name=name).row
        ApiKey.objects.filter(pk=row.pk).update(**changes)
    context = alice.get("/dashboard/keys").context
    assert {row.key.name: row.unused for row in context["rows"]} == {
        "fresh": False,
        "sleeper": True,
        "dozer": True,
        "worker": False,
    }
    assert {key.name for key in context["ended"]} == {"gone", "late"}


def test_another_organizations_key_is_not_found(
    alice: Client, acme: Organization, globex: Organization
) -> None:
    theirs = KeyFactory(organization=globex)
    for page in ("rotate", "revoke", "resume"):
        path = f"/dashboard/keys/{theirs.row.pk}/{page}"
        assert alice.post(path, {"overlap": "0"}).status_code == 404
    keys.authenticate(theirs.secret)
    assert theirs.row.prefix not in alice.get("/dashboard/keys").content.decode()


def test_a_viewer_looks_and_changes_nothing(client: Client, acme: Organization) -> None:
    key = KeyFactory(organization=acme)
    log_in(client, member_of(acme, Role.VIEWER))
    text = client.get("/dashboard/keys").content.decode()
    assert key.row.prefix in text
    assert "Revoke" not in text
    assert client.post(f"/dashboard/keys/{key.row.pk}/revoke").status_code == 403
    assert client.post("/dashboard/keys/new", form()).status_code == 403
    assert acme.api_keys.get().revoked_at is None


def test_a_form_of_an_old_tab_goes_where_it_was_opened(alice: Client, acme: Organization) -> None:
    other = found_organization("Other", owner_of(acme))
    alice.post("/dashboard/switch", {"organization": other.slug})
    alice.post("/dashboard/keys/new?organization=acme", form())
    assert (acme.api_keys.count(), other.api_keys.count()) == (1, 0)


# --- What /v1 makes of it ---------------------------------------------------------------------


def test_a_revoked_key_draws_nothing_from_the_next_request_on(
    client: Client, api: Api, acme: Organization
) -> None:
    assert api.get("models").status_code == 200
    log_in(client, owner_of(acme))
    client.post(f"/dashboard/keys/{acme.api_keys.get().pk}/revoke")
    refused = api.draw()
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "key_revoked")
    assert ledger.balance(acme).balance_micro == 10_000_000


def test_a_paused_key_is_refused_until_one_click_resumes_it(
    client: Client, api: Api, acme: Organization
) -> None:
    key = acme.api_keys.get()
    assert keys.pause(key, "It spent 20.00 USD within an hour.")
    assert not keys.pause(key, "again")
    refused = api.draw()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (403, "guardrail_blocked")
    assert "It spent 20.00 USD within an hour." in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    log_in(client, owner_of(acme))
    assert "was paused automatically" in client.get("/dashboard/keys").content.decode()
    client.post(f"/dashboard/keys/{key.pk}/resume")
    client.post(f"/dashboard/keys/{key.pk}/resume")
    assert api.draw().status_code == 200
    assert AuditEvent.objects.filter(action="key.resumed").count() == 1


def draw_from(api: Api, forwarded: str = "") -> tuple[int, str]:
    answer = api.draw(headers={"X-Forwarded-For": forwarded} if forwarded else None)
    return answer.status_code, answer.json().get("error", {}).get("message", "")


def test_a_key_with_networks_works_inside_them_only(
    connect: Callable[[str | None], Api], acme: Organization
) -> None:
    outside = connect(KeyFactory(organization=acme, allowed_ips=["203.0.113.0/24"]).secret)
    status, message = draw_from(outside)
    assert status == 403
    assert message == (
        "This API key cannot be used from 127.0.0.1: its allowed IP ranges are 203.0.113.0/24."
    )
    # Anyone can write the header; no proxy is in front to vouch for it.
    assert draw_from(outside, "203.0.113.7")[0] == 403
    assert ledger.balance(acme).balance_micro == 10_000_000
    inside = connect(KeyFactory(organization=acme, allowed_ips=["127.0.0.0/8"]).secret)
    assert draw_from(inside)[0] == 200


def test_behind_a_proxy_its_word_counts_and_the_clients_does_not(
    settings: Settings, serve: Callable[[], AppServer], acme: Organization
) -> None:
    settings.TRUSTED_PROXIES = 1
    api = Api(serve().origin, KeyFactory(organization=acme, allowed_ips=["203.0.113.0/24"]).secret)
    with api.http:
        assert draw_from(api, "203.0.113.7")[0] == 200
        assert draw_from(api, "203.0.113.7, 198.51.100.1")[0] == 403
        assert draw_from(api)[0] == 403
