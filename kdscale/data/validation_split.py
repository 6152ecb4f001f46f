"""Which samples of a split are trained on, and which are held out to validate on."""

from torch import Tensor

from kdscale.data.rng import derive_seed, permutation

_VALIDATION = derive_seed(0x76616C6964)  # "valid"


def split_validation(num_samples: int, share: float) -> tuple[Tensor, Tensor]:
    """Indices (int64, ascending) to train on and to validate on, a function of both arguments."""
    order = permutation(num_samples, _VALIDATION)
    held_out = round(num_samples * share)
    return order[held_out:].sort().values, order[:held_out].sort().values
