"""The same order a second time: it gets what the first came to, and is neither drawn nor charged.

Two requests are one order when they carry the same Idempotency-Key; or when the second says that
it is the retry of an SDK, which sends no such key of its own: then the same API key and the same
body within ten minutes, neither with such a key, and a picture of the first is left. While the
first is running, a retry waits for it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

from accounts.models import ApiKey
from geekhub.lib.ids import new_request_id
from images.drawing.clock import Clock
from images.drawing.gateway import Gateway
from images.drawing.request import GenerationRequest
from images.models import Generation, GenerationStatus, Image
from images.stores import private
from images.stores.contract import ImageStore

RETRIED_WITHIN = timedelta(minutes=10)
# A first try that waited longer than this to be let in may have been given up and tried again by
# then; no SDK is so impatient that less would do.
OVERTAKEN_AFTER = timedelta(seconds=0.25)
# Each look is a query by primary key. They come less often as the wait goes on.
FIRST_LOOK, LAST_LOOK = 0.1, 1.0
# How long a picture that no store has may still wait in the spool of another host.
SPOOLED_WITHIN = timedelta(minutes=10)


class IdempotencyKeyInUse(Exception):
    """The request that this one repeats is still running."""


class IdempotencyKeyReused(Exception):
    """The Idempotency-Key was used for another body."""


class ImagesDeleted(Exception):
    """All images of the request that this one repeats have been deleted."""


class NotStoredYet(Exception):
    """A picture of the request that this one repeats may be on its way from another host."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that delivered: its pictures' rows, and their bytes where its answer has them.

    `deleted` are the indexes of those that are not there any more.
    """

    generation: Generation
    images: list[Image]
    data: list[bytes]
    deleted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Running:
    """A request that a retry waits for, and what the retry asks."""

    generation: Generation
    request: GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Which request it is, what its headers say, and when it came.

    `retry` is which retry of an SDK it is: 0 is a first try, None that no SDK says so.
    """

    request_id: str = field(default_factory=new_request_id)
    idempotency_key: str | None = None
    retry: int | None = None
    arrived: datetime = field(default_factory=timezone.now)

    @property
    def may_repeat(self) -> bool:
        """Return whether there can be an earlier request at all; only then is it looked for."""
        return self.idempotency_key is not None or bool(self.retry)

    @property
    def deadlines(self) -> int:
        """Return how many may pass: a retry may wait for that of another request before its own."""
        return 2 if self.retry else 1

    @property
    def unnamed_retry(self) -> bool:
        """Return whether nothing but its body tells what it repeats."""
        return self.idempotency_key is None and bool(self.retry)

    @property
    def may_be_overtaken(self) -> bool:
        """Return whether a retry of this first try may have been let in before it."""
        waited = timezone.now() - self.arrived
        return self.idempotency_key is None and self.retry == 0 and waited > OVERTAKEN_AFTER


def earlier(key: ApiKey, request: GenerationRequest, sent: Sent) -> Finished | Running | None:
    """Return what the request that this one repeats came to; None if it failed or never was.

    Raises IdempotencyKeyReused, and IdempotencyKeyInUse where one is running and this is no retry.
    """
    if not sent.may_repeat:
        return None
    found = _found(key, request, sent)
    if found is None:
        return None
    if found.fingerprint != request.fingerprint():
        raise IdempotencyKeyReused
    if found.status != GenerationStatus.RUNNING:
        return _finished(found)
    if not sent.retry:
        raise IdempotencyKeyInUse
    return Running(found, request)


def _found(key: ApiKey, request: GenerationRequest, sent: Sent) -> Generation | None:
    rows = Generation.objects.filter(organization_id=key.organization_id, sandbox=key.sandbox)
    if sent.idempotency_key is not None:
        named = rows.filter(idempotency_key=sent.idempotency_key)
        return named.exclude(status=GenerationStatus.FAILED).first()
    if not sent.retry or request.dry_run:
        return None
    # The newest decides: when that one failed, an older one is another order. One with a key of its
    # own is repeated by that key alone.
    newest = (
        rows.filter(
            api_key=key,
            idempotency_key=None,
            fingerprint=request.fingerprint(),
            created_at__gt=timezone.now() - RETRIED_WITHIN,
        )
        .order_by("-created_at")
        .first()
    )
    # A client that deleted all its pictures has had its answer: this is another order.
    return None if newest is None or _emptied(newest) else newest


