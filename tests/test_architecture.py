"""docs/architecture.md shows every module where it is, and no other; billing knows no product."""

import ast
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


# A budget's second limit is on units, and its columns are called what people read.
BUDGETS = {"limit_images", "held_images", "spent_images", "images", "budget_images"}
OF_BUDGETS = (
    "models/budgets.py",
    "spending/budgets.py",
    "spending/limits.py",
    "spending/holds.py",
    "alerts/raising.py",
)


def _identifiers(path: Path) -> set[str]:
    """The names in a module's code, lookups taken apart; not what its strings and comments say."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.alias(name=name):
                names.add(name)
            case ast.keyword(arg=str(name)):
                names.add(name)
    return {part for name in names for part in name.split("__")}


def test_billing_counts_units_whatever_they_are() -> None:
    """What is sold has a name in the words that people read, and in no code of billing's."""
    billing = ROOT / "billing"
    found = {}
    for path in sorted(billing.rglob("*.py")):
        name = path.relative_to(billing).as_posix()
        if name.split("/")[0] in ("pages", "staff", "migrations"):
            continue
        said = {one for one in _identifiers(path) if re.search(r"image|picture", one, re.I)}
        if left := said - (BUDGETS if name in OF_BUDGETS else set()):
            found[name] = left
    assert found == {}
