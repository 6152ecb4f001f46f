"""Who is mixed with whom: a perfect matching of the samples, another one in each view."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kdscale.data.views.generator import chain, permutation
from kdscale.data.views.split import split_validation

_PAIRS = chain(0x7061697273)  # "pairs"


@dataclass(frozen=True, slots=True)
class Pairing:
    """Matches samples in pairs, so that whoever shows both needs each image once.

    Samples that are trained on and samples that are held out to validate on are never paired with
    each other: nothing of what a model is chosen by is seen in training.
    """

    num_samples: int
    validation: float = 0.0
    """Share of the samples that is held out."""

    def partners(self, seed: int, view: int) -> Tensor:
        """The partner of every sample: int64 [N]; the odd one out of a group is its own."""
        return _partners(self.num_samples, self.validation, seed, view)


@lru_cache(maxsize=4)  # the views of this epoch and the next one
def _partners(num_samples: int, validation: float, seed: int, view: int) -> Tensor:
    partner = torch.arange(num_samples)
    for number, group in enumerate(split_validation(num_samples, validation)):
        shuffled = group[permutation(len(group), _PAIRS, number, seed, view)]
        paired = shuffled[: len(group) // 2 * 2]
        partner[paired[0::2]], partner[paired[1::2]] = paired[1::2], paired[0::2]
    return partner
