"""API keys at the door: each way a key can be wrong, and what a good one opens."""

from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts import keys
from accounts.keys import NewKey
from accounts.models import ApiKey, AuditEvent, Organization
from images.models import Generation
from tests.api.checks import expect_error, expect_nothing_happened, send_raw
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.server import Api, AppServer

GUARDED = [
    ("POST", "images/generations"),
    ("GET", "models"),
    ("GET", "models/openai/gpt-image-1"),
    ("GET", "models/nobody/nothing"),
    ("GET", "credits"),
    ("GET", "generation?id=req_000000000000000000000000"),
    ("GET", "generation"),
]
SHAPE = "ghub_sk_live_ or ghub_sk_test_ and are 45 characters long"


def test_a_paused_key_opens_nothing_on_any_endpoint(
    app: AppServer, acme: Organization, live_key: NewKey, subtests: pytest.Subtests
) -> None:
    keys.pause(live_key.row, "It spent too much.")
    paused = Api(app.origin, live_key.secret)
    with paused.http:
        for method, path in GUARDED:
            with subtests.test(f"{method} {path}"):
                answer = paused.http.request(method, path)
                expect_error(answer, "guardrail_blocked", says="paused. It spent too much.")
                assert answer.headers["x-should-retry"] == "false"
    assert not Generation.objects.exists()


def test_a_wrong_key_is_a_401_with_its_own_code_on_every_endpoint(
    app: AppServer,
    acme: Organization,
    live_key: NewKey,
    test_key: NewKey,
    openai: OpenAIEmulator,
    settings: Settings,
    subtests: pytest.Subtests,
) -> None:
    # Each from an address of its own: too many from one are another error.
    settings.TRUSTED_PROXIES = 1
    live, sandbox = live_key.secret, test_key.secret
    revoked, expired = (
        KeyFactory(organization=acme),
        KeyFactory(organization=acme, expires_at=timezone.now() - timedelta(seconds=1)),
    )
    keys.revoke(revoked.row)
    wrong = {
        "no header": (None, "missing_api_key"),
        "an empty header": ("", "missing_api_key"),
        "the key alone": (live, "invalid_api_key"),
        "Basic": (f"Basic {live}", "invalid_api_key"),
        "Bearer alone": ("Bearer", "invalid_api_key"),
        "Bearer without a space": (f"Bearer{live}", "invalid_api_key"),
        "a tab for the space": (f"Bearer\t{live}", "invalid_api_key"),
        "too short": (f"Bearer {live[:-1]}", "invalid_api_key"),
        "too long": (f"Bearer {live}x", "invalid_api_key"),
        "the prefix alone": (f"Bearer {live[:21]}", "invalid_api_key"),
        "the right prefix, another end": (f"Bearer {live[:21]}{'0' * 24}", "invalid_api_key"),
        "unknown": (f"Bearer ghub_sk_live_{'x' * 32}", "invalid_api_key"),
        "OpenAI's": ("Bearer sk-proj-abcdefghijklmnopqrstuvwxyz", "invalid_api_key"),
        "test for live": (f"Bearer {live.replace('live', 'test')}", "invalid_api_key"),
        "live for test": (f"Bearer {sandbox.replace('test', 'live')}", "invalid_api_key"),
        "another case": (f"Bearer {live.upper()}", "invalid_api_key"),
        "odd characters": (f"Bearer ghub_sk_live_{'é' * 32}", "invalid_api_key"),
        "SQL": ("Bearer ' OR '1'='1", "invalid_api_key"),
        "a digest": (f"Bearer {live_key.row.digest}", "invalid_api_key"),
        "white space inside": (f"Bearer {live[:20]} {live[20:]}", "invalid_api_key"),
        "two keys in one": (f"Bearer {live}, Bearer {live}", "invalid_api_key"),
        "very long": (f"Bearer {'x' * 50_000}", "invalid_api_key"),
        "revoked": (f"Bearer {revoked.secret}", "key_revoked"),
        "expired": (f"Bearer {expired.secret}", "key_revoked"),
    }
    with httpx.Client(base_url=f"{app.origin}/v1/") as client:
        for number, (name, (header, code)) in enumerate(wrong.items()):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            headers["X-Forwarded-For"] = f"192.0.2.{number}".encode()
            for method, path in GUARDED:
                with subtests.test(f"{name}: {method} {path}"):
                    # The body is as bad as can be: who may not enter learns nothing of it.
                    content = b"{" if method == "POST" else None
                    answer = client.request(method, path, headers=headers, content=content)
                    error = expect_error(answer, code)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert (
                        SHAPE in error["message"]
                        or code != "invalid_api_key"
                        or ("must be Bearer" in error["message"])
                    )
                    assert live[21:] not in answer.text
    assert ApiKey.objects.filter(last_used_at=None).count() == 4
    expect_nothing_happened(openai)


