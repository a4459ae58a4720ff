from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts import keys
from accounts.models import Organization
from billing.models import Period
from billing.spending import budgets
from geekhub.lib import money


class Command(BaseCommand):
    help = "Create an API key. Prints it on stdout; it is shown only once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("organization", type=UUID, metavar="ORG_UUID")
        parser.add_argument("name")
        parser.add_argument(
            "--test",
            action="store_true",
            help="a sandbox key: free images from the built-in generator",
        )
        parser.add_argument(
            "--private", action="store_true", help="its images have signed URLs that expire"
        )
        parser.add_argument("--budget-usd", metavar="X")
        parser.add_argument("--budget-period", choices=Period.values, default=Period.MONTH)

    def handle(self, *args: Any, **options: Any) -> None:
        name, budget = options["name"].strip(), options["budget_usd"]
        if not 0 < len(name) <= 100:
            raise CommandError("NAME has 1 to 100 characters.")
        try:
            limit = None if budget is None else money.from_usd(budget)
        except ValueError as error:
            raise CommandError(str(error)) from error
        if limit is not None and limit < 0:
            raise CommandError("A budget is not negative.")
        organization = Organization.objects.filter(pk=options["organization"]).first()
        if organization is None:
            raise CommandError(f"There is no organization {options['organization']}.")
        with transaction.atomic():
            key = keys.create(
                organization, name, sandbox=options["test"], private=options["private"]
            )
            if limit is not None:
                budgets.set_budget(key.row, limit, Period(options["budget_period"]))
        self.stdout.write(key.secret)
