from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from billing import prices
from geekhub.lib import money
from images.catalog import CATALOG


class Command(BaseCommand):
    help = "Publish the catalogue's prices; a changed price becomes a new version. Prints changes."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="print, publish nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        wanted = {model.id: model.price_micro for model in CATALOG.values()}
        changes = prices.pending(wanted)
        if not options["dry_run"]:
            prices.publish(wanted)
        for model, (before, after) in sorted(changes.items()):
            was = "new" if before is None else money.to_usd(before)
            self.stdout.write(f"{model}: {was} -> {money.to_usd(after)} USD per image")
