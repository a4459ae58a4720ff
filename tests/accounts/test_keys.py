"""API keys: made, rotated, revoked and checked; the secret itself is nowhere to be found."""

import hashlib
import re
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from accounts import keys
from accounts.keys import InvalidKey, NewKey, RevokedKey
from accounts.models import ApiKey, AuditEvent, Organization, User
from tests.billing import race
from tests.factories import KeyFactory, OrganizationFactory, UserFactory

HOUR = timedelta(hours=1)


@pytest.fixture
def acme(db: None) -> Organization:
    return OrganizationFactory(name="Acme")


@pytest.fixture
def alice(acme: Organization) -> User:
    return acme.members.get()


@pytest.fixture
def new(acme: Organization) -> NewKey:
    return KeyFactory(organization=acme)


def audited(action: str) -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(action=action))


@pytest.mark.parametrize(("sandbox", "start"), [(False, "ghub_sk_live_"), (True, "ghub_sk_test_")])
def test_a_key_is_its_kind_and_32_random_characters(
    acme: Organization, sandbox: bool, start: str
) -> None:
    made = [keys.create(acme, "ci-bot", sandbox=sandbox) for _ in range(20)]
    for key in made:
        assert re.fullmatch(start + "[A-Za-z0-9]{32}", key.secret)
        assert (len(key.secret), len(start)) == (45, 13)
        assert key.row.prefix == key.secret[:21]
        assert key.row.sandbox is sandbox
    assert len({key.secret for key in made}) == 20


def test_only_a_digest_of_the_secret_is_stored(new: NewKey, acme: Organization) -> None:
    keys.rotate(new.row, overlap=HOUR)
    keys.revoke(new.row)
    hidden = new.secret[keys.PREFIX_LENGTH :]
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            assert hidden not in repr(cursor.fetchall()), table
    assert new.row.digest == hashlib.sha256(new.secret.encode()).hexdigest()
    assert hidden not in str(new.row)
    assert new.secret[:21] in str(new.row)


def test_making_a_key_is_audited(acme: Organization, alice: User) -> None:
    key = keys.create(acme, "prod-web", actor=alice, allowed_models=["a/one"]).row
    (event,) = audited("key.created")
    assert (event.organization, event.actor, event.subject) == (acme, alice, key.prefix)
    assert (key.created_by, key.name, key.allowed_models) == (alice, "prod-web", ["a/one"])


def test_a_key_opens_its_organization(
    new: NewKey, acme: Organization, django_assert_num_queries: Any
) -> None:
    keys.authenticate(new.secret)
    with django_assert_num_queries(1):
        key = keys.authenticate(new.secret)
        assert key.organization.name == "Acme"
    assert key == new.row


@pytest.mark.parametrize(
    "change",
    [
        lambda secret: "",
        lambda secret: "Bearer " + secret,
        lambda secret: secret[:-1],
        lambda secret: secret + "a",
        lambda secret: secret + "\n",
        lambda secret: " " + secret,
        lambda secret: secret[:21],
        lambda secret: secret[:-1] + ("a" if secret[-1] != "a" else "b"),
        lambda secret: secret[:13] + secret[13:].swapcase(),
        lambda secret: secret.replace("live", "test"),
        lambda secret: secret.replace("ghub", "GHUB"),
        lambda secret: "ghub_sk_live_" + "A" * 32,
        lambda secret: "sk-" + "a" * 42,
        lambda secret: secret[:-1] + "é",
        lambda secret: secret[:-1] + "\udce9",
        lambda secret: secret[:-1] + "٣",
    ],
)
def test_anything_else_opens_nothing(new: NewKey, change: Any) -> None:
    with pytest.raises(InvalidKey, match="45 characters"):
        keys.authenticate(change(new.secret))


