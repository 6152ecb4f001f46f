"""`kdscale sweep`: many students from one cache, whoever of its workers lives."""

import json
import shlex

import pytest
from safetensors.torch import load_file

SPACE = {"loss": {"temperature": [1.0, 4.0]}, "views": {"count": [1, 3]}}


@pytest.fixture
def sweep_recipe(write_recipe, tiny_teacher):
    """Students of one epoch, from a teacher that is trained; with a split to choose by."""

    def write(space=SPACE, *, teacher=None, **sweep):
        return write_recipe(
            data={"validation": 0.25},
            teacher=teacher or {"weights": tiny_teacher, "train": None},
            student={"train": {"epochs": 2}},
            sweep={"space": space, **sweep},
        )

    return write


def assert_refused(done, exit_code, *parts):
    assert done.exit_code == exit_code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def states(folder, kdscale):
    found = json.loads(kdscale("sweep", "status", folder, "--json").stdout)
    return {row["trial"]: row["state"] for row in found["rows"]}


# ------------------------------------------------------------------ one worker


def test_sweep_trains_every_combination_from_one_cache(kdscale, sweep_recipe, tmp_path):
    done = kdscale("sweep", sweep_recipe(), "--run", "s")
    assert done.exit_code == 0, done.stderr
    assert len(list((tmp_path / "cache").glob("*.zarr"))) == 1
    assert done.stderr.count("seconds of building") + done.stderr.count("s of building") == 1
    runs = sorted((tmp_path / "s" / "trials").iterdir())
    assert [run.name for run in runs] == ["00000", "00001", "00002", "00003"]
    caches = {json.loads((run / "result.json").read_text())["cache"] for run in runs}
    assert len(caches) == 1
    found = json.loads(kdscale("sweep", "status", "s", "--json").stdout)
    assert found["trials"]["finished"] == found["trials"]["total"] == 4
    tried = [tuple(row["parameters"].values()) for row in found["rows"]]
    assert tried == [(1.0, 1), (1.0, 3), (4.0, 1), (4.0, 3)]
    assert found["best"]["value"] == max(row["value"] for row in found["rows"])
    kept = json.loads((tmp_path / "s" / "trials.json").read_text())
    assert kept["rows"] == found["rows"]
