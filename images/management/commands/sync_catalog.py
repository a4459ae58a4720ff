from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from billing import prices, stripe_catalog, stripe_client
from images.catalog import CATALOG


class Command(BaseCommand):
    help = (
        "Publish the catalogue's prices; a changed price becomes a new version. With Stripe "
        "connected each version gets a product, a meter and a price there and is quoted when "
        "Stripe can bill it; what Stripe does not answer, the worker goes on with. Prints changes."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="print, change nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        wanted = {model.id: model.price_micro for model in CATALOG.values()}
        stripe_catalog.check_mode()
        if options["dry_run"]:
            connected = stripe_client.is_connected()
            plan = stripe_catalog.pending if connected else stripe_catalog.price_changes
            changes = plan(wanted)
        elif stripe_client.is_connected():
            names = {model.id: model.name for model in CATALOG.values()}
            stripe = stripe_client.connect()
            changes = stripe_catalog.sync(stripe, wanted, now=timezone.now(), names=names)
        else:
            changes = stripe_catalog.price_changes(wanted)
            prices.publish(wanted)
        for change in changes:
            self.stdout.write(change)
