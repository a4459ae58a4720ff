"""The audit log in words: every kind of event, every detail that the code writes down."""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import translation
from pytest_django.fixtures import Settings

from accounts import audit
from accounts.audit import LABELS
from accounts.models import AuditEvent, Organization
from accounts.pages.audit_words import DETAILS, FIELDS, Told
from billing.models import AccountStatus, EntryKind
from tests.pages import log_in, owner_of

ROOT = Path(__file__).resolve().parent.parent.parent
OF_EACH = {"organization", "actor", "subject"}
# What is passed on as a mapping, by the name it has there.
MAPPINGS: dict[str, set[str]] = {
    "details": {"reason", "grace_until"},
    "why": {"why", "note"},
    "limits": {"period", "usd", "images"},
}
# Values as the code writes them down.
SAMPLES: dict[str, tuple[Any, str]] = {
    "reason": ("stolen cards", "stolen cards"),
    "why": ("the hour was over", "the hour ended"),
    "note": ("paid by wire", "paid by wire"),
    "role": ("developer", "Developer"),
    "period": ("month", "month"),
    "usd": ("25.00", "$25.00"),
    "images": (1, "1"),
    "pictures": ([f"req_{n}-0" for n in range(5)], "req_0-0, req_1-0, req_2-0 and 2 more"),
    "days": (None, "forever"),
    "below_usd": ("5.00", "$5.00"),
    "below_micro": (5_000_000, "$5.00"),
    "amount_micro": (25_000_000, "$25.00"),
    "daily_cap_micro": (100_000_000, "$100.00"),
    "amount_usd": ("0.19", "$0.19"),
    "before_usd": ("0.00", "$0.00"),
    "after_usd": ("50.00", "$50.00"),
    "invoice": ("in_1", "in_1"),
    "url": ("https://hooks.test/x", "https://hooks.test/x"),
    "until": ("2026-11-28T08:00:00+00:00", "2026-11-28 08:00"),
    "grace_until": ("2026-12-12T08:00:00.123456+00:00", "2026-12-12 08:00"),
    "expected": (10, "10"),
    "found": (7, "7"),
    "before": ("viewer", "Viewer"),
    "after": ("admin", "Admin"),
}


def calls() -> Iterator[ast.Call]:
    """Yield every call that writes an event down."""
    for app in ("geekhub", "accounts", "billing", "images"):
        for path in (ROOT / app).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "audit.record":
                    yield node


def test_every_detail_has_words() -> None:
    written: set[str] = set()
    for call in calls():
        for word in call.keywords:
            # An unknown mapping is a KeyError here: say what is in it.
            mapped = MAPPINGS[ast.unparse(word.value)] if word.arg is None else {word.arg}
            written |= mapped
    assert {"reason", "pictures", "grace_until"} <= written
    assert written - OF_EACH - set(DETAILS) == set()
    assert set(DETAILS) - written == set()
    assert set(SAMPLES) == set(DETAILS)


def test_every_field_of_a_change_has_words() -> None:
    kept = {one.name for one in Organization._meta.get_fields()}
    assert set(FIELDS) <= kept


@pytest.mark.parametrize("name", SAMPLES)
def test_a_detail_in_words(name: str) -> None:
    value, said = SAMPLES[name]
    with translation.override("en"):
        told = Told(AuditEvent(action="key.created", details={name: value}))
        assert told.lines == [(str(DETAILS[name].label), said)]


def test_a_change_names_what_differs() -> None:
    before = {"keeps_prompts": True, "retention_days": None, "name": "Acme", "max_in_flight": 1}
    after = {"keeps_prompts": False, "retention_days": 30, "name": "Acme", "max_in_flight": 2}
    told = Told(AuditEvent(action="x", details={"before": before, "after": after, "reason": ""}))
    with translation.override("en"):
        assert told.lines == [
            ("Keep prompts", "yes → no"),
            ("Days images are kept", "not set → 30"),
            ("Concurrent requests", "1 → 2"),
        ]


@pytest.mark.parametrize("language", ["en", "es"])
def test_the_page_shows_every_kind(
    language: str, acme: Organization, client: Client, settings: Settings
) -> None:
    details = {name: value for name, (value, _) in SAMPLES.items()}
    kinds = {*LABELS, *(f"account.{one}" for one in AccountStatus)}
    kinds |= {f"balance.{one}" for one in (EntryKind.REFUND, EntryKind.ADJUSTMENT)}
    for kind in kinds:
        audit.record(kind, organization=acme, subject="x", **details)
    client.cookies[settings.LANGUAGE_COOKIE_NAME] = language
    log_in(client, owner_of(acme))
    text = html.unescape(client.get("/dashboard/settings/audit").text)
    with translation.override(language):
        for kind in kinds:
            assert str(LABELS[kind]) in text
            assert kind not in text
    assert "+00:00" not in re.sub(r"<[^>]*>", " ", text)  # an attribute may have it
    assert "['" not in text
