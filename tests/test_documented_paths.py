"""Files and modules that the pages name exist: a rename that forgets a page is found here."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *(ROOT / name for name in ("cache/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "kdscale|tests|benchmarks|docs|launch|cache"
_CODE = re.compile(r"`([^`\n]+)`|^ {4}(.+)$|^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*(?:\.(?:py|md|sh|yaml|sbatch|toml)|/))")
_MODULE = re.compile(r"(?<![\w./-])(kdscale(?:\.(?!json\b)[A-Za-z_]\w*)+)")
_MADE_BY_USERS = ("cache/",)
"""Folders of which a page may name files that a user's command writes."""


def code_of(page):
    """Return the code spans and code blocks of a page."""
    return "\n".join("".join(match.groups("")) for match in _CODE.finditer(page.read_text()))


def exists(path):
    """Whether a path is there, from the root or, as in lists of folders, from the package."""
    return (ROOT / path).exists() or (ROOT / "kdscale" / path).exists()


def is_importable(name):
    """Whether `name` is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_the_page_names_exist(page):
    named = {path for path in _PATH.findall(code_of(page)) if path not in _MADE_BY_USERS}
    assert sorted(path for path in named if not exists(path)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_the_page_names_exist(page):
    named = set(_MODULE.findall(code_of(page)))
    assert sorted(name for name in named if not is_importable(name)) == []


def test_a_change_touches_at_most_two_places_in_the_code():
    """The table of CONTRIBUTING.md: what is added, where in the code, what goes with it."""
    rows = re.findall(
        r"^\| (an? .*?) \| (.*?) \| .* \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert len(rows) >= 12
    crowded = {what for what, code in rows if not 1 <= len(_PATH.findall(code)) <= 2}
    assert crowded == set()
