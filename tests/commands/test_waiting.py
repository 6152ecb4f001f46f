"""A student beside the build: on what is finished, in order, and as long as somebody builds."""

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from kdscale.cache import lease
from kdscale.cache.manifest import read_manifest
from kdscale.cache.verify import verify
from kdscale.cache.wait import Watch
from kdscale.data.views.schedule import ViewSchedule

ROOT = Path(__file__).resolve().parents[2]
VIEWS, SHARDS, BATCH = 4, 4, 8


@pytest.fixture
def make_recipe(write_recipe, save_random_model, tmp_path):
    """4 views, built in batches that take their time; a student of as many epochs."""
    weights = save_random_model("slow", tmp_path / "slow.safetensors")

    def make(seconds=0.02, step_seconds=0.0, views=VIEWS, shards=None):
        """With `shards`, a build stands still after so many of them, until `go_on`."""
        model, options = "tiny_models:slow", {"seconds": seconds}
        if shards is not None:
            cache = tmp_path / "cache" / "tiny.zarr"
            cache.parent.mkdir()
            cache.with_suffix(".halt").write_text(str(shards))
            model, options = "tiny_models:halting", {"cache": str(cache)}
        teacher = {
            "model": model, "options": options, "weights": str(weights), "batch_size": BATCH,
        }  # fmt: skip
        student = {
            "model": "tiny_models:slow_mlp", "options": {"seconds": step_seconds, "dropout": 0.3},
            "train": {"epochs": views},
        }  # fmt: skip
        return write_recipe(teacher=teacher, student=student, views={"count": views})

    return make


@pytest.fixture
def recipe(make_recipe):
    return make_recipe()


@pytest.fixture
def halting(make_recipe):
    """Its build stands still in the second view."""
    return make_recipe(shards=SHARDS + 1)


def go_on(path):
    """Let a build that stands still go on."""
    path.with_suffix(".halt").unlink()


def wait_for(condition, seconds=240):
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.002)
    assert condition()


def num_committed(path):
    return len(list(path.glob("commits/c/*/*/0")))


def result(run):
    return json.loads((run / "result.json").read_text())


