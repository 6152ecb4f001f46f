"""A run resumes from another folder: the same recipe and data, by paths written differently."""

import json
import shutil

import pytest

QUICK = {"train": {"epochs": 1, "global_batch_size": 32}}


@pytest.fixture
def project(write_recipe, make_dataset, tmp_path):
    """A folder with a recipe whose data lie beside it, the current one; and another folder."""
    make_dataset(tmp_path / "data", 64, 32)
    write_recipe("quick", data={"source": "data"}, student=QUICK, views={"count": 1})
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


def test_run_is_the_same_from_any_folder_unless_its_data_are_others(
    kdscale, project, make_dataset, monkeypatch
):
    again = ("--run", project / "elsewhere" / "run", "--resume-if-begun")
    first = kdscale("train", "quick.toml", *again)
    assert first.exit_code == 0, first.stderr
    assert kdscale("train", project / "quick.toml", *again).stdout == first.stdout
    monkeypatch.chdir("elsewhere")
    for recipe in ("../quick.toml", project / "quick.toml"):
        done = kdscale("train", recipe, *again)
        assert done.stdout == first.stdout, done.stderr
    make_dataset(project / "others", 64, 48)
    done = kdscale("train", "../quick.toml", "--data", project / "others", *again)
    assert done.exit_code == 1
    assert f"data.source: it has 'data', now '{project / 'others'}'" in done.stderr


def test_run_begun_by_an_absolute_path_goes_on_by_a_relative_one(kdscale, project, monkeypatch):
    again = ("--run", project / "run", "--resume-if-begun")
    monkeypatch.chdir("elsewhere")
    first = kdscale("train", project / "quick.toml", *again)
    assert first.exit_code == 0, first.stderr
    monkeypatch.chdir(project)
    assert kdscale("train", "quick.toml", *again).stdout == first.stdout
    (project / "link").symlink_to(project / "data")  # another name of the same place
    assert kdscale("train", "quick.toml", "--data", "link", *again).exit_code == 0


def test_copied_project_goes_on_with_its_copy_of_the_data(kdscale, project, monkeypatch):
    assert kdscale("train", "quick.toml", "--run", "run").exit_code == 0
    shutil.copytree(project, project / "copy", ignore=shutil.ignore_patterns("copy"))
    monkeypatch.chdir("copy")
    done = kdscale("train", "quick.toml", "--run", "run", "--resume-if-begun")
    assert done.exit_code == 0, done.stderr


def test_run_is_evaluated_on_its_own_data_from_any_folder(
    kdscale, project, make_dataset, monkeypatch
):
    assert kdscale("train", "quick.toml", "--run", "run").exit_code == 0
    here = json.loads(kdscale("evaluate", "run", "--json").stdout)
    make_dataset(project / "elsewhere" / "data", 64, 48)  # of the same name, not the run's
    monkeypatch.chdir("elsewhere")
    done = kdscale("evaluate", "../run", "--json")
    assert done.exit_code == 0, done.stderr
    ours, theirs = here["runs"][0], json.loads(done.stdout)["runs"][0]
    assert theirs["own_test_set"]
    assert theirs["test_fingerprint"] == ours["test_fingerprint"]
    monkeypatch.chdir(project)
    (project / "moved").mkdir()
    for name in ("data", "run"):
        shutil.move(name, project / "moved" / name)
    monkeypatch.chdir("moved")
    done = kdscale("evaluate", "run", "--json")
    assert json.loads(done.stdout)["runs"][0]["own_test_set"], done.stderr
