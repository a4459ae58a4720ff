"""docs/architecture.md shows every module where it is, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APPS = ("geekhub", "accounts", "billing", "images")
# Django decides what is in these.
DJANGOS = {"migrations", "management", "templatetags", "formats"}


def _drawn() -> list[str]:
    """The modules of the tree in the document: a folder's are indented below it."""
    text = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    folders: list[str] = []
    modules = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        del folders[depth:]
        folder = re.match(r" *([a-z]+)/(?: |$)", line)
        if folder:
            folders.append(folder[1])
        elif folders and folders[0] in APPS:
            modules += ["/".join([*folders, name]) for name in re.findall(r"\w+\.py\b", line)]
    return modules


def test_the_tree_of_the_document_is_the_tree_of_the_folders() -> None:
    modules = [
        path.relative_to(ROOT).as_posix()
        for app in APPS
        for path in (ROOT / app).rglob("*.py")
        if path.name != "__init__.py" and not DJANGOS.intersection(path.parts)
    ]
    assert sorted(_drawn()) == sorted(modules)
