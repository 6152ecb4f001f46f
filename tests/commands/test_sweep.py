"""`kdscale sweep`: many students from one cache, and what is said of them."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdscale.sweep import worker as worker_module

SPACE = {"loss": {"temperature": [1.0, 4.0]}}


@pytest.fixture
def sweep_recipe(write_recipe, tiny_teacher):
    """Students of two epochs, and a split to choose by; with changes."""

    def write(space=SPACE, student=None, **sweep):
        return write_recipe(
            data={"validation": 0.25},
            teacher={"weights": tiny_teacher, "train": None},
            student={"train": {"epochs": 2}} | (student or {}),
            sweep={"space": space, **sweep},
        )

    return write


@pytest.fixture
def sweep(kdscale, tiny_cache):
    """Runs a sweep into `s` from a cache that is there."""

    def run(recipe, *args):
        return kdscale("sweep", recipe, "--run", "s", "--cache", tiny_cache, *args)

    return run


@pytest.fixture
def status(kdscale):
    return lambda: json.loads(kdscale("sweep", "status", "s", "--json").stdout)


def weights_of(run):
    return load_file(run / "weights.safetensors")


def assert_equal_weights(ours, theirs):
    ours, theirs = weights_of(ours), weights_of(theirs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_refused(done, exit_code, *parts):
    assert done.exit_code == exit_code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


# ------------------------------------------------------------------ what is trained


def test_sweep_trains_every_combination_from_one_cache(kdscale, sweep_recipe, tmp_path, status):
    recipe = sweep_recipe({"loss": {"temperature": [1.0, 4.0]}, "views.count": [3, 1]})
    done = kdscale("sweep", recipe, "--run", "s")
    assert done.exit_code == 0, done.stderr
    assert len(list((tmp_path / "cache").glob("*.zarr"))) == 1
    assert "3 views of 128 samples" in done.stderr  # the largest count serves all
    runs = sorted((tmp_path / "s" / "trials").iterdir())
    assert [run.name for run in runs] == ["00000", "00001", "00002", "00003"]
    assert len({json.loads((run / "result.json").read_text())["cache"] for run in runs}) == 1
    found = [json.loads((run / "evaluation.json").read_text()) for run in runs]
    assert all(one["agreement"] > 0 for one in found)
    page = (tmp_path / "s" / "report.html").read_text()
    for title in ("loss.temperature", "views.count", "4 trials of"):
        assert title in page
    assert "report: s/report.html" in done.stdout
    found = status()
    assert found["trials"] == {
        "total": 4, "finished": 4, "pruned": 0, "failed": 0, "running": 0, "waiting": 0
    }  # fmt: skip
    tried = [tuple(row["parameters"].values()) for row in found["rows"]]
    assert tried == [(3, 1.0), (3, 4.0), (1, 1.0), (1, 4.0)]
    assert found["best"]["value"] == max(row["value"] for row in found["rows"])
    assert json.loads((tmp_path / "s" / "trials.json").read_text())["rows"] == found["rows"]


def test_trial_is_what_training_with_its_values_makes(sweep, kdscale, sweep_recipe, tmp_path,
                                                      tiny_cache):  # fmt: skip
    recipe = sweep_recipe({"loss.soft_weight": [0.9], "seed": [3], "views.count": [1],
                           "student.options": [{"hidden": 5}]}, hard_weight="rest")  # fmt: skip
    assert sweep(recipe).exit_code == 0
    found = json.loads(kdscale("sweep", "best", "s", "--json").stdout)
    assert found["options"][:2] == ["--set", "loss.soft_weight=0.9"]
    assert found["options"][-2:] == ["--set", "loss.hard_weight=0.1"]
    shown = kdscale("sweep", "best", "s").stdout
    options = shlex.split(shown.partition("options: ")[2].splitlines()[0])
    assert options == found["options"]
    done = kdscale("train", recipe, "--targets", "cache", "--cache", tiny_cache, "--run", "r",
                   *options)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert_equal_weights(tmp_path / "r", tmp_path / "s" / "trials" / "00000")
    assert found["weights"] == "s/trials/00000/weights.safetensors"


def test_teacher_without_weights_is_trained_once(kdscale, sweep_recipe, tmp_path):
    recipe = sweep_recipe()
    teacher = ["--set", "teacher.train={epochs=1,global_batch_size=32}"]
    table = recipe.read_text().splitlines()
    recipe.write_text("\n".join(line for line in table if not line.startswith("weights")))
    done = kdscale("sweep", recipe, "--run", "s", *teacher)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("training teacher") == 1
    assert (tmp_path / "s" / "teacher" / "result.json").is_file()


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_values_are_drawn_alike_whichever_worker_draws(sweep, sweep_recipe, tmp_path, status,
                                                       sampler):  # fmt: skip
    space = {"student.train.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
             "loss.temperature": {"low": 1, "high": 4}}  # fmt: skip
    recipe = sweep_recipe(space, sampler=sampler, trials=2, seed=7)
    assert sweep(recipe, "--set", "student.train.epochs=1").exit_code == 0
    once = [row["parameters"] for row in status()["rows"]]
    (tmp_path / "s").rename(tmp_path / "before")
    assert sweep(recipe, "--set", "student.train.epochs=1").exit_code == 0
    assert [row["parameters"] for row in status()["rows"]] == once
    assert once[0] != once[1]
    for values in once:
        assert 1e-3 <= values["student.train.learning_rate"] <= 1e-1
        assert values["loss.temperature"] in (1, 2, 3, 4)


# ------------------------------------------------------------------ again, more, otherwise


def test_finished_sweep_is_left_as_it_is(sweep, sweep_recipe, tmp_path):
    recipe = sweep_recipe()
    first = sweep(recipe)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/trials/*/*")}
    again = sweep(recipe)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert "s is finished: nothing is trained" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/trials/*/*")} == before


def test_sweep_may_grow_but_not_change(sweep, sweep_recipe, status):
    space = {"loss.temperature": [1.0, 2.0, 4.0], "seed": [0, 1]}
    recipe = sweep_recipe(space, student={"train": {"epochs": 1}})
    assert sweep(recipe, "--trials", 2).exit_code == 0
    assert sweep(recipe, "--trials", 3).exit_code == 0
    rows = status()["rows"]
    assert len({tuple(row["parameters"].values()) for row in rows}) == 3
    assert_refused(sweep(recipe, "--trials", 2), 1, "has 3 trials, requested are 2")
    changed = ["--set", "sweep.space.seed=[0, 2]", "--set", "loss.kind=dist"]
    refused = sweep(recipe, "--trials", 3, *changed)
    assert_refused(refused, 1, "sweep.space.seed: it has [0, 1], now [0, 2]", "loss.kind: it has")


def test_stopped_sweep_goes_on_where_it_was(
    sweep, kdscale, sweep_recipe, tmp_path, stopped_after_step, status
):
    recipe = sweep_recipe()
    assert sweep(recipe).exit_code == 0
    (tmp_path / "s").rename(tmp_path / "whole")
    with stopped_after_step(4):
        stopped = sweep(recipe)
    assert stopped.exit_code not in (0, 1, 2)
    assert "run the same command again" in stopped.stderr.splitlines()[-1]
    assert status()["trials"]["finished"] == 0
    assert status()["working"] is False
    shown = kdscale("sweep", "status", "s").stdout
    assert "No worker is running" in shown
    assert shown.index("| 00000 | waiting") < shown.index(
        "| 00001 | waiting"
    )  # what is known first
    assert_refused(kdscale("run", recipe, "--run", "s"), 1, "s has a sweep")
    done = sweep(recipe)
    assert "going on from step 5" in done.stderr
    rows = status()["rows"]
    assert [row["taken_over"] for row in rows] == [0, 0]
    for row in rows:
        assert_equal_weights(tmp_path / row["run"], tmp_path / "whole" / "trials" / row["trial"])


def test_run_that_finished_unheard_is_read_not_trained(sweep, sweep_recipe, monkeypatch, tmp_path,
                                                       status):  # fmt: skip
    def killed(run, best):
        raise KeyboardInterrupt

    recipe = sweep_recipe()
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "accuracy_of", killed)
        assert sweep(recipe).exit_code == 130
    weights = tmp_path / "s" / "trials" / "00000" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert sweep(recipe).exit_code == 0
    assert weights.stat().st_mtime_ns == before
    assert status()["trials"]["finished"] == 2


# ------------------------------------------------------------------ trials that end otherwise


def test_trial_that_falls_behind_ends_early_and_keeps_its_state(
    sweep, kdscale, sweep_recipe, tmp_path, status, tiny_cache
):
    space = {"student.train.learning_rate": [1e-2, 1e-9]}
    recipe = sweep_recipe(space, pruner="median", prune_after_trials=1)
    done = sweep(recipe, "--set", "student.train.epochs=4")
    assert done.exit_code == 0, done.stderr
    good, bad = status()["rows"]
    assert (good["state"], bad["state"]) == ("finished", "pruned")
    run = tmp_path / bad["run"]
    assert "given up after step" in (run / "pruned.txt").read_text()
    assert not (run / "result.json").exists()
    assert "00001" in done.stdout
    on = kdscale("train", run / "recipe.toml", "--targets", "cache", "--cache", tiny_cache,
                 "--run", run, "--resume")  # fmt: skip
    assert on.exit_code == 0, on.stderr
    assert "going on from step" in on.stderr


def test_students_that_fail_leave_the_others_alone(sweep, sweep_recipe, status):
    space = {"student": [{"model": f"tiny_models:{name}", "train": {"epochs": 1}}
                         for name in ("diverging", "linear")]}  # fmt: skip
    recipe = sweep_recipe(space)
    done = sweep(recipe)
    assert done.exit_code == 0, done.stderr
    failed, finished = status()["rows"]
    assert (failed["state"], finished["state"]) == ("failed", "finished")
    assert "the loss is nan" in failed["error"]
    assert "00000: the loss is nan" in done.stdout
    assert "nothing is trained" in sweep(recipe).stderr
    assert "trial 00000 failed" in sweep(recipe, "--retry-failed").stderr


def test_sweep_of_which_all_fails_fails(sweep, sweep_recipe):
    student = {"model": "tiny_models:diverging", "options": None}
    done = sweep(sweep_recipe(student=student))
    assert_refused(done, 1, "all trials of s failed", "the loss is nan")


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"loss.temperature": [1.0, -4.0]}, "loss.temperature=-4"),
        (
            {"student.model": ["tiny_models:mlp", "tiny_models:nlp"]},
            "student.model=tiny_models:nlp",
        ),
        ({"student.options": [{"hiden": 4}]}, "hiden"),
        ({"loss.temprature": [1.0]}, "did you mean 'temperature'"),
    ],
)
def test_every_value_is_tried_before_the_first_trial(sweep, sweep_recipe, tmp_path, space, message):
    done = sweep(sweep_recipe(space))
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert not (tmp_path / "s").exists()


def test_values_are_tried_as_they_go_together(sweep, sweep_recipe, status):
    """By itself each would leave nothing to learn from, or more than all, in this recipe."""
    space = {"loss.soft_weight": [0.0, 0.5], "loss.hard_weight": [0.5, 1.0]}
    alone = ("--set", "loss.soft_weight=1.0", "--set", "loss.hard_weight=0.0")
    done = sweep(sweep_recipe(space, {"train": {"epochs": 1}}), *alone)
    assert done.exit_code == 0, done.stderr
    assert status()["trials"]["finished"] == 4


def test_rest_is_left_by_the_values_not_by_the_recipe(sweep, sweep_recipe, status):
    space = {"loss.soft_weight": [0.3, 0.9]}
    recipe = sweep_recipe(space, {"train": {"epochs": 1}}, hard_weight="rest")
    done = sweep(recipe, "--set", "loss.soft_weight=1.5")
    assert done.exit_code == 0, done.stderr
    assert status()["trials"]["finished"] == 2


def test_validation_split_of_no_image_is_refused(sweep, sweep_recipe, tmp_path):
    done = sweep(sweep_recipe(), "--set", "data.validation=0.001")
    assert_refused(done, 2, "data.validation is 0.001, which holds out 0 of 128", "0.0078 to 0.99")
    assert not (tmp_path / "s").exists()


def test_folder_of_a_recipe_is_not_taken_for_a_sweeps(kdscale, sweep, sweep_recipe, tiny_cache):
    recipe = sweep_recipe(student={"train": {"epochs": 1}})
    assert kdscale("run", recipe, "--run", "s", "--cache", tiny_cache).exit_code == 0
    assert_refused(sweep(recipe), 1, "s has the runs of a recipe, and no sweep")


def test_sweep_is_no_single_run(sweep, kdscale, sweep_recipe):
    assert sweep(sweep_recipe(student={"train": {"epochs": 1}})).exit_code == 0
    done = kdscale("export", "s", "--format", "pt2")
    assert_refused(done, 1, "s has a sweep: name one of the runs in it", "s/trials/00000")


def test_test_split_never_chooses(sweep, sweep_recipe):
    done = sweep(sweep_recipe(), "--set", "data.validation=0.0")
    assert_refused(done, 2, "data.validation is 0", "--set data.validation=0.1")


def test_recipe_without_a_space_is_no_sweep(sweep, write_recipe):
    done = sweep(write_recipe(data={"validation": 0.25}))
    assert_refused(done, 2, "has no [sweep.space]", "--set sweep.space")


def test_launcher_is_refused(sweep, sweep_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(sweep(sweep_recipe()), 1, "without a launcher, with --workers N")


def test_folder_of_something_else_is_left_alone(sweep, sweep_recipe, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("precious")
    assert_refused(sweep(sweep_recipe()), 1, "thesis.tex")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["thesis.tex"]


def test_sweep_without_optuna_says_what_to_install(sweep, sweep_recipe, monkeypatch):
    monkeypatch.setattr("kdscale.cli.sweeps.find_spec", lambda name: None)
    assert_refused(sweep(sweep_recipe()), 2, "pip install 'kdscale[sweep]'")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is no URL of a database"),
        ("journal://file", "wanted sqlite:///FILE"),
        ("sqlite://", "names no file"),
        ("postgresql://a:secret@127.0.0.1:1/x", ""),
    ],
)
def test_database_that_will_not_do_is_refused(sweep, sweep_recipe, url, message):
    done = sweep(sweep_recipe(), "--storage", url)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_database_elsewhere_is_opened_only_where_it_is_named(
    sweep, kdscale, sweep_recipe, tmp_path
):
    url = f"sqlite:///{tmp_path}/mine.db"
    recipe = sweep_recipe(student={"train": {"epochs": 1}})
    assert sweep(recipe, "--storage", url).exit_code == 0
    found = kdscale("sweep", "status", "s", "--json", "--storage", url)
    assert json.loads(found.stdout)["trials"]["finished"] == 2
    assert not (tmp_path / "s" / "sweep.db").exists()
    assert_refused(sweep(recipe, "--storage", f"sqlite:///{tmp_path}/other.db"), 1, "mine.db")
    (tmp_path / "mine.db").unlink()
    for command in (["status", "s"], ["best", "s"], [recipe, "--run", "s"]):
        refused = kdscale("sweep", *command)  # what a file says is not opened, nor made
        assert_refused(refused, 1, "only a database that you name is opened: add --storage")
    assert not (tmp_path / "mine.db").exists()


# ------------------------------------------------------------------ commands


def test_best_of_nothing_says_so(sweep, kdscale, sweep_recipe, stopped_after_step):
    with stopped_after_step(2):
        sweep(sweep_recipe())
    assert_refused(kdscale("sweep", "best", "s"), 1, "no trial of s has finished yet")


@pytest.mark.parametrize("command", ["status", "best"])
def test_folder_without_a_sweep_is_refused(kdscale, command):
    assert_refused(kdscale("sweep", command, "nowhere"), 1, "no sweep at nowhere")


def test_recipe_may_be_called_as_a_command_is(kdscale, sweep_recipe, tmp_path):
    sweep_recipe().rename(tmp_path / "status")
    done = kdscale("sweep", "--workers", 1, "./status", "--set", "data.validation=0.0")
    assert_refused(done, 2, "data.validation is 0")


def test_every_command_of_a_sweep_has_help(kdscale):
    shown = kdscale("sweep", "--help").stdout
    assert "--workers" in shown
    assert "status" in shown
    assert kdscale("sweep", "x", "--help").stdout.startswith("Usage: cli sweep [OPTIONS] RECIPE")
    for command in ("status", "best"):
        done = kdscale("sweep", command, "--help")
        assert done.stdout.startswith(f"Usage: cli sweep {command}")


def test_status_of_a_lost_database_makes_no_new_one(sweep, kdscale, sweep_recipe, tmp_path):
    recipe = sweep_recipe(student={"train": {"epochs": 1}})
    assert sweep(recipe).exit_code == 0
    for file in (tmp_path / "s").glob("sweep.db*"):
        file.unlink()
    for command in ("status", "best"):
        assert_refused(kdscale("sweep", command, "s"), 1, "sweep.db is missing")
    assert not (tmp_path / "s" / "sweep.db").exists()
    again = sweep(recipe)  # reads what is trained, and trains nothing
    assert again.exit_code == 0, again.stderr
    assert "epoch" not in again.stderr


@pytest.mark.thorough
def test_best_trial_whose_run_is_gone_is_named(sweep, kdscale, sweep_recipe, status, tmp_path):
    assert sweep(sweep_recipe(student={"train": {"epochs": 1}})).exit_code == 0
    name = status()["best"]["trial"]
    (tmp_path / "s" / "trials" / name).rename(tmp_path / "moved")
    assert_refused(kdscale("sweep", "best", "s"), 1, f"trial {name} of s is the best", "is missing")
    assert status()["trials"]["finished"] == 2


def test_mistaken_database_leaves_the_folder_free(sweep, sweep_recipe, tmp_path):
    recipe = sweep_recipe(student={"train": {"epochs": 1}})
    mistaken = f"sqlite:///{tmp_path}/no-such-folder/mine.db"
    assert_refused(sweep(recipe, "--storage", mistaken), 1, "cannot be reached")
    done = sweep(recipe, "--storage", f"sqlite:///{tmp_path}/mine.db")
    assert done.exit_code == 0, done.stderr


def test_best_names_a_command_that_trains_the_same_student_again(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(
        data={"validation": 0.25}, student={"train": {"epochs": 1}},
        sweep={"space": {"seed": [3, 4]}},
    )  # fmt: skip
    done = kdscale("sweep", recipe, "--run", "s", "--set", "student.train.learning_rate=0.02")
    assert done.exit_code == 0, done.stderr  # with a teacher of its own, and an own setting
    found = json.loads(kdscale("sweep", "best", "s", "--json").stdout)
    shown = kdscale("sweep", "best", "s").stdout
    command = shlex.split(shown.partition("again:")[2].splitlines()[0])
    assert command == found["command"]
    again = kdscale(*command[1:], "--run", "again")
    assert again.exit_code == 0, again.stderr
    assert_equal_weights(tmp_path / "again", tmp_path / found["run"])


@pytest.mark.thorough
def test_best_names_teacher_and_cache_wherever_they_are(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(
        data={"validation": 0.25}, student={"train": {"epochs": 1}}, sweep={"space": {"seed": [3]}}
    )
    assert kdscale("run", recipe).exit_code == 0  # the sweep takes its teacher
    elsewhere = ("--cache-root", "elsewhere")
    assert kdscale("sweep", recipe, "--run", "s", *elsewhere).exit_code == 0
    assert not (tmp_path / "s" / "teacher").exists()
    found = json.loads(kdscale("sweep", "best", "s", "--json").stdout)
    again = kdscale(*found["command"][1:])  # as it stands
    assert again.exit_code == 0, again.stderr
    assert "asking" not in again.stderr
    assert "to go" not in again.stderr
    assert_equal_weights(tmp_path / "runs" / "tiny-best", tmp_path / found["run"])
    cache = Path(found["command"][found["command"].index("--cache") + 1])
    assert cache.is_absolute()
    shutil.rmtree(cache)
    gone = json.loads(kdscale("sweep", "best", "s", "--json").stdout)
    assert "--cache" not in gone["command"]


@pytest.mark.thorough
def test_evaluating_a_sweep_evaluates_its_teacher_too(
    kdscale, write_recipe, tiny_teacher, tmp_path
):
    table = {
        "data": {"validation": 0.25}, "student": {"train": {"epochs": 1}},
        "sweep": {"space": {"seed": [0]}},
    }  # fmt: skip
    recipe = write_recipe(**table)
    assert kdscale("sweep", recipe, "--run", "own").exit_code == 0
    recipe = write_recipe(**table, teacher={"weights": tiny_teacher, "train": None})
    assert kdscale("sweep", recipe, "--run", "given").exit_code == 0
    for folder, file in (("own", "teacher/evaluation.json"), ("given", "teacher-evaluation.json")):
        done = kdscale("evaluate", folder, "--seconds", 0.01, "--json")
        roles = [one["role"] for one in json.loads(done.stdout)["runs"]]
        assert roles == ["teacher", "student"]
        assert (tmp_path / folder / file).is_file()
