import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from billing.stripe.catalog import check_mode
from geekhub.work import loop


class Command(BaseCommand):
    help = (
        "Run the background jobs until SIGTERM: settle what dead processes left, upload images "
        "that wait for storage, enforce retention, delete objects of deleted images and "
        "orphans, and billing's: usage, invoices, recharges, alerts, reconciliation. "
        "With --once do all that is due, print what was done, and exit."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        check_mode()
        if options["once"]:
            for name, count in loop.run_once():
                self.stdout.write(f"{name}: {count}")
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        loop.run_until(stop)