def assert_same_weights(one, other):
    ours, theirs = (load_file(run / "weights.safetensors") for run in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def beside(recipe, *more):
    return ("train", recipe, "--targets", "cache", "--wait", "--run", "run", *more)


@pytest.fixture
def trained_after(kdscale, tmp_path):
    """A student of the finished cache, to compare with."""

    def train(recipe, cache="cache/tiny.zarr"):
        command = ("train", recipe, "--targets", "cache", "--cache", cache, "--run", "after")
        done = kdscale(*command)
        assert done.exit_code == 0, done.stderr
        return tmp_path / "after"

    return train


# ------------------------------------------------------------------ beside the build


def test_views_are_built_in_the_order_of_the_schedule(kdscale, make_recipe, tmp_path):
    recipe = make_recipe(seconds=0, views=7)
    assert kdscale("cache", "build", recipe).exit_code == 0
    path = tmp_path / "cache" / "tiny.zarr"
    records = sorted(path.glob("commits/c/*/*/0"), key=lambda file: file.stat().st_mtime_ns)
    built = dict.fromkeys(int(file.parts[-3]) for file in records)
    schedule = ViewSchedule(7, 0)
    assert list(built) == [schedule.view(epoch, torch.zeros(1)) for epoch in range(7)]
    assert list(built) != sorted(built)


@pytest.mark.parametrize("named", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_student_beside_the_build_equals_one_after_it(
    kdscale, commands, recipe, trained_after, tmp_path, named
):
    path = tmp_path / "cache" / "tiny.zarr"
    commands.start("cache", "build", recipe, cwd=tmp_path)
    done = kdscale(*beside(recipe, *(["--cache", path] if named else [])))
    assert commands.wait() == 0
    assert done.exit_code == 0, done.stderr
    told = result(tmp_path / "run")
    assert told["wait_seconds"] >= 0
    assert told["cache"] == read_manifest(path).id
    assert_same_weights(tmp_path / "run", trained_after(recipe))


def test_student_begins_before_the_build_ends_and_stops_for_no_view_that_is_there(
    kdscale, commands, make_recipe, tmp_path
):
    path, steps = tmp_path / "cache" / "tiny.zarr", []
    recipe = make_recipe(shards=2 * SHARDS + 1)
    commands.start("cache", "build", recipe, cwd=tmp_path)

    def watch():
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count('"loss"') == 8)
        time.sleep(0.5)  # for more than there should be
        steps.append(metrics.read_text().count('"loss"'))
        go_on(path)

    watching = threading.Thread(target=watch)
    watching.start()
    done = kdscale(*beside(recipe))
    watching.join()
    assert (commands.wait(), done.exit_code) == (0, 0)
    assert steps == [8]  # two epochs of 4 steps: what two views serve
    assert "waiting for the build of view " in done.stderr
    assert result(tmp_path / "run")["wait_seconds"] > 0.4
    assert verify(path).ok


@pytest.mark.slow
def test_student_waits_while_views_are_added(kdscale, commands, recipe, trained_after, tmp_path):
    kdscale("cache", "build", recipe, "--set", "views.count=2")
    path = tmp_path / "cache" / "tiny.zarr"
    extend = ("cache", "extend", path, "--views", VIEWS, "--recipe", recipe)
    starting = threading.Timer(1.0, lambda: commands.start(*extend, cwd=tmp_path))
    starting.start()
    done = kdscale(*beside(recipe, "--cache", path))
    starting.join()
    assert (commands.wait(), done.exit_code) == (0, 0), done.stderr
    assert_same_weights(tmp_path / "run", trained_after(recipe))


def test_finished_cache_is_trained_on_without_waiting(kdscale, make_recipe, tmp_path):
    recipe = make_recipe(seconds=0)
    kdscale("cache", "build", recipe)
    done = kdscale(*beside(recipe))
    assert done.exit_code == 0
    assert "waiting" not in done.stderr
    told = result(tmp_path / "run")
    assert told["wait_seconds"] < 0.1
    assert told["build_seconds"] == read_manifest(tmp_path / "cache/tiny.zarr").build["seconds"]


@pytest.mark.slow
def test_shifted_epochs_and_fixed_mode_wait_as_well(kdscale, commands, recipe, tmp_path):
    settings = {
        "shifted": ("--set", "views.shift_every=32"),
        "fixed": ("--set", "views.mode=fixed", "--set", "views.count=1"),
    }
    for name, changes in settings.items():
        cache = tmp_path / f"{name}.zarr"
        commands.start("cache", "build", recipe, "--cache", cache, *changes, cwd=tmp_path)
        done = kdscale(*beside(recipe, "--cache", cache, *changes))
        assert (commands.wait(), done.exit_code) == (0, 0), done.stderr
        assert "waiting for " in done.stderr
        shutil.rmtree(tmp_path / "run")


# ------------------------------------------------------------------ stopped, and given up


@pytest.fixture
def stopped_build(commands, halting, tmp_path, monkeypatch):
    """A build that stands still in its second view, and lives."""
    path, wait, ended = tmp_path / "cache" / "tiny.zarr", commands.wait, []
    monkeypatch.setattr(commands, "wait", lambda: ended.append(wait()) or ended[-1])
    commands.start("cache", "build", halting, cwd=tmp_path)
    wait_for(lambda: num_committed(path) > SHARDS)
    yield path
    if not ended:
        commands.kill()
        wait()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)],
)
def test_stopped_while_waiting_it_saves_its_state_and_goes_on(
    kdscale, commands, halting, stopped_build, trained_after, tmp_path, monkeypatch, number, code
):
    check = Watch.check

    def interrupted(watch, wanted):
        if threading.current_thread() is threading.main_thread():  # others only read ahead
            signal.raise_signal(number)
        check(watch, wanted)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "check", interrupted)
        done = kdscale(*beside(halting))
    assert done.exit_code == code
    assert "stopped while waiting for the build; state saved in run, after step 4: run the same " \
        "command with --resume" in done.stderr  # fmt: skip
    go_on(stopped_build)
    done = kdscale(*beside(halting, "--resume"))
    assert done.exit_code == 0, done.stderr
    assert "going on from step 4 of run" in done.stderr
    assert commands.wait() == 0
    assert_same_weights(tmp_path / "run", trained_after(halting))


