import json
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts import keys
from accounts.mailboxes import as_kept
from accounts.models import ApiKey, Organization, User
from billing.models import PriceVersion
from billing.spending.onboarding import found_organization
from billing.spending.prices import PriceBook
from geekhub.lib import money

KEY_NAME = "demo"


class Command(BaseCommand):
    help = (
        "For the demo: create or find its login, organization and sandbox key. Prints "
        "password and key as JSON, with the prices of a live key. Refused outside DEMO."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email")

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEMO:
            raise CommandError("This is not a demo.")
        # A password and a key are shown once; the demo's own stay readable for its next run.
        file = settings.DATA_DIR / "demo.json"
        kept = _kept(file)
        with transaction.atomic():
            user = User.objects.filter(email__iexact=as_kept(options["email"])).first()
            if user is None:
                user = User.objects.create_user(options["email"])
                found_organization("Demo", user)
            organization = user.organizations.order_by("created_at")[0]
            password = _password(user, kept.get("password", ""))
            secret = _secret(organization, user, kept.get("key", ""))
        account = {"password": password, "key": secret}
        file.touch(mode=0o600)
        file.write_text(json.dumps(account))
        skus = PriceVersion.objects.values_list("sku", flat=True).distinct()
        quotes = PriceBook().offered(skus, organization.pk)
        prices = {sku: money.to_usd(quote.unit_micro) for sku, quote in quotes.items()}
        self.stdout.write(json.dumps({**account, "prices": prices}))


def _kept(file: Path) -> dict[str, str]:
    """Return what the last run left; nothing where that cannot be read."""
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in kept.items()} if isinstance(kept, dict) else {}


def _password(user: User, kept: str) -> str:
    if kept and user.check_password(kept):
        return kept
    password = secrets.token_urlsafe(9)
    user.set_password(password)
    user.save()
    return password


def _secret(organization: Organization, user: User, kept: str) -> str:
    """Return the demo's key: the kept one, or the successor of one whose secret is lost."""
    try:
        row = keys.authenticate(kept)
    except (keys.InvalidKey, keys.RevokedKey):
        row = None
    if row is not None and row.organization_id == organization.pk and row.paused_at is None:
        return kept
    lost = ApiKey.objects.filter(
        organization=organization, name=KEY_NAME, sandbox=True, revoked_at=None, expires_at=None
    )
    found = list(lost.order_by("-created_at"))
    for older in found[1:]:
        keys.revoke(older, actor=user)
    if found:
        return keys.rotate(found[0], overlap=timedelta(0), actor=user).secret
    return keys.create(organization, KEY_NAME, sandbox=True, actor=user).secret
