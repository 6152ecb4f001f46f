"""The documentation site builds offline without a warning, and loads nothing from elsewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdscale

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.thorough
def test_site_builds_strictly_and_requests_nothing_from_other_hosts(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        loaded = re.findall(
            r"<(?:link|script|img|iframe)\b[^>]*?(?:href|src)=\"([^\"]+)", page.read_text()
        )
        assert [address for address in loaded if "//" in address] == [], page


def test_index_of_errors_is_what_the_code_raises():
    spec = importlib.util.spec_from_file_location("error_index", ROOT / "docs/site/error_index.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "errors.md").read_text()
    assert written == module.error_index(), "run: python docs/site/error_index.py"


def test_python_reference_has_every_public_name():
    documented = re.findall(
        r"^::: kdscale\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE
    )
    assert sorted(documented) == sorted(set(kdscale.__all__) - {"__version__"})


def test_requests_of_the_comparison_name_pages_and_tests_that_exist():
    page = (ROOT / "docs/compared.md").read_text()
    table = page.partition("<!-- requests -->")[2].partition("<!-- end of requests -->")[0]
    rows = [[cell.strip() for cell in row.split("|")] for row in table.strip().splitlines()[2:]]
    assert [row[1] for row in rows] == [str(number) for number in range(1, 32)]
    answers = [row[4] for row in rows]
    counted = ", ".join(f"{answers.count(answer)} {answer}" for answer in ("yes", "partly", "no"))
    assert f"kdscale's answer today: {counted}." in page
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", table):
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