def _emptied(row: Generation) -> bool:
    """Return whether a request delivered pictures and all have been deleted since."""
    if row.status != GenerationStatus.SUCCEEDED:
        return False
    return not row.images.filter(deleted_at=None).exists()


def meanwhile(key: ApiKey, request: GenerationRequest, sent: Sent) -> Finished | Running | None:
    """Return the same order if it was let in while this request waited to be; None if it was not.

    Call it with the organization's account locked: those that came before have committed then. The
    sandbox has no account, so there the retries of a key wait here for each other. What is named by
    an Idempotency-Key needs no look: its row is unique.
    """
    if sent.unnamed_retry:
        if key.sandbox:
            ApiKey.objects.select_for_update(no_key=True).get(pk=key.pk)
        return earlier(key, request, sent)
    if not sent.may_be_overtaken:
        return None
    retries = Generation.objects.filter(
        organization_id=key.organization_id,
        sandbox=key.sandbox,
        api_key=key,
        fingerprint=request.fingerprint(),
        retry__gt=0,
        created_at__gt=sent.arrived,
    )
    overtaking = retries.order_by("created_at").first()
    if overtaking is None:
        return None
    running = overtaking.status == GenerationStatus.RUNNING
    return Running(overtaking, request) if running else _finished(overtaking)


async def wait(
    gateway: Gateway,
    running: Running,
    *,
    clock: Clock,
    pause: Callable[[float], Awaitable[None]],
) -> Finished | None:
    """Return what a running request came to, on whichever host it runs; None when it failed.

    `pause` waits so many seconds, and may raise when nobody is waiting for the answer. Nothing is
    held meanwhile, no connection and no thread. Raises IdempotencyKeyInUse when the clock's time
    is over.
    """
    seconds = FIRST_LOOK
    while clock.left() > 0:
        await pause(seconds)
        seconds = min(seconds * 1.5, LAST_LOOK)
        now = await gateway.db.run(_look, running)
        if not isinstance(now, Running):
            return now
    raise IdempotencyKeyInUse


def _look(running: Running) -> Finished | Running | None:
    ended = Generation.objects.exclude(status=GenerationStatus.RUNNING)
    row = ended.filter(pk=running.generation.pk).first()
    return running if row is None else _finished(row)


def _finished(row: Generation) -> Finished | None:
    """Return what a request that has ended delivered; None if it failed."""
    if row.status == GenerationStatus.FAILED:
        return None
    images = list(row.images.all())
    return Finished(
        row,
        [image for image in images if image.deleted_at is None],
        [],
        tuple(image.index for image in images if image.deleted_at is not None),
    )


async def with_data(finished: Finished, store: ImageStore) -> Finished:
    """Return it with what its answer needs of the store: addresses, and bytes where it has them.

    What the store has lost is as good as deleted. Raises ImagesDeleted, NotStoredYet and
    StorageError.
    """
    asked = finished.generation.parameters
    has_bytes = bool(asked.get("stream")) or asked.get("response_format") == "b64_json"
    fetch = _with_bytes if has_bytes else _with_link
    found = await asyncio.gather(*(_unless_lost(fetch(image, store)) for image in finished.images))
    there, lost = [], list(finished.deleted)
    for image, data in zip(finished.images, found, strict=True):
        if data is not None:
            there.append((image, data))
        elif _may_be_spooled(image, finished.generation):
            raise NotStoredYet
        else:
            lost.append(image.index)
    if not there:
        raise ImagesDeleted
    return replace(
        finished,
        images=[image for image, _ in there],
        data=[data for _, data in there] if has_bytes else [],
        deleted=tuple(sorted(lost)),
    )


async def _with_link(image: Image, store: ImageStore) -> bytes:
    """Give a picture its address; return no bytes."""
    # A private bucket signs no address of what it does not have.
    image.link = await store.alink(image.name)
    return b""


async def _with_bytes(image: Image, store: ImageStore) -> bytes:
    """Give a picture its address; return its bytes."""
    image.link = await store.alink(image.name)
    return await store.aread(image.name)


async def _unless_lost(fetched: Awaitable[bytes]) -> bytes | None:
    """Return what is fetched; None when the store no longer has it."""
    try:
        return await fetched
    except FileNotFoundError:
        return None


def _may_be_spooled(image: Image, row: Generation) -> bool:
    young = timezone.now() < row.created_at + SPOOLED_WITHIN
    return (
        settings.STORAGE_OUTAGE == "spool" and young and not image.name.startswith(private.PREFIX)
    )
