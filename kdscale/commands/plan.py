"""What a cache will cost and when it has paid for itself, before anything is built."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdscale.building.cluster_estimate import Cluster, StudentSize, estimate
from kdscale.building.location import free_path, space
from kdscale.building.stored_outputs import configure_teacher
from kdscale.cache.catalog import bytes_stored, find_cache
from kdscale.cache.layout import with_large_objects
from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.cache.size_estimate import num_files
from kdscale.cache.stores.store import Place, is_remote
from kdscale.cache.writer import ShardWriter
from kdscale.commands.encoding_sizes import embedding_outputs, encoding_sizes
from kdscale.commands.step_times import channels_last_ratio, payback, step_seconds
from kdscale.commands.timing import TimedSetup, student_settings, time_teacher
from kdscale.data.views.schedule import ViewSchedule
from kdscale.errors import CacheNotFoundError, LaunchError
from kdscale.experiment.checks import mention_ineffective
from kdscale.experiment.encoding import choose_encoding
from kdscale.experiment.experiment import Experiment
from kdscale.formatting import bytes_text
from kdscale.target_sources.compatibility import with_keys
from kdscale.targets import create_codec
from kdscale.teacher.output_checks import inspect_teacher

log = logging.getLogger(__name__)

_INSPECTED = 200  # images that the teacher is inspected on: a plan is quick
_TEACHER_SHARE = 0.4  # of the time; the rest goes into training steps


def plan(
    experiment: Experiment,
    *,
    num_processes: int = 1,
    seconds: float = 10.0,
    cluster: Cluster | None = None,
    teacher_images_per_second: float | None = None,
) -> dict[str, Any]:
    """Estimate what the recipe's cache costs and saves, from short runs on this machine.

    Nothing is written but decoded images, where those are not there yet.

    Args:
        experiment: recipe and locations; a teacher without weights is timed with random ones.
        num_processes: number of processes that will build and train, each as fast as this one and
            on its part of a batch.
        seconds: to spend on short runs, roughly.
        cluster: machines that size, requests, reads and build time are estimated for as well.
        teacher_images_per_second: of one GPU of the cluster; None = as measured here.

    Returns:
        The JSON object of `kdscale cache plan`. Times are seconds; those of a student are of all
        its epochs, without evaluation, and null where there is no such student.

    Raises:
        KdscaleError: the recipe cannot be built or trained.
    """
    _check_one_process(experiment)
    recipe = experiment.recipe
    mention_ineffective(recipe, "student")
    experiment = replace(experiment, random_teacher=True)
    with _decoded_images_logged(experiment.locations.cache_root):
        images = experiment.train_set
    experiment.log_teacher()
    trained, outputs = experiment.teacher_is_trained, experiment.stored_outputs
    required, once = with_keys(experiment.required_manifest, images)
    existing = _find_existing(experiment, required) if trained else _Existing(None, 0.0)
    path = (
        existing.path
        or experiment.locations.cache
        or free_path(experiment.locations.cache_root, recipe.name, required)
    )

    setup = TimedSetup(experiment, student_settings(recipe).global_batch_size, num_processes)
    setup.loader(ViewSchedule(1, 0))  # a batch that does not split over the processes ends here
    embedded = embedding_outputs(experiment)
    teacher = configure_teacher(experiment.teacher, required, embedded or outputs)
    accuracy, inspected = None, 0
    if trained:
        batches = experiment.oom_safe(teacher)
        found = inspect_teacher(batches, experiment.train_images, images, num_samples=_INSPECTED)
        accuracy, inspected = found.top1_accuracy, len(found.index)
    codec = create_codec(required.target_encoding, outputs.head)
    timed = time_teacher(setup, teacher, codec, required.num_views, seconds * _TEACHER_SHARE)
    steps = step_seconds(setup, required, codec, seconds * (1 - _TEACHER_SHARE))
    build = timed.seconds_per_image * required.num_views * required.num_samples / num_processes
    measured = timed.outputs if trained else None
    encodings = encoding_sizes(experiment, required, once, embedded, measured)
    if is_remote(path):
        required = with_large_objects(required)
    needed, free = space(path, required)
    return {
        "recipe": recipe.name,
        "num_views": required.num_views,
        "num_samples": required.num_samples,
        "num_classes": required.num_classes,
        "teacher": recipe.teacher.model,
        "teacher_is_trained": trained,
        "teacher_top1_accuracy": accuracy,
        "teacher_inspected_samples": inspected,
        "unused_views": _unused_views(experiment, required.num_views),
        "encoding": required.encoding,
        "reason": choose_encoding(recipe.cache, images.num_classes)[1],
        "encodings": encodings,
        "bytes": encodings[required.encoding]["bytes"],
        "files": num_files(required),
        "path": str(path),
        "share_built": round(existing.share, 4),
        "needed_bytes": 0 if existing.share == 1 else needed,
        "free_bytes": free,
        "whole_build_seconds": round(build, 6),
        "channels_last_over_contiguous_time": channels_last_ratio(steps),
        **payback(experiment, build * (1 - existing.share), steps),
        "num_processes": num_processes,
        "device": experiment.device.type,
        "num_threads": torch.get_num_threads(),
        "cluster": None
        if cluster is None
        else _on_cluster(
            experiment,
            required,
            cluster,
            teacher_images_per_second or round(1 / timed.seconds_per_image, 3),
        ),
    }


def _on_cluster(
    experiment: Experiment, manifest: Manifest, cluster: Cluster, images_per_second: float
) -> dict[str, Any]:
    """Return the figures of `kdscale.building.cluster_estimate` for the recipe's cache."""
    student = experiment.student(0).model
    size = StudentSize(
        sum(one.numel() * one.element_size() for one in student.parameters()),
        len({one.dtype for one in student.buffers()}),
    )
    return estimate(
        manifest, cluster, size, teacher_images_per_second=images_per_second,
        targets_memory_bytes=experiment.recipe.cache.targets_memory_bytes,
    )  # fmt: skip