@pytest.fixture
def short_patience(monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "INTERVAL_SECONDS", 0.1)


def test_end_of_all_builders_is_reported_and_the_state_saved(
    kdscale, commands, halting, stopped_build, trained_after, short_patience, tmp_path
):
    commands.kill(signal.SIGKILL)
    assert commands.wait() == -signal.SIGKILL
    done = kdscale(*beside(halting))
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: cache/tiny.zarr: view ")
    assert "is not there, and nobody has built for 1 s: start `kdscale cache build`" in last
    assert "then run this command with --resume (state saved in run, after step 4)" in last
    go_on(stopped_build)
    assert kdscale("cache", "build", halting).exit_code == 0
    assert kdscale(*beside(halting, "--resume")).exit_code == 0
    assert_same_weights(tmp_path / "run", trained_after(halting))


@pytest.mark.slow
def test_builder_that_counts_is_waited_for_longer_than_patience(
    kdscale, commands, halting, stopped_build, short_patience
):
    """Its counter is raised by hand: what it builds does not appear, but it lives."""
    os.kill(commands.pid, signal.SIGSTOP)
    ended = threading.Event()

    def count():
        (counter,) = stopped_build.glob("claims/*.builder")
        number = 0
        while not ended.wait(0.2):
            number += 1
            counter.write_bytes(b"%020d" % number)

    counting = threading.Thread(target=count)
    counting.start()
    timer = threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    done = kdscale(*beside(halting))
    ended.set()
    counting.join()
    timer.join()
    assert done.exit_code == 130
    assert time.monotonic() - began > 3


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["--cache", "none.zarr"], "none.zarr: its manifest is not there, and nobody has built"),
        ([], "no cache in cache holds what the recipe asks for (id "),
    ],
)
def test_cache_that_nobody_begins_is_not_waited_for_forever(
    kdscale, recipe, short_patience, tmp_path, named, said
):
    done = kdscale(*beside(recipe, *named))
    assert done.exit_code == 1
    assert said in done.stderr
    assert "waiting for a build to begin" in done.stderr
    assert not list(tmp_path.glob("**/*.zarr"))
    assert not (tmp_path / "run" / "result.json").exists()


