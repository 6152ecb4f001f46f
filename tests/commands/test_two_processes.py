"""Two processes do what one does: the same cache, the same batches, the same losses."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from kdscale import experiment
from kdscale.cache.reader import CacheReader
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.data.views.schedule import ViewSchedule
from kdscale.models.registry import create_model
from kdscale.models.weights import save_weights
from kdscale.runs.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BATCH_NORM = ("--set", "student.model=tiny_models:batch_norm", "--set", "student.options={}")
STUDENTS = {
    "none": ["--targets", "none"],
    "cache": ["--targets", "cache"],
    "accumulated": [
        *("--targets", "cache", "--set", "student.train.accumulation=2"),
        *("--set", "student.train.ema_decay=0.8"),
    ],
    "windows": ["--targets", "cache", "--set", "cache.targets_memory=3200"],
    "hint": [
        *("--targets", "teacher", "--set", 'cache.features=["1"]', "--set", "loss.hard_weight=0"),
        *("--set", 'loss.features=[{kind="hint", student="2", teacher="1"}]'),
        *("--set", "loss.soft_weight=0", "--set", "loss.feature_weight=1"),
    ],
    "teacher": ["--targets", "teacher"],
    "dist": ["--targets", "cache", "--set", "loss.kind=dist", "--set", "loss.temperature=2"],
    "rkd": [
        *("--targets", "teacher", "--set", 'cache.features=["1"]', "--set", "loss.soft_weight=0"),
        *("--set", 'loss.features=[{kind="rkd", student="2", teacher="1"}]'),
        *("--set", "loss.feature_weight=0.1"),
    ],
    "unused": [
        *("--targets", "cache", "--set", "student.model=tiny_models:unused"),
        *("--set", "student.options={}"),
    ],
    "norm": ["--targets", "cache", *BATCH_NORM],
    "sync": [
        *("--targets", "cache", *BATCH_NORM, "--set", "student.train.sync_batch_norm=true"),
        *("--set", "student.train.memory_format=channels_last"),
        *("--set", "student.train.ema_decay=0.8"),
        # A bias before batch-norm has no gradient but rounding, which Adam would take for one.
        *("--set", "student.train.optimizer=sgd", "--set", "student.train.learning_rate=0.1"),
    ],
    "pretrained": ["--targets", "none", "--set", "student.train.pretrained=seven.safetensors"],
    "plateaus": [
        *("--targets", "none", "--set", "data.validation=0.25", "--set", "student.train.epochs=12"),
        *("--set", "student.train.schedule=plateau", "--set", "student.train.patience=1"),
        *("--set", "student.train.stop_after=2", "--set", "student.train.restore_best=true"),
        *("--set", "student.train.learning_rate=0.3"),
    ],
}
ALIKE = [one for one in STUDENTS if one not in ("norm", "plateaus")]
"""Those whose samples do not depend on each other, or on all of the batch wherever they are."""
TOLERANCE = 5e-6
"""Of losses of 12 steps, about 1 each: float32 sums in another order differ by up to 5e-7."""

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recipe_table, make_dataset, tiny_teacher):
    """A data set whose test split is odd and larger than a batch of evaluation, and a recipe."""
    folder = tmp_path_factory.mktemp("two")
    data = make_dataset(folder / "data", num_test=1001)
    table = recipe_table(
        data={"source": str(data)}, teacher={"weights": tiny_teacher}, views={"count": 2}
    )
    (folder / "tiny.toml").write_text(tomli_w.dumps(table))
    seven = create_model("tiny_models:mlp", num_classes=7, in_channels=1, options={"hidden": 8})
    save_weights(folder / "seven.safetensors", seven, metadata={})
    return folder


def commands():
    places = ["--cache-root", "cache", "--run"]
    yield ["cache", "build", "tiny.toml", "--cache", "cache/two.zarr"]
    for name, arguments in STUDENTS.items():
        cache = ["--cache", "cache/two.zarr"] if "cache" in arguments else []
        yield ["train", "tiny.toml", *places, f"two-{name}", *arguments, *cache]
    yield ["evaluate", "two-cache", "--seconds", "0", "--trust-code", *places[:2]]


def launch_two(folder, commands):
    """Two processes run commands in a folder."""
    left_out = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "COV_CORE_", "COVERAGE_")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(left_out) and key not in {"WORLD_SIZE", "RANK", "LOCAL_RANK"}
    }
    environment["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{environment['PATH']}"
    environment["KDSCALE_MODULE"] = "several_commands"
    commands = list(commands)
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [str(ROOT / "launch" / "cpu.sh"), "2", "commands.json"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300 + 60 * len(commands),  # seconds; a hang's end, on a loaded machine, too
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run_alone(folder, commands):
    """This process runs commands in a folder."""
    from click.testing import CliRunner

    from kdscale.cli import cli

    before = Path.cwd()
    os.chdir(folder)
    try:
        for arguments in commands:
            done = CliRunner(catch_exceptions=False).invoke(cli, arguments)
            assert done.exit_code == 0, done.stderr
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def two(folder):
    """The folder, after two processes built and trained in it."""
    launch_two(folder, commands())
    return folder


@pytest.fixture(scope="module")
def one(folder, two):
    """The folder, after one process did the same beside it."""
    run_alone(folder, [[part.replace("two", "one") for part in parts] for parts in commands()])
    return folder


def test_evaluation_of_two_processes_finds_exactly_what_that_of_one_does(two, kdscale):
    """Counts are whole numbers; only what is measured in seconds differs."""
    ours = json.loads((two / "two-cache" / "evaluation.json").read_text())
    again = ["evaluate", two / "two-cache", "--seconds", "0", "--cache-root", two / "other"]
    (theirs,) = json.loads(kdscale(*again, "--json").stdout)["runs"]
    assert ours["agreement"] > 0.5
    for name in ("latency", "run", "checksum", "run_id"):
        ours.pop(name, None)
        theirs.pop(name, None)
    logits = ("calibration", "calibration_error", "cross_entropy")  # other batches, other last bits
    for name in ours.keys() - set(logits):
        assert ours[name] == theirs[name], name
    assert ours["calibration"]["samples"] == theirs["calibration"]["samples"]
    for name in logits[1:]:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def result(run):
    return json.loads((run / "result.json").read_text())


def test_two_processes_build_the_same_cache_value_for_value(one):
    ours, theirs = (CacheReader(one / "cache" / f"{name}.zarr") for name in ("two", "one"))
    assert ours.manifest.build["num_processes"] == 2
    assert theirs.manifest.build["num_processes"] == 1
    assert ours.manifest.id == theirs.manifest.id
    assert np.array_equal(ours.labels(), theirs.labels())
    for view in range(2):
        for name, array in ours.read_view(view).items():
            assert np.array_equal(array, theirs.read_view(view)[name]), name


@pytest.mark.parametrize("student", ALIKE)
def test_two_processes_train_with_the_same_losses(one, student):
    """At equal global batch; without dropout, and without batch-norm over a process's part only.

    Hints alone ask nothing of the student's last layer, which stays as it began.
    """
    ours, theirs = (one / f"{name}-{student}" for name in ("two", "one"))
    assert result(ours)["num_processes"] == 2
    assert losses(ours) == pytest.approx(losses(theirs), abs=TOLERANCE)
    weights, expected = (load_file(run / "weights.safetensors") for run in (ours, theirs))
    for name, tensor in weights.items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name


@pytest.mark.parametrize("student", ["accumulated", "sync"])
def test_two_processes_average_the_same_weights(one, student):
    ours, theirs = (load_file(one / f"{name}-{student}/ema.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-4), name
    results = [result(one / f"{name}-{student}") for name in ("two", "one")]
    assert results[0]["ema_top1_accuracy"] == pytest.approx(
        results[1]["ema_top1_accuracy"], abs=2e-3
    )


def test_two_processes_end_early_where_one_does_and_choose_the_same_weights(one):
    ours, theirs = (result(one / f"{name}-plateaus") for name in ("two", "one"))
    for name in ("steps", "ended_early", "chosen_step"):
        assert ours[name] == theirs[name]
    assert ours["cross_entropy"] == pytest.approx(theirs["cross_entropy"], abs=1e-3)


def test_batch_norm_over_a_processs_part_is_not_that_of_the_whole_batch(one):
    """What `sync_batch_norm` is for: the tolerance above would not hide it."""
    ours, theirs = (losses(one / f"{name}-norm") for name in ("two", "one"))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 100 * TOLERANCE


def test_weights_trained_with_sync_batch_norm_have_their_ordinary_names(one):
    ours, theirs = (load_file(one / f"{name}-sync/weights.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys() >= {"1.running_var", "1.num_batches_tracked"}
    assert ours["1.num_batches_tracked"] == theirs["1.num_batches_tracked"] == 12


@pytest.mark.parametrize("student", ["none", "windows", "accumulated"])
def test_two_processes_train_on_the_samples_of_each_global_batch(one, load_table, student):
    """As they did, step by step, against what the sampler gives one process."""
    noted = []
    for process in (0, 1):
        lines = map(json.loads, (one / f"shown-{process}.jsonl").read_text().splitlines())
        noted.append({step: samples for run, step, *samples in lines if run == f"two-{student}"})
    assert noted[0].keys() == noted[1].keys() == set(range(12))
    assert all(len(noted[0][step]) == len(noted[1][step]) == 16 for step in noted[0])
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        shown = [sample for step in steps for part in noted for sample in part[step]]
        assert sorted(shown) == list(range(128))
    if student == "windows":
        return
    recipe = load_table(data={"source": str(one / "data")})
    images = experiment.training_images(recipe, one / "cache", labelled=True)
    alone = BatchLoader(
        DeviceImages(images, torch.device("cpu")), torch.arange(128),
        Pipeline((), 0), ViewSchedule(1, 0),
        seed=0, global_batch_size=32,
    )  # fmt: skip
    for step in noted[0]:
        assert noted[0][step] + noted[1][step] == alone.index(step).tolist()


@pytest.mark.parametrize("student", [one for one in ALIKE if one != "hint"])
def test_evaluation_of_two_processes_counts_every_sample_once(one, student):
    ours, theirs = (result(one / f"{name}-{student}") for name in ("two", "one"))
    share = ours["top1_accuracy"] * 1001
    assert share == pytest.approx(round(share), abs=1e-6)
    assert ours["top1_accuracy"] == pytest.approx(theirs["top1_accuracy"], abs=2 / 1001)


def test_batch_norm_student_is_evaluated_by_two_processes_with_one_state(two, load_table):
    """Processes have unequally many batches to evaluate: nobody may wait for the other in them."""
    from kdscale.distributed import create_accelerator
    from kdscale.evaluation.evaluator import evaluate
    from kdscale.models.preprocess import Preprocess

    run = two / "two-norm"
    model = create_model("tiny_models:batch_norm", num_classes=4, in_channels=1)
    model.load_state_dict(load_file(run / "weights.safetensors"))
    recipe = load_table(data={"source": str(two / "data")})
    test = experiment.test_images(recipe, two / "cache")
    found = evaluate(
        model,
        Preprocess((0.4,), (0.25,), None),
        DeviceImages(test, torch.device("cpu")),
        torch.arange(1001),
        4,
        create_accelerator(),
    )
    assert found["top1_accuracy"] == pytest.approx(result(run)["top1_accuracy"], abs=1e-9)


@pytest.fixture(scope="module")
def headless(tmp_path_factory, recipe_table, make_dataset):
    """A folder in which two processes, and then one, built a cache of embeddings and trained."""
    folder = tmp_path_factory.mktemp("headless")
    model = create_model("tiny_models:embedding", num_classes=0, in_channels=1)
    save_weights(folder / "embedding.safetensors", model, metadata={})
    without = {"model": "tiny_models:embedding", "options": {"num_classes": 0}}
    cosine = {"kind": "cosine", "student": "output", "teacher": "output", "project": True}
    table = recipe_table(
        data={"source": str(make_dataset(folder / "data", num_train=64, num_test=101))},
        views={"count": 1},
        teacher={**without, "weights": str(folder / "embedding.safetensors"), "train": None},
        cache={"encoding": "none", "features": ["output"]},
        student={**without, "train": {"epochs": 2}},
        loss={"hard_weight": 0.0, "soft_weight": 0.0, "feature_weight": 1.0, "features": [cosine]},
    )
    (folder / "tiny.toml").write_text(tomli_w.dumps(table))
    evaluate = ["evaluate", "two", "--seconds", "0", "--trust-code", "--cache-root", "cache"]
    launch_two(folder, [*headless_commands("two"), evaluate])
    run_alone(folder, headless_commands("one"))
    return folder


def headless_commands(name):
    places = ["tiny.toml", "--cache-root", "cache", "--cache", f"{name}.zarr"]
    yield ["cache", "build", *places]
    yield ["train", *places, "--targets", "cache", "--run", name]


def test_two_processes_build_and_learn_the_embeddings_of_one(headless):
    ours, theirs = (CacheReader(headless / f"{name}.zarr") for name in ("two", "one"))
    assert ours.manifest.id == theirs.manifest.id
    assert ours.read_view(0).keys() == theirs.read_view(0).keys()
    for name, array in ours.read_view(0).items():
        assert np.array_equal(array, theirs.read_view(0)[name]), name
    ours, theirs = (losses(headless / name) for name in ("two", "one"))
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, abs=TOLERANCE)


def test_embeddings_of_two_processes_are_classified_as_those_of_one(headless, kdscale):
    """By k-NN and by a linear probe; a near tie may fall to either side."""
    ours = json.loads((headless / "two" / "evaluation.json").read_text())
    again = ["evaluate", headless / "two", "--seconds", "0", "--cache-root", headless / "other"]
    (theirs,) = json.loads(kdscale(*again, "--json").stdout)["runs"]
    for name in ("weights_sha256", "knn_bank", "num_samples", "classifier"):
        assert ours[name] == theirs[name]
    for name in ("top1_accuracy", "knn_top1_accuracy", "probe_top1_accuracy"):
        assert ours[name] == pytest.approx(theirs[name], abs=1.5 / 101)
    assert ours["top1_accuracy"] == pytest.approx(result(headless / "two")["top1_accuracy"])


def test_processes_share_out_the_samples_of_each_global_batch(load_table, shared_root):
    images = experiment.training_images(load_table(), shared_root, labelled=True)

    def loader(index, count):
        return BatchLoader(
            DeviceImages(images, torch.device("cpu")),
            torch.arange(126),
            Pipeline((), 0),
            ViewSchedule(1, 0),
            seed=3,
            global_batch_size=32,
            process=(index, count),
        )

    whole, parts = loader(0, 1), [loader(index, 2) for index in (0, 1)]
    assert whole.steps_per_epoch == parts[0].steps_per_epoch == 4
    for step in range(8):
        shared = [part.index(step) for part in parts]
        assert len(shared[0]) == len(shared[1])
        assert torch.equal(torch.cat(shared), whole.index(step))


SEEDS = range(8)


def seeds_of(name, *more):
    """One student a seed, with dropout and batch-norm."""
    student = [
        "--set",
        "student.model=tiny_models:batch_norm_and_dropout",
        "--set",
        "student.options={}",
    ]
    student += ["--set", "student.train.epochs=8", "--set", "student.train.learning_rate=0.003"]
    student += ["--set", "student.train.evaluate_every=8"]
    for seed in SEEDS:
        yield ["train", "tiny.toml", "--cache-root", "cache", *student, *more,
               "--seed", str(seed), "--run", f"{name}{seed}"]  # fmt: skip


@pytest.mark.slow
def test_accuracy_over_seeds_is_that_of_one_process_where_losses_are_not(folder, tmp_path):
    """With dropout, and batch-norm over a process's part or over the whole batch."""
    sync = ("--set", "student.train.sync_batch_norm=true")
    launch_two(folder, [*seeds_of("parts"), *seeds_of("whole", *sync)])
    run_alone(folder, seeds_of("alone"))
    found = {
        name: torch.tensor([result(folder / f"{name}{seed}")["top1_accuracy"] for seed in SEEDS])
        for name in ("alone", "parts", "whole")
    }
    for name, values in found.items():
        print(f"{name}: {100 * values.mean():.2f} ± {100 * values.std():.2f} %")  # noqa: T201
    alone = found["alone"]
    assert 0.6 < alone.mean() < 0.99  # neither chance nor without an error
    for name in ("parts", "whole"):
        more = found[name] - alone  # each seed begins with the same weights
        assert abs(more.mean()) < 4 * more.std() / len(SEEDS) ** 0.5 + 0.005
        assert more.mean() > -0.02


@pytest.mark.slow
@pytest.mark.parametrize("knob", ["compile=true", "precision=float16"])
def test_two_processes_train_faster_steps_like_plain_ones(folder, knob):
    """Compiled around DistributedDataParallel; and with a loss scale, which is that of all."""
    common = ["train", "tiny.toml", "--cache-root", "cache", "--targets", "teacher"]
    name = knob.partition("=")[0]
    faster = ["--set", f"student.train.{knob}", "--set", "student.train.accumulation=2"]
    launch_two(folder, [[*common, "--run", f"faster-{name}", *faster]])
    run_alone(folder, [[*common, "--run", f"plain-{name}"]])
    ours, theirs = (folder / f"{kind}-{name}" for kind in ("faster", "plain"))
    assert losses(ours) == pytest.approx(losses(theirs), abs=0.02)
    weights, expected = (load_file(run / "weights.safetensors") for run in (ours, theirs))
    assert weights.keys() == expected.keys()
