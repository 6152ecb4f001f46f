"""Verify with the teacher: run it again on some views, and compare with the stored targets."""

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from kdscale.building.stored_outputs import taps_of
from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.cache.stores.store import Place
from kdscale.data.views.digest import digest
from kdscale.experiment.experiment import Experiment
from kdscale.formatting import number_of
from kdscale.target_sources.buffer import stored_codec
from kdscale.targets import DenseTargets, FeatureTargets, Targets, TopKTargets, log_sums

_SMALLEST = 1e-4  # share of a row's largest value: float16 has fewer digits for smaller ones
_NOISE = {"float32": 1e-4, "bfloat16": 5e-2}
_FEATURES = 5e-4  # they are float16, whatever the encoding


def default_tolerance(manifest: Manifest) -> float:
    """Return the largest difference between two forward passes, as a share of the largest logit.

    Other batch shapes and devices change float32 logits by some 1e-6, bfloat16 ones by 1e-2; the
    encoding then rounds them. Logits of another teacher differ by 0.1 and more.
    """
    noise = _NOISE.get(manifest.teacher["precision"], max(_NOISE.values()))
    return noise + max(manifest.target_encoding.rounding, _FEATURES if manifest.features else 0.0)


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """Differences between stored targets and a second forward pass of the teacher."""

    num_pairs: int
    tolerance: float
    largest_difference: float
    other_pixels: tuple[str, ...]
    other_logits: tuple[str, ...]
    other_features: tuple[str, ...]
    seed: int

    @property
    def ok(self) -> bool:
        """Return whether pixels are equal, and logits and features within the tolerance."""
        return not self.other_pixels and not self.other_logits and not self.other_features

    def to_json(self) -> dict[str, Any]:
        """Return the field `teacher` of `kdscale cache verify --json`."""
        return {
            "ok": self.ok,
            "num_pairs": self.num_pairs,
            "tolerance": self.tolerance,
            "largest_difference": self.largest_difference,
            "other_pixels": list(self.other_pixels),
            "other_logits": list(self.other_logits),
            "other_features": list(self.other_features),
            "seed": self.seed,
        }

    def describe(self) -> str:
        """Return the result as a text."""
        counted = f"{number_of(self.num_pairs, 'view')} run again (--seed {self.seed})"
        differing = f"largest difference {self.largest_difference:.1e}"
        if self.ok:
            return f"{counted}: ok, {differing}, tolerance {self.tolerance:.1e}"
        lines = [f"{counted}: NOT ok, {differing}, tolerance {self.tolerance:.1e}"]
        lines += [f"  other pixels: {name}" for name in self.other_pixels]
        lines += [f"  other logits: {name}" for name in self.other_logits]
        lines += [f"  other features: {name}" for name in self.other_features]
        return "\n".join(lines)


