"""docs/trust.md: every line names a test, and every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ROW = re.compile(r"^\|(?!\s*(what is checked|---)).*\|$", re.MULTILINE)
_TEST = re.compile(r"\| `(tests/[\w/]+\.py)::(test_\w+)` \|$")


def rows():
    return [match[0] for match in _ROW.finditer((ROOT / "docs/trust.md").read_text())]


def test_every_line_names_a_test_that_exists():
    named = [(row, _TEST.search(row)) for row in rows()]
    assert len(named) > 30
    assert [row for row, test in named if test is None] == []
    missing = [
        f"{test[1]}::{test[2]}" for _, test in named
        if not (ROOT / test[1]).is_file() or f"def {test[2]}(" not in (ROOT / test[1]).read_text()
    ]  # fmt: skip
    assert missing == []


def test_every_test_of_this_folder_has_a_line():
    """Those of cases aside, which are many; their kinds have lines."""
    page = (ROOT / "docs/trust.md").read_text()
    for name in ("test_flips.py", "test_fuzz.py"):
        text = (Path(__file__).parent / name).read_text()
        for test in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE):
            assert f"tests/trust/{name}::{test}`" in page, test


def test_readme_links_the_page():
    assert "(docs/trust.md)" in (ROOT / "README.md").read_text()
