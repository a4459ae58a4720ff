import logging
import signal
import threading
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import close_old_connections

from geekhub.lib.liveness import departed
from images import generation

log = logging.getLogger("geekhub.worker")

PAUSE_SECONDS = 5.0


class Command(BaseCommand):
    help = (
        "Run the background jobs until SIGTERM: settle what dead processes left. "
        "With --once do all that is due, print what was done, and exit."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["once"]:
            self.stdout.write(f"abandoned requests settled: {settle_abandoned()}")
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.is_set():
            close_old_connections()
            try:
                settle_abandoned()
            except Exception:
                # A round that fails is tried again; nothing of it is lost.
                log.exception("a round failed")
            stop.wait(PAUSE_SECONDS)


def settle_abandoned() -> int:
    """Settle what processes left that are gone; return how many requests."""
    settled = generation.expire_abandoned([])
    for owner in departed(settings.DATA_DIR / "run"):
        settled += generation.expire_abandoned([owner])
    return settled
