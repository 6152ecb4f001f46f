"""Training: resumed is the same as uninterrupted, and nothing else is resumed, lost or trusted."""

import json
import random
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdscale.commands.train import train
from kdscale.data import decoded_folder
from kdscale.data.image_hashes import RowCheck
from kdscale.evaluation import evaluator
from kdscale.experiment import Experiment, Locations
from kdscale.models.weights import read_metadata
from kdscale.report.training_log import read_log
from kdscale.runs import checkpoint
from kdscale.runs.log import read_metrics
from kdscale.runs.run_spec import RunSpec

TIMES = ("train_seconds", "images_per_second", "build_seconds", "reading", "checksum")


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def metrics(run):
    return [without_times(record) for record in read_metrics(run)]


def result(run):
    return json.loads((run / "result.json").read_text())


def losses(run):
    return [record["loss"] for record in metrics(run) if "loss" in record]


def assert_same_run(one, other):
    """Weights bit for bit, metrics and result but for the times and what they cost."""
    for file in ("weights.safetensors", "best.safetensors"):
        assert (one / file).exists() == (other / file).exists()
        if (one / file).exists():
            ours, theirs = load_file(one / file), load_file(other / file)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    assert metrics(one) == metrics(other)
    assert without_times(result(one)) == without_times(result(other))


# --------------------------------------------------------------------------- killed and resumed


@pytest.fixture
def slow_recipe(write_recipe, tiny_teacher):
    """32 steps of 5 ms with dropout, a validation split, checkpoints every 3 steps."""
    settings = {"epochs": 8, "checkpoint_every": 3, "evaluate_every": 2}
    return write_recipe(
        student={
            "model": "tiny_models:slow_mlp",
            "options": {"seconds": 0.005, "dropout": 0.3},
            "train": settings,
        },
        teacher={"weights": tiny_teacher},
        data={"validation": 0.1},
    )


def num_lines(run):
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start_and_signal(commands, number, cwd, lines, *args):
    """Start a command, send a signal once its log has so many lines; its exit status."""
    commands.start(*args, cwd=cwd)
    ends = time.monotonic() + 30
    while num_lines(cwd / "run") < lines and time.monotonic() < ends:
        time.sleep(0.0005)
    commands.kill(number)
    return commands.wait()


BY_WINDOWS = ["cache.targets_memory=3200", "student.train.global_batch_size=16"]


@pytest.mark.parametrize("targets", ["none", "cache", "windows"])
def test_killed_training_resumed_equals_an_uninterrupted_one(
    commands, slow_recipe, tiny_cache, tmp_path, targets
):
    command = ["train", slow_recipe, "--targets", "none" if targets == "none" else "cache"]
    if targets != "none":
        command += ["--cache", tiny_cache]
    if targets == "windows":
        command += [word for setting in BY_WINDOWS for word in ("--set", setting)]
    status, output = commands.run(*command, "--run", "whole", cwd=tmp_path)
    assert status == 0, output
    assert ("in 4 windows" in output) == (targets == "windows")
    lines = sorted(random.Random(targets).sample(range(1, 30), 3))
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    assert trained_through(commands, tmp_path, command, lines, signals) >= 2
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def trained_through(commands, cwd, command, lines, signals):
    """Train into `run` in spite of signals, each once the log has so many lines; how many hit.

    No line: the signal comes while the command starts.
    """
    command, hit, number = [*command, "--run", "run", "--resume-if-begun"], 0, random.Random(1)
    for enough, one in zip(lines, signals, strict=True):
        if enough:
            status = start_and_signal(commands, one, cwd, enough, *command)
        else:
            commands.start(*command, cwd=cwd)
            time.sleep(number.uniform(0, 0.4))
            commands.kill(one)
            status = commands.wait()
        expected = -signal.SIGKILL if one == signal.SIGKILL else 75
        assert status in (expected, 0), commands.output.read_text()
        assert "Traceback" not in commands.output.read_text()
        hit += status == expected
    status, output = commands.run(*command, cwd=cwd)
    assert status == 0, output
    return hit


