"""Workers of a sweep: beside each other, killed, stopped, too late."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file

from kdscale.config import SweepSection
from kdscale.sweep.database import own_database
from kdscale.sweep.local_workers import environment_of, gpus
from kdscale.sweep.study import Ended, Study
from kdscale.sweep.trials import ERROR, MOST_DEATHS

BATCH = 16
PATIENCE = 2


@pytest.fixture
def slow_recipe(write_recipe, save_random_model, tmp_path):
    """Students that take a second each, from a teacher that notes each batch."""
    weights = save_random_model("counted", tmp_path / "counted.safetensors")
    options = {"log": str(tmp_path / "batches.txt")}

    def write(epochs=3, seconds=0.03, student=None, **sweep):
        return write_recipe(
            data={"validation": 0.25},
            teacher={"model": "tiny_models:counted", "options": options, "weights": str(weights),
                     "train": None, "batch_size": BATCH},
            student={
                "model": "tiny_models:slow_mlp",
                "options": {"seconds": seconds},
                "train": {"epochs": epochs, "checkpoint_every": 1},
                **(student or {}),
            },
            sweep={"space": {"loss.temperature": [1.0, 4.0]}, **sweep},
        )  # fmt: skip

    return write


def wait_until(condition, seconds=240):
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()


def newest_step(run):
    steps = [path.name.rpartition("-")[2] for path in run.glob("checkpoints/step-*")]
    return max((int(one) for one in steps if one.isdecimal()), default=0)


def worker_of(folder, place):
    """The process that has claimed a trial, and so trains it."""
    for path in folder.glob(f"claims/{place}.*"):
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text())["pid"]
    return None


def lives(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def asked_twice(tmp_path, views=3, samples=128):
    """Teacher batches of a build beyond one of each, less the probes of its builders."""
    lines = [line.split() for line in (tmp_path / "batches.txt").read_text().splitlines()]
    builders = {pid for pid, size in lines if int(size) == BATCH}
    whole = sum(int(size) == BATCH for _, size in lines)
    return whole - views * samples // BATCH, len(builders)


def assert_steps_follow_one_another(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def assert_same_students(ours, theirs):
    for run in sorted(theirs.glob("trials/*")):
        expected = load_file(run / "weights.safetensors")
        found = load_file(ours / "trials" / run.name / "weights.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected)


# ------------------------------------------------------------------ killed


@pytest.mark.thorough
def test_killed_workers_trial_is_gone_on_with_by_another(kdscale, commands, slow_recipe, tmp_path):
    halt, run = tmp_path / "halt", tmp_path / "s" / "trials" / "00000"
    halt.touch()  # both stand still after 5 of 9 steps
    recipe = slow_recipe(
        student={"model": "tiny_models:halting_mlp", "options": {"halt": str(halt)}}
    )
    arguments = ("sweep", recipe, "--run", "s", "--patience", PATIENCE)
    commands.start(*arguments, cwd=tmp_path)

    def kill_midway():
        wait_until(lambda: newest_step(run) >= 5)
        commands.kill()
        halt.unlink()

    killer = threading.Thread(target=kill_midway)
    killer.start()
    wait_until(lambda: newest_step(run) >= 1)  # the first trial is its
    done = kdscale(*arguments)
    killer.join()
    assert commands.wait() == -signal.SIGKILL
    assert done.exit_code == 0, done.stderr
    found = json.loads(kdscale("sweep", "status", "s", "--json").stdout)
    assert found["trials"]["finished"] == found["trials"]["total"] == 2
    assert [row["taken_over"] for row in found["rows"]] == [1, 0]
    assert "going on from step 5 of s/trials/00000" in done.stderr
    assert_steps_follow_one_another(run)
    assert json.loads((run / "result.json").read_text())["steps"] == 9
    assert len(list((tmp_path / "cache").glob("*.zarr"))) == 1


def crew(recipe, tmp_path, *args, patience=5):
    return subprocess.Popen(
        [sys.executable, "-m", "kdscale", "sweep", str(recipe), "--run", "s", "--workers", "2",
         "--patience", str(patience), *args],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.launch
def test_two_workers_one_killed_midway_train_what_one_would(kdscale, slow_recipe, tmp_path):
    space = 'sweep.space={"loss.temperature"=[1.0,2.0,4.0],seed=[0,1]}'
    recipe = slow_recipe(seconds=0.1)
    started = crew(recipe, tmp_path, "--set", space)
    run = tmp_path / "s" / "trials" / "00001"
    wait_until(lambda: newest_step(run) >= 4)
    os.kill(worker_of(tmp_path / "s", "00001"), signal.SIGKILL)
    out, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    assert "was killed (SIGKILL); its trial goes to another worker" in err
    assert "taken over 1x" in out
    found = json.loads(kdscale("sweep", "status", "s", "--json").stdout)
    assert found["trials"]["finished"] == found["trials"]["total"] == 6
    logs = "".join(path.read_text() for path in (tmp_path / "s" / "logs").iterdir())
    assert "going on from step" in logs
    for trial in sorted((tmp_path / "s" / "trials").iterdir()):
        assert_steps_follow_one_another(trial)
    beyond, builders = asked_twice(tmp_path)
    assert beyond <= builders * (64 + 128) // BATCH  # what each looked at before it began
    (tmp_path / "s").rename(tmp_path / "with-a-kill")
    assert kdscale("sweep", recipe, "--run", "s", "--set", space).exit_code == 0
    assert_same_students(tmp_path / "with-a-kill", tmp_path / "s")


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_crew_stops_together_and_goes_on(kdscale, slow_recipe, tmp_path, number):
    recipe = slow_recipe(seconds=0.1)
    started = crew(recipe, tmp_path)
    runs = [tmp_path / "s" / "trials" / f"{place:05}" for place in range(2)]
    wait_until(lambda: all(newest_step(run) >= 2 for run in runs))
    workers = [worker_of(tmp_path / "s", run.name) for run in runs]
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert started.returncode not in (0, 1, 2)
    assert "Traceback" not in err
    assert "run the same command again" in err.splitlines()[-1]
    assert not any(lives(worker) for worker in workers)
    before = [newest_step(run) for run in runs]
    done = kdscale("sweep", recipe, "--run", "s")
    assert done.exit_code == 0, done.stderr
    for step in before:
        assert f"going on from step {step}" in done.stderr
    found = json.loads(kdscale("sweep", "status", "s", "--json").stdout)
    assert [row["taken_over"] for row in found["rows"]] == [0, 0]


@pytest.mark.slow
@pytest.mark.launch
def test_error_that_stops_every_worker_is_reported_once_and_nothing_is_lost(
    kdscale, slow_recipe, tmp_path, tiny_cache
):
    started = crew(slow_recipe(), tmp_path, "--cache", str(tiny_cache))  # another teacher's
    _, err = started.communicate(timeout=120)
    assert started.returncode == 1
    assert "Traceback" not in err
    assert "has ended: the same error" in err
    assert err.count("teacher.weights_sha256: the cache has") == 1
    assert "all workers have ended, and trials of s are left" in err.splitlines()[-1]
    assert kdscale("sweep", slow_recipe(), "--run", "s").exit_code == 0


@pytest.mark.slow
@pytest.mark.launch
def test_workers_end_with_the_process_that_started_them(slow_recipe, tmp_path):
    started = crew(slow_recipe(seconds=0.1), tmp_path)
    run = tmp_path / "s" / "trials" / "00000"
    wait_until(lambda: newest_step(run) >= 2)
    worker = worker_of(tmp_path / "s", "00000")
    started.kill()
    started.communicate(timeout=60)
    wait_until(lambda: not lives(worker), seconds=30)
    assert worker_of(tmp_path / "s", "00000") is None  # it went orderly
    assert not (run / "result.json").exists()


# ------------------------------------------------------------------ the queue


@pytest.fixture
def study(tmp_path):
    """A study of two trials, looked at by workers that are in a hurry."""
    opened = []

    def look():
        sweep = SweepSection(space={"loss.temperature": [1.0, 2.0]})
        one = Study(own_database(tmp_path), "x", sweep, heartbeat_seconds=1, patience_seconds=1)
        one.plan(sweep.grid())
        opened.append(one)
        return one

    yield look
    for one in opened:
        one.close()


def ended(trial):
    raise Ended


def states_of(study):
    return [place.state for place in study.places()]


def take(study):
    """What a worker does that is killed before its trial's heart beats."""
    return study._study.ask()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_trial_killed_before_its_first_heartbeat_is_queued_again(study):
    one = study()
    take(one)
    assert states_of(one) == ["running", "waiting"]
    other = study()
    wait_until(lambda: other.refill() or states_of(other)[0] == "waiting", seconds=10)
    seen = []
    other.run_next(lambda trial: seen.append(trial.values) or 0.5)
    other.run_next(lambda trial: seen.append(trial.values) or 0.5)
    assert states_of(other) == ["finished", "finished"]
    assert sorted(values["loss.temperature"] for values in seen) == [1.0, 2.0]


