import re
from pathlib import Path

from django.core.management.commands import makemessages

# What changes with every run and says nothing about a translation.
NOISE = re.compile(r'^"(?:Report-Msgid-Bugs-To|POT-Creation-Date):.*\n', re.MULTILINE)


class Command(makemessages.Command):
    # `_now` is gettext where `_` is gettext_lazy.
    xgettext_options = [*makemessages.Command.xgettext_options, "--keyword=_now"]

    def write_po_file(self, potfile: str, locale: str) -> None:
        """Write a catalogue with no dates in its header."""
        super().write_po_file(potfile, locale)
        path = Path(potfile).parent / locale / "LC_MESSAGES" / f"{self.domain}.po"
        head, blank, rest = path.read_text().partition("\n\n")
        path.write_text(NOISE.sub("", head) + blank + rest)
