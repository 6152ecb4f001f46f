"""What the package states about itself and about the libraries it needs."""

import re
import tomllib
from pathlib import Path

import pytest
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


CITATION_FIELDS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
    "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
    "references", "repository", "repository-artifact", "repository-code", "title", "type", "url",
    "version",
}  # fmt: skip
PERSON_FIELDS = {
    "address", "affiliation", "alias", "city", "country", "email", "family-names", "fax",
    "given-names", "name-particle", "name-suffix", "orcid", "post-code", "region", "tel", "website",
}  # fmt: skip
ENTITY_FIELDS = {
    "address", "alias", "city", "country", "date-end", "date-start", "email", "fax", "location",
    "name", "orcid", "post-code", "region", "tel", "website",
}  # fmt: skip


@pytest.fixture
def citation():
    """CITATION.cff, with dates as text, as its schema wants them."""
    return yaml.load((ROOT / "CITATION.cff").read_text(), yaml.BaseLoader)  # noqa: S506, makes text


def test_citation_is_of_this_version(citation):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]


def test_citation_has_the_fields_of_its_format(citation):
    """By the schema of the Citation File Format 1.2.0: cffconvert needs another jsonschema."""
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert {"authors", "cff-version", "message", "title"} <= citation.keys() <= CITATION_FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation.get("date-released", "2026-01-01"))
    for author in citation["authors"]:
        assert author.keys() <= (ENTITY_FIELDS if "name" in author else PERSON_FIELDS)
    lists = [citation["authors"], citation["keywords"]]
    assert all(one and all(one.count(value) == 1 for value in one) for one in lists)
    texts = [value for value in citation.values() if not isinstance(value, list)]
    texts += [
        *citation["keywords"],
        *(text for one in citation["authors"] for text in one.values()),
    ]
    assert all(isinstance(text, str) and text.strip() for text in texts)