def test_a_wrong_secret_with_a_known_prefix_is_told_as_if_there_were_no_such_key(
    new: NewKey,
) -> None:
    messages = set()
    for wrong in (new.secret[:21] + "A" * 24, "ghub_sk_live_" + "A" * 32):
        with pytest.raises(InvalidKey) as caught:
            keys.authenticate(wrong)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_a_revoked_key_opens_nothing_from_then_on_and_is_audited_once(
    new: NewKey, alice: User
) -> None:
    keys.authenticate(new.secret)
    before = timezone.now()
    keys.revoke(new.row, actor=alice)
    with pytest.raises(RevokedKey, match=r"^This API key was revoked\. Use another one\.$"):
        keys.authenticate(new.secret)
    first = ApiKey.objects.get().revoked_at
    assert first is not None
    assert before <= first <= timezone.now()

    keys.revoke(new.row)
    keys.revoke(ApiKey.objects.get())

    assert ApiKey.objects.get().revoked_at == first
    (event,) = audited("key.revoked")
    assert (event.actor, event.subject) == (alice, new.row.prefix)


def test_an_expired_key_opens_nothing(acme: Organization) -> None:
    past, future = timezone.now() - timedelta(seconds=1), timezone.now() + HOUR
    with pytest.raises(RevokedKey):
        keys.authenticate(keys.create(acme, "old", expires_at=past).secret)
    keys.authenticate(keys.create(acme, "new", expires_at=future).secret)


def test_a_wrong_secret_of_a_revoked_key_does_not_tell_that_it_was_revoked(new: NewKey) -> None:
    keys.revoke(new.row)
    with pytest.raises(InvalidKey):
        keys.authenticate(new.secret[:21] + "A" * 24)


def test_the_last_use_is_written_once_a_minute(new: NewKey) -> None:
    def set_back(seconds: float) -> datetime:
        moment = timezone.now() - timedelta(seconds=seconds)
        ApiKey.objects.update(last_used_at=moment)
        return moment

    assert ApiKey.objects.get().last_used_at is None
    before = timezone.now()
    keys.authenticate(new.secret)
    first = ApiKey.objects.get().last_used_at
    assert first is not None
    assert before <= first <= timezone.now()
    keys.authenticate(new.secret)
    assert ApiKey.objects.get().last_used_at == first

    recent = set_back(30)
    keys.authenticate(new.secret)
    assert ApiKey.objects.get().last_used_at == recent
    set_back(61)
    keys.authenticate(new.secret)
    again = ApiKey.objects.get().last_used_at
    assert again is not None
    assert again >= first


def test_a_refused_key_was_not_used(new: NewKey) -> None:
    keys.revoke(new.row)
    with pytest.raises(RevokedKey):
        keys.authenticate(new.secret)
    assert ApiKey.objects.get().last_used_at is None


# --- Rotation ---------------------------------------------------------------------------------


def test_a_successor_has_the_same_rights_and_the_old_key_an_overlap(
    acme: Organization, alice: User
) -> None:
    bob = UserFactory()
    old = keys.create(acme, "prod-web", sandbox=True, allowed_models=["a/one"], actor=bob)
    before = timezone.now()
    new = keys.rotate(old.row, overlap=HOUR, actor=alice)

    assert new.secret != old.secret
    assert (new.row.name, new.row.sandbox, new.row.allowed_models) == ("prod-web", True, ["a/one"])
    # It stays in its creator's budget when somebody else rotates it.
    assert (new.row.organization, new.row.rotated_from, new.row.created_by) == (acme, old.row, bob)
    assert new.row.family == old.row.family
    assert new.row.expires_at is None
    # Both open the door until the overlap is over.
    assert keys.authenticate(new.secret) == new.row
    ends = keys.authenticate(old.secret).expires_at
    assert ends is not None
    assert before + HOUR <= ends <= timezone.now() + HOUR
    ApiKey.objects.filter(pk=old.row.pk).update(expires_at=before)
    with pytest.raises(RevokedKey):
        keys.authenticate(old.secret)
    (event,) = audited("key.rotated")
    assert (event.organization, event.actor, event.subject) == (acme, alice, old.row.prefix)


