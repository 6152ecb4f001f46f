"""Trackers get what `metrics.jsonl` gets, once, across stops too, and never end a training."""

import shutil
from functools import partial
from typing import ClassVar

import pytest
import torch
from accelerate import tracking
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from kdscale.cli.options import LocationOptions, RecipeOptions
from kdscale.cli.sweeps import _worker_command
from kdscale.experiment.training_setup import tracked_run
from kdscale.run_identity import run_id
from kdscale.runs.folder import RunFolder
from kdscale.runs.log import MetricsLog, read_metrics
from kdscale.runs.run_spec import RunSpec
from kdscale.training import trackers

TENSORBOARD = ["--log-with", "tensorboard"]
OTHER = ["--log-with", "mlflow"]


@pytest.fixture(autouse=True)
def _files_in_order(monkeypatch):
    """Number this test's files from 0: TensorBoard reads those of one second in textual order."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def scalars_of_log(run):
    """The scalars of metrics.jsonl by tag: (step, float32 value) in their order."""
    found = {}
    for record in read_metrics(run):
        part, step = record.pop("split", "train"), record.pop("step")
        for key, value in record.items():
            value = torch.tensor(value, dtype=torch.float32).item()
            found.setdefault(f"{part}/{key}", []).append((step, value))
    return found


def scalars_of_tensorboard(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags}


class Service(tracking.GeneralTracker):
    """A tracker of a service, as MLflow is one: runs by id, and all points that were ever sent."""

    name, requires_logging_directory, main_process_only = "mlflow", False, True
    runs: ClassVar = {}
    configurations: ClassVar = []

    def __init__(self, project, run_name, run_id):
        super().__init__()
        self.run_id = run_id or f"{project}-{run_name}-{len(self.runs)}"

    def start(self):
        self.runs.setdefault(self.run_id, [])

    @property
    def tracker(self):
        return type("Run", (), {"info": type("Info", (), {"run_id": self.run_id})})

    def store_init_configuration(self, values):
        self.configurations.append(values)

    def log(self, values, step=None):
        self.runs[self.run_id] += [(tag, step, value) for tag, value in values.items()]


@pytest.fixture
def service(monkeypatch):
    """Puts a stand-in for a tracker's service in the place of MLflow."""
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Service)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: list(tracking.LoggerType))
    monkeypatch.setattr(Service, "runs", {})
    monkeypatch.setattr(Service, "configurations", [])
    return Service


@pytest.fixture
def crash_at(monkeypatch):
    """Lets the next training crash at its Nth record, before it is in the log or after that."""

    def arrange(number, *, logged):
        append, count = MetricsLog.append, iter(range(1, 1000))

        def crashing(log, record):
            crashes = next(count) == number
            if logged or not crashes:
                append(log, record)
            if crashes:
                monkeypatch.setattr(MetricsLog, "append", append)
                raise RuntimeError("killed")

        monkeypatch.setattr(MetricsLog, "append", crashing)

    return arrange


@pytest.fixture
def recipe(write_recipe):
    """12 steps, a record each, checkpoints and two evaluations every 4 steps: 18 records."""
    return write_recipe(data={"validation": 0.1}, student={"train": {"restore_best": True}})


def test_tensorboard_equals_the_log(kdscale, write_recipe, tmp_path):
    recipe = write_recipe(
        student={"train": {"log_with": ["tensorboard"]}}, data={"validation": 0.1}
    )
    done = kdscale("train", recipe, "--run", tmp_path / "run")
    assert done.exit_code == 0, done.output
    expected = scalars_of_log(tmp_path / "run")
    assert {"train/loss", "test/top1_accuracy", "validation/cross_entropy"} <= expected.keys()
    assert scalars_of_tensorboard(tmp_path / "run") == expected


