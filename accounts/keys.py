"""API keys: the only code that sees a secret.

A key is `ghub_sk_live_` or `ghub_sk_test_` and 32 random characters (190 bits), 45 in all. With
that much randomness one round of SHA-256 is a safe digest. The first 21 characters are stored in
the clear: they name the key in lists and logs and find its row.
"""

import contextlib
import hashlib
import hmac
import re
import secrets
import string
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from accounts import audit
from accounts.models import ApiKey, Organization, User

LIVE = "ghub_sk_live_"
TEST = "ghub_sk_test_"
PREFIX_LENGTH = 21
SHAPE = re.compile(r"ghub_sk_(live|test)_[A-Za-z0-9]{32}")
LAST_USED_STEP = timedelta(seconds=60)

_ALPHABET = string.ascii_letters + string.digits


class KeyRefused(Exception):
    """The key does not open anything. The message is safe to show."""


class InvalidKey(KeyRefused):
    """The key does not exist."""

    def __init__(self) -> None:
        super().__init__(
            "This API key is not valid. Keys start with ghub_sk_live_ or ghub_sk_test_ "
            "and are 45 characters long."
        )


class RevokedKey(KeyRefused):
    """The key was revoked or has expired."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key and its secret, which is shown once and stored nowhere."""

    row: ApiKey
    secret: str


def create(
    organization: Organization,
    name: str,
    *,
    sandbox: bool = False,
    private: bool = False,
    expires_at: datetime | None = None,
    allowed_models: list[str] | None = None,
    allowed_ips: list[str] | None = None,
    tags: list[str] | None = None,
    actor: User | None = None,
    rotated_from: ApiKey | None = None,
    key_id: uuid.UUID | None = None,
) -> NewKey:
    """Return a new key of the organization.

    `key_id` comes from a form, so that sending it twice makes one key: the second raises
    django.db.IntegrityError.
    """
    secret = _new_secret(sandbox=sandbox)
    with transaction.atomic():
        row = ApiKey.objects.create(
            id=key_id or uuid.uuid4(),
            organization=organization,
            name=name,
            prefix=secret[:PREFIX_LENGTH],
            digest=_digest(secret),
            sandbox=sandbox,
            private=private,
            expires_at=expires_at,
            allowed_models=allowed_models,
            allowed_ips=allowed_ips or [],
            tags=tags or [],
            on_refusal=rotated_from.on_refusal if rotated_from else "",
            # Rotating a key does not move it into a budget of the person who rotates it.
            created_by=rotated_from.created_by if rotated_from else actor,
            rotated_from=rotated_from,
            family=rotated_from.family if rotated_from else uuid.uuid4(),
        )
        audit.record("key.created", organization=organization, actor=actor, subject=row.prefix)
    return NewKey(row, secret)


def playground(organization: Organization, person: User, *, sandbox: bool) -> ApiKey:
    """Return the key under which a person draws on the pages, made on first use.

    Its secret is discarded immediately, so it cannot be used from outside; it exists to be held,
    charged, limited and paused like any other. Raises KeyRefused when it is paused.
    """
    secret = _new_secret(sandbox=sandbox)
    now = timezone.now()
    key, _ = ApiKey.objects.select_related("organization").get_or_create(
        organization=organization,
        created_by=person,
        sandbox=sandbox,
        playground=True,
        revoked_at=None,
        defaults={
            "name": f"Playground · {person.name or person.email}"[:100],
            "prefix": secret[:PREFIX_LENGTH],
            "digest": _digest(secret),
        },
    )
    if key.paused_at is not None:
        raise KeyRefused(key.paused_reason)
    _note_use(key, now)
    return key


def rotate(key: ApiKey, *, overlap: timedelta, actor: User | None = None) -> NewKey:
    """Return a successor with the same rights; the old key keeps working for `overlap`.

    Both belong to one family, so a budget continues where the old key left off.

    Raises RevokedKey when the key is already revoked, expired or rotated.
    """
    with transaction.atomic():
        old = ApiKey.objects.select_for_update().get(pk=key.pk)
        now = timezone.now()
        if _is_over(old, now) or ApiKey.objects.filter(rotated_from=old).exists():
            raise RevokedKey("This key is revoked, expired or already rotated.")
        # The successor lives as long as the old key would have.
        new = create(
            old.organization,
            old.name,
            sandbox=old.sandbox,
            private=old.private,
            expires_at=old.expires_at,
            allowed_models=old.allowed_models,
            allowed_ips=old.allowed_ips,
            tags=old.tags,
            actor=actor,
            rotated_from=old,
        )
        ends = now + overlap
        old.expires_at = min(ends, old.expires_at) if old.expires_at else ends
        old.save(update_fields=["expires_at"])
        audit.record("key.rotated", organization=old.organization, actor=actor, subject=old.prefix)
    return new


def revoke(key: ApiKey, *, actor: User | None = None, reason: str = "") -> None:
    """Revoke a key immediately, on every host; revoking it twice changes nothing."""
    details = {"reason": reason} if reason else {}
    with transaction.atomic():
        if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now()):
            audit.record(
                "key.revoked",
                organization=key.organization,
                actor=actor,
                subject=key.prefix,
                **details,
            )


def pause(key: ApiKey, reason: str) -> bool:
    """Refuse a key until it is resumed; False if it was already paused or revoked."""
    with transaction.atomic():
        paused = ApiKey.objects.filter(pk=key.pk, paused_at=None, revoked_at=None).update(
            paused_at=timezone.now(), paused_reason=reason
        )
        if paused:
            audit.record(
                "key.paused", organization=key.organization, subject=key.prefix, reason=reason
            )
    return bool(paused)


def resume(key: ApiKey, *, actor: User | None = None) -> None:
    """Let a paused key work again; resuming it twice changes nothing."""
    with transaction.atomic():
        resumed = ApiKey.objects.filter(pk=key.pk, paused_at__isnull=False).update(
            paused_at=None, paused_reason="", resumed_at=timezone.now()
        )
        if resumed:
            audit.record(
                "key.resumed", organization=key.organization, actor=actor, subject=key.prefix
            )


def authenticate(secret: str) -> ApiKey:
    """Return the key, its organization loaded; raises InvalidKey or RevokedKey.

    Every request reads the row, so a revocation takes effect with the next request. The time of
    last use is written at most once a minute.
    """
    key = None
    if SHAPE.fullmatch(secret):
        with contextlib.suppress(ApiKey.DoesNotExist):
            key = ApiKey.objects.select_related("organization").get(prefix=secret[:PREFIX_LENGTH])
    if key is None or not hmac.compare_digest(key.digest, _digest(secret)):
        raise InvalidKey
    now = timezone.now()
    if _is_over(key, now):
        what = "has expired" if key.revoked_at is None else "was revoked"
        raise RevokedKey(f"This API key {what}. Use another one.")
    _note_use(key, now)
    return key


def _note_use(key: ApiKey, now: datetime) -> None:
    if key.last_used_at is None or key.last_used_at < now - LAST_USED_STEP:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)


def _is_over(key: ApiKey, now: datetime) -> bool:
    return key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now)


def _new_secret(*, sandbox: bool) -> str:
    return (TEST if sandbox else LIVE) + "".join(secrets.choice(_ALPHABET) for _ in range(32))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
