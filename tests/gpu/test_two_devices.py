"""A GPU and a CPU store the same views, and answers that differ by rounding alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tomli_w
import torch
import zarr

from kdscale.losses.objective import SOFT_LOSSES, Objective
from kdscale.models.checkpoints import read_tensors
from kdscale.target_sources.cached import CachedTargets
from kdscale.targets import DenseTargets

pytestmark = pytest.mark.gpu

ENCODINGS = ["float32", "float16", "int8", "int4", "topk", "embedding"]
_ROUNDING = 2e-4
"""Of a logit: kernels sum in another order."""


def build(recipe, cache, **environment):
    """Build a cache in a process of its own, and return its Zarr group."""
    command = [sys.executable, "-m", "kdscale", "cache", "build", str(recipe)]
    command += ["--cache", str(cache), "--cache-root", str(cache.parent / "root")]
    subprocess.run(command, env=os.environ | environment, check=True, timeout=120)
    return zarr.open_group(str(cache), mode="r")


@pytest.fixture
def write(tmp_path, recipe_table, tiny_teacher):
    """Writes the tiny recipe with a trained teacher and an encoding."""

    def recipe(encoding):
        path = tmp_path / f"{encoding}.toml"
        cache = {"encoding": encoding, **({"top_k": 2} if encoding == "topk" else {})}
        table = recipe_table(teacher={"weights": tiny_teacher}, cache=cache)
        path.write_text(tomli_w.dumps(table))
        return path

    return recipe


def test_caches_hold_equal_digests_and_close_logits(write, tmp_path):
    on_gpu = build(write("float32"), tmp_path / "gpu" / "one.zarr")
    on_cpu = build(write("float32"), tmp_path / "cpu" / "one.zarr", CUDA_VISIBLE_DEVICES="")
    assert np.array_equal(on_gpu["digests"][:], on_cpu["digests"][:])
    np.testing.assert_allclose(on_gpu["logits"][:], on_cpu["logits"][:], atol=_ROUNDING)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_targets_are_equal_on_both(encoding, write, tmp_path, device, kdscale):
    cache = tmp_path / "one.zarr"
    assert kdscale("cache", "build", write(encoding), "--cache", cache).exit_code == 0
    found = []
    for one in ("cpu", device):
        source = CachedTargets.open(cache, device=one)
        source.start_epoch(0)
        index = torch.tensor([3, 60, 3, 127], device=one)
        targets = source.read(source.schedule.view(0, index), index)
        found.append(all_tensors(targets))
        source.close()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=1e-5, atol=1e-5)


def all_tensors(targets):
    slots = type(targets).__slots__
    return [one for one in (getattr(targets, name) for name in slots) if torch.is_tensor(one)]


@pytest.mark.parametrize("kind", sorted(SOFT_LOSSES))
def test_losses_and_gradients_are_close(kind, device):
    generator = torch.Generator().manual_seed(2)
    student, teacher = (3 * torch.randn(64, 50, generator=generator) for _ in range(2))
    labels = torch.randint(50, (64,), generator=generator)
    objective = Objective(hard_weight=0.5, soft_weight=0.5, temperature=2.0, kind=kind)
    found = []
    for one in ("cpu", device):
        logits = student.to(one).requires_grad_()
        loss = objective(logits, DenseTargets(teacher.to(one)), labels.to(one), None, 0).total()
        loss.backward()
        found.append((loss.detach().cpu(), logits.grad.cpu()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_training_is_resumed_exactly(write, tmp_path, kdscale, stopped_after_step):
    assert kdscale("cache", "build", write("float16"), "--cache", "one.zarr").exit_code == 0
    command = ["train", tmp_path / "float16.toml", "--targets", "cache",
               "--cache", "one.zarr"]  # fmt: skip
    assert kdscale(*command, "--run", "whole").exit_code == 0
    with stopped_after_step(7):
        assert kdscale(*command, "--run", "parts").exit_code == 75
    assert kdscale(*command, "--run", "parts", "--resume").exit_code == 0
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    for name, tensor in read_tensors(whole)[0].items():
        assert tensor.equal(read_tensors(parts)[0][name]), name
