import secrets
import sys
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts import members
from accounts.mailboxes import spelled
from accounts.models import User
from billing.models import EntryKind
from billing.spending import ledger, onboarding
from geekhub.lib import money


class Command(BaseCommand):
    help = (
        "Create an organization with its account and sign-up bonus, even if "
        "its owner already has others. Prints its UUID on stdout."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--owner", required=True, metavar="EMAIL", help="created if new")
        parser.add_argument("--credit", default="0", metavar="USD", help="added to the balance")
        parser.add_argument("--credit-limit", metavar="USD", help="how far below zero it can spend")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"].strip()
        try:
            email = spelled(options["owner"])
            credit = money.from_usd(options["credit"])
            limit = (
                settings.DEFAULT_CREDIT_LIMIT_MICRO
                if options["credit_limit"] is None
                else money.from_usd(options["credit_limit"])
            )
        except (ValueError, ValidationError) as error:
            raise CommandError(str(error)) from error
        if not 0 < len(name) <= 100 or credit < 0 or limit < 0:
            raise CommandError("NAME has 1 to 100 characters; credit and limit are not negative.")
        with transaction.atomic():
            owner = User.objects.filter(email__iexact=email).first()
            if owner is None:
                password = secrets.token_urlsafe(12)
                owner = User.objects.create_user(email, password)
                sys.stderr.write(f"New user {email}, password {password}\n")
            organization = members.found(name, owner=owner)
            # The operator decides: each of these has the bonus, and its owner has then had theirs.
            onboarding.claim(owner)
            ledger.open_account(
                organization, bonus_micro=settings.SIGNUP_BONUS_MICRO, credit_limit_micro=limit
            )
            if credit:
                ledger.record(
                    organization,
                    EntryKind.ADJUSTMENT,
                    credit,
                    entry_key=f"adjustment:opening:{organization.pk}",
                    note="Opening credit",
                )
        self.stdout.write(str(organization.pk))
