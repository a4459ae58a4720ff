from collections.abc import Mapping
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from billing.models.prices import SHARED_SKU
from billing.spending import prices
from billing.stripe import catalog, client, sharing
from billing.stripe.sharing import PriceTooFine
from images.catalog.skus import names, price_list


class Command(BaseCommand):
    help = (
        "Publish the catalogue's prices; a changed price becomes a new version. With Stripe "
        "connected, each version gets a product, a meter and a price there and is quoted once "
        "Stripe can bill it; the worker retries what fails in Stripe. Prints changes."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only print the changes")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self._sync(price_list(), **options)
        except PriceTooFine as error:
            raise CommandError(str(error)) from error

    def _sync(self, wanted: Mapping[str, int], **options: Any) -> None:
        catalog.check_mode()
        if options["dry_run"]:
            connected = client.is_connected()
            plan = catalog.pending if connected else catalog.price_changes
            changes = plan(wanted)
        elif client.is_connected():
            called = {**names(), SHARED_SKU: "Other models"}
            stripe = client.connect()
            changes = catalog.sync(stripe, wanted, now=timezone.now(), names=called)
        else:
            changes = catalog.price_changes(wanted)
            prices.publish(wanted, counting=sharing.counting)
        for change in changes:
            self.stdout.write(change)
