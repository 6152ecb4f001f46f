"""Partners for mixing: a perfect matching of the samples, another one in each view."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kdscale.data.rng import derive_seed, permutation
from kdscale.data.validation_split import split_validation

_PAIRS = derive_seed(0x7061697273)  # "pairs"


@dataclass(frozen=True, slots=True)
class MixPairs:
    """Matches samples in pairs, so that a batch of both needs each image once.

    Samples of the training and of the validation split are never paired with each other: nothing
    of what a model is chosen by is seen in training.
    """

    num_samples: int
    validation: float = 0.0
    """Share of the samples in the validation split."""
    within: int | None = None
    """Number of consecutive samples that are paired among themselves; None: all of them."""

    def partners(self, seed: int, view: int) -> Tensor:
        """Return the partner of every sample: int64 [N]; the odd one out of a group is its own.

        Within blocks, there is a group of each kind in every block.
        """
        return _partners(self, seed, view)

    def describe(self) -> dict[str, Any]:
        """Return the fields for a manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@lru_cache(maxsize=4)  # the views of this epoch and the next one
def _partners(pairing: MixPairs, seed: int, view: int) -> Tensor:
    partner = torch.arange(pairing.num_samples)
    for number, group in enumerate(split_validation(pairing.num_samples, pairing.validation)):
        shuffled = group[permutation(len(group), _PAIRS, number, seed, view)]
        block = shuffled // (pairing.within or max(1, pairing.num_samples))
        shuffled, block = shuffled[block.argsort(stable=True)], block.sort().values
        # The first and the second of a block, the third and the fourth, ...: never the last of a
        # block with the first of the next one.
        turn = torch.arange(len(block)) - torch.searchsorted(block, block)
        first = ((turn[:-1] % 2 == 0) & (block[:-1] == block[1:])).nonzero().squeeze(1)
        one, other = shuffled[first], shuffled[first + 1]
        partner[one], partner[other] = other, one
    return partner
