"""`kdscale report` and the page that `kdscale run` ends with, on real runs."""

import base64
import csv
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image
from synthetic_runs import write_run

from kdscale.commands import report as stage
from kdscale.commands.run import run_recipe
from kdscale.experiment import Experiment, Locations


@pytest.fixture(autouse=True)
def charts_of_a_form_are_drawn_once():
    """Pages are the subject here: every chart is drawn."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, load_table, shared_root, tiny_teacher):
    """A whole recipe's folder; its teacher came with weights. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("whole") / "tiny"
    recipe = load_table(teacher={"weights": tiny_teacher}, student={"train": {"epochs": 1}})
    run_recipe(Experiment(recipe, Locations(run=folder, cache_root=shared_root)), seeds=range(2))
    return folder


def pictures(text):
    found = re.findall(r"data:image/webp;base64,([\w+/=]+)", text)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def refused(done, exit_code, *parts):
    assert done.exit_code == exit_code, done.stderr
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr


# --------------------------------------------------------------------------- what is written


def test_run_ends_with_a_page_that_holds_its_table_and_its_views(whole):
    text = (whole / "report.html").read_text()
    assert "With the cached teacher, the student reaches" in text
    narrow, wide = sorted(picture.width for picture in pictures(text))
    assert narrow < wide <= 1200
    assert "3 views of 128 images, 4 classes" in text
    for title in ("Recall by class", "Confusion matrix", "Calibration"):
        assert title in text, "evaluations come before the page"


def test_report_writes_all_requested_files_and_replaces_existing_ones(
    kdscale, whole, shared_root, tmp_path
):
    options = ("--html", "new/page.html", "--markdown", "page.md", "--csv", "page.csv")
    (tmp_path / "page.md").write_text("old")
    done = kdscale("report", whole, *options, "--cache-root", shared_root)
    assert done.exit_code == 0
    begun, *data = done.stderr.splitlines()
    assert begun.startswith("report on 5 runs")
    assert [line.partition(":")[0] for line in data] in ([], ["data"])
    assert done.stdout == "report: new/page.html\nreport: page.md\nreport: page.csv\n"
    assert len(pictures((tmp_path / "new/page.html").read_text())) == 2
    assert (tmp_path / "page.md").read_text().startswith("# tiny\n")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "page.csv").read_text())))
    assert sorted(row["kind"] for row in rows) == ["alone", "alone", "cache", "cache", "teacher"]
    again = kdscale("report", whole, *options, "--cache-root", shared_root)
    assert again.exit_code == 0


def test_dash_is_standard_output(kdscale, whole, shared_root, tmp_path):
    done = kdscale(
        "report", whole, "--csv", "-", "--html", "page.html", "--cache-root", shared_root
    )
    assert done.exit_code == 0
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == 5
    assert (tmp_path / "page.html").is_file()


def test_text_reports_load_no_torch(whole, shared_root, tmp_path):
    command = ["report", str(whole), "--markdown", "m.md", "--cache-root", str(shared_root)]
    code = f"""
import sys
from kdscale.cli import cli
cli({command!r}, standalone_mode=False)
sys.exit("torch" in sys.modules)
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------- what is not at hand


def test_what_is_not_known_is_named_with_its_command(kdscale, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    for path in folder.rglob("*evaluation.json"):
        path.unlink()
    done = kdscale("report", folder, "--html", "-", "--cache-root", "nowhere")
    assert done.exit_code == 0
    for command in (f"kdscale evaluate {folder}", "--online"):
        assert command in done.stdout
    assert "Recall by class" not in done.stdout


def test_cache_that_has_gone_costs_the_page_its_sheet_alone(kdscale, whole, tmp_path):
    run = shutil.copytree(whole / "cache-seed0", tmp_path / "run")
    done = kdscale("report", run, "--html", "-", "--cache-root", "nowhere")
    assert done.exit_code == 0
    assert pictures(done.stdout) == []
    assert "name its folder with --cache-root" in done.stdout


def test_other_images_are_not_drawn_as_those_of_the_cache(
    kdscale, whole, shared_root, make_dataset, tmp_path
):
    other = make_dataset(tmp_path / "other", seed=7)
    done = kdscale("report", whole, "--html", "-", "--data", other, "--cache-root", shared_root)
    assert done.exit_code == 0
    assert "no preview of views" in done.stderr
    assert pictures(done.stdout) == []


def test_images_of_a_hub_are_not_fetched(whole, shared_root, monkeypatch):
    studies = stage.collect([whole], shared_root)
    (study,) = studies
    dataset = study.manifest.dataset | {"source": "ylecun/mnist"}
    monkeypatch.setattr(stage, "_drawn", lambda *_: pytest.fail("fetched"))
    elsewhere = replace(study, manifest=replace(study.manifest, dataset=dataset))
    assert stage._sheet(elsewhere, shared_root, None) is None


# --------------------------------------------------------------------------- wrong usage


def test_report_without_a_file_is_refused(kdscale, whole):
    refused(kdscale("report", whole), 2, "--html, --markdown or --csv")


def test_two_reports_in_one_file_are_refused(kdscale, whole):
    refused(kdscale("report", whole, "--html", "-", "--csv", "-"), 2, "different files")


def test_folder_that_holds_no_run_is_refused(kdscale, tmp_path):
    refused(kdscale("report", tmp_path, "--csv", "-"), 1, "no run at")
    refused(kdscale("report", "nowhere", "--csv", "-"), 1, "no folder nowhere")


def test_folder_in_place_of_a_file_is_refused(kdscale, whole, tmp_path):
    refused(kdscale("report", whole, "--html", tmp_path), 2, "is a directory")


def test_file_that_cannot_be_written_is_reported(kdscale, tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    refused(kdscale("report", run, "--csv", "file/page.csv"), 1, "cannot write")
