"""A database of the version before skus migrates, and nothing in it is lost."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import connection
from django.db.backends.utils import CursorWrapper

ROOT = Path(__file__).resolve().parents[2]
OLD, OTHER = "openai/gpt-image-1", "fal/flux-dev"


@pytest.fixture
def database_url(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """Return the address of a database without tables, of the kind the tests run on."""
    if connection.vendor == "sqlite":
        yield f"sqlite:///{tmp_path / 'before.sqlite3'}"
        return
    name = f"before_{uuid4().hex}"
    cursor: CursorWrapper
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        server, _, _ = os.environ["DATABASE_URL"].rpartition("/")
        yield f"{server}/{name}"
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_nothing_is_lost_when_prices_become_prices_of_skus(database_url: str) -> None:
    environment = {
        "DATABASE_URL": database_url,
        "DJANGO_SETTINGS_MODULE": "geekhub.settings",
        "PYTHONPATH": str(ROOT),
    }
    ran = subprocess.run(
        [sys.executable, "tests/billing/upgraded.py"],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found.pop("refused") == "the ledger is append-only"
    assert found == {
        "prices": [
            [OLD, "image", 1, 190_000, "retired", "price_1"],
            [OLD, "image", 2, 200_000, "active", ""],
            [OTHER, "image", 1, 25_000, "active", ""],
        ],
        "exceptions": [[OLD, 1, "x"], [OTHER, None, "y"]],
        "quotes": [OTHER, OLD],
        "ledger": [["bonus:1", "", None, 0, 2_500_000], ["use:1", OLD, 1, 2, -380_000]],
        "events": [["gh1:1", OLD, 2, "sending"]],
        "metered": [["use:1", "gh1:1"]],
        "operations": [
            {"sku": OLD, "name": "GPT Image 1"},
            {"sku": OLD, "version": 1, "unit_cents": "19"},
            {"model": "not ours to touch"},
        ],
    }
