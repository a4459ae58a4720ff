"""The management commands: what an operator's scripts read from stdout, and how they fail."""

import json
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command, load_command_class
from django.core.management.base import CommandError

from accounts import keys
from accounts.models import ApiKey, AuditEvent, Membership, Organization, Role, User
from billing.models import Budget, EntryKind, HoldState, LedgerEntry, PriceVersion
from billing.spending import ledger, prices
from geekhub.lib import money
from images.catalog.rows import CATALOG
from tests.billing import PRICES, authorize, capture
from tests.factories import KeyFactory, OrganizationFactory

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "create_organization": "billing",
    "create_api_key": "billing",
    "usage": "billing",
    "revoke_api_key": "accounts",
    "sync_catalog": "images",
    "worker": "images",
    "rebuild_rollups": "images",
    "prove_rollups": "images",
}
NOBODY = str(uuid.uuid4())


def run(name: str, *arguments: str) -> str:
    """Return what a command prints on stdout."""
    out = StringIO()
    call_command(name, *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def acme(db: None) -> Organization:
    return OrganizationFactory(name="Acme")


# --- All of them ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "app"), COMMANDS.items())
def test_the_help_says_what_is_printed(name: str, app: str) -> None:
    command = load_command_class(app, name)
    text = command.create_parser("manage.py", name).format_help()
    assert re.search(r"\bprints?\b", text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("create_organization", ["Acme"], "required: --owner"),
        ("create_organization", ["Acme", "--owner", "alice"], "valid email"),
        ("create_organization", [" ", "--owner", "a@acme.test"], "1 to 100 characters"),
        ("create_organization", ["x" * 101, "--owner", "a@acme.test"], "1 to 100 characters"),
        ("create_organization", ["A", "--owner", "a@acme.test", "--credit", "-1"], "not negative"),
        ("create_organization", ["A", "--owner", "a@acme.test", "--credit", "x"], "amount of USD"),
        ("create_organization", ["A", "--owner", "a@acme.test", "--credit", "1e30"], "of USD"),
        (
            "create_organization",
            ["A", "--owner", "a@acme.test", "--credit-limit", "0.0000001"],
            "whole number of micro-USD",
        ),
        (
            "create_organization",
            ["A", "--owner", "a@acme.test", "--credit-limit", "-1"],
            "not negative",
        ),
        ("create_api_key", [NOBODY, "ci-bot"], f"no organization {NOBODY}"),
        ("create_api_key", ["acme", "ci-bot"], "invalid UUID value"),
        ("create_api_key", [NOBODY, " "], "1 to 100 characters"),
        ("create_api_key", [NOBODY, "x" * 101], "1 to 100 characters"),
        ("create_api_key", [NOBODY, "ci-bot", "--budget-usd", "x"], "amount of USD"),
        ("create_api_key", [NOBODY, "ci-bot", "--budget-usd", "-1"], "not negative"),
        ("create_api_key", [NOBODY, "ci-bot", "--budget-period", "year"], "invalid choice"),
        ("usage", [NOBODY], f"no organization {NOBODY}"),
        ("usage", ["acme"], "invalid UUID value"),
        ("usage", [NOBODY, "--since", "yesterday"], "--since"),
        ("revoke_api_key", ["ghub_sk_live_"], "more of the prefix"),
        ("revoke_api_key", [""], "more of the prefix"),
        ("revoke_api_key", ["ghub_sk_live_AAAAAAAA"], "No key has this prefix"),
        ("revoke_api_key", [NOBODY], "No key has this prefix"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    db: None, name: str, arguments: list[str], why: str
) -> None:
    with pytest.raises(CommandError, match=re.escape(why)):
        run(name, *arguments)
    assert not Organization.objects.exists()
    assert not User.objects.exists()
    assert not ApiKey.objects.exists()


def test_a_failing_command_ends_with_1_and_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "revoke_api_key", "short"],
        cwd=ROOT,
        env={"DATA_DIR": str(tmp_path), "SECRET_KEY": "x", "DATABASE_URL": "sqlite://:memory:"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "CommandError: Give more of the prefix, or the key's id.\n"


# --- create_organization ----------------------------------------------------------------------


def test_an_organization_is_made_with_owner_account_and_bonus(
    db: None, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.SIGNUP_BONUS_MICRO = 2_500_000
    settings.DEFAULT_CREDIT_LIMIT_MICRO = 1_000_000
    out = run("create_organization", "Acme", "--owner", "Alice@acme.test")

    organization = Organization.objects.get()
    assert out == f"{organization.pk}\n"
    membership = Membership.objects.get()
    assert (membership.user.email, membership.role) == ("alice@acme.test", Role.OWNER)
    account = ledger.balance(organization)
    assert (account.balance_micro, account.credit_limit_micro) == (2_500_000, 1_000_000)
    # The password is printed once, where a script does not read it.
    told = re.fullmatch(r"New user alice@acme\.test, password (\S+)\n", capsys.readouterr().err)
    assert told is not None
    assert membership.user.check_password(told[1])


def test_an_owner_who_is_known_keeps_their_password(
    db: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run("create_organization", "Acme", "--owner", "alice@acme.test")
    capsys.readouterr()
    before = User.objects.get().password
    run("create_organization", "Globex", "--owner", "ALICE@acme.test")
    assert User.objects.get().password == before
    assert capsys.readouterr().err == ""
    assert Membership.objects.count() == 2


def test_credit_and_credit_limit_are_put_on_the_account(db: None, settings: Any) -> None:
    settings.SIGNUP_BONUS_MICRO = 0
    arguments = ["--owner", "a@acme.test", "--credit", "20.5", "--credit-limit", "0"]
    run("create_organization", "Acme", *arguments)
    account = ledger.balance(Organization.objects.get())
    assert (account.balance_micro, account.credit_limit_micro) == (20_500_000, 0)
    entry = LedgerEntry.objects.get()
    assert (entry.kind, entry.amount_micro) == (EntryKind.ADJUSTMENT, 20_500_000)


# --- create_api_key, revoke_api_key -----------------------------------------------------------


@pytest.mark.parametrize(("flags", "sandbox"), [([], False), (["--test"], True)])
def test_a_key_is_printed_once_and_opens_the_organization(
    acme: Organization, flags: list[str], sandbox: bool
) -> None:
    out = run("create_api_key", str(acme.pk), "ci-bot", *flags)
    assert out.count("\n") == 1
    key = keys.authenticate(out.strip())
    assert (key.organization, key.name, key.sandbox) == (acme, "ci-bot", sandbox)
    assert not Budget.objects.exists()


@pytest.mark.parametrize(
    ("flags", "limit", "period"),
    [
        (["--budget-usd", "5"], 5_000_000, "month"),
        (["--budget-usd", "0.5", "--budget-period", "day"], 500_000, "day"),
        (["--budget-usd", "0", "--budget-period", "week"], 0, "week"),
    ],
)
def test_a_key_is_made_with_a_budget(
    acme: Organization, flags: list[str], limit: int, period: str
) -> None:
    key = keys.authenticate(run("create_api_key", str(acme.pk), "ci-bot", *flags).strip())
    budget = Budget.objects.get()
    assert (budget.key_family, budget.limit_micro, budget.period) == (key.family, limit, period)


@pytest.mark.parametrize("named_by", ["prefix", "start of the prefix", "id", "whole key"])
def test_a_key_is_revoked_by_what_an_operator_has_of_it(acme: Organization, named_by: str) -> None:
    new, other = KeyFactory(organization=acme), KeyFactory(organization=acme, sandbox=True)
    name = {
        "prefix": new.row.prefix,
        "start of the prefix": new.row.prefix[:18],
        "id": str(new.row.pk),
        "whole key": new.secret,
    }[named_by]
    assert run("revoke_api_key", name) == ""
    with pytest.raises(keys.RevokedKey):
        keys.authenticate(new.secret)
    keys.authenticate(other.secret)
    # Again changes nothing, and fails nobody's script.
    assert run("revoke_api_key", name) == ""
    assert AuditEvent.objects.filter(action="key.revoked").count() == 1


def test_an_ambiguous_prefix_revokes_nothing(acme: Organization) -> None:
    for end in ("aaaa", "bbbb"):
        row = KeyFactory(organization=acme).row
        ApiKey.objects.filter(pk=row.pk).update(prefix=f"ghub_sk_live_same{end}")
    with pytest.raises(CommandError, match="More than one key has it"):
        run("revoke_api_key", "ghub_sk_live_same")
    assert not ApiKey.objects.exclude(revoked_at=None).exists()
    run("revoke_api_key", "ghub_sk_live_sameb")
    revoked = ApiKey.objects.exclude(revoked_at=None).get()
    assert revoked.prefix == "ghub_sk_live_samebbbb"


# --- sync_catalog -----------------------------------------------------------------------------


def test_the_catalogues_prices_are_published_once(db: None) -> None:
    tried = run("sync_catalog", "--dry-run")
    assert not PriceVersion.objects.exists()
    assert run("sync_catalog") == tried
    lines = tried.splitlines()
    assert len(lines) == len(CATALOG)
    assert "openai/gpt-image-1: new -> 0.19 USD per image" in lines
    assert "fal/sd-3.5-large: new -> 0.065 USD per image" in lines
    published = {version.sku: version.unit_micro for version in PriceVersion.objects.all()}
    assert published == {model.id: model.price_micro for model in CATALOG.values()}
    assert run("sync_catalog") == run("sync_catalog", "--dry-run") == ""


def test_only_a_changed_price_is_published_and_told(db: None) -> None:
    run("sync_catalog")
    prices.publish({"openai/dall-e-3": 50_000})
    line = "openai/dall-e-3: 0.05 -> 0.04 USD per image\n"
    assert run("sync_catalog", "--dry-run") == run("sync_catalog") == line
    assert PriceVersion.objects.filter(sku="openai/dall-e-3").count() == 3
    assert PriceVersion.objects.count() == len(CATALOG) + 2


# --- usage ------------------------------------------------------------------------------------


def test_usage_is_told_by_model_as_json(acme: Organization) -> None:
    prices.publish(PRICES)
    key = KeyFactory(organization=acme).row
    assert json.loads(run("usage", str(acme.pk), "--json")) == {
        "models": {},
        "total": {"images": 0, "cost_usd": "0.00"},
        "held_usd": "0.00",
    }
    capture(authorize(key, "a/cheap", quantity=8), delivered=8)
    capture(authorize(key, "b/middle"), model="b/middle")
    expected = {
        "models": {
            "a/cheap": {"images": 8, "cost_usd": "0.32"},
            "b/middle": {"images": 1, "cost_usd": "0.065"},
        },
        "total": {"images": 9, "cost_usd": "0.385"},
        "held_usd": "0.00",
    }
    assert json.loads(run("usage", str(acme.pk), "--json")) == expected
    authorize(key, "c/dear", quantity=2)
    report = json.loads(run("usage", str(acme.pk), "--json"))
    assert report == expected | {"held_usd": "0.38"}

    lines = [line.split() for line in run("usage", str(acme.pk)).splitlines()]
    assert lines == [
        ["a/cheap", "8", "images", "0.32", "USD"],
        ["b/middle", "1", "images", "0.065", "USD"],
        ["total", "9", "images", "0.385", "USD"],
        ["held", "now", "0.38", "USD"],
    ]


def test_usage_since_a_day_includes_that_day_in_utc(acme: Organization) -> None:
    prices.publish(PRICES)
    key = KeyFactory(organization=acme).row
    # The ledger cannot be changed afterwards, so an old entry has to be written as one.
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    for number, moment in enumerate([midnight - timedelta(microseconds=1), midnight]):
        LedgerEntry.objects.create(
            organization=acme,
            kind=EntryKind.CONSUMPTION,
            entry_key=f"use:{number}",
            amount_micro=-40_000 * (number + 1),
            quantity=number + 1,
            sku="a/cheap",
            hold=authorize(key),
            price_version=PriceVersion.objects.get(sku="a/cheap"),
            created_at=moment,
        )

    def images(*flags: str) -> int:
        report = json.loads(run("usage", str(acme.pk), "--json", *flags))
        total: int = report["total"]["images"]
        return total

    assert images() == images("--since", "2026-02-28") == 3
    assert images("--since", "2026-03-01") == 2
    assert images("--since", "2026-03-02") == 0


# --- demo_account -----------------------------------------------------------------------------


def test_the_demo_finds_its_account_again(published: None, settings: Any, tmp_path: Path) -> None:
    settings.DEMO, settings.DATA_DIR = True, tmp_path
    first = json.loads(run("demo_account", "demo@geekhub.test"))
    file = tmp_path / "demo.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(run("demo_account", "demo@geekhub.test")) == first
    user, key = User.objects.get(), ApiKey.objects.get()
    assert (key.name, key.sandbox, user.check_password(first["password"])) == ("demo", True, True)
    assert first["prices"]["fal/flux-1.1-pro"] == "0.04"

    # Keys of runs before it was written down go; the one that is shown is the newest's successor.
    older = keys.create(key.organization, "demo", sandbox=True)
    for text in ("", "[]", '{"key": 7, "password": null}'):
        file.write_text(text)
        lost, before = json.loads(run("demo_account", "demo@geekhub.test")), first
        assert lost["key"] != before["key"]
        assert User.objects.get().check_password(lost["password"])
        works = [one for one in ApiKey.objects.all() if one.expires_at is one.revoked_at is None]
        assert [one.pk for one in works] == [keys.authenticate(lost["key"]).pk]
    with pytest.raises(keys.RevokedKey):
        keys.authenticate(older.secret)
    assert Organization.objects.count() == 1


def test_outside_the_demo_there_is_none(published: None, settings: Any) -> None:
    settings.DEMO = False
    with pytest.raises(CommandError, match="not a demo"):
        run("demo_account", "demo@geekhub.test")
    assert not User.objects.exists()


# --- worker -----------------------------------------------------------------------------------


def test_one_round_of_the_worker_settles_what_is_overdue_and_nothing_else(
    acme: Organization, settings: Any, tmp_path: Path
) -> None:
    settings.DATA_DIR = tmp_path
    prices.publish(PRICES)
    key = KeyFactory(organization=acme).row

    def settled() -> int:
        lines = run("worker", "--once").splitlines()
        # One line a job: what was done, and how often.
        done = {what: int(count) for what, _, count in (line.partition(": ") for line in lines)}
        return done["abandoned requests settled"]

    assert settled() == 0
    overdue = authorize(key, lease=timedelta(seconds=-1))
    fresh = authorize(key)
    assert settled() == 1
    assert settled() == 0
    overdue.refresh_from_db()
    fresh.refresh_from_db()
    assert (overdue.state, fresh.state) == (HoldState.EXPIRED, HoldState.HELD)
    assert money.to_usd(ledger.balance(acme).held_micro) == "0.04"
