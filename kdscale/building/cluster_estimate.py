"""What a cache takes on a cluster: bytes, objects, requests, reads, memory, builders' time."""

from dataclasses import dataclass
from math import ceil
from typing import Any

from kdscale.cache.layout import Layout, with_large_objects, with_plain_objects
from kdscale.cache.manifest import Manifest
from kdscale.cache.size_estimate import num_files
from kdscale.target_sources.memory_plan import SHARDS_IN_HAND, plan_memory
from kdscale.target_sources.prefetch import row_bytes

_FIRST_BUCKET, _BUCKET = 1 << 20, 25 << 20
"""Bytes of gradients that DistributedDataParallel sums in one all-reduce: the first, each other."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines that build a cache and train from it, one process a GPU."""

    nodes: int
    """Number of machines."""
    gpus_per_node: int
    """Number of GPUs, and so of builders or training processes, of each machine."""

    @property
    def num_processes(self) -> int:
        """Number of builders, and of training processes."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class StudentSize:
    """What the processes of a training exchange in each step."""

    gradient_bytes: int
    """Bytes of the gradients of all parameters."""
    buffer_types: int = 0
    """Number of types of buffers, such as batch-norm's statistics; each is one broadcast."""

    @property
    def collectives(self) -> int:
        """Number of collectives in a step: sums of gradients, use of parameters, buffers."""
        sums = 1 + ceil(max(0, self.gradient_bytes - _FIRST_BUCKET) / _BUCKET)
        return sums + 1 + self.buffer_types


def estimate(
    manifest: Manifest,
    cluster: Cluster,
    student: StudentSize,
    *,
    teacher_images_per_second: float,
    targets_memory_bytes: int,
) -> dict[str, Any]:
    """Return what a cache takes on a cluster, by arithmetic alone; bytes are before compression.

    Args:
        manifest: of the cache, finished or not yet begun.
        cluster: the machines.
        student: the student that trains from it.
        teacher_images_per_second: views that one GPU renders and passes through the teacher.
        targets_memory_bytes: memory for targets in each training process, `cache.targets_memory`.

    Returns:
        `nodes`, `gpus_per_node`, `teacher_images_per_second`: as given.
        `bytes`: of the cache. `files`: in a folder. `objects`: in an object store.
        `build_seconds`: with one builder a GPU.
        `shards_per_builder`: in an object store.
        `build_requests`: of all builders, in an object store, without listings.
        `epoch_bytes`: of one view, which each training process reads in an epoch.
        `node_read_bytes`: read by all processes of a node in an epoch, from its disk or memory.
        `node_fetch_bytes`, `node_requests`: fetched by a node in an epoch, from an object store,
            as long as its local copies have no room for the whole cache.
        `process_memory_bytes`, `windows`: of targets in a training process, and what an epoch is
            read in.
        `collectives_per_step`, `gradient_bytes_per_step`: of a training.

    Raises:
        ConfigError: the memory has no room for two windows.
    """
    folder, remote = with_plain_objects(manifest), with_large_objects(manifest)
    num_arrays = len(Layout(remote).shard_arrays)
    shards = remote.num_views * remote.num_shards
    views = manifest.num_views * manifest.num_samples
    epoch = manifest.num_samples * manifest.bytes_per_sample
    memory, windows = _memory(folder, targets_memory_bytes)
    return {
        "nodes": cluster.nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "teacher_images_per_second": teacher_images_per_second,
        "bytes": manifest.num_views * epoch,
        "files": num_files(folder),
        "objects": num_files(remote),
        "build_seconds": round(views / teacher_images_per_second / cluster.num_processes, 1),
        "shards_per_builder": ceil(shards / cluster.num_processes),
        "build_requests": shards * (requests_of_shard(num_arrays) + 1),
        "epoch_bytes": epoch,
        "node_read_bytes": cluster.gpus_per_node * epoch,
        "node_fetch_bytes": epoch,
        "node_requests": remote.num_shards * (num_arrays + 1),
        "process_memory_bytes": memory,
        "windows": windows,
        "collectives_per_step": student.collectives if cluster.num_processes > 1 else 0,
        "gradient_bytes_per_step": student.gradient_bytes if cluster.num_processes > 1 else 0,
    }


def requests_of_shard(num_arrays: int) -> int:
    """Return the requests in which a builder makes a shard in an object store.

    Its record is read before and after its lease is created and listed; before each array and the
    record is written, two requests check the lease; three give it up.
    """
    return 4 + 3 * (num_arrays + 1) + 3


def _memory(manifest: Manifest, limit_bytes: int) -> tuple[int, int]:
    """Return the bytes of targets in a training process, and the number of windows of an epoch."""
    row = row_bytes(manifest, [one["module"] for one in manifest.features])
    in_hand = SHARDS_IN_HAND * min(manifest.shard_samples, manifest.num_samples) * row
    plan = plan_memory(
        limit_bytes, [manifest], num_views=manifest.num_views,
        features=[one["module"] for one in manifest.features],
    )  # fmt: skip
    if plan.windows is None:
        return (1 + plan.ahead) * manifest.num_samples * row + in_hand, 1
    return 2 * plan.windows.most_samples * row + in_hand, len(plan.windows)
