"""Running functions on those samples of a batch that drew them, at any batch size bit for bit."""

from collections.abc import Callable

import torch
from torch import Tensor

_PART = 1 << 17  # pixels; int32 copies of so many stay in a core's own cache: 3 times faster


def on_host(tensor: Tensor) -> bool:
    """Whether values may decide what is computed: each batch would wait for a device."""
    return tensor.device.type == "cpu"


def chunked(
    function: Callable[..., Tensor], images: Tensor, *parameters: Tensor, pixels: int = _PART
) -> Tensor:
    """`function(images, *parameters)`, on a CPU a few samples at a time.

    Args:
        function: treats each sample by itself.
        images: [B, C, H, W].
        parameters: tensors [B, ...].
        pixels: of a part, for one thread.
    """
    threads = torch.get_num_threads()
    pixels *= 1 if threads == 1 else 2 * threads  # enough for all of them to share
    samples = max(1, pixels // max(1, images[:1].numel()))
    if not on_host(images) or len(images) <= samples:
        return function(images, *parameters)
    parts = zip(*(tensor.split(samples) for tensor in (images, *parameters)), strict=True)
    first = function(*next(parts))
    # Copied while it lies in the cache, a part costs a quarter of what `cat` takes at the end.
    made = first.new_empty((len(images), *first.shape[1:]))
    made[:samples] = first
    for number, part in enumerate(parts, 1):
        made[number * samples : (number + 1) * samples] = function(*part)
    return made


def where_chosen(function: Callable[[Tensor], Tensor], images: Tensor, chosen_B: Tensor) -> Tensor:
    """The images, those with a true in bool `chosen_B` replaced by what `function` makes of them.

    On a CPU the function runs on the chosen samples alone, which are often few.
    """
    if not on_host(images):
        return torch.where(chosen_B.view(-1, 1, 1, 1), function(images), images)
    rows = chosen_B.nonzero().flatten()
    if not len(rows):
        return images
    changed = function(images.index_select(0, rows))
    source_B = torch.arange(len(images), device=images.device)
    source_B[rows] = torch.arange(len(rows), device=images.device) + len(images)
    # Copying whole images out of both is six times faster than writing into a copy.
    return torch.cat((images, changed)).index_select(0, source_B)


def dispatch_by_kind(
    images: Tensor,
    kind_SB: Tensor,
    num_kinds: int,
    apply: Callable[[int, int, Tensor, Tensor], Tensor],
) -> Tensor:
    """Run S rounds, in each of which every sample goes through the function of its own kind.

    For CPUs: a device would be waited for.

    Args:
        images: [B, C, H, W].
        kind_SB: int64, below `num_kinds`.
        num_kinds: how many there are.
        apply: takes round, kind, the images of that kind (at least one) and their places in the
            batch; gives the changed images.
    """
    if not len(images):
        return images
    kinds = torch.arange(num_kinds, device=images.device)
    counts_SK = (kind_SB.unsqueeze(-1) == kinds).sum(1).tolist()
    order_SB = kind_SB.argsort(dim=1, stable=True)
    place_SB = order_SB.argsort(dim=1)
    place_B = torch.arange(len(images), device=images.device)  # where each sample lies now
    for step, counts in enumerate(counts_SK):
        order_B = order_SB[step]
        rows = zip(place_B[order_B].split(counts), order_B.split(counts), strict=True)
        # What was fetched for a kind still lies in the cache when its function reads it.
        images = torch.cat(
            [
                apply(step, kind, images.index_select(0, from_B), to_B)
                for kind, (from_B, to_B) in enumerate(rows)
                if counts[kind]
            ]
        )
        place_B = place_SB[step]
    return images.index_select(0, place_B)
