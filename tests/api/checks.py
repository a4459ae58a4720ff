"""What the tests of the public API have in common: an error's shape, and that nothing happened."""

import http.client
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.db.models import Sum

from billing.models import BillingAccount, BudgetPeriod, Hold, HoldState, LedgerEntry
from images.models import Generation, GenerationStatus, Image
from tests.emulators.openai import OpenAIEmulator

REQUEST_ID = re.compile(r"req_[0-9a-f]{24}")
KEYS_OF_AN_ERROR = {"message", "type", "code", "param", "request_id"}

# The contract's catalogue, written down a second time on purpose: code -> (status, type).
CODES = {
    "invalid_request_error": (400, "invalid_request_error"),
    "content_policy_violation": (400, "image_generation_user_error"),
    "missing_api_key": (401, "authentication_error"),
    "invalid_api_key": (401, "authentication_error"),
    "key_revoked": (401, "authentication_error"),
    "insufficient_balance": (402, "insufficient_quota"),
    "guardrail_blocked": (403, "permission_error"),
    "model_not_found": (404, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "idempotency_key_in_use": (409, "idempotency_error"),
    "images_deleted": (410, "invalid_request_error"),
    "request_too_large": (413, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "idempotency_key_reused": (422, "idempotency_error"),
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "internal_error": (500, "server_error"),
    "provider_unavailable": (502, "server_error"),
    "service_unavailable": (503, "server_error"),
}


def expect_error(
    answer: httpx.Response,
    code: str,
    *,
    param: str | None = None,
    says: str | tuple[str, ...] = (),
    kind: str | None = None,
) -> dict[str, Any]:
    """Check status, headers and envelope of an error; return its error object."""
    status, usual_kind = CODES[code]
    assert answer.status_code == status, (answer.status_code, answer.text[:500])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() >= KEYS_OF_AN_ERROR
    assert (error["code"], error["type"]) == (code, kind or usual_kind), error
    assert error["param"] == param, error
    assert REQUEST_ID.fullmatch(error["request_id"])
    assert answer.headers["x-request-id"] == error["request_id"]
    assert error["message"].strip()
    assert "Traceback" not in answer.text
    for words in (says,) if isinstance(says, str) else says:
        assert words in error["message"], error["message"]
    assert "x-geekhub-cost-usd" not in answer.headers
    return error


def expect_nothing_happened(openai: OpenAIEmulator) -> None:
    """Check that no provider was called, nothing held, charged, written down or stored."""
    assert openai.calls == []
    assert openai.downloads == []
    assert Generation.objects.count() == 0
    assert Hold.objects.count() == 0
    expect_nothing_charged()


def expect_nothing_charged() -> None:
    """Check that failed requests left no charge, no open hold and no picture."""
    assert Image.objects.count() == 0
    assert stored_files() == []
    assert not LedgerEntry.objects.filter(kind="consumption").exists()
    assert not Hold.objects.filter(state__in=[HoldState.HELD, HoldState.CAPTURED]).exists()
    assert not Generation.objects.exclude(status=GenerationStatus.FAILED).exists()
    totals = BillingAccount.objects.aggregate(held=Sum("held_micro"), spent=Sum("spent_micro"))
    assert totals == {"held": 0, "spent": 0}
    assert not BudgetPeriod.objects.exclude(held_micro=0, spent_micro=0).exists()


def expect_books_agree(images: int, cost_micro: int) -> None:
    """Check that pictures, files, requests, holds, ledger and account agree."""
    charged = LedgerEntry.objects.filter(kind="consumption").aggregate(
        images=Sum("quantity"), cost=Sum("amount_micro")
    )
    assert (charged["images"] or 0, charged["cost"] or 0) == (images, -cost_micro)
    assert Image.objects.filter(generation__sandbox=False).count() == images
    assert len(stored_files()) == Image.objects.count()
    told = Generation.objects.aggregate(images=Sum("delivered"), cost=Sum("cost_micro"))
    assert (told["images"] or 0, told["cost"] or 0) == (images, cost_micro)
    assert not Hold.objects.filter(state=HoldState.HELD).exists()
    for account in BillingAccount.objects.all():
        entries = LedgerEntry.objects.filter(organization_id=account.pk)
        assert account.balance_micro == entries.aggregate(sum=Sum("amount_micro"))["sum"]
        assert account.held_micro == 0
    assert BillingAccount.objects.aggregate(spent=Sum("spent_micro"))["spent"] == cost_micro


def stored_files() -> list[str]:
    """Return the names of all files in the picture store, unfinished ones included."""
    folder = settings.DATA_DIR / "images"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def connect_raw(origin: str, timeout: float = 20) -> socket.socket:
    """Return a socket to the application."""
    parts = urlsplit(origin)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=timeout)


def read_answer(connection: socket.socket) -> httpx.Response:
    """Read one answer from a socket."""
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        body = answer.read()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=body)
    finally:
        answer.close()


def send_raw(origin: str, request: bytes) -> httpx.Response:
    """Send bytes that no HTTP client would send, and read the answer."""
    with connect_raw(origin) as connection:
        connection.sendall(request)
        return read_answer(connection)