def test_place_that_two_workers_refilled_is_one_students(study):
    one, other = study(), study()
    one.run_next(ended)
    assert states_of(one) == ["lost", "waiting"]
    lost = one.places()[0].trials[-1]
    one.refill()
    other._study.add_trial(one._study.trials[-1])  # as one that looked in the same moment
    assert lost.number == 0
    assert len(one.places()[0].trials) == 3
    trained = []
    for _ in range(3):
        one.run_next(lambda trial: trained.append(trial.place.name) or 0.5)
    assert sorted(trained) == ["00000", "00001"]
    assert states_of(one) == ["finished", "finished"]


def test_no_more_students_are_trained_than_are_queued(study):
    one, trained = study(), []
    for _ in range(3):  # the third finds an empty queue
        one.run_next(lambda trial: trained.append(trial.place.name) or 0.5)
    assert trained == ["00000", "00001"]
    assert len(one.places()) == 2


@pytest.mark.thorough
def test_workers_that_ask_in_the_same_moment_get_trials_of_their_own(tmp_path):
    sweep = SweepSection(space={"seed": list(range(24))})
    trained, together = [], threading.Barrier(4)

    def work():
        study = Study(own_database(tmp_path), "x", sweep, patience_seconds=60)
        together.wait()
        for _ in range(12):
            study.run_next(lambda trial: trained.append(trial.place.name) or 0.5)
        study.close()

    first = Study(own_database(tmp_path), "x", sweep)
    first.plan(sweep.grid())
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(trained) == [f"{number:05}" for number in range(24)]
    assert set(states_of(first)) == {"finished"}
    first.close()


