#!/usr/bin/env python
"""Django's command line."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "geekhub.settings")
    # A migration or a report may take its time; nobody waits for it as for a page.
    os.environ["DATABASE_TIMEOUT_SECONDS"] = "0"
    execute_from_command_line(sys.argv)
