"""Checks of the teacher's first outputs before a build: accuracy, speed, encoding error."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from kdscale.building.fidelity import fidelity
from kdscale.building.part import Part
from kdscale.cache.manifest import Manifest
from kdscale.cache.stores.store import Place
from kdscale.cache.writer import ShardWriter
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.views.pipeline import Pipeline
from kdscale.distributed import wait_for_device
from kdscale.formatting import number_of
from kdscale.targets import Codec, FeatureTargets
from kdscale.teacher.frozen_teacher import FrozenTeacher, OomSafeTeacher
from kdscale.teacher.output_checks import inspect_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """Accuracy, speed and fidelity of a teacher, measured on a sample of clean images."""

    top1_accuracy: float | None
    """Top-1 on the training split, 0..1, estimated from a sample; None without labels."""
    images_per_second: float
    """Speed of views and forward pass together."""
    fidelity: Mapping[str, Any]
    """See `kdscale.building.fidelity`."""

    def recorded_in(self, required: Manifest) -> Manifest:
        """Return the manifest with these results."""
        teacher = {**required.teacher, "top1_accuracy": self.top1_accuracy}
        return replace(required, teacher=teacher, fidelity=self.fidelity)


def run_preflight(
    batches: OomSafeTeacher,
    resident: DeviceImages,
    images: ImageDataset,
    views: Pipeline,
    codec: Codec,
    with_features: FrozenTeacher,
) -> PreflightReport:
    """Inspect a teacher on clean samples, and measure how fast it is and how well stored.

    Args:
        batches: of the teacher.
        resident: the images, on its device.
        images: what is known of them.
        views: the views of its forward pass.
        codec: codec of the cache.
        with_features: the teacher with all that will be stored of it.

    Raises:
        ModelError: see `inspect_teacher`.
    """
    seen = inspect_teacher(batches, resident, images, with_features=with_features)
    number = len(seen.index)
    output, embedding = seen.outputs.output, seen.outputs.embedding_BD
    stored = codec.decode(codec.encode(output, embedding))
    measured: Mapping[str, Any] = {}
    if not isinstance(stored, FeatureTargets):
        labels = None if seen.labels is None else seen.labels.cpu()
        measured = fidelity(output.cpu(), stored, labels)
    seconds_a_sample = seen.seconds / number + _seconds_a_view(resident, views)
    return PreflightReport(
        seen.top1_accuracy, 1 / seconds_a_sample, {**measured, "num_samples": number}
    )


def _seconds_a_view(resident: DeviceImages, views: Pipeline) -> float:
    """Native views cost next to nothing, those of others' transforms may cost the most."""
    index = torch.arange(min(64, len(resident.labels)))
    resident.render_views(views, 0, index[:2])
    began = perf_counter()
    pixels = resident.render_views(views, 0, index).pixels
    wait_for_device(pixels.device)
    return (perf_counter() - began) / len(index)


def announce(path: Place, manifest: Manifest, first: PreflightReport, part: Part) -> None:
    """Log what is left to build, so that it can still be stopped."""
    done, total = (
        len(ShardWriter(path, manifest).records.present()),
        manifest.num_views * manifest.num_shards,
    )
    samples = manifest.num_views * manifest.num_samples * (1 - done / total)
    log.info(
        "%s: %s of %s, %d of %s done; about %.1f MB and %.0f s to go for one process",
        path, number_of(manifest.num_views, "view"), number_of(manifest.num_samples, "sample"),
        done, number_of(total, "shard"),
        samples * manifest.bytes_per_sample / 1e6, samples / first.images_per_second,
    )  # fmt: skip
    if part.count > 1:
        source = f", from {part.source}" if part.source else ""
        log.info(
            "this builder begins with part %s%s, and then takes over what is left", part, source
        )
