"""Bytes of a recipe's cache in each encoding, estimated before it is built."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from kdscale.building.stored_outputs import StoredOutputs
from kdscale.cache.manifest import Manifest
from kdscale.cache.size_estimate import answers_bytes, other_bytes
from kdscale.encodings import ENCODINGS, Embedding, FeaturesOnly
from kdscale.errors import ConfigError
from kdscale.experiment.cache_spec import required_manifest, stored_outputs_of
from kdscale.experiment.experiment import Experiment
from kdscale.targets import Head, create_codec
from kdscale.teacher.frozen_teacher import TeacherOutput


def embedding_outputs(experiment: Experiment) -> StoredOutputs | None:
    """Outputs that a cache of embeddings stores; None if the teacher's last layer is not linear."""
    recipe = experiment.recipe
    settings = recipe.cache.model_copy(update={"encoding": Embedding.name})
    with suppress(ConfigError):
        return stored_outputs_of(
            recipe.model_copy(update={"cache": settings}), experiment.train_set, experiment.teacher
        )
    return None


def encoding_sizes(
    experiment: Experiment,
    required: Manifest,
    once: Mapping[str, np.ndarray],
    embedded: StoredOutputs | None,
    measured: TeacherOutput | None,
) -> dict[str, dict[str, int]]:
    """Bytes of a target and of the cache, by encoding.

    Those of the cache are estimated by compressing some of the teacher's outputs. Outputs of random
    weights would not compress alike, so without `measured` bytes before compression are given.
    """
    recipe, images = experiment.recipe, experiment.train_set
    sizes = {}
    offered = [name for name, one in ENCODINGS.items() if one.has_logits]
    if required.encoding == FeaturesOnly.name:
        offered = [required.encoding]
    for name in offered:
        settings = recipe.cache.model_copy(update={"encoding": name})
        wanted = recipe.model_copy(update={"cache": settings})
        outputs = embedded if name == Embedding.name else StoredOutputs()
        if outputs is None:
            continue
        with suppress(ConfigError):  # topk of fewer classes than it stores
            manifest = required_manifest(wanted, images, required.teacher, outputs=outputs)
            manifest = replace(manifest, features=required.features, dataset=required.dataset)
            each = float(manifest.bytes_per_sample)
            if measured is not None:
                each = _stored_bytes_per_target(manifest, measured, outputs.head)
            total = each * manifest.num_views * manifest.num_samples
            other = other_bytes(manifest, images.labels, {**once, **outputs.once})
            sizes[name] = {
                "bytes_per_target": manifest.bytes_per_target,
                "bytes": round(total) + other,
            }
    return sizes


def _stored_bytes_per_target(
    manifest: Manifest, outputs: TeacherOutput, head: Head | None
) -> float:
    """Bytes of a target, compressed; those of features before compression."""
    codec = create_codec(manifest.target_encoding, head)
    values = codec.encode(outputs.output, outputs.embedding_BD)
    # Digests are as good as random.
    generator = torch.Generator().manual_seed(0)
    digests = torch.randint(1, 1 << 32, (len(outputs.output),), generator=generator)
    values["digests"] = digests.numpy().astype("uint64")
    features = manifest.bytes_per_sample - replace(manifest, features=()).bytes_per_sample
    return answers_bytes(manifest, values) / len(outputs.output) + features
