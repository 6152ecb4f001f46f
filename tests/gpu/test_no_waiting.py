"""On a real GPU a step waits for nothing, as the fake tensors of benchmarks/host_syncs.py say."""

import sys
from pathlib import Path

import pytest
import torch

from kdscale.commands.timing import TimedSetup, timed_objective
from kdscale.data.views.schedule import ViewSchedule
from kdscale.experiment import Experiment, Locations
from kdscale.losses.objective import SUPERVISED
from kdscale.target_sources.base import LiveTeacher, NoTargets
from kdscale.target_sources.cached import CachedTargets

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as when the script is run

from sync_cases import all_cases

pytestmark = pytest.mark.gpu

BATCH_SIZE = 8
"""Of 128 images: 16 steps an epoch, since a new epoch may wait."""


@pytest.mark.parametrize("case", list(all_cases()), ids=lambda case: case.name)
def test_parts_of_a_step_wait_for_nothing(case, waiting_for_nothing):
    if not torch.cuda.is_available():
        pytest.skip("its tensors are a GPU's")
    batch = case.prepare()
    batch()  # tables are made once
    with waiting_for_nothing():
        batch()


def _source(kind, experiment, cache):
    schedule = ViewSchedule(3, 0)
    if kind == "cache":
        return CachedTargets.open(cache, device=experiment.device)
    return NoTargets(schedule) if kind == "none" else LiveTeacher(experiment.teacher, schedule)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("targets", ["none", "cache", "teacher"])
def test_training_step_waits_for_nothing(
    targets, precision, load_table, tiny_teacher, tiny_cache, shared_root, waiting_for_nothing
):
    settings = {"precision": precision, "global_batch_size": BATCH_SIZE, "optimizer": "adamw"}
    recipe = load_table(student={"train": settings})
    experiment = Experiment(recipe, Locations(cache_root=shared_root, teacher_weights=tiny_teacher))
    source = _source(targets, experiment, tiny_cache)
    objective = SUPERVISED if targets == "none" else timed_objective(recipe)
    trainer = TimedSetup(experiment, BATCH_SIZE).trainer(source, objective)
    trainer.run(3)
    with waiting_for_nothing():
        trainer.run(14)
    assert torch.isfinite(trainer.loss)