def recheck(
    experiment: Experiment,
    path: Place,
    *,
    num_pairs: int,
    tolerance: float | None = None,
    seed: int | None = None,
) -> SpotCheck:
    """Run the teacher again on random (view, sample) pairs of a sound cache.

    Digests of the pixels must be equal. Of the logits, the largest difference of a pair, divided by
    its largest logit (at least 1), must be within the tolerance. In a cache of the largest logits
    alone, so must the tails, each times its temperature; and of features, the largest difference
    divided by the largest value.

    Args:
        experiment: experiment of the recipe that the cache was built with.
        path: folder or URL of the cache.
        num_pairs: number of pairs, at most all.
        tolerance: largest difference, see above; None for `default_tolerance`.
        seed: chooses the pairs; None for a random one.

    Raises:
        CacheMismatchError: the cache is another recipe's.
        KdscaleError: cache, data or teacher cannot be read.
    """
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    reader = CacheReader(path)
    manifest = reader.manifest
    experiment.check_compatible(path, manifest)
    allowed = default_tolerance(manifest) if tolerance is None else tolerance
    codec, pairs = stored_codec(reader), _pairs(manifest, num_pairs, seed)
    taps = taps_of(manifest.features)
    batches = experiment.oom_safe(replace(experiment.teacher, taps=taps))
    views, resident = experiment.cached_views, experiment.train_images
    same: list[bool] = []
    apart: list[float] = []
    features: list[float] = []
    for (view, shard), index in _by_shard(manifest, pairs):
        found = reader.read_shard(view, shard, [tap.module for tap in taps])
        stored = _rows(found, index - manifest.shard_range(shard)[0])
        for part in torch.arange(len(index)).split(batches.batch_size):
            pixels = resident.render_views(views, view, index[part]).pixels
            rows = _rows(stored, part)
            same += (digest(pixels).cpu().numpy() == rows["digests"]).tolist()
            stored_targets, exact = (
                codec.decode(rows),
                batches.outputs(pixels).with_each(Tensor.cpu),
            )
            apart += _apart(stored_targets, exact.output).tolist()
            features += _features_apart(stored_targets.features, exact.features, len(part)).tolist()
    names = [f"view-{view:05d}/sample-{sample}" for view, sample in pairs]
    return SpotCheck(
        num_pairs=len(pairs),
        tolerance=allowed,
        largest_difference=max(*apart, *features),
        other_pixels=tuple(name for name, ok in zip(names, same, strict=True) if not ok),
        other_logits=tuple(n for n, far in zip(names, apart, strict=True) if not far <= allowed),
        other_features=tuple(
            n for n, far in zip(names, features, strict=True) if not far <= allowed
        ),
        seed=seed,
    )


def _pairs(manifest: Manifest, count: int, seed: int) -> list[tuple[int, int]]:
    total = manifest.num_views * manifest.num_samples
    chosen = random.Random(seed).sample(range(total), min(count, total))
    return [divmod(number, manifest.num_samples) for number in sorted(chosen)]


def _by_shard(
    manifest: Manifest, pairs: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield view, shard, and the chosen samples in it."""
    for place, found in groupby(pairs, lambda p: (p[0], p[1] // manifest.shard_samples)):
        yield place, torch.tensor([sample for _, sample in found])


def _rows(values: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    return {name: array[rows.numpy()] for name, array in values.items()}


def _apart(stored: Targets, exact_BC: Tensor) -> Tensor:
    """Largest difference of each row, in units of its largest logit (at least 1): [B]."""
    if isinstance(stored, FeatureTargets):
        return torch.zeros(len(exact_BC))
    scale_B = exact_BC.abs().amax(1).clamp(min=1.0)
    return _differences(stored, exact_BC).abs().amax(1) / scale_B


def _features_apart(
    stored: Mapping[str, Tensor], exact_outputs: Mapping[str, Tensor], num_rows: int
) -> Tensor:
    """Largest difference of each row, of any feature, in units of that one's largest value: [B]."""
    apart = [torch.zeros(num_rows)]
    for name, values in exact_outputs.items():
        exact, found = values.flatten(1), stored[name].float().flatten(1)
        scale_B = exact.abs().amax(1).clamp(min=_SMALLEST)
        apart.append((found - exact).abs().amax(1) / scale_B)
    return torch.stack(apart).amax(0)


def _differences(stored: DenseTargets | TopKTargets, exact_BC: Tensor) -> Tensor:
    """Return the rounding error of all stored values, in units of logits: [B, C] or [B, K + G]."""
    if isinstance(stored, DenseTargets):
        return stored.logits_BC - exact_BC
    ids_BK = stored.ids_BK.long()
    top_BK = stored.logits_BK - exact_BC.gather(1, ids_BK)
    rest_BC = exact_BC.scatter(1, ids_BK, -torch.inf)
    tails_BG = stored.tails_BG - log_sums(rest_BC, stored.temperatures)
    # A tail times its temperature moves by no more than the logits that it sums.
    return torch.cat([top_BK, tails_BG * torch.tensor(stored.temperatures)], dim=1)
