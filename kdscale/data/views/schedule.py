"""Which view of a sample an epoch uses."""

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from kdscale.data.rng import as_int64, derive_seed, integers, mix, permutation

_SHIFT = derive_seed(0x7368696674)  # "shift"


@dataclass(frozen=True, slots=True)
class ViewSchedule:
    """Uses each of `num_views` views once in every cycle of as many epochs.

    The order within a cycle is a function of (seed, cycle), so coverage is equal, no view waits for
    a fixed turn, and an epoch resumed in its middle goes on as it began.
    """

    num_views: int
    seed: int
    shift_every: int | None = None
    """Number of consecutive samples that have the same view in an epoch; None: all of them.

    Each such block goes through a cycle from another place, so that an epoch mixes views while
    every block still reads one view of its own.
    """

    def view(self, epoch: int, index: Tensor) -> int | Tensor:
        """Return the view of an epoch: one for all samples, or int64 [B] for `index` [B]."""
        cycle, position = divmod(epoch, self.num_views)
        order = _order(self.num_views, self.seed, cycle)
        if self.shift_every is None:
            return int(order[position])
        place = (self._shift(index // self.shift_every) + position) % self.num_views
        return order.to(index.device)[place]

    def _shift(self, block: Tensor) -> Tensor:
        return integers(mix(as_int64(derive_seed(_SHIFT, self.seed)), block), self.num_views)


@lru_cache(maxsize=64)
def _order(num_views: int, seed: int, cycle: int) -> Tensor:
    return permutation(num_views, seed, cycle)