def test_trial_that_kills_every_worker_is_given_up(study):
    one = study()
    for _ in range(2 * MOST_DEATHS):
        one.refill()
        one.run_next(ended)
    assert states_of(one) == ["failed", "failed"]
    assert f"killed {MOST_DEATHS} times" in one.places()[0].error


def test_worker_that_stood_still_does_not_report_anothers_trial(study):
    one = study()

    def frozen(trial):
        one._study.tell(trial.place.last.number, state=TrialState.FAIL)  # as another worker does
        return 0.5

    one.run_next(frozen)
    assert states_of(one) == ["lost", "waiting"]
    one.run_next(lambda trial: frozen(trial) and trial.report(1, 0.5))
    assert states_of(one) == ["lost", "lost"]
    one.refill()

    def interrupted(trial):
        frozen(trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.run_next(interrupted)


def test_failed_trial_is_queued_again_on_request(study):
    one = study()
    one.run_next(lambda trial: trial.note(ERROR, "no") or ended(trial))
    one.run_next(lambda trial: 0.5)
    one.refill()
    assert states_of(one) == ["failed", "finished"]
    assert one.places()[0].error == "no"
    one.retry_failed()
    assert states_of(one) == ["waiting", "finished"]
    one.run_next(lambda trial: 0.5)
    assert states_of(one) == ["finished", "finished"]
    assert one.places()[0].error is None


def test_reports_are_copied_when_a_trial_is_taken_over(study):
    one = study()

    def dies(trial):
        trial.report(1, 0.25)
        raise Ended

    one.run_next(dies)
    one.refill()
    one.run_next(lambda trial: 0.75)  # the second place
    one.run_next(lambda trial: trial.report(1, 0.5) and trial.report(2, 0.75) and 0.75)
    assert one.places()[0].last.intermediate_values == {1: 0.25, 2: 0.75}


# ------------------------------------------------------------------ machines


def test_workers_share_cores_and_are_dealt_gpus_in_turn(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    told = [environment_of(number, 3, ["4", "7"]) for number in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == ["4", "7", "4"]
    assert {one["OMP_NUM_THREADS"] for one in told} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_of(0, 3, [])["OMP_NUM_THREADS"] == "5"


def test_gpus_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 3")
    assert gpus() == ["GPU-a", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpus() == ["0", "1"]


@pytest.fixture
def postgres():
    """URL of a database of a server of its own."""
    pytest.importorskip("psycopg")
    if shutil.which("initdb") is None:
        pytest.skip("PostgreSQL's server is not installed")
    owner = {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if owner:
        shutil.chown(folder, "postgres")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run(*command):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, cwd=folder, check=True, timeout=60, **quiet, **owner)

    run("initdb", "-D", "data", "-U", "kdscale", "-A", "trust")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-D", "data", "-o", options, "-w", "start")
    yield f"postgresql+psycopg://kdscale:secret@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.slow
def test_workers_of_several_machines_share_a_database(
    kdscale, slow_recipe, tmp_path, postgres, stopped_after_step
):
    recipe = slow_recipe(epochs=2)
    with stopped_after_step(3):
        assert kdscale("sweep", recipe, "--run", "s", "--storage", postgres).exit_code != 0
    assert "secret" not in (tmp_path / "s" / "sweep.json").read_text()
    refused = kdscale("sweep", "status", "s")
    assert refused.exit_code == 1
    assert "KDSCALE_SWEEP_STORAGE" in refused.stderr
    arguments = ("sweep", recipe, "--run", "s", "--storage", postgres, "--workers", 2)
    done = kdscale(*arguments, "--patience", 5)
    assert done.exit_code == 0, done.stderr
    found = kdscale("sweep", "status", "s", "--storage", postgres, "--json")
    assert json.loads(found.stdout)["trials"]["finished"] == 2
    assert not list((tmp_path / "s").glob("sweep.db*"))
