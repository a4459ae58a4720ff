"""What tests of hostile peers share: every answer with every value replaced by every other kind."""

import copy
from collections.abc import Iterator
from typing import Any

DELETED = object()
# What JSON can say in the place of anything, and what a key that is missing says.
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**30,
    1e308,
    "",
    "a\0b",
    "\ud800",
    "x" * 40_000,
    [],
    [1],
    {},
    {"a": 1},
    DELETED,
)
HEADER_VALUES = ("", "abc", "-1", "1" + "0" * 30, "NaN", "inf", "-inf", "é", "x" * 4000, "\x01")

type Path = tuple[str | int, ...]


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Yield where every value of a JSON document is, the whole document first."""
    yield at
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from paths(child, (*at, key))


def replaced(document: Any, path: Path, value: Any) -> Any:
    """Return a copy of a document with another value in one place, or none there."""
    if not path:
        return None if value is DELETED else value
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def variants(document: Any) -> Iterator[tuple[Path, Any, Any]]:
    """Yield (place, value, document) for each value in each place of a document."""
    for path in paths(document):
        for value in VALUES:
            yield path, value, replaced(document, path, value)
