from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts import audit
from accounts.models import Organization
from images.gallery import retention


class Command(BaseCommand):
    help = (
        "Print how many images and bytes a retention of DAYS would delete now. With --apply it "
        "becomes the organization's rule, which the worker enforces; 0 removes the rule."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("organization", type=UUID, metavar="ORG_UUID")
        parser.add_argument("days", type=int, metavar="DAYS")
        parser.add_argument("--apply", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        organization = Organization.objects.filter(pk=options["organization"]).first()
        if organization is None:
            raise CommandError(f"There is no organization {options['organization']}.")
        days = options["days"]
        if not 0 <= days <= 36_500:
            raise CommandError("DAYS is from 0 to 36500.")
        if days:
            found = retention.preview(organization, days)
            self.stdout.write(f"{found.images} images, {found.bytes} bytes")
        if options["apply"]:
            organization.retention_days = days or None
            organization.save(update_fields=["retention_days"])
            audit.record("retention.changed", organization=organization, days=days or None)
