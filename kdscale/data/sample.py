"""A few images that stand for a whole split, the same whoever chooses them."""

import numpy as np
import torch
from torch import Tensor

from kdscale.data.rng import derive_seed, permutation

_SAMPLE = derive_seed(0x73616D706C65)  # "sample"


def balanced_sample(labels: np.ndarray, count: int, *seed: int) -> Tensor:
    """Choose images at random, as many of each class as of any other where there are as many.

    A pure function of its arguments. The first images of a folder would be of one class.

    Args:
        labels: int64 [N], -1 where a sample has no label.
        count: how many to choose; all where there are fewer.
        seed: chooses the images, and the classes where there are more than `count`.

    Returns:
        int64 indices, ascending.
    """
    if len(labels) <= count:
        return torch.arange(len(labels))
    order = permutation(len(labels), *(seed or (_SAMPLE,))).numpy()
    by_class = np.argsort(labels[order], kind="stable")
    _, sizes = np.unique(labels, return_counts=True)
    # How many of its class come before each image in the random order: first all of rank 0.
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = order[np.argsort(rank, kind="stable")[:count]]
    return torch.from_numpy(np.sort(chosen))
