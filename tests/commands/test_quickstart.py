"""The quickstart: a table, the times of the steps, where the files are."""

import re
import time

import pytest

from kdscale import config
from kdscale.commands import quickstart


@pytest.fixture(autouse=True)
def charts_of_a_form_are_drawn_once():
    """Pages are the subject here: every chart is drawn."""


def rows(shown):
    """The results table as {model: top-1 %}."""
    found = re.findall(r"^\| (teacher|student[^|]*?) +\| +\d+ \| +([\d.]+)", shown, re.MULTILINE)
    return {model: float(accuracy) for model, accuracy in found}


def test_quickstart_shows_table_times_and_places(kdscale, load_table, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "load_recipe", lambda *_, **__: load_table(name="quickstart"))
    monkeypatch.setattr(quickstart, "_BENCH_SECONDS", 1.0)
    done = kdscale("quickstart")
    assert done.exit_code == 0, done.stderr
    assert {"teacher", "student alone", "student, cached teacher"} <= rows(done.stdout).keys()
    for step in ("kdscale, labels", "targets from the cache", "online teacher"):
        assert step in done.stdout
    folder = "runs/quickstart"
    for place in (folder, f"{folder}/report.md", f"{folder}/report.html", "cache/quickstart.zarr"):
        assert place in done.stdout
        assert (tmp_path / place).exists()
    page = (tmp_path / folder / "report.html").read_text()
    assert "estimated from" in page, (
        "the time of online training, from the steps that were measured"
    )


@pytest.mark.slow
def test_quickstart_as_it_is_teaches_within_90_seconds(kdscale_process):
    """On two cores; with fewer it takes longer, so the time is only bounded loosely here."""
    began = time.perf_counter()
    done = kdscale_process("quickstart", timeout=400)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found["teacher"] > 95
    assert found["student, cached teacher"] >= found["student alone"] + 0.5
    assert time.perf_counter() - began < 300
