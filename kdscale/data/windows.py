"""Windows of an epoch: samples that are trained on near each other, as their targets fit memory.

An epoch is trained on window by window: some units of consecutive samples, chosen anew in each
epoch, whose samples are shuffled together. `docs/views.md` specifies the order.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kdscale.data.rng import derive_seed, permutation

_WINDOWS = derive_seed(0x77696E646F7773)  # "windows"


@dataclass(frozen=True, slots=True)
class Windows:
    """Parts an epoch in windows of nearly equal size, a pure function of (seed, epoch)."""

    num_samples: int
    unit_samples: int
    """Consecutive samples that always share a window."""
    most_units: int
    """In a window."""
    seed: int
    """That of the order of training."""

    @property
    def num_units(self) -> int:
        """Of the data set; the last one may have fewer samples."""
        return -(-self.num_samples // self.unit_samples)

    def __len__(self) -> int:
        return -(-self.num_units // self.most_units)

    @property
    def most_samples(self) -> int:
        """In a window."""
        return min(self.num_samples, self.most_units * self.unit_samples)

    def describe(self) -> str:
        """What the order of samples depends on, beside the seed, in a few words."""
        return f"{len(self)} windows of units of {self.unit_samples} samples"

    def number(self, epoch: int, index: Tensor) -> Tensor:
        """The window of samples in an epoch, both int64 [B]; windows count from 0."""
        return _windows_of_units(self.num_units, len(self), self.seed, epoch)[
            index // self.unit_samples
        ]

    def fewest_samples(self, samples: Tensor) -> int:
        """How many of some samples, int64 [N], a window has at least, in any epoch."""
        units = torch.bincount(samples // self.unit_samples, minlength=self.num_units)
        return int(units.sort().values[: self.num_units // len(self)].sum())


@lru_cache(maxsize=4)  # used at every step; this epoch and the next one
def _windows_of_units(num_units: int, num_windows: int, seed: int, epoch: int) -> Tensor:
    shuffled = permutation(num_units, _WINDOWS, seed, epoch)
    windows = torch.empty_like(shuffled)
    windows[shuffled] = torch.arange(num_units) * num_windows // num_units
    return windows
