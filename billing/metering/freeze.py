"""From the ledger to meter events: hours that are over are frozen."""

import itertools
import logging
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.db.models.functions import Greatest

from accounts.models import Organization
from billing.metering.events import IN_FLIGHT
from billing.models import (
    BillingAccount,
    EntryKind,
    LedgerEntry,
    MeteredEntry,
    MeterEvent,
    PriceVersion,
)
from billing.models.prices import SHARED_UNIT_MICRO
from geekhub.lib.moments import hour_of

log = logging.getLogger("geekhub.billing")
# Captures of the last minutes of an hour are given time to commit.
RIPE_AFTER = timedelta(minutes=2)
# Each batch keeps the organization's captures waiting while it is frozen.
FREEZE_BATCH = 2000
FOREVER = datetime.max.replace(tzinfo=UTC)


def freeze(
    *, now: datetime, organization: Organization | None = None, running_hour: bool = False
) -> int:
    """Put consumption of hours that are over into new meter events; return how many were made.

    Of one organization if it is named, and with `running_hour` all there is, as before a
    cancellation. Entries that come late to an hour make another event of it. Safe to run at once.
    """
    ripe = FOREVER if running_hour else hour_of(now - RIPE_AFTER)
    waiting = LedgerEntry.objects.filter(
        organization=OuterRef("organization"),
        kind=EntryKind.CONSUMPTION,
        pk__gt=Greatest(OuterRef("frozen_through"), OuterRef("metered_from")),
        created_at__lt=ripe,
    )
    accounts = BillingAccount.objects.filter(Exists(waiting), metered_from__isnull=False)
    if organization is not None:
        accounts = accounts.filter(organization=organization)
    made = 0
    for account in accounts.order_by("pk"):
        try:
            while batch := _freeze_batch(account.pk, ripe, now):
                made += batch
        except Exception:
            # It is tried again in the next round; the others do not wait for it.
            log.exception("the consumption of %s was not frozen", account.pk)
    return made


def _freeze_batch(organization_id: uuid.UUID, ripe: datetime, now: datetime) -> int:
    """Freeze the next entries of one organization in one transaction; return how many events.

    Every capture locks the account's row before it writes its entry. So, with the row locked, the
    organization's entries are all there, their ids are in the order of their commits, and none can
    appear below the mark afterwards: a prefix of them is safe to leave behind. If that were ever
    wrong, the primary key of MeteredEntry refuses to put an entry into a second event.
    """
    with transaction.atomic():
        account = BillingAccount.objects.select_for_update().get(pk=organization_id)
        if account.metered_from is None:
            return 0
        entries = LedgerEntry.objects.filter(
            organization=organization_id,
            kind=EntryKind.CONSUMPTION,
            pk__gt=max(account.metered_from, account.frozen_through),
        ).order_by("pk")
        # Up to the first that must wait, and nothing behind it, whatever clocks did in between.
        prefix = list(
            itertools.takewhile(lambda entry: entry.created_at < ripe, entries[:FREEZE_BATCH])
        )
        if not prefix:
            return 0
        shared: dict[Any, Any] = dict(
            PriceVersion.objects.filter(
                pk__in={entry.price_version_id for entry in prefix}, counted_in__isnull=False
            ).values_list("pk", "counted_in")
        )
        groups: dict[tuple[Any, datetime], list[LedgerEntry]] = {}
        for entry in prefix:
            counter = shared.get(entry.price_version_id, entry.price_version_id)
            groups.setdefault((counter, hour_of(entry.created_at)), []).append(entry)
        events = [
            MeterEvent(
                identifier=(
                    f"gh1:{organization_id.hex}:{version}:{hour:%y%m%d%H}:{uuid.uuid4().hex[:12]}"
                ),
                organization_id=organization_id,
                price_version_id=version,
                hour=hour,
                quantity=sum(
                    -entry.amount_micro // SHARED_UNIT_MICRO
                    if entry.price_version_id in shared
                    else entry.quantity
                    for entry in group
                ),
                # The database's clock may be ahead of ours; Stripe refuses what is in its future.
                timestamp=min(now, max(entry.created_at for entry in group)),
                next_at=now,
            )
            for (version, hour), group in groups.items()
        ]
        MeterEvent.objects.bulk_create(events)
        MeteredEntry.objects.bulk_create(
            MeteredEntry(ledger_entry=entry, meter_event=event)
            for event, group in zip(events, groups.values(), strict=True)
            for entry in group
        )
        account.frozen_through = prefix[-1].pk
        account.save(update_fields=["frozen_through"])
    return len(events)


def reissue(event: MeterEvent, quantity: int, *, now: datetime) -> MeterEvent:
    """Return a new event for what Stripe lost of one, or (negative) counted too often.

    For reconciliation, and for a rejected event whose cause is gone. While one for the same event
    is still on its way it is returned instead: the same shortfall seen twice is one shortfall.
    """
    root = event.reissue_of or event
    with transaction.atomic():
        BillingAccount.objects.select_for_update().get(pk=root.organization_id)
        earlier = MeterEvent.objects.filter(reissue_of=root)
        waiting = earlier.filter(state__in=IN_FLIGHT).first()
        if waiting is not None:
            return waiting
        return MeterEvent.objects.create(
            identifier=f"{root.identifier}:r{earlier.count() + 1}",
            organization_id=root.organization_id,
            price_version_id=root.price_version_id,
            hour=root.hour,
            quantity=quantity,
            timestamp=root.timestamp,
            reissue_of=root,
            next_at=now,
        )