def test_trackers_change_neither_weights_nor_log(kdscale, recipe, service, tmp_path):
    kdscale("train", recipe, "--run", tmp_path / "without")
    kdscale("train", recipe, "--run", tmp_path / "with", *TENSORBOARD, *OTHER)
    ours, theirs = (
        load_file(tmp_path / run / "weights.safetensors") for run in ("with", "without")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run_id(tmp_path / "with") == run_id(tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()
    assert not (tmp_path / "without" / "trackers.json").exists()


def train_with_kills(train, crash_at, numbers, *, logged):
    """Train, killed at records of these numbers and resumed each time; `train` takes options."""
    resumes = []
    for number in numbers:
        crash_at(number, logged=logged)
        with pytest.raises(RuntimeError, match="killed"):
            train(*resumes)
        resumes = ["--resume"]
    assert train("--resume").exit_code == 0


@pytest.mark.parametrize(
    ("numbers", "logged"), [((3,), True), ((9, 5, 2), False), ((6, 3), True), ((18,), False)]
)
def test_tensorboard_of_a_resumed_run_equals_its_log(
    kdscale, recipe, tmp_path, crash_at, numbers, logged
):
    run = tmp_path / "run"
    train = partial(kdscale, "train", recipe, "--run", run, *TENSORBOARD)
    train_with_kills(train, crash_at, numbers, logged=logged)
    assert scalars_of_tensorboard(run) == scalars_of_log(run)


@pytest.mark.parametrize("numbers", [(3,), (6, 3), (9, 5, 2), (18,)])
def test_service_gets_each_point_of_a_resumed_run_once(
    kdscale, recipe, tmp_path, service, crash_at, numbers
):
    run = tmp_path / "run"
    train = partial(kdscale, "train", recipe, "--run", run, *OTHER)
    train_with_kills(train, crash_at, numbers, logged=False)
    ((points),) = service.runs.values()
    steps = {}
    for tag, step, _ in points:
        steps.setdefault(tag, []).append(step)
    expected = scalars_of_log(run)
    assert steps == {tag: [step for step, _ in values] for tag, values in expected.items()}
    assert len(service.configurations) == 1


def test_new_tracker_of_a_resumed_run_gets_all_of_its_log(
    kdscale, recipe, tmp_path, stopped_after_step
):
    with stopped_after_step(6):
        assert kdscale("train", recipe, "--run", tmp_path / "run").exit_code == 75
    done = kdscale("train", recipe, "--run", tmp_path / "run", "--resume", *TENSORBOARD)
    assert done.exit_code == 0, done.output
    assert scalars_of_tensorboard(tmp_path / "run") == scalars_of_log(tmp_path / "run")


def test_missing_tracker_ends_before_anything_is_written(kdscale, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    for command in (["train", "--targets", "cache"], ["train"], ["run"]):
        done = kdscale(*command, recipe, "--run", tmp_path / "run", "--log-with", "wandb")
        assert done.exit_code == 2
        assert done.stderr == (
            "Error: log_with names 'wandb', which is not installed: pip install wandb, or leave it "
            "out\n"
        )
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "cache").exists()


def test_tracker_that_cannot_connect_ends_before_the_first_step(
    kdscale, recipe, tmp_path, service, monkeypatch
):
    def refuse(tracker):
        raise ConnectionError("no route\nto host")

    with monkeypatch.context() as patch:
        patch.setattr(service, "start", refuse)
        done = kdscale("train", recipe, "--run", tmp_path / "run", *TENSORBOARD, *OTHER)
    assert done.exit_code == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("Error: tracker 'mlflow' cannot be started (no route to host): ")
    assert not (tmp_path / "run" / "metrics.jsonl").read_bytes()
    done = kdscale("train", recipe, "--run", tmp_path / "run", *TENSORBOARD, *OTHER)
    assert done.exit_code == 0, done.output  # nothing is to be resumed
    assert scalars_of_tensorboard(tmp_path / "run") == scalars_of_log(tmp_path / "run")


@pytest.mark.parametrize("method", ["log", "finish"])
def test_tracker_that_fails_later_is_left_out_with_one_warning(
    kdscale, recipe, tmp_path, service, monkeypatch, method
):
    def fail(tracker, *args, **more):
        raise ConnectionError("connection lost")

    monkeypatch.setattr(service, method, fail)
    done = kdscale("train", recipe, "--run", tmp_path / "run", *OTHER)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("tracker 'mlflow' failed (connection lost)") == 1
    assert len(read_metrics(tmp_path / "run")) == 18


def test_linked_folder_of_event_files_is_refused(kdscale, recipe, tmp_path, stopped_after_step):
    with stopped_after_step(2):
        kdscale("train", recipe, "--run", tmp_path / "run", *TENSORBOARD)
    shutil.move(tmp_path / "run" / "tensorboard", tmp_path / "elsewhere")
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    done = kdscale("train", recipe, "--run", tmp_path / "run", "--resume", *TENSORBOARD)
    assert done.exit_code == 1
    assert "tensorboard" in done.stderr.splitlines()[-1]


def test_runs_are_named_and_grouped(load_table, tmp_path):
    recipe, student = load_table(), RunSpec("student", "cache", 3)
    alone = tracked_run(recipe, student, tmp_path / "mine")
    assert (alone.project, alone.name, alone.group) == ("tiny", "mine", "student-cache")
    assert alone.configuration["seed"] == 3
    assert alone.configuration["student.train.epochs"] == 3
    assert all(isinstance(one, bool | int | float | str) for one in alone.configuration.values())
    (tmp_path / "tiny").mkdir()
    RunFolder(tmp_path / "tiny").write_recipe("")
    of_recipe = tracked_run(recipe, student, tmp_path / "tiny" / "cache-seed3")
    assert (of_recipe.name, of_recipe.group) == ("tiny/cache-seed3", "student-cache")
    (tmp_path / "tiny" / "sweep.json").write_text("{}")
    trial = tracked_run(recipe, student, tmp_path / "tiny" / "trials" / "00002")
    assert (trial.name, trial.group) == ("tiny/00002", "tiny")


def test_workers_of_a_sweep_get_its_trackers(tmp_path):
    chosen = RecipeOptions("tiny", log_with=("tensorboard", "mlflow"))
    command = _worker_command(chosen, LocationOptions(tmp_path, run=tmp_path), 60)
    assert command[-4:] == [*TENSORBOARD, *OTHER]
