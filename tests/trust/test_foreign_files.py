"""A file of another run in a run's folder is refused by its name, or made up for with a line.

Every file of one run is put into the place of the same file of another run of the same shapes, and
every command that reads it is called.
"""

import json
import re
import shutil

import pytest
import sandbox
from earlier_runs import without_identity
from safetensors.torch import load_file
from test_flips import AGAIN, BEST, EVALUATE, REPORT, RESUME

from kdscale.errors import RunError
from kdscale.report.fields import read_json
from kdscale.runs.folder import RunFolder, read_run_file, write_evaluation
from kdscale.runs.log import read_metrics

EXPORT = ("export", "student", "--format", "safetensors", "--out", "out.safetensors")
LOAD = "load_student"
_SAID = re.compile(r"of another run|begun with other settings|does not match its checksum")

FINISHED = {
    "run.json": ("seed", [EVALUATE.args, EXPORT, REPORT.args, AGAIN.args, LOAD]),
    "recipe.toml": ("recipe", [EVALUATE.args, EXPORT, REPORT.args, AGAIN.args]),
    "content.json": ("recipe", [EVALUATE.args, EXPORT, REPORT.args]),
    "result.json": ("seed", [EVALUATE.args, EXPORT, REPORT.args, AGAIN.args]),
    "weights.safetensors": ("seed", [EVALUATE.args, EXPORT, LOAD]),
    "best.safetensors": ("seed", [BEST.args]),
    "evaluation.json": ("seed", [REPORT.args]),
    "metrics.jsonl": ("seed", [REPORT.args]),
}
"""By file: the run that it is taken from, and who reads it."""
_NEWEST = "checkpoints/step-00000005"
UNFINISHED = {
    "run.json": "unfinished",
    "recipe.toml": "recipe",
    "content.json": "recipe",
    "metrics.jsonl": "unfinished",
    "best.safetensors": "seed",
    "checkpoints": "unfinished",
    _NEWEST: "unfinished",
    f"{_NEWEST}/state.json": "unfinished",
    f"{_NEWEST}/model.safetensors": "unfinished",
    f"{_NEWEST}/optimizer.safetensors": "unfinished",
    f"{_NEWEST}/random-0.json": "unfinished",
}
"""By file of an unfinished run: the run that it is taken from."""


def _put(source, target):
    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        assert not target.exists() or source.read_bytes() != target.read_bytes(), "nothing swapped"
        shutil.copy(source, target)


def _load(box):
    import kdscale

    kdscale.load_student(box / "student" / "weights.safetensors")


def _call(box, reader):
    function = (lambda: _load(box)) if reader == LOAD else (lambda: sandbox.main(*reader))
    return sandbox.run(function, cwd=box)


def _told(done):
    """What the command said of files that are not the run's."""
    words = f"{done.stderr}\n{done.stdout}\n{done.crash or ''}"  # a function of Python raises
    return [line for line in words.splitlines() if _SAID.search(line)]


@pytest.mark.parametrize("file", FINISHED)
def test_file_of_another_run_is_refused_by_name_by_each_command_that_reads_it(
    box, other_runs, file
):
    folder = box()
    name, readers = FINISHED[file]
    _put(other_runs / name / file, folder / "student" / file)
    for reader in readers:
        done = _call(folder, reader)
        assert any(file in one or "other settings" in one for one in _told(done)), (reader, done)
        assert done.exit_code or reader == REPORT.args, (reader, done)


@pytest.mark.parametrize("file", UNFINISHED)
def test_training_goes_on_from_no_file_of_another_run(box, other_runs, file):
    folder = box()
    own = folder / "unfinished"
    _put(other_runs / UNFINISHED[file] / file, own / file)
    done = _call(folder, RESUME.args)
    assert _told(done), done
    if done.exit_code == 0:  # made up for: by the checkpoint before, or by later evaluations
        finished, wanted = load_file(own / "weights.safetensors"), folder / "student"
        wanted = load_file(wanted / "weights.safetensors")
        assert all(finished[key].equal(wanted[key]) for key in wanted)


def test_log_of_another_run_decides_no_trial_of_a_sweep(box, other_runs):
    student = box() / "student"
    shutil.copy(other_runs / "seed" / "metrics.jsonl", student)
    with pytest.raises(RunError, match=r"metrics\.jsonl is of another run"):
        read_metrics(student)


@pytest.mark.parametrize("file", ["result.json", "teacher-evaluation.json"])
def test_file_of_another_recipe_is_refused_in_a_whole_recipes_folder(tmp_path, file):
    one, other = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "other")
    for folder in (one, other):
        folder.path.mkdir()
        folder.write_recipe(f'name = "{folder.path.name}"\n')
        result = {"top1_accuracy": 0.5, "role": "student", "targets": "none", "seed": 0}
        folder.write_result(result | {"rows": [{"label": "teacher", "results": [result]}]})
        write_evaluation(folder.given_teacher_file, {"version": 1})
    assert read_run_file(one.path / file)
    shutil.copy(other.path / file, one.path)
    with pytest.raises(RunError, match=rf"{file} is of another run \(recipe-"):
        read_run_file(one.path / file)
    assert "is of another run" in read_json(one.path / file)[1][0], "named in reports"


def test_whole_run_moved_elsewhere_is_its_own(box):
    folder = box()
    (folder / "student").rename(folder / "moved")
    done = sandbox.run_command("evaluate", "moved", "--seconds", "0", cwd=folder)
    assert (done.exit_code, _told(done)) == (0, []), done


def test_weights_outside_of_a_run_are_nobodys(box):
    folder = box()
    shutil.copy(folder / "student" / "weights.safetensors", folder)

    def load():
        import kdscale

        kdscale.load_student(folder / "weights.safetensors")

    assert sandbox.run(load, cwd=folder).crash is None


def test_weights_in_a_run_of_links_are_loaded(box):
    """As `huggingface_hub` lays out a download."""
    folder = box()
    (folder / "snapshot").mkdir()
    for file in (folder / "student").iterdir():
        (folder / "snapshot" / file.name).symlink_to(file)

    def load():
        import kdscale

        kdscale.load_student(folder / "snapshot" / "weights.safetensors")

    assert sandbox.run(load, cwd=folder).crash is None


def test_files_that_state_no_run_are_refused_in_a_run_that_states_one(box):
    folder = box()
    file = folder / "student" / "result.json"
    result = json.loads(file.read_text())
    for key in ("run_id", "checksum"):
        result.pop(key)
    file.write_text(json.dumps(result))
    done = sandbox.run_command(*EVALUATE.args, cwd=folder)
    assert done.exit_code == 1
    assert "result.json is of another run (it states none)" in done.stderr


def test_run_of_an_earlier_version_is_read_and_says_what_cannot_be_checked(box):
    folder = box()
    without_identity(folder / "unfinished")
    done = sandbox.run_command(*RESUME.args, cwd=folder)
    assert done.exit_code == 0, done
    assert "that its files are of this run cannot be checked" in done.stderr
