from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from billing.spending import prices
from billing.stripe import catalog, client
from images.catalog.rows import CATALOG


class Command(BaseCommand):
    help = (
        "Publish the catalogue's prices; a changed price becomes a new version. With Stripe "
        "connected, each version gets a product, a meter and a price there and is quoted once "
        "Stripe can bill it; the worker retries what fails in Stripe. Prints changes."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only print the changes")

    def handle(self, *args: Any, **options: Any) -> None:
        wanted = {model.id: model.price_micro for model in CATALOG.values()}
        catalog.check_mode()
        if options["dry_run"]:
            connected = client.is_connected()
            plan = catalog.pending if connected else catalog.price_changes
            changes = plan(wanted)
        elif client.is_connected():
            names = {model.id: model.name for model in CATALOG.values()}
            stripe = client.connect()
            changes = catalog.sync(stripe, wanted, now=timezone.now(), names=names)
        else:
            changes = catalog.price_changes(wanted)
            prices.publish(wanted)
        for change in changes:
            self.stdout.write(change)
