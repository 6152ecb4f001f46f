"""What the package states about itself and about the libraries it needs."""

import re
import tomllib
from pathlib import Path

import yaml

from kdscale.version import __version__

ROOT = Path(__file__).parents[1]


def test_each_dependency_has_a_lowest_version():
    """`.ci/versions oldest` installs exactly these."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"].items()
    extras = [group for name, group in groups if name not in ("dev", "docs")]
    for requirement in sum(extras, project["dependencies"]):
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement), requirement


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    assert citation["title"]
    assert citation["message"]
    assert citation["authors"]
