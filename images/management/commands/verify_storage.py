from datetime import UTC, date, datetime, time
from itertools import chain
from typing import Any

from django.core.files.storage import storages
from django.core.management.base import BaseCommand, CommandError, CommandParser

from images.gallery import verify
from images.stores import configured


class Command(BaseCommand):
    help = (
        "Compare every image's row with its object: prints one line per difference, "
        "`missing`, `wrong size`, `undeleted` (removed now) or `orphan`. Exits 1 when any is left."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--since", type=date.fromisoformat, metavar="DATE", help="UTC, included"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        since = options["since"] and datetime.combine(options["since"], time(), UTC)
        left = 0
        public = verify.verify(storages["images"], configured.spool(), private=False, since=since)
        hidden = verify.verify(storages["private_images"], None, private=True, since=since)
        for finding in chain(public, hidden):
            left += not finding.repaired
            done = " (removed)" if finding.repaired else ""
            self.stdout.write(f"{finding.kind}: {finding.name}{done}")
        if left:
            raise CommandError(f"{left} differences are left")
