import json
from datetime import UTC, date, datetime, time
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.models import Organization
from billing.spending import ledger
from geekhub.lib import money


class Command(BaseCommand):
    help = "Print an organization's images and cost by model, and what is held now."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("organization", type=UUID, metavar="ORG_UUID")
        parser.add_argument(
            "--since", type=date.fromisoformat, metavar="DATE", help="UTC, included"
        )
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        organization = Organization.objects.filter(pk=options["organization"]).first()
        if organization is None:
            raise CommandError(f"There is no organization {options['organization']}.")
        since = options["since"] and datetime.combine(options["since"], time(), UTC)
        rows = ledger.spend_by_sku(organization, since=since)
        skus = {
            row.sku: {"images": row.units, "cost_usd": money.to_usd(row.cost_micro)} for row in rows
        }
        total = {
            "images": sum(row.units for row in rows),
            "cost_usd": money.to_usd(sum(row.cost_micro for row in rows)),
        }
        held = money.to_usd(ledger.balance(organization).held_micro)
        if options["json"]:
            self.stdout.write(json.dumps({"models": skus, "total": total, "held_usd": held}))
            return
        for sku, line in [*skus.items(), ("total", total)]:
            self.stdout.write(f"{sku:32} {line['images']:>8} images {line['cost_usd']:>12} USD")
        self.stdout.write(f"{'held now':32} {held:>28} USD")
