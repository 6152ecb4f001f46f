"""Cached equals online: loss and gradient on the same student state, over many consecutive states.

Builds (or finds) the recipe's float32 cache, then trains one student. At every state the same batch
is asked of the cache and of the live teacher; the largest differences are printed as JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from kdscale import experiment
from kdscale.commands.build import build
from kdscale.config import load_recipe
from kdscale.data.loader import BatchLoader, DeviceImages
from kdscale.experiment import Experiment, Locations
from kdscale.target_sources.base import LiveTeacher
from kdscale.target_sources.cached import CachedTargets


def compare(recipe: Any, states: int, cache_root: Path) -> dict[str, Any]:
    """Largest differences between a cached and an online step over `states` states."""
    path = build(Experiment(recipe, Locations(cache_root=cache_root)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = experiment.training_images(recipe, cache_root, labelled=True)
    resident = DeviceImages(images, device)
    teacher = experiment.frozen_teacher(recipe, images, None, device)
    cached = CachedTargets.open(path, device=device)
    online = LiveTeacher(teacher, experiment.shared_views(recipe))
    settings = recipe.student.train
    student = experiment.model_to_train(recipe, recipe.student, images, seed=0, what="student")
    model = student.model.to(device)
    loader = BatchLoader(
        resident,
        torch.arange(images.num_samples),
        experiment.pipeline(recipe, images.num_samples),
        cached.schedule,
        seed=0,
        global_batch_size=settings.global_batch_size,
    )
    optimizer = experiment.optimizer(settings, model.parameters())
    objective = experiment.objective(recipe)

    def gradients(source: Any, batch: Any) -> tuple[float, torch.Tensor]:
        optimizer.zero_grad()
        torch.manual_seed(0)  # the same dropout for both
        loss = objective(
            model(student.preprocess(batch.pixels)),
            source.targets(batch),
            batch.labels,
            batch.mix,
        ).total()
        loss.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(grads).clone()

    losses, grads, logits = [], [], []
    for step in range(states):
        batch = loader.batch(step)
        cached.start_epoch(step // loader.steps_per_epoch)
        answers = cached.targets(batch).logits_BC - online.targets(batch).logits_BC
        logits.append(answers.abs().max().item())
        loss_online, grad_online = gradients(online, batch)
        loss_cached, grad_cached = gradients(cached, batch)
        losses.append(abs(loss_cached - loss_online))
        grads.append((grad_cached - grad_online).abs().max().item())
        optimizer.step()
    cached.close()
    return {
        "recipe": recipe.name,
        "states": states,
        "global_batch_size": settings.global_batch_size,
        "build_batch_size": recipe.teacher.batch_size,
        "largest_logit_difference": max(logits),
        "largest_loss_difference": max(losses),
        "largest_gradient_difference": max(grads),
        "num_threads": torch.get_num_threads(),
        "device": device.type,
    }


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--states", type=int, default=100)
    parser.add_argument("--cache-root", type=Path, default=Path("cache"))
    arguments = parser.parse_args()
    overrides = ["cache.encoding=float32", "teacher.precision=float32", *arguments.overrides]
    recipe = load_recipe(arguments.recipe, overrides, arguments.data)
    json.dump(compare(recipe, arguments.states, arguments.cache_root), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
