from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from geekhub.lib import money
from images.catalog import parameters
from images.catalog.model import ImageModel, Status
from images.catalog.parameters import Endpoint, Parameter
from images.catalog.rows import CATALOG
from images.providers.registry import OWNERS

DOCS = Path("docs")
BEGIN = "<!-- Written by manage.py write_docs from images/catalog/{}. Change it there. -->"
END = "<!-- The end of what manage.py write_docs writes. -->"
NO = "–"


class Command(BaseCommand):
    help = (
        "Write the tables of docs/models.md from the catalogue, and that of docs/api.md from the "
        "parameters. With --check write nothing and exit 1 when a page is out of date."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        for name, (source, write) in PAGES.items():
            path = settings.BASE_DIR / DOCS / name
            page = path.read_text(encoding="utf-8")
            try:
                wanted = with_tables(page, source, write())
            except ValueError as error:
                lost = f"{DOCS / name} has lost a line that marks its tables: {error}"
                raise CommandError(lost) from error
            if wanted == page:
                self.stderr.write(f"{DOCS / name} is up to date.")
            elif options["check"]:
                raise CommandError(f"{DOCS / name} is out of date; run: manage.py write_docs")
            else:
                path.write_text(wanted, encoding="utf-8")
                self.stderr.write(f"{DOCS / name} is written.")


def with_tables(page: str, source: str, tables: str) -> str:
    """Return the page with the part between its marks rewritten; raises ValueError."""
    mark = BEGIN.format(source)
    begin = page.index(mark) + len(mark)
    end = page.index(END, begin)
    return f"{page[:begin]}\n\n{tables}\n\n{page[end:]}"


def fields() -> str:
    """Return the table of a generation's parameters."""
    rows = parameters.of(Endpoint.GENERATIONS)
    lines = [f"| `{row.name}` | {row.about} | {row.default} |" for row in rows]
    return "\n".join(["| field | values | default |", "| --- | --- | --- |", *lines])


def tables() -> str:
    """Return the generated part: one table of all models, then each model's sizes and words."""
    summary = [
        "| id | provider | USD per image | default size | qualities | formats | seed | edits "
        "| images per call | status | successor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(row) for row in CATALOG.values()),
    ]
    return "\n\n".join(["\n".join(summary), *(_details(row) for row in CATALOG.values())])


def _line(row: ImageModel) -> str:
    cells = [
        f"[`{row.id}`](#{_anchor(row.id)})",
        OWNERS[row.provider],
        money.to_usd(row.price_micro),
        row.default_size,
        "yes" if row.qualities else NO,
        _words(row.formats),
        "yes" if row.seed else NO,
        _edits(row),
        str(row.per_call),
        _status(row),
        f"`{row.successor}`" if row.successor else NO,
    ]
    return f"| {' | '.join(cells)} |"


def _details(row: ImageModel) -> str:
    own = [asked for asked, drawn in row.sizes.items() if asked == drawn]
    snapped = [f"{asked} → {drawn}" for asked, drawn in row.sizes.items() if asked != drawn]
    can = [_ability(each) for each in parameters.CAPABILITIES if each.takes(row)]
    can += ["masks in edits"] if row.masks else []
    lines = [
        f"### {row.id}",
        "",
        f"{row.name}: {row.good_for}. Typically {row.p50_seconds} s, "
        f"seldom over {row.p95_seconds} s.{_ended(row)}",
        "",
        f"- Sizes: {_words(own)}",
        f"- Sizes adjusted to the nearest: {_words(snapped)}",
        f"- Quality: {_words([f'{asked} → {word}' for asked, word in row.qualities.items()])}",
        f"- Also supports: {_words(can)}",
        f"- Prompt: up to {row.max_prompt} characters",
    ]
    if row.input_micro and row.qualities:
        most = [f"{quality} {number}" for quality, number in _inputs(row).items()]
        lines.append(f"- Input images of an edit, by quality: {_words(most)}")
    return "\n".join(lines)


def _ability(row: Parameter) -> str:
    words = row.capability.replace("_", " ")
    return f"{words} in edits" if row.only == Endpoint.EDITS else words


def _edits(row: ImageModel) -> str:
    if not row.edits:
        return NO
    most = max(_inputs(row).values())
    return "of 1 image" if most == 1 else f"of up to {most} images"


def _inputs(row: ImageModel) -> dict[str, int]:
    return {each: row.most_inputs(each, row.price_micro) for each in row.qualities or ("auto",)}


def _status(row: ImageModel) -> str:
    if row.status == Status.LIVE and row.upstream_off:
        return f"served; switched off upstream {row.upstream_off}"
    return f"{row.status}, ends {row.shutdown_date}" if row.shutdown_date else str(row.status)


def _ended(row: ImageModel) -> str:
    if row.upstream_off is None:
        return ""
    return f" Switched off by its provider on {row.upstream_off}; use `{row.successor}`."


def _words(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(words) or NO


def _anchor(title: str) -> str:
    """Return the fragment by which GitHub names a heading."""
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter in "-_")


# What is written into each page, and from which file of the catalogue.
PAGES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "models.md": ("rows.py", tables),
    "api.md": ("parameters.py", fields),
}
