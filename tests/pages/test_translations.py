"""No text is without Spanish, and the compiled catalogue is the written one. Needs no gettext."""

import ast
import gettext
import re
from pathlib import Path

import pytest
from django.utils.translation.template import templatize

ROOT = Path(__file__).resolve().parent.parent.parent
CATALOG = ROOT / "locale" / "es" / "LC_MESSAGES" / "django.po"
APPS = ("geekhub", "accounts", "billing", "images")
CALLS = {
    "gettext",
    "gettext_lazy",
    "gettext_noop",
    "_",
    "_now",
    "ngettext",
    "ngettext_lazy",
    "pgettext",
}
CONTEXT = "\x04"


def texts(tree: ast.AST) -> set[str]:
    """Return what is marked for translation in Python code, a context before its text."""
    found = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id not in CALLS:
            continue
        words = [one.value for one in node.args if isinstance(one, ast.Constant)]
        if words and isinstance(words[0], str):
            with_context = node.func.id == "pgettext"
            found.add(CONTEXT.join(words[:2]) if with_context else words[0])
    return found


def in_template(path: Path) -> set[str]:
    """Return what is marked in a template, through Django's own translation to code."""
    code = templatize(path.read_text(), origin=str(path))
    found = set()
    for match in re.finditer(r"\b(?:gettext|_|ngettext|pgettext)\(", code):
        rest = code[match.start() :]
        for end in (one.end() for one in re.finditer(r"\)", rest)):
            try:
                tree = ast.parse(rest[:end].replace("\n", "\\n"), mode="eval")
            except SyntaxError:
                continue
            found |= texts(tree)
            break
    return found


def marked() -> dict[str, Path]:
    """Return every text for people and the file it is in."""
    found = {}
    for app in APPS:
        for path in (ROOT / app).rglob("*.py"):
            found |= dict.fromkeys(texts(ast.parse(path.read_text())), path)
    for path in (ROOT / "templates").rglob("*.*"):
        if path.suffix in (".html", ".txt"):
            found |= dict.fromkeys(in_template(path), path)
    return found


def written() -> dict[str, list[str]]:
    """Return the catalogue as written: each text and its translations, one for each plural."""
    found = {}
    for block in re.split(r"\n\s*\n", CATALOG.read_text()):
        parts: dict[str, str] = {}
        current = ""
        for line in block.splitlines():
            start = re.match(r"(msg\w+(?:\[\d\])?) (\".*)", line)
            if start:
                current, line = start.groups()
            if current and line.startswith('"'):
                parts[current] = parts.get(current, "") + ast.literal_eval(line)
        if "msgid" in parts:
            name = parts["msgid"]
            if "msgctxt" in parts:
                name = parts["msgctxt"] + CONTEXT + name
            found[name] = [text for key, text in parts.items() if key.startswith("msgstr")]
    found.pop("", None)
    return found


WRITTEN = written()
MARKED = marked()
# What is empty is the business of one test alone.
DONE = {text: many for text, many in WRITTEN.items() if all(many)}


def test_the_texts_are_found() -> None:
    assert {"API keys", "Save", "Owner", "Copied", "%(n)s model"} <= set(MARKED)
    assert len(WRITTEN) > 150


def test_no_text_is_without_spanish() -> None:
    missing = {
        text: str(path.relative_to(ROOT))
        for text, path in MARKED.items()
        if not all(WRITTEN.get(text, [""]))
    }
    assert missing == {}


def test_nothing_is_translated_that_nobody_says() -> None:
    assert set(WRITTEN) - set(MARKED) == set()


def test_nothing_is_marked_by_a_name_that_is_not_looked_for() -> None:
    names = {
        one.asname or one.name
        for app in APPS
        for path in (ROOT / app).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation"
        for one in node.names
        if "gettext" in one.name
    }
    assert names <= CALLS


def test_nothing_is_marked_inside_an_f_string() -> None:
    # xgettext does not look into them.
    hidden = {
        text: str(path.relative_to(ROOT))
        for app in APPS
        for path in (ROOT / app).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
        for text in texts(node)
    }
    assert hidden == {}


def test_nothing_is_marked_as_doubtful() -> None:
    assert "fuzzy" not in CATALOG.read_text()


@pytest.mark.parametrize("pattern", [r"%\(\w+\)s", r"(?<!%)%s", r"\{\w*\}", r"</?\w+"])
def test_placeholders_survive(pattern: str) -> None:
    for text, translations in DONE.items():
        for translation in translations:
            assert sorted(re.findall(pattern, text)) == sorted(re.findall(pattern, translation))


def test_the_compiled_catalogue_is_the_written_one() -> None:
    with CATALOG.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for text, translations in DONE.items():
        if len(translations) == 1:
            assert compiled.gettext(text) == translations[0], text
        else:
            assert compiled.ngettext(text, text, 1) == translations[0], text
            assert compiled.ngettext(text, text, 2) == translations[-1], text
