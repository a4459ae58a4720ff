import json
import secrets
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts import keys, members
from accounts.models import User
from billing import ledger
from billing.models import PriceVersion
from geekhub.lib import money


class Command(BaseCommand):
    help = (
        "For the demo: make its login and organization if they are new, a new password and a new "
        "sandbox key. Prints them as JSON, with the prices of a live key. Refused outside DEMO."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email")

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEMO:
            raise CommandError("This is not a demo.")
        password = secrets.token_urlsafe(9)
        with transaction.atomic():
            user = User.objects.filter(email__iexact=options["email"]).first()
            if user is None:
                user = User.objects.create_user(options["email"])
                ledger.open_account(
                    members.found("Demo", owner=user),
                    bonus_micro=settings.SIGNUP_BONUS_MICRO,
                    credit_limit_micro=settings.DEFAULT_CREDIT_LIMIT_MICRO,
                )
            user.set_password(password)
            user.save()
            key = keys.create(user.organizations.get(), "demo", sandbox=True, actor=user)
        newest = PriceVersion.objects.order_by("version").values_list("model", "unit_micro")
        prices = {model: money.to_usd(unit) for model, unit in newest}
        self.stdout.write(json.dumps({"password": password, "key": key.secret, "prices": prices}))
