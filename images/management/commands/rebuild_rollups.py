from datetime import UTC, date, datetime, time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from images.usage import rollups


class Command(BaseCommand):
    help = (
        "Recompute the closed hours of usage from the requests, since a day (UTC) or from the "
        "first one on. Prints how many hours. No reader sees a half-done day, and it can run at "
        "any time, also alongside the worker."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--since", type=date.fromisoformat, metavar="YYYY-MM-DD")

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(f"{rollups.rebuild(midnight(options['since']))} hours")


def midnight(day: date | None) -> datetime | None:
    """Return the start of a day in UTC."""
    return None if day is None else datetime.combine(day, time(), UTC)
