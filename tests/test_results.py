"""Tables say what the committed JSON says."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def results():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as when the script is run
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_those_that_the_json_renders_to(results):
    stale = [path.name for path, text in results.pages().items() if path.read_text() != text]
    assert stale == [], "run: python benchmarks/results.py render"


def test_recipe_reference_is_what_the_code_says():
    from kdscale.tables.recipe_reference import recipe_reference

    text = (ROOT / "docs" / "recipes.md").read_text()
    assert text == recipe_reference(), "run: kdscale recipes --reference > docs/recipes.md"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_says_how_it_was_measured(path):
    document = json.loads(path.read_text())
    for key in ("title", "command", "commit", "machine", "versions", "found"):
        assert document[key], f"{path.name} does not say its {key}"


def test_tables_of_the_page_on_clusters_are_what_the_code_computes(results):
    import scaling

    text = scaling.PAGE.read_text()
    assert text.count("<!-- table: ") == len(scaling.tables())
    assert scaling.rendered(text) == text, "run: python benchmarks/scaling.py render"