def test_folder_that_is_no_cache_is_not_waited_for(kdscale, recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for path in ("mine", "mine/thesis.txt"):
        done = kdscale(*beside(recipe, "--cache", path))
        assert done.exit_code == 1
        assert f"Error: no cache at {path}: build one" in done.stderr


@pytest.mark.slow
def test_cache_is_waited_for_before_it_is_begun(kdscale, commands, recipe, tmp_path):
    build = ("cache", "build", recipe, "--cache", "later.zarr")
    starting = threading.Timer(1.0, lambda: commands.start(*build, cwd=tmp_path))
    starting.start()
    done = kdscale(*beside(recipe, "--cache", "later.zarr"))
    starting.join()
    assert (commands.wait(), done.exit_code) == (0, 0), done.stderr


# ------------------------------------------------------------------ what is not waited for


def test_unfinished_cache_of_something_else_is_refused_at_once(kdscale, halting, stopped_build):
    done = kdscale(*beside(halting, "--cache", stopped_build, "--set", "views.seed=5"))
    assert done.exit_code == 1
    assert "views.seed: the cache has 0, the recipe asks for 5" in done.stderr


def test_unfinished_cache_without_wait_is_refused_naming_it(kdscale, halting, stopped_build):
    command = ("train", halting, "--targets", "cache", "--cache", stopped_build)
    done = kdscale(*command, "--run", "run")
    assert done.exit_code == 1
    assert f"{stopped_build} is not complete: wait for its build" in done.stderr
    assert "or train beside it with --wait" in done.stderr


def test_finished_view_of_an_unfinished_cache_is_checked(kdscale, halting, stopped_build):
    first = ViewSchedule(VIEWS, 0).view(0, torch.zeros(1))
    file = stopped_build / f"logits/c/{first}/1/0"
    content = bytearray(file.read_bytes())
    content[30] ^= 1
    file.write_bytes(content)
    done = kdscale(*beside(halting))
    assert done.exit_code == 1
    assert f"view-{first:05d}/shard-00001 missing or damaged" in done.stderr


@pytest.mark.parametrize("targets", ["none", "teacher"])
def test_only_a_cache_is_waited_for(kdscale, recipe, targets):
    done = kdscale("train", recipe, "--targets", targets, "--wait")
    assert done.exit_code == 2
    assert f"--wait goes with --targets cache, not with --targets {targets}" in done.stderr


# ------------------------------------------------------------------ what it costs


@pytest.mark.slow
def test_first_student_beside_the_build_costs_the_longer_of_the_two(
    kdscale, commands, make_recipe, tmp_path
):
    """Sleeping teacher and student, so that they need no second core: 7 s of each."""
    warm = make_recipe(seconds=0, views=1)  # imports are paid for once
    assert kdscale("train", warm, "--targets", "cache", "--run", "warm").exit_code == 0
    recipe = make_recipe(seconds=0.037, step_seconds=0.14, views=12)
    build = ("cache", "build", recipe, "--cache")
    seconds = {}
    for name in ("build", "train", "both"):
        began = time.monotonic()
        if name == "build":
            assert kdscale(*build, "alone.zarr").exit_code == 0
        elif name == "train":
            done = kdscale("train", recipe, "--targets", "cache", "--cache", "alone.zarr")
            assert done.exit_code == 0
        else:
            commands.start(*build, "both.zarr", cwd=tmp_path)
            assert kdscale(*beside(recipe, "--cache", "both.zarr")).exit_code == 0
            assert commands.wait() == 0
        seconds[name] = time.monotonic() - began
    print({**seconds, "wait": result(tmp_path / "run")["wait_seconds"]})  # noqa: T201
    longer, whole = max(seconds["build"], seconds["train"]), seconds["build"] + seconds["train"]
    assert seconds["both"] < longer + 0.35 * (whole - longer)


# ------------------------------------------------------------------ several processes


def launch(tmp_path, *command):
    """Start two processes under the launcher."""
    left_out = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "COV_CORE_", "COVERAGE_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{environment['PATH']}"
    arguments = [str(part) for part in (ROOT / "launch/cpu.sh", 2, *command)]
    with (tmp_path / "launch.txt").open("w") as said:
        return subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=said, stderr=said)


def ranks(launcher):
    found = psutil.Process(launcher.pid).children(recursive=True)
    return [one for one in found if "train" in one.cmdline()]


@pytest.mark.slow
@pytest.mark.launch
def test_two_processes_wait_and_stop_together(commands, halting, stopped_build, tmp_path):
    def said():
        return (tmp_path / "launch.txt").read_text()

    with launch(tmp_path, *beside(halting)) as launcher:
        wait_for(lambda: "waiting for the build of view" in said(), 200)
        os.kill(ranks(launcher)[-1].pid, signal.SIGTERM)  # one of them is asked, both stop
        launcher.wait(100)
    assert "stopped while waiting for the build; state saved in run, after step 4" in said()
    go_on(stopped_build)
    with launch(tmp_path, *beside(halting, "--resume")) as launcher:
        assert launcher.wait(300) == 0, said()
    assert commands.wait() == 0
    assert result(tmp_path / "run")["steps"] == 16