def test_without_an_overlap_the_old_key_ends_at_once(new: NewKey) -> None:
    successor = keys.rotate(new.row, overlap=timedelta())
    with pytest.raises(RevokedKey):
        keys.authenticate(new.secret)
    keys.authenticate(successor.secret)


@pytest.mark.parametrize("overlap", [timedelta(minutes=1), timedelta(days=1)])
def test_rotation_lengthens_no_life(acme: Organization, overlap: timedelta) -> None:
    ends = timezone.now() + HOUR
    old = keys.create(acme, "short", expires_at=ends).row
    new = keys.rotate(old, overlap=overlap).row
    assert new.expires_at == ends
    old.refresh_from_db()
    assert old.expires_at is not None
    assert old.expires_at <= min(ends, timezone.now() + overlap)


def test_a_key_is_rotated_once_and_its_successor_again(new: NewKey) -> None:
    second = keys.rotate(new.row, overlap=HOUR)
    with pytest.raises(RevokedKey, match="already rotated"):
        keys.rotate(new.row, overlap=HOUR)
    third = keys.rotate(second.row, overlap=HOUR)
    assert third.row.family == new.row.family
    assert ApiKey.objects.count() == 3


def test_a_key_that_is_over_is_not_rotated(acme: Organization) -> None:
    revoked = keys.create(acme, "revoked").row
    keys.revoke(revoked)
    expired = keys.create(acme, "expired", expires_at=timezone.now() - HOUR).row
    # `revoked` in memory does not know; what the database says counts.
    for key in (revoked, expired):
        with pytest.raises(RevokedKey):
            keys.rotate(key, overlap=HOUR)
    assert ApiKey.objects.count() == 2


def test_of_many_rotations_at_once_one_wins(transactional_db: None) -> None:
    key = KeyFactory().row
    results = race(8, lambda _: keys.rotate(key, overlap=HOUR), losing=RevokedKey)
    assert len([result for result in results if isinstance(result, NewKey)]) == 1
    assert ApiKey.objects.count() == 2
    assert len(audited("key.rotated")) == 1
    assert len(audited("key.created")) == 2


def test_of_many_revocations_at_once_one_is_written_down(transactional_db: None) -> None:
    key = KeyFactory().row
    race(8, lambda _: keys.revoke(key))
    assert len(audited("key.revoked")) == 1


# --- What the database itself refuses ---------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "fields"),
    [
        ("api_key_prefix_tells_sandbox", {"sandbox": True}),
        ("api_key_prefix_tells_sandbox", {"prefix": "ghub_sk_test_abcdefgh"}),
        ("api_key_prefix_tells_sandbox", {"prefix": "sk-abcdefgh"}),
        ("api_key_has_a_name", {"name": ""}),
    ],
)
def test_the_database_refuses_what_cannot_be(
    new: NewKey, constraint: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        ApiKey.objects.update(**fields)


@pytest.mark.parametrize("field", ["prefix", "digest", "rotated_from"])
def test_prefix_digest_and_predecessor_are_unique(new: NewKey, field: str) -> None:
    other = keys.rotate(new.row, overlap=HOUR).row
    values = {
        "prefix": "ghub_sk_live_12345678",
        "digest": "0" * 64,
        "rotated_from": None,
        field: getattr(other, field),
    }
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.create(organization=new.row.organization, name="x", **values)
    del values[field]
    values["id"] = uuid.uuid4()
    if field != "rotated_from":
        values[field] = "ghub_sk_live_87654321" if field == "prefix" else "1" * 64
    ApiKey.objects.create(organization=new.row.organization, name="x", **values)


def test_an_unnamed_key_leaves_no_trace(transactional_db: None) -> None:
    acme = OrganizationFactory(owner=UserFactory())
    with pytest.raises(IntegrityError):
        keys.create(acme, "")
    assert not ApiKey.objects.exists()
    assert audited("key.created") == []
