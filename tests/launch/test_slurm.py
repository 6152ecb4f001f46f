"""What the files for SLURM start, and when they requeue a job."""

import signal

import pytest
from played_slurm import ROOT, WAITS, Slurm

FILES = {
    "slurm.sbatch": ("python3", "train mnist"),
    "slurm_sweep.sbatch": ("kdscale", "mnist"),
    "slurm_build.sbatch": ("kdscale", "mnist"),
}
"""What each starts, and what it may be asked for."""


@pytest.fixture(params=FILES)
def file(request):
    """Each of the files for SLURM."""
    return request.param


@pytest.fixture
def submit(file, tmp_path):
    """Submits the file; what it starts does as told. (slurm, job)"""
    name, arguments = FILES[file]
    slurm = Slurm(tmp_path)

    def start(action, trap=""):
        slurm.noted(name, action, trap)
        job = slurm.submit(file, *arguments.split())
        slurm.wait_for(name)
        return slurm, job

    return start


def test_job_starts_all_processes_of_all_nodes(tmp_path):
    slurm = Slurm(tmp_path)
    slurm.noted("python3", "exit 0")
    job = slurm.submit("slurm.sbatch", "train", "mnist", "--set", "a.b=1")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert slurm.lines("python3") == [
        "python3 launch/start.py --config_file launch/multi_node.yaml --num_machines 2 "
        "--num_processes 8 --machine_rank 1 --main_process_ip node-a --main_process_port 20041 "
        "-m kdscale train mnist --set a.b=1"
    ]
    assert not slurm.requeued()


@pytest.mark.parametrize(
    ("command", "added"),
    [
        ("train mnist", " --resume-if-begun"),
        ("train mnist --resume", ""),
        ("cache build mnist", ""),
        ("run mnist", ""),
    ],
)
def test_requeued_job_goes_on(tmp_path, command, added):
    slurm = Slurm(tmp_path)
    slurm.noted("python3", "exit 0")
    job = slurm.submit("slurm.sbatch", *command.split(), SLURM_RESTART_COUNT="1")
    job.communicate(timeout=60)
    assert slurm.lines("python3")[0].endswith(f"-m kdscale {command}{added}")


def test_sweep_starts_one_worker_a_task(tmp_path):
    slurm = Slurm(tmp_path)
    slurm.noted("kdscale", "exit 0")
    words = ["mnist", "--run", "shared/sweep", "--storage", "postgresql://me@host/sweeps"]
    for count in ("1", "8"):
        job = slurm.submit("slurm_sweep.sbatch", *words, SLURM_ARRAY_TASK_COUNT=count)
        output, _ = job.communicate(timeout=60)
        assert job.returncode == 0, output
    assert slurm.lines("kdscale") == [f"kdscale sweep {' '.join(words)} --workers 1"] * 2


def test_sweep_of_several_machines_without_a_database_is_refused(tmp_path):
    slurm = Slurm(tmp_path)
    slurm.noted("kdscale", "exit 0")
    job = slurm.submit("slurm_sweep.sbatch", "mnist", SLURM_ARRAY_TASK_COUNT="8")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "8 workers need a database that all their machines see: name it with --sto" in output
    assert not slurm.lines("kdscale")
    named = {"KDSCALE_SWEEP_STORAGE": "postgresql://me:secret@host/sweeps"}
    job = slurm.submit("slurm_sweep.sbatch", "mnist", SLURM_ARRAY_TASK_COUNT="8", **named)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output


def test_builders_of_an_array_build_with_the_parts_that_the_array_gives_them(tmp_path):
    slurm = Slurm(tmp_path)
    slurm.noted("kdscale", 'echo "part $(python3 -c "$PRINT_PART")" >> "$CALLS"')
    program = (
        "from kdscale.building.part import choose_part; part = choose_part(None);"
        "print(part, part.source)"
    )
    for task in ("4", "6"):
        job = slurm.submit(
            "slurm_build.sbatch", "mnist", "--cache", "s3://bucket/c.zarr",
            SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_MIN="4", SLURM_ARRAY_TASK_MAX="10",
            SLURM_ARRAY_TASK_STEP="2", SLURM_ARRAY_TASK_COUNT="4", PRINT_PART=program,
            PYTHONPATH=str(ROOT),
        )  # fmt: skip
        output, _ = job.communicate(timeout=60)
        assert job.returncode == 0, output
    assert slurm.lines("kdscale") == ["kdscale cache build mnist --cache s3://bucket/c.zarr"] * 2
    assert slurm.lines("part") == [f"part {part}/4 SLURM_ARRAY_TASK_ID" for part in (1, 2)]


@pytest.mark.parametrize("status", [0, 1, 3, 137])
def test_end_without_a_signal_is_passed_on(submit, status):
    slurm, job = submit(f"exit {status}")
    job.communicate(timeout=60)
    assert job.returncode == status
    assert not slurm.requeued()


def test_job_whose_state_was_saved_is_requeued_whoever_sent_the_signal(submit):
    slurm, job = submit("exit 75")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 75
    assert slurm.lines("scontrol requeue") == ["scontrol requeue 41"]
    assert "stopped before its end (status 75): job 41 is requeued" in output


@pytest.mark.parametrize(
    ("sent", "status", "requeued"),
    [
        (signal.SIGUSR1, 75, True),
        (signal.SIGUSR1, 137, True),  # killed before its state was saved
        (signal.SIGUSR1, 1, False),  # it failed, and would again
        (signal.SIGUSR1, 0, False),  # it was just finished
        (signal.SIGTERM, 75, False),  # cancelled
    ],
)
def test_signal_is_passed_on_and_the_job_requeued_where_its_time_ran_out(
    submit, sent, status, requeued
):
    slurm, job = submit(WAITS, trap=f"trap 'exit {status}' TERM")
    job.send_signal(sent)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == status, output
    assert slurm.requeued() is requeued


@pytest.mark.parametrize("elsewhere", [True, False])
def test_wrong_submission_says_how_it_is_done(file, tmp_path, elsewhere):
    where = {"SLURM_SUBMIT_DIR": str(tmp_path)} if elsewhere else {}
    job = Slurm(tmp_path).submit(file, *(["mnist"] if elsewhere else []), **where)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 2
    assert ("call sbatch from the root of the project" if elsewhere else "usage: sbatch ") in output
