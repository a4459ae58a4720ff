from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from images.management.commands.rebuild_rollups import midnight
from images.usage import rollups


class Command(BaseCommand):
    help = (
        "Compare the rollups with the ledger: images and cost of each organization in each "
        "closed hour. Prints every difference, and exits 1 if there is one. `rebuild_rollups` "
        "repairs what differs in the rollups."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--since", type=date.fromisoformat, metavar="YYYY-MM-DD")

    def handle(self, *args: Any, **options: Any) -> None:
        found = 0
        for one in rollups.prove(midnight(options["since"])):
            found += 1
            hour = one.hour.isoformat() if one.hour else "without a request"
            self.stdout.write(
                f"{one.organization_id} {hour} {one.what}: rollup {one.rollup}, ledger {one.ledger}"
            )
        if found:
            raise CommandError(f"{found} differences")
        self.stdout.write("no differences")