def test_two_authorization_headers_open_nothing(
    app: AppServer, live_key: NewKey, test_key: NewKey, openai: OpenAIEmulator
) -> None:
    first, second = (f"Authorization: Bearer {key.secret}\r\n" for key in (live_key, test_key))
    request = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{first}{second}\r\n"
    expect_error(send_raw(app.origin, request.encode()), "invalid_api_key")
    expect_nothing_happened(openai)


def test_the_scheme_is_case_insensitive_and_spaces_around_a_key_do_no_harm(
    app: AppServer, live_key: NewKey
) -> None:
    for shape in ("Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}  "):
        header = f"Authorization: {shape.format(live_key.secret)}\r\n"
        request = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{header}\r\n"
        assert send_raw(app.origin, request.encode()).status_code == 200, shape


def test_a_key_works_only_for_its_own_organization(
    connect: Callable[[str | None], Api],
    api: Api,
    acme: Organization,
    globex: Organization,
    openai: OpenAIEmulator,
) -> None:
    stranger = connect(KeyFactory(organization=globex).secret)
    drawn = api.draw().json()["id"]

    expect_error(stranger.get(f"generation?id={drawn}"), "not_found", param="id")
    assert stranger.get("credits").json()["geekhub"]["balance_usd"] == "10.00"
    assert api.get("credits").json()["geekhub"]["balance_usd"] == "9.81"
    assert stranger.draw().status_code == 200
    assert Generation.objects.get(organization=globex).api_key.organization == globex
    assert api.get("credits").json()["geekhub"]["balance_usd"] == "9.81"


def test_a_revocation_counts_from_the_next_request(
    api: Api, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    assert api.draw().status_code == 200
    keys.revoke(live_key.row)

    expect_error(api.draw(), "key_revoked", says="Use another one")
    expect_error(api.get("credits"), "key_revoked")
    assert len(openai.calls) == 1
    assert Generation.objects.count() == 1
    assert AuditEvent.objects.filter(action="key.revoked").count() == 1


def test_an_expiry_counts_to_the_moment(
    connect: Callable[[str | None], Api], acme: Organization
) -> None:
    key = KeyFactory(organization=acme, expires_at=timezone.now() + timedelta(minutes=5))
    client = connect(key.secret)
    assert client.get("models").status_code == 200

    ApiKey.objects.filter(pk=key.row.pk).update(expires_at=timezone.now())
    expect_error(client.get("models"), "key_revoked")


def test_a_rotated_key_and_its_successor_both_work_until_the_overlap_ends(
    connect: Callable[[str | None], Api], api: Api, live_key: NewKey
) -> None:
    successor = keys.rotate(live_key.row, overlap=timedelta(hours=1))
    assert api.get("models").status_code == 200
    assert connect(successor.secret).get("models").status_code == 200

    ApiKey.objects.filter(pk=live_key.row.pk).update(expires_at=timezone.now())
    expect_error(api.get("models"), "key_revoked")
    assert connect(successor.secret).get("models").status_code == 200


def test_last_use_is_written_at_most_once_a_minute(api: Api, live_key: NewKey) -> None:
    row = ApiKey.objects.filter(pk=live_key.row.pk)
    assert row.get().last_used_at is None
    began = timezone.now()

    api.get("models")
    first = row.get().last_used_at
    assert first is not None
    assert began <= first <= timezone.now()
    for _ in range(5):
        api.get("models")
        assert row.get().last_used_at == first

    for age, written in ((timedelta(seconds=50), False), (timedelta(seconds=61), True)):
        before = timezone.now() - age
        row.update(last_used_at=before)
        api.get("models")
        assert (row.get().last_used_at != before) is written


def test_a_secret_is_stored_nowhere(live_key: NewKey) -> None:
    stored = ApiKey.objects.filter(pk=live_key.row.pk).values().get()

    assert len(live_key.secret) == 45
    assert stored["prefix"] == live_key.secret[:21]
    assert live_key.secret[21:] not in str(stored)
    assert live_key.secret not in str(list(AuditEvent.objects.values()))


def test_a_key_for_some_models_draws_with_no_other(
    connect: Callable[[str | None], Api], acme: Organization, openai: OpenAIEmulator
) -> None:
    key = KeyFactory(organization=acme, allowed_models=["openai/dall-e-3"])
    client = connect(key.secret)

    expect_error(
        client.draw(), "guardrail_blocked", param="model", says="cannot use openai/gpt-image-1"
    )
    expect_nothing_happened(openai)
    answer = client.draw(model=["openai/gpt-image-1", "openai/dall-e-3"])
    assert answer.status_code == 200, answer.text
    skipped = answer.json()["geekhub"]["skipped"]
    assert [one["model"] for one in skipped] == ["openai/gpt-image-1"]
    assert [call.body["model"] for call in openai.calls] == ["dall-e-3"]