def _unused_views(experiment: Experiment, num_views: int) -> int:
    """Return the number of views of each image that no epoch of the student trains on."""
    epochs = student_settings(experiment.recipe).epochs
    return max(0, num_views - epochs) if experiment.recipe.views.mode == "replayed" else 0


def _check_one_process(experiment: Experiment) -> None:
    launched = experiment.accelerator.num_processes
    if launched > 1:
        raise LaunchError(
            f"plan was started with {launched} processes and times one: start it "
            f"alone, with --processes {launched}"
        )


@contextmanager
def _decoded_images_logged(cache_root: Path) -> Iterator[None]:
    """Log where images were decoded in the block, which the build would have done."""
    folder = cache_root / "images"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    yield
    for new in sorted(set(folder.iterdir()) - before):
        if new.is_dir() and not new.name.startswith("."):
            log.info("decoded images are stored in %s (%s)", new, bytes_text(bytes_stored(new)))


@dataclass(frozen=True, slots=True)
class _Existing:
    """A compatible cache that exists, maybe in part."""

    path: Place | None
    share: float
    """Share of the required targets that it holds, 0..1."""


def _find_existing(experiment: Experiment, required: Manifest) -> _Existing:
    path = experiment.locations.cache or find_cache(experiment.locations.cache_root, required)
    try:
        found = None if path is None else read_manifest(path)
    except CacheNotFoundError:
        found = None
    if path is None or found is None:
        return _Existing(None, 0.0)
    num_views = max(found.num_views, required.num_views)
    experiment.check_compatible(path, replace(found, num_views=num_views), required)
    # In parts too, where the cache is unfinished.
    built = (
        found.num_views if found.complete else ShardWriter(path, found).committed().mean(1).sum()
    )
    return _Existing(path, min(1.0, float(built) / required.num_views))
