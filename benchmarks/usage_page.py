"""Server time of the usage page and the overview over generated requests, on PostgreSQL.

`python -m benchmarks.usage_page [ROWS]`, with DATABASE_URL; see README.md. Half of the rows are one
organization's, whose pages are asked for; the other half is spread over nineteen others. The
database is emptied first.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "geekhub.settings")
os.environ.setdefault("SECRET_KEY", "benchmark")
os.environ.setdefault("DATA_DIR", tempfile.mkdtemp())
os.environ["DEBUG"] = "true"
os.environ["LOG_LEVEL"] = "ERROR"
django.setup()

from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.test import Client  # noqa: E402
from django.test.utils import setup_test_environment  # noqa: E402
from django.utils import timezone  # noqa: E402

from accounts.models import Organization  # noqa: E402
from benchmarks.gateway import core_ms  # noqa: E402
from images.catalog.rows import CATALOG  # noqa: E402
from images.models import (  # noqa: E402
    ClosedHours,
    DailyLatency,
    DailyUsage,
    Generation,
    HourlyLatency,
    HourlyTagUsage,
    HourlyTotal,
    HourlyUsage,
    Image,
)
from images.usage import requests, rollups  # noqa: E402
from images.usage.span import Place, Wanted  # noqa: E402
from tests.factories import KeyFactory, OrganizationFactory  # noqa: E402

DAYS = 180
KEYS = 5
ROUNDS = 40
WANTED_MS = 200

# One request in 15 fails, one in 50 has a tag of a few, one in 100,000 a rare one.
REQUESTS = """
    INSERT INTO images_generation (
        id, request_id, organization_id, api_key_id, sandbox, owner, status, requested, parameters,
        prompt, tags, n, fingerprint, model, provider, delivered, filtered, cost_micro, attempts,
        skipped, adjusted, error_code, error_message, created_at, deadline_at, finished_at, draw_ms,
        latency_ms)
    SELECT md5((%(first)s + i)::text)::uuid, 'req_' || lpad(to_hex(%(first)s + i), 24, '0'),
        k.organization_id, k.id, false, k.id,
        CASE WHEN i %% 15 = 0 THEN 'failed' ELSE 'succeeded' END,
        m.requested, '{"size": "1024x1024"}', 'a red kite over the sea',
        CASE WHEN i %% 100000 = 7 THEN '["rare"]'::jsonb
            WHEN i %% 50 = 1 THEN jsonb_build_array('tag-' || i %% 7) ELSE '[]'::jsonb END,
        1, repeat('f', 64),
        CASE WHEN i %% 15 = 0 THEN '' ELSE m.id END,
        CASE WHEN i %% 15 = 0 THEN '' ELSE split_part(m.id, '/', 1) END,
        CASE WHEN i %% 15 = 0 THEN 0 ELSE 1 END, 0,
        CASE WHEN i %% 15 = 0 THEN 0 ELSE m.price END,
        m.attempts, '[]', '[]',
        CASE WHEN i %% 15 = 0 THEN
            (ARRAY['provider_unavailable', 'content_policy_violation'])[1 + i %% 2] ELSE '' END,
        '', t.at, t.at + interval '1 minute', t.at + interval '9 seconds',
        4000 + i %% 9000, 4100 + i %% 9000
    FROM generate_series(1, %(count)s) i
    CROSS JOIN LATERAL (
        SELECT %(now)s::timestamptz
            - %(days)s * interval '1 day' * (1 - i::float8 / %(count)s) AS at
    ) t
    JOIN unnest(%(keys)s::uuid[], %(owners)s::uuid[]) WITH ORDINALITY
        k(id, organization_id, place) ON k.place = 1 + (i * 7) %% %(key_count)s
    JOIN unnest(
            %(models)s::text[], %(prices)s::bigint[], %(requested)s::jsonb[], %(attempts)s::jsonb[]
        ) WITH ORDINALITY m(id, price, requested, attempts, place)
        ON m.place = 1 + (i * 11) %% %(model_count)s
"""
# Of the newest requests only: a page shows no more than thirty.
PICTURES = """
    INSERT INTO images_image (generation_id, index, name, mime_type, width, height, bytes, sha256,
        revised_prompt)
    SELECT id, 0, organization_id || '/' || id || '/0.png', 'image/png', 1024, 1024, 70000,
        repeat('0', 64), ''
    FROM images_generation WHERE delivered > 0 AND created_at > now() - interval '2 days'
"""


CONSTRAINTS = """
    SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid), contype
    FROM pg_constraint
    WHERE contype IN ('p', 'u', 'f', 'c')
        AND (conrelid = ANY(%(tables)s::regclass[]) OR confrelid = ANY(%(tables)s::regclass[]))
    ORDER BY contype = 'f', conname
"""
INDEXES = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
    WHERE indrelid = ANY(%(tables)s::regclass[])
"""


@contextmanager
def bare(*models: Any) -> Iterator[None]:
    """Take the indexes and constraints of tables away, and make them anew at the end."""
    with connection.cursor() as cursor:
        cursor.execute("SET maintenance_work_mem = '512MB'; SET work_mem = '256MB'")
        tables = {"tables": [model._meta.db_table for model in models]}
        cursor.execute(CONSTRAINTS, tables)
        constraints = cursor.fetchall()
        for table, name, _, _ in reversed(constraints):
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        cursor.execute(INDEXES, tables)
        indexes = cursor.fetchall()
        for name, _ in indexes:
            cursor.execute(f"DROP INDEX {name}")
        yield
        for table, name, definition, kind in constraints:
            # The rows are known to keep them.
            unproven = " NOT VALID" if kind in "fc" and "NOT VALID" not in definition else ""
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}{unproven}")
        for _, definition in indexes:
            cursor.execute(definition)
        cursor.execute("RESET maintenance_work_mem; RESET work_mem")