@pytest.mark.slow
def test_training_killed_30_times_equals_an_uninterrupted_one(
    commands, write_recipe, tiny_teacher, tmp_path
):
    """With dropout, mixup, cached targets and a validation split; 6 of the 30 while it starts."""
    recipe = write_recipe(
        views={"operations": [{"name": "random_crop", "padding": 1}, {"name": "mixup", "p": 0.8}]},
        student={
            "model": "tiny_models:slow_mlp",
            "options": {"seconds": 0.005, "dropout": 0.3},
            "train": {"epochs": 150, "checkpoint_every": 7, "evaluate_every": 2},
        },
        teacher={"weights": tiny_teacher},
        data={"validation": 0.1},
    )
    command = ["train", recipe, "--targets", "cache"]
    status, output = commands.run(*command, "--run", "whole", cwd=tmp_path)
    assert status == 0, output
    number = random.Random(30)
    lines = sorted(number.sample(range(1, num_lines(tmp_path / "whole") - 5), 24))
    for position in sorted(number.sample(range(24), 6)):
        lines.insert(position, 0)
    signals = [number.choice([signal.SIGKILL, signal.SIGTERM]) for _ in lines]
    assert trained_through(commands, tmp_path, command, lines, signals) == 30
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("batch", [1, 3])
def test_training_stopped_in_an_evaluation_does_not_finish_it_first(
    kdscale, write_recipe, tmp_path, monkeypatch, batch
):
    """The evaluation is done where the training goes on: nothing of it is missing, or twice."""
    recipe = write_recipe(data={"validation": 0.25}, student={"train": {"epochs": 4}})
    command = ["train", recipe, "--set", "student.train.checkpoint_every=1000"]
    assert kdscale(*command, "--run", "whole").exit_code == 0
    asked, counted = evaluator.in_memory, []

    def signalled(*arguments):
        counted.append(arguments)
        if len(counted) == 6 + batch:  # in the second of four evaluations
            signal.raise_signal(signal.SIGTERM)
        return asked(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "_BATCH_SIZE", 16)  # 4 of the test split, 2 of the other
        patch.setattr(evaluator, "in_memory", signalled)
        done = kdscale(*command, "--run", "run")
    assert done.exit_code == 75
    assert len(counted) == 6 + batch
    assert "stopped after step 6 of 12; state saved in run" in done.stderr
    assert [record["step"] for record in metrics(tmp_path / "run") if "split" in record] == [3, 3]
    assert kdscale(*command, "--run", "run", "--resume").exit_code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_stop_after_the_last_step_leaves_its_evaluation_to_who_goes_on(
    kdscale, write_recipe, stopped_after_step, tmp_path
):
    recipe = write_recipe()
    with stopped_after_step(11):  # steps done before it
        assert kdscale("train", recipe, "--run", "run").exit_code == 75
    assert not (tmp_path / "run" / "result.json").exists()
    assert kdscale("train", recipe, "--run", "run", "--resume").exit_code == 0
    kdscale("train", recipe, "--run", "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_training_for_a_scheduler_begins_goes_on_and_leaves_a_finished_run(
    kdscale, write_recipe, stopped_after_step, tmp_path
):
    command = ["train", write_recipe(), "--run", "run", "--resume-if-begun"]
    with stopped_after_step(4):
        assert kdscale(*command).exit_code == 75
    done = kdscale(*command)
    assert done.exit_code == 0
    assert "going on from step 5 of run" in done.stderr
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    again = kdscale(*command)
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before
    other = kdscale(*command, "--seed", 5)
    assert other.exit_code == 1
    assert "seed: it has 0, now 5" in other.stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)],
)
def test_stopped_training_saves_its_state_and_says_how_to_go_on(
    commands, slow_recipe, tmp_path, number, code
):
    command = ["train", slow_recipe, "--run", "run"]
    assert start_and_signal(commands, number, tmp_path, 7, *command) == code
    output = commands.output.read_text()
    assert "Error: stopped after step " in output
    assert " of 32; state saved in run: run the same command with --resume to go on" in output
    assert "Traceback" not in output
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    saved = checkpoint.read_loop_state(newest)["step"]
    assert f"stopped after step {saved} " in output
    assert saved >= 7
    status, output = commands.run(*command, "--resume", cwd=tmp_path)
    assert status == 0
    assert f"going on from step {saved} of run" in output
    assert commands.run("train", slow_recipe, "--run", "whole", cwd=tmp_path)[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_killed_after_its_last_step_a_training_only_writes_its_result(
    kdscale, write_recipe, tmp_path
):
    recipe = write_recipe()
    kdscale("train", recipe, "--run", "run")
    before = metrics(tmp_path / "run"), result(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "weights.safetensors").unlink()
    assert kdscale("train", recipe, "--run", "run", "--resume").exit_code == 0
    assert (metrics(tmp_path / "run"), without_times(result(tmp_path / "run"))) == (
        before[0],
        without_times(before[1]),
    )


# --------------------------------------------------------------------------- run folders


def test_run_folder_holds_what_is_documented(kdscale, write_recipe, tmp_path):
    done = kdscale("train", write_recipe(), "--run", "run", "--seed", 3)
    assert done.exit_code == 0
    found = result(tmp_path / "run")
    assert {"top1_accuracy", "best_top1_accuracy", "train_seconds", "num_parameters", "targets",
            "seed"} <= found.keys()  # fmt: skip
    assert found["targets"] == "none"
    assert found["seed"] == 3
    assert 0 <= found["top1_accuracy"] <= found["best_top1_accuracy"] <= 1
    logged = list(read_metrics(tmp_path / "run"))
    steps = [record for record in logged if "loss" in record]
    evaluations = [record for record in logged if "split" in record]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert all({"step", "epoch", "loss"} <= record.keys() for record in steps)
    assert [record["epoch"] for record in evaluations] == [1, 2, 3]
    assert evaluations[-1]["top1_accuracy"] == found["top1_accuracy"]
    assert max(e["top1_accuracy"] for e in evaluations) == found["best_top1_accuracy"]
    metadata = read_metadata(tmp_path / "run" / "weights.safetensors")
    assert metadata["metrics"]["top1_accuracy"] == found["top1_accuracy"]
    assert metadata["preprocess"] == {"mean": [0.4], "std": [0.25], "size": None}
    assert (tmp_path / "run" / "recipe.toml").is_file()
    assert not list((tmp_path / "run").glob(".*"))


def test_finished_run_is_not_overwritten(kdscale, write_recipe, tmp_path):
    recipe = write_recipe()
    kdscale("train", recipe, "--run", "run")
    before = (tmp_path / "run" / "result.json").read_bytes()
    for extra in ([], ["--resume"]):
        done = kdscale("train", recipe, "--run", "run", *extra)
        assert done.exit_code == 1
        assert "run holds a finished run" in done.stderr
        assert "name another --run" in done.stderr
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_resume_with_nothing_to_resume_is_an_error(kdscale, write_recipe, tmp_path):
    done = kdscale("train", write_recipe(), "--run", "run", "--resume")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: nothing to resume in run: leave out --resume")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def unfinished(kdscale, write_recipe, tmp_path):
    """A run that was stopped before its result."""
    kdscale("train", write_recipe(), "--run", "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def test_unfinished_run_is_neither_overwritten_nor_resumed_unasked(
    kdscale, write_recipe, unfinished
):
    done = kdscale("train", write_recipe(), "--run", "run")
    assert done.exit_code == 1
    assert "run holds an unfinished run: add --resume, or name another --run" in done.stderr


def test_resume_with_another_recipe_or_seed_names_every_field(kdscale, write_recipe, unfinished):
    other = write_recipe(student={"train": {"learning_rate": 0.5}}, loss={"temperature": 2.0})
    done = kdscale("train", other, "--run", "run", "--resume", "--seed", 4)
    assert done.exit_code == 1
    assert "  loss.temperature: it has 4.0, now 2.0" in done.stderr
    assert "  student.train.learning_rate: it has 0.01, now 0.5" in done.stderr
    assert "  seed: it has 0, now 4" in done.stderr


# --------------------------------------------------------------------------- data


def test_best_weights_are_chosen_on_the_validation_split(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(
        data={"validation": 0.25}, student={"train": {"epochs": 6, "learning_rate": 0.1}}
    )
    assert kdscale("train", recipe, "--run", "run").exit_code == 0
    accuracy = {
        split: [
            (record["top1_accuracy"], record["step"])
            for record in metrics(tmp_path / "run")
            if record.get("split") == split
        ]
        for split in ("validation", "test")
    }
    best = max(value for value, _ in accuracy["validation"])
    first = next(step for value, step in accuracy["validation"] if value == best)
    assert read_metadata(tmp_path / "run" / "best.safetensors")["step"] == first
    assert result(tmp_path / "run")["best_validation_accuracy"] == best
    assert result(tmp_path / "run")["steps"] == 6 * 3  # 96 of 128 samples, in batches of 32
    assert len(accuracy["test"]) == 6


def test_students_of_one_recipe_do_not_collide_and_are_reused_by_run(
    kdscale, write_recipe, tmp_path, tiny_teacher
):
    recipe, runs = write_recipe(teacher={"weights": tiny_teacher}), tmp_path / "runs" / "tiny"
    for targets in ("none", "cache", "teacher"):
        done = kdscale("train", recipe, "--targets", targets)
        assert done.exit_code == 0, done.stderr
    assert {path.name for path in runs.iterdir()} == {"alone-seed0", "cache-seed0", "online-seed0"}
    done = kdscale("evaluate", runs, "--seconds", 0, "--json")
    assert [one["targets"] for one in json.loads(done.stdout)["runs"]] == [
        "none",
        "cache",
        "teacher",
    ]
    done = kdscale("run", recipe, "--online")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("is finished: reused") == 3
    assert "training student" not in done.stderr


def test_run_of_before_in_the_folder_of_the_recipe_is_resumed_there(
    kdscale, write_recipe, tmp_path, stopped_after_step
):
    recipe, runs = write_recipe(), tmp_path / "runs" / "tiny"
    with stopped_after_step(6):
        assert kdscale("train", recipe, "--run", "runs/tiny").exit_code == 75
    assert kdscale("train", recipe, "--resume").exit_code == 0
    assert result(runs)["steps"] == 12
    assert kdscale("train", recipe, "--seed", 1).exit_code == 0
    assert (runs / "alone-seed1" / "result.json").is_file()
    done = kdscale("evaluate", "runs/tiny", "--seconds", 0, "--json")
    assert [one["seed"] for one in json.loads(done.stdout)["runs"]] == [0, 1]
    done = kdscale("report", "runs/tiny", "--csv", "-")
    assert "runs/tiny/alone-seed1" in done.stdout


def test_without_a_validation_split_there_are_no_best_weights(kdscale, write_recipe, tmp_path):
    kdscale("train", write_recipe(), "--run", "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert "best_validation_accuracy" not in result(tmp_path / "run")


def test_subset_of_classes_is_trained_cached_and_evaluated_alone(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(data={"classes": ["south", "north"]})
    done = kdscale("run", recipe)
    assert done.exit_code == 0, done.stderr
    info = json.loads(kdscale("cache", "info", "cache/tiny.zarr", "--json").stdout)
    assert info["dataset"]["classes"] == ["south", "north"]
    assert (info["num_samples"], info["num_classes"]) == (64, 2)
    weights = load_file(tmp_path / "runs" / "tiny" / "cache-seed0" / "weights.safetensors")
    assert weights["4.bias"].shape == (2,)


@pytest.fixture(params=["no label column", "labels are -1"])
def unlabelled(request, make_dataset, tmp_path):
    """A data set whose training split has no labels, while its test split has."""
    data = make_dataset(tmp_path / "minus-one", unlabelled=True)
    if request.param == "labels are -1":
        return data
    import datasets

    splits = datasets.load_dataset(str(data))
    splits["train"] = splits["train"].remove_columns("label")
    splits.save_to_disk(tmp_path / "no-column")
    return tmp_path / "no-column"


def test_unlabelled_images_are_learned_from_the_teacher_alone(
    kdscale, write_recipe, unlabelled, tiny_teacher, tmp_path
):
    recipe = write_recipe(
        data={"source": str(unlabelled)},
        teacher={"weights": tiny_teacher},
        loss={"hard_weight": 0, "soft_weight": 1.0},
        student={"train": {"epochs": 6}},
    )
    done = kdscale("train", recipe, "--targets", "cache", "--run", "run")
    assert done.exit_code == 0, done.stderr
    assert result(tmp_path / "run")["top1_accuracy"] > 0.6  # of the labelled test split
    info = json.loads(kdscale("cache", "info", "cache/tiny.zarr", "--json").stdout)
    assert info["teacher"]["top1_accuracy"] is None
    online = kdscale("train", recipe, "--targets", "teacher", "--run", "online")
    assert online.exit_code == 0, online.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("train",),
        ("train", "--model", "teacher"),
        ("train", "--targets", "teacher", "--set", "loss.hard_weight=0.5"),
        ("cache", "build", "--set", "loss.hard_weight=0.5"),
    ],
    ids=" ".join,
)
def test_where_labels_are_needed_unlabelled_images_are_refused(
    kdscale, write_recipe, unlabelled, tiny_teacher, command
):
    recipe = write_recipe(
        data={"source": str(unlabelled)},
        teacher={"weights": tiny_teacher},
        loss={"hard_weight": 0, "soft_weight": 1.0},
    )
    done = kdscale(*command, recipe)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "label" in done.stderr
    assert "hard_weight = 0" in done.stderr


def test_unlabelled_images_have_no_validation_split(
    kdscale, write_recipe, unlabelled, tiny_teacher
):
    recipe = write_recipe(
        data={"source": str(unlabelled), "validation": 0.1},
        teacher={"weights": tiny_teacher},
        loss={"hard_weight": 0, "soft_weight": 1.0},
    )
    done = kdscale("train", recipe, "--targets", "cache", "--run", "run")
    assert done.exit_code == 2
    assert "Error: data.validation is 0.1, but split 'train' of " in done.stderr


# --------------------------------------------------------------------------- what the teacher saw


def test_image_edited_after_the_build_is_refused_by_its_fingerprint(
    kdscale, write_recipe, make_dataset, tiny_teacher, tmp_path
):
    import pyarrow.parquet as pq

    data = make_dataset(tmp_path / "data")
    recipe = write_recipe(data={"source": str(data)}, teacher={"weights": tiny_teacher})
    assert kdscale("cache", "build", recipe).exit_code == 0
    table = pq.read_table(data / "train.parquet")
    rows = table.to_pylist()
    rows[17]["image"] = rows[18]["image"]
    edited = type(table).from_pylist(rows, schema=table.schema)
    pq.write_table(edited, data / "train.parquet")
    done = kdscale("train", recipe, "--targets", "cache", "--cache", "cache/tiny.zarr")
    assert done.exit_code == 1
    assert "dataset.fingerprint: the cache has " in done.stderr
    assert "Traceback" not in done.stderr


def test_pixels_changed_behind_the_fingerprint_are_caught_by_the_view_digests(
    kdscale, write_recipe, tiny_teacher, tmp_path, monkeypatch
):
    """As where a decoder of another version wrote the images: what is stored is sound by itself."""
    recipe = write_recipe(teacher={"weights": tiny_teacher})
    assert kdscale("cache", "build", recipe).exit_code == 0
    monkeypatch.setattr(decoded_folder, "VERIFIED_BYTES", -1)
    monkeypatch.setattr(RowCheck, "__call__", lambda *_: None)
    for file in (tmp_path / "cache" / "images").glob("*/pixels.npy"):
        pixels = np.load(file, mmap_mode="r+")
        if len(pixels) == 128:
            pixels[77, 0, 3, 3] ^= 1
            pixels.flush()
    done = kdscale("train", recipe, "--targets", "cache", "--run", "run")
    assert done.exit_code == 1
    assert "1 of 32 samples (first: 77) are not the pixels" in done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_cache_serves_a_student_without_the_teachers_weights(
    kdscale, write_recipe, tiny_cache, tmp_path
):
    done = kdscale("train", write_recipe(), "--targets", "cache", "--cache", tiny_cache)
    assert done.exit_code == 0
    assert "taking the teacher recorded in" in done.stderr


# --------------------------------------------------------------------------- the step itself


@pytest.mark.parametrize("targets", ["none", "cache"])
def test_accumulated_steps_equal_whole_ones(
    load_table, tiny_cache, tiny_teacher, shared_root, tmp_path, targets
):
    for accumulation in (1, 2, 3):
        recipe = load_table(student={"train": {"accumulation": accumulation, "optimizer": "sgd"}})
        train(
            Experiment(
                recipe,
                Locations(
                    run=tmp_path / str(accumulation),
                    cache_root=shared_root,
                    cache=tiny_cache,
                    teacher_weights=tiny_teacher,
                ),
            ),
            RunSpec("student", targets, 0),
        )
    whole = losses(tmp_path / "1")
    assert losses(tmp_path / "2") == pytest.approx(whole, abs=1e-5)
    assert losses(tmp_path / "3") == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("log_every", [1, 1000])
def test_loss_that_is_not_finite_stops_before_anything_is_saved(
    kdscale, write_recipe, tmp_path, log_every
):
    recipe = write_recipe(
        student={
            "model": "tiny_models:diverging",
            "options": {},
            "train": {"log_every": log_every, "epochs": 2},
        }
    )
    done = kdscale("train", recipe, "--run", "run")
    assert done.exit_code == 1
    assert "Error: the loss is nan at step " in done.stderr
    assert "lower the learning rate" in done.stderr
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert checkpoint.read_loop_state(newest)["step"] == 0
    weights = load_file(newest / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_learning_rate_follows_the_schedule(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(student={"train": {"schedule": "cosine", "learning_rate": 0.1}})
    kdscale("train", recipe, "--run", "run")
    rates = [record["learning_rate"] for record in metrics(tmp_path / "run") if "loss" in record]
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_log_has_the_terms_of_the_loss_that_sum_to_it(
    load_table, tiny_cache, tiny_teacher, shared_root, tmp_path, accumulation
):
    settings = {"log_every": 2, "gradient_clip": 1e-3, "accumulation": accumulation}
    recipe = load_table(
        student={"train": settings}, loss={"hard_weight": 0.25, "soft_weight": 0.75}
    )
    places = {"cache_root": shared_root, "cache": tiny_cache, "teacher_weights": tiny_teacher}
    for targets in ("cache", "none"):
        experiment = Experiment(recipe, Locations(run=tmp_path / targets, **places))
        train(experiment, RunSpec("student", targets, 0))
    cached, supervised = (
        [one for one in read_metrics(tmp_path / name) if "loss" in one]
        for name in ("cache", "none")
    )
    for record in cached:
        terms = record["hard_loss"] + record["soft_loss"]
        assert terms == pytest.approx(record["loss"], rel=1e-6)
        assert record["gradient_norm"] > 1e-3  # before clipping
        assert record["images_per_second"] > 0
        assert "feature_loss" not in record
    for record in supervised:
        assert record["hard_loss"] == pytest.approx(record["loss"], rel=1e-6)
        assert "soft_loss" not in record
    curves = read_log(tmp_path / "cache", is_finished=True).curves
    drawn = {"loss", "hard_loss", "soft_loss", "gradient_norm", "images_per_second"}
    assert drawn <= curves.keys()


def test_gradient_norm_is_logged_only_where_gradients_are_clipped(kdscale, write_recipe, tmp_path):
    kdscale("train", write_recipe(), "--run", "run")
    records = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert records
    assert not any("gradient_norm" in record for record in records)
