"""Ten thousand ledger rows on their way to Stripe: frozen, sent, and counted there.

    python -m benchmarks.metering [ROWS]

Needs an empty database of its own in DATABASE_URL. Stripe is the tests' emulator, and what is
measured runs in a process beside it, with as many calls a second as we allow ourselves in live
mode. Prints one row; exits 1 at 60 s or more, or when Stripe's sum is not the ledger's.
"""

import json
import os
import random
import subprocess
import sys
import time
import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import django

if TYPE_CHECKING:
    from accounts.models import ApiKey

ROWS, WANTED_SECONDS, RATE = 10_000, 60, 200
ORGANIZATIONS, HOURS = 20, 24


def measure() -> None:
    """Freeze and send all there is; print how many events, and how long it took."""
    from django.utils import timezone

    from benchmarks.gateway import core_ms
    from billing.metering.freeze import freeze
    from billing.metering.send import send_due
    from billing.metering.sink import StripeSink
    from billing.models import MeterEvent, MeterState
    from billing.stripe.client import connect

    core = core_ms()
    began, cpu = time.monotonic(), time.process_time()
    events = freeze(now=timezone.now(), running_hour=True)
    frozen = time.monotonic() - began
    sink = StripeSink(connect())
    while MeterEvent.objects.exclude(state=MeterState.ACCEPTED).exists():
        send_due(sink, now=timezone.now())
    wall, used = time.monotonic() - began, time.process_time() - cpu
    print(json.dumps([events, frozen, wall, used, core]))


def main(rows: int) -> int:
    """Prepare, have it measured, compare."""
    from django.core.management import call_command
    from django.db import connection
    from django.db.models import Sum
    from django.utils import timezone

    from billing.models import LedgerEntry
    from billing.spending import prices
    from images.catalog.rows import CATALOG
    from images.catalog.skus import price_list
    from tests.billing.metered import sell
    from tests.emulators.stripe import StripeEmulator

    call_command("migrate", verbosity=0)
    if LedgerEntry.objects.exists():
        print("the database is not empty", file=sys.stderr)
        return 2
    now = timezone.now()
    with StripeEmulator(now=now - timedelta(hours=HOURS + 1)) as emulator:
        prices.publish(price_list())
        metered = sell(emulator)
        keys = [metered.customer() for _ in range(ORGANIZATIONS)]
        _use(rows, keys, now)
        emulator.clock.advance_to(timezone.now())
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.metering", "--measure"],
            env=os.environ
            | {
                "LOG_LEVEL": "WARNING",
                "STRIPE_SECRET_KEY": emulator.key,
                "STRIPE_WEBHOOK_SECRET": emulator.webhook_secret,
                "STRIPE_API_BASE": emulator.url,
                "STRIPE_METER_EVENTS_BASE": emulator.url,
                "STRIPE_METER_RATE": str(RATE),
            },
            stdout=subprocess.PIPE,
            check=True,
        )
        counted = sum(metered.total(key, model.id) for key in keys for model in CATALOG.values())
    events, frozen, wall, cpu, core = json.loads(done.stdout)
    images = LedgerEntry.objects.aggregate(sum=Sum("quantity"))["sum"]
    print("| database | rows | events | frozen, s | frozen and sent, s | our CPU, s | core, ms |")
    print(
        f"| {connection.vendor} | {rows} | {events} | {frozen:.1f} | {wall:.1f} | {cpu:.1f} "
        f"| {core:.0f} |"
    )
    print(f"ledger {images} images, Stripe {counted}")
    return 0 if counted == images and wall < WANTED_SECONDS else 1


def _use(rows: int, keys: list["ApiKey"], now: datetime) -> None:
    """Write the rows: one image each, of all models, by all organizations, over a day."""
    from billing.models import EntryKind, Hold, HoldState, LedgerEntry, PriceVersion

    dice = random.Random(1)
    versions = list(PriceVersion.objects.all())
    holds, entries = [], []
    for number in range(rows):
        key, version = dice.choice(keys), dice.choice(versions)
        at = now - timedelta(hours=HOURS) * (1 - number / rows)
        hold = Hold(
            organization=key.organization,
            api_key=key,
            request_id=f"req_{number}",
            quantity=1,
            amount_micro=version.unit_micro,
            quotes={},
            captured=1,
            state=HoldState.CAPTURED,
            owner=uuid.uuid4(),
            lease_until=at,
            settled_at=at,
        )
        holds.append(hold)
        entries.append(
            LedgerEntry(
                organization=key.organization,
                entry_key=f"use:{number}",
                kind=EntryKind.CONSUMPTION,
                amount_micro=-version.unit_micro,
                price_version=version,
                sku=version.sku,
                quantity=1,
                hold=hold,
                api_key=key,
                created_at=at,
            )
        )
    Hold.objects.bulk_create(holds, batch_size=500)
    LedgerEntry.objects.bulk_create(entries, batch_size=500)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "geekhub.settings")
    os.environ.setdefault("SECRET_KEY", "benchmark")
    django.setup()
    if "--measure" in sys.argv:
        measure()
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS))