def fill(rows: int) -> Organization:
    """Return the organization that has half of so many new requests."""
    began = time.monotonic()
    big = OrganizationFactory(name="Big")
    others = [OrganizationFactory() for _ in range(19)]
    keys = [KeyFactory(organization=big, name=f"key-{n}").row for n in range(KEYS)]
    small = [KeyFactory(organization=one).row for one in others]
    first = 0
    with bare(Generation, Image), connection.cursor() as cursor:
        for group in (keys, small):
            cursor.execute(
                REQUESTS,
                {
                    "first": first,
                    "count": rows // 2,
                    "now": timezone.now(),
                    "days": DAYS,
                    "keys": [key.pk for key in group],
                    "owners": [key.organization_id for key in group],
                    "key_count": len(group),
                    "models": list(CATALOG),
                    "prices": [model.price_micro for model in CATALOG.values()],
                    "requested": [json.dumps([name]) for name in CATALOG],
                    "attempts": [json.dumps([{"model": name, "error": None}]) for name in CATALOG],
                    "model_count": len(CATALOG),
                },
            )
            first += rows // 2
            print(f"{first:,} rows after {time.monotonic() - began:.0f} s", flush=True)
        cursor.execute(PICTURES)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return big


def close_all() -> None:
    """Roll up every hour that is closed, all at once: nobody else is here."""
    start, until = rollups._first_hour(), rollups._changeless_until(timezone.now())
    assert start is not None
    hourly = (HourlyUsage, HourlyTagUsage, HourlyTotal, HourlyLatency)
    with bare(*hourly, DailyUsage, DailyLatency):
        rollups._build(start, until)
    ClosedHours.objects.create(pk=1, until=until)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


class Watch:
    """Adds up the seconds that the database took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            self.seconds += time.perf_counter() - began


def p95(work: Callable[[], object]) -> tuple[float, float]:
    """Return median and 95th percentile of the milliseconds that the work takes."""
    work()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), sorted(times)[-(-ROUNDS * 95 // 100) - 1]


def fetch(client: Client, path: str) -> bytes:
    """Return a page."""
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    return bytes(answer.content)


def main() -> int:
    """Print the table of benchmarks/README.md; exit 1 when a page is too slow."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    if connection.vendor != "postgresql":
        print("usage_page needs PostgreSQL in DATABASE_URL", file=sys.stderr)
        return 1
    call_command("migrate", verbosity=0)
    call_command("flush", interactive=False, verbosity=0)
    setup_test_environment()
    settings.DEBUG = False
    os.makedirs(settings.STATIC_ROOT, exist_ok=True)
    began = time.monotonic()
    big = fill(rows)
    filled = time.monotonic() - began
    close_all()
    closed = time.monotonic() - began - filled
    print(
        f"{Generation.objects.count():,} requests generated in {filled:.0f} s, rolled up into "
        f"{HourlyUsage.objects.count():,} rows in {closed:.0f} s",
        flush=True,
    )
    slow = measure(big)
    print(f"core, ms: {core_ms():.0f}")
    return 1 if slow else 0


def measure(big: Organization) -> bool:
    """Print a row per page; tell whether one is too slow."""
    client = Client()
    client.force_login(big.members.get(), backend="django.contrib.auth.backends.ModelBackend")
    today = timezone.localdate()
    early = today - timedelta(days=DAYS)
    whole = Wanted(start=timezone.now() - timedelta(days=DAYS), end=timezone.now())
    deep = requests.page(big, whole, size=500)[-1]
    middle = Generation.objects.filter(
        organization=big, created_at__lt=timezone.now() - timedelta(days=DAYS // 2)
    ).order_by("-created_at")[0]
    pages = {
        "overview": "/dashboard",
        "overview, in India": "/dashboard",
        "usage, 30 days": "/dashboard/usage",
        "usage, 180 days": f"/dashboard/usage?since={early}",
        "usage, a page in the middle": f"/dashboard/usage?since={early}"
        f"&before={Place(middle.created_at, middle.request_id)}",
        "usage, failed": f"/dashboard/usage?since={early}&status=failed",
        "usage, one key and model": f"/dashboard/usage?since={early}&model=fal/flux-1.1-pro"
        f"&key={deep.api_key_id}",
        "usage, a tag": f"/dashboard/usage?since={early}&tag=tag-3",
        "usage, a rare tag": f"/dashboard/usage?since={early}&tag=rare",
        "one request": f"/dashboard/usage/{deep.request_id}",
    }
    print("| page | median, ms | p95, ms | of it SQL, mean ms | KB |")
    print("| --- | --- | --- | --- | --- |")
    slow = False
    for name, path in pages.items():
        client.cookies["timezone"] = "Asia/Kolkata" if "India" in name else "UTC"
        size = len(fetch(client, path)) / 1000
        watch = Watch()
        with connection.execute_wrapper(watch):
            median, worst = p95(lambda path=path: fetch(client, path))  # type: ignore[misc]
        sql = watch.seconds * 1000 / (ROUNDS + 1)
        slow = slow or worst > WANTED_MS
        print(f"| {name} | {median:.0f} | {worst:.0f} | {sql:.0f} | {size:.0f} |", flush=True)
    return slow


if __name__ == "__main__":
    sys.exit(main())
