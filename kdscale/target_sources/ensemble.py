"""Several teachers, one student: the weighted mean of the targets of several sources.

Shapes: M members, B samples, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kdscale.cache.manifest import Manifest, read_manifest
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import Batch
from kdscale.data.views.schedule import ViewSchedule
from kdscale.data.windows import Windows
from kdscale.encodings import FULL_ENCODINGS
from kdscale.errors import ConfigError
from kdscale.target_sources.base import TargetSource
from kdscale.target_sources.compatibility import check_compatible
from kdscale.targets import DenseTargets, all_classes, needs_logits


def mean_of_probabilities(logits_MBC: Tensor, weights_M: Tensor, temperature: float) -> Tensor:
    """Return logits whose softmax at `temperature` is the mean probability of the members.

    T·log(sum_i w_i softmax(z_i / T)): the arithmetic mean of Hinton, Vinyals & Dean, "Distilling
    the Knowledge in a Neural Network" (2015), section 1.

    Args:
        logits_MBC: the members' logits [M, B, C].
        weights_M: positive, of sum 1.
        temperature: the student's, T > 0.

    Returns:
        [B, C]
    """
    shares_MBC = (logits_MBC / temperature).log_softmax(2) + weights_M.log()[:, None, None]
    return temperature * shares_MBC.logsumexp(0)


def mean_of_logits(logits_MBC: Tensor, weights_M: Tensor, temperature: float) -> Tensor:
    """sum_i w_i z_i: the geometric mean of the members' probabilities, at any temperature.

    Arguments and source as of `mean_of_probabilities`.
    """
    return torch.einsum("m,mbc->bc", weights_M, logits_MBC)


MEANS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "probabilities": mean_of_probabilities,
    "logits": mean_of_logits,
}


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several sources of targets as one; all use the same views of the same images."""

    members: Sequence[TargetSource]
    weights: Sequence[float]
    """One a member, of sum 1."""
    mean: str
    """One of `MEANS`."""
    temperature: float
    """The student's."""

    @property
    def schedule(self) -> ViewSchedule:
        """View that an epoch uses, the same for each member."""
        return self.members[0].schedule

    @property
    def windows(self) -> Windows | None:
        """Windows of the targets, the same for each member."""
        return self.members[0].windows

    def start_epoch(self, epoch: int) -> None:
        """Prepare all members for an epoch."""
        for member in self.members:
            member.start_epoch(epoch)

    def finish_checks(self) -> None:
        """Wait for the checks of all members; errors as of theirs."""
        for member in self.members:
            member.finish_checks()

    def targets(self, batch: Batch) -> DenseTargets:
        """Return the mean of the members' targets of a batch.

        Raises:
            ConfigError: a member has no logits of all classes.
        """
        targets = [member.targets(batch) for member in self.members]
        logits = [all_classes(one, "a mean of several teachers") for one in targets if one]
        assert len(logits) == len(targets), "every member of an ensemble gives targets"
        logits_MBC = torch.stack(logits)
        weights_M = _on_device(tuple(self.weights), logits_MBC.device)
        return DenseTargets(MEANS[self.mean](logits_MBC, weights_M, self.temperature))


@lru_cache(maxsize=8)  # once, not a copy to the device in each step
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(weights, device=device)


def normalised(weights: Sequence[float], members: int) -> list[float]:
    """Return weights divided by their sum; equal ones if there are none."""
    shares = list(weights) or [1.0] * members
    return [one / sum(shares) for one in shares]


def further_caches(
    names: Sequence[str], own: Manifest, images: ImageDataset, root: Path
) -> list[tuple[str, Manifest]]:
    """The caches that an ensemble names beside the recipe's own: where they lie, and manifests.

    Args:
        names: folders, as they are or below `root`, or URLs.
        own: what the recipe asks of its own cache; who its teacher is does not matter.
        images: the data set at hand.
        root: where caches lie.

    Raises:
        ConfigError: one stores the largest logits alone, of which there is no exact mean.
        CacheMismatchError: one is of other images or views; every field is named.
        CacheNotFoundError, CacheCorruptError: one cannot be read.
    """
    if not names:
        return []
    _check_classes("the recipe's own cache", own)
    found = [(place, read_manifest(place)) for place in (_place(name, root) for name in names)]
    for place, manifest in found:
        _check_classes(place, manifest)
        # Teacher and encoding may be any: the cache's own are required.
        required = replace(manifest, dataset=own.dataset, views=own.views, num_views=own.num_views)
        check_compatible(place, manifest, required, images)
    return found


def _place(name: str, root: Path) -> str:
    """Return a path if something is there, else the path below the root of caches."""
    if "://" in name or Path(name).exists() or not (root / name).exists():
        return name
    return str(root / name)


def _check_classes(place: str, manifest: Manifest) -> None:
    if not manifest.target_encoding.has_logits:
        raise needs_logits(f"{place}: the mean of several teachers")
    if not manifest.target_encoding.all_classes:
        raise ConfigError(
            f"{place} stores the largest {manifest.top_k} of {manifest.num_classes} logits "
            f"(cache.encoding = {manifest.encoding!r}), and the mean of several teachers needs "
            f"them all: build it with cache.encoding = {FULL_ENCODINGS}, or leave it out of the "
            "ensemble"
        )


def check_different(caches: Sequence[tuple[str, Manifest]]) -> None:
    """Check that no two caches of an ensemble store the same targets.

    Raises:
        ConfigError: naming both.
    """
    seen: dict[str, str] = {}
    for place, manifest in caches:
        if manifest.id in seen:
            raise ConfigError(
                f"{place} stores the same targets as {seen[manifest.id]} (id {manifest.id}): leave "
                "one of them out, and give the other a larger weight"
            )
        seen[manifest.id] = place
