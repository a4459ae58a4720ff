from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q

from accounts import keys
from accounts.models import ApiKey


class Command(BaseCommand):
    help = "Revoke an API key immediately, on every host. Prints nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "key", metavar="PREFIX_OR_ID", help="enough of the prefix to identify one key"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        text = options["key"]
        if len(text) <= len(keys.LIVE):
            raise CommandError("Give more of the prefix, or the key's id.")
        # A whole key works as well; only its prefix is looked at.
        named = Q(prefix__startswith=text[: keys.PREFIX_LENGTH])
        try:
            named |= Q(pk=UUID(text))
        except ValueError:
            pass
        found = list(ApiKey.objects.select_related("organization").filter(named)[:2])
        if len(found) != 1:
            raise CommandError(
                "No key has this prefix." if not found else "More than one key has it."
            )
        keys.revoke(found[0])
