"""The house in order: what the code names is documented, and nothing private is in the tree."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from geekhub.lib import money
from images.api.errors import TABLE
from images.catalog.rows import CATALOG
from images.drawing.errors import ENDINGS
from images.providers import sandbox

ROOT = Path(__file__).resolve().parent.parent
APPS = ("geekhub", "accounts", "billing", "images")


def settings_read() -> set[str]:
    """Return the names read through `env` in the two files that may read the environment."""
    names = set()
    for path in ("geekhub/settings.py", "gunicorn.conf.py"):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = ast.unparse(node.func)
            first = node.args[0]
            if not (re.fullmatch(r"env(\.\w+)?|_\w+", called) and isinstance(first, ast.Constant)):
                continue
            if isinstance(first.value, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", first.value):
                names.add(first.value)
    return names


SETTINGS = sorted(settings_read())


def test_the_settings_are_found() -> None:
    assert {"SECRET_KEY", "SIGNUP_BONUS_USD", "FAL_KEY", "WEB_WORKERS", "BIND"} <= set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_has_a_row_in_the_docs_and_a_line_in_the_example(name: str) -> None:
    docs = (ROOT / "docs" / "operations.md").read_text()
    rows = [line.split("|")[1] for line in docs.splitlines() if line.startswith("|")]
    assert any(f"`{name}`" in row for row in rows), "no row in docs/operations.md"
    example = (ROOT / ".env.example").read_text()
    assert re.search(rf"^#? ?{name}=", example, re.MULTILINE), "no line in .env.example"


def test_the_example_names_no_setting_that_is_not_read() -> None:
    example = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", example, re.MULTILINE))
    assert named - set(SETTINGS) == set()


def test_the_environment_is_read_in_one_place() -> None:
    for app in APPS:
        for path in (ROOT / app).rglob("*.py"):
            if path.name in ("settings.py", "asgi.py", "wsgi.py"):
                continue
            # prometheus_client takes the name of its folder from nowhere else.
            pattern = r"^(?!.*PROMETHEUS_MULTIPROC_DIR).*os\.(environ|getenv)"
            assert not re.search(pattern, path.read_text(), re.MULTILINE), path


def test_the_readme_marks_what_is_switched_off_and_draws_with_what_is_not() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = [line.split(" | ") for line in readme.splitlines() if line.startswith("| `")]
    table = {row[0].strip("| `"): row[1:] for row in rows if "/" in row[0]}
    for name, (price, good_for, off, successor) in table.items():
        model = CATALOG[name]
        assert (price, good_for) == (money.to_usd(model.price_micro), model.good_for)
        assert off == str(model.upstream_off or "–")
        assert successor.strip(" |") == (f"`{model.successor}`" if model.successor else "–")
    assert len(table) == 9
    samples = "".join(re.findall(r"```.*?```", readme, re.DOTALL))
    drawn = {name for name in CATALOG if f'"{name}"' in samples}
    assert len(drawn) == 3
    assert [name for name in drawn if CATALOG[name].upstream_off] == []


@pytest.mark.parametrize("code", list(TABLE))
def test_an_error_code_is_explained(code: str) -> None:
    docs = (ROOT / "docs" / "errors.md").read_text()
    assert re.search(rf"^(#+|\|).*`?\b{code}\b`?", docs, re.MULTILINE)


def test_every_code_that_a_row_may_have_is_in_the_table() -> None:
    assert set(ENDINGS) <= set(TABLE)
    assert set(sandbox.ERRORS) <= set(ENDINGS)


@cache
def tracked() -> list[Path]:
    """Return the files of the repository, new ones included; skips outside a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


# Written so that none finds itself.
PRIVATE = {
    "a path of somebody's machine": r"(?<![\w.~])/(?:home|Users)/[a-z]\w*|/roo[t]/|/wor[k]/"
    r"|[A-Z]:\\Users",
    "an address of a package registry": r"index-url[ =]+http|\bregistry\.npmjs|/simpl[e]/?\b.*http"
    r"|http\S+/simpl[e]\b|\"resolved\": *\"http",
    "something left undone": r"\b(?:TOD[O]|FIXM[E]|XX[X])\b",
}


@pytest.mark.parametrize("what", list(PRIVATE))
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(PRIVATE[what])
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a font
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert found == []
