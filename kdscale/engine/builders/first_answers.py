"""The teacher's first answers, before hours of building: is it right, how fast, how well stored?"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from kdscale.cache.manifest import Manifest
from kdscale.cache.store import Place
from kdscale.cache.writer import ShardWriter
from kdscale.data.images import ImageSet
from kdscale.data.loader import Images
from kdscale.data.views.pipeline import Pipeline
from kdscale.engine.processes import wait_for_device
from kdscale.engine.teacher import SizedBatches
from kdscale.fidelity import fidelity
from kdscale.targets import Encoding, decode, encode
from kdscale.wording import number_of

log = logging.getLogger(__name__)

_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class FirstAnswers:
    """What is known of a teacher once it was asked."""

    top1_accuracy: float | None
    """On labels, where there are any."""
    images_per_second: float
    """Making the views included."""
    fidelity: Mapping[str, Any]
    """See `kdscale.fidelity`."""

    def told_in(self, asked: Manifest) -> Manifest:
        """A manifest that says it."""
        teacher = {**asked.teacher, "top1_accuracy": self.top1_accuracy}
        return replace(asked, teacher=teacher, fidelity=self.fidelity)


def ask_first(
    batches: SizedBatches, resident: Images, images: ImageSet, views: Pipeline, encoding: Encoding
) -> FirstAnswers:
    """Ask a teacher about the first clean samples.

    Args:
        batches: of the teacher.
        resident: the images, on its device.
        images: what is known of them.
        views: what it will be asked about.
        encoding: how its answers will be stored.
    """
    index = torch.arange(min(_SAMPLES, images.num_samples))
    pixels, labels = resident.take(index)
    batches.logits(pixels[: min(64, len(index))])  # the first pass sets things up
    began = perf_counter()
    answers = batches.answers(pixels)
    logits = answers.logits_BC
    wait_for_device(logits.device)
    seconds = perf_counter() - began
    hits = (logits.argmax(1) == labels).double().mean().item() if images.labelled else None
    stored = decode(encode(logits, encoding, answers.embedding_BD), encoding)
    measured = fidelity(logits.cpu(), stored, labels.cpu() if images.labelled else None)
    seconds_a_sample = seconds / len(index) + _seconds_a_view(resident, views)
    return FirstAnswers(hits, 1 / seconds_a_sample, {**measured, "num_samples": len(index)})


def _seconds_a_view(resident: Images, views: Pipeline) -> float:
    """Native views cost next to nothing, those of others' transforms may cost the most."""
    index = torch.arange(min(64, len(resident.labels)))
    resident.show(views, 0, index[:2])
    began = perf_counter()
    pixels = resident.show(views, 0, index).pixels
    wait_for_device(pixels.device)
    return (perf_counter() - began) / len(index)


def announce(path: Place, manifest: Manifest, first: FirstAnswers) -> None:
    """Say what is about to happen, while it can still be stopped."""
    committed = ShardWriter(path, manifest).committed()
    answers = manifest.num_views * manifest.num_samples
    left = answers * (1 - committed.mean())
    if first.top1_accuracy is not None:
        log.info(
            "teacher's top-1 on the first %s: %.1f %%",
            number_of(manifest.fidelity["num_samples"], "training image"),
            100 * first.top1_accuracy,
        )  # fmt: skip
    log.info(
        "%s: %s of %s, %d of %s done; about %.1f MB and %.0f s to go for one process",
        path, number_of(manifest.num_views, "view"), number_of(manifest.num_samples, "sample"),
        committed.sum(), number_of(committed.size, "shard"),
        left * manifest.bytes_per_sample / 1e6, left / first.images_per_second,
    )  # fmt: skip
